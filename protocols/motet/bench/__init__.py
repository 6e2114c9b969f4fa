"""Benchmarks: what the codec costs and buys, measured on the machine at hand. Imports neither side, and no torch.

    motet bench codec --params 50000000 --json

Rooms: `data` writes the input, `trials` are the things measured, `memory` and `hashing` the yardsticks of the machine,
`measure` one measurement in a process of its own, `run` all of them one after the other.
"""
