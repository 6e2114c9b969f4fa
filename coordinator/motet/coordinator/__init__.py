"""The coordinator: a home on disk, admission, ledger, assembly, evaluation, and the services in front of them.

Nothing here imports `motet.client`.
"""
