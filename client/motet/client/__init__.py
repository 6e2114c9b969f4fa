"""An owner's machine: data, statistics, training, packing, upload, and the worker that runs them.

Nothing here imports `motet.coordinator`.
"""
