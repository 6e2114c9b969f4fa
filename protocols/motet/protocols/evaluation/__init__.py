"""Evaluation as pure functions of losses: matrix, intervals, gap closed, shares, calibration, and the page of it all.

Guarantees: values in, values out; no torch, no files, no text. Both sides and the benchmarks compute the same figures.

    cells, ends = matrix(measured), intervals(measured)
    closed = gap_closed(cells)
    better = difference(measured, "composite:filter", "composite:token")["average"]
    Evaluation(systems=cells, intervals=ends, gap_closed=closed).html()
"""

from motet.protocols.evaluation.bootstrap import Interval, difference, draws, intervals, pool
from motet.protocols.evaluation.gaps import Gap, gap_closed, summary
from motet.protocols.evaluation.losses import AVERAGE, PUBLIC, DocumentLosses, Measured, Seeds, bits_per_byte, matrix
from motet.protocols.evaluation.page import Comparison, Evaluation, OptOut, RankPoint, opt_outs
from motet.protocols.evaluation.positions import Bucket, Positions
from motet.protocols.evaluation.reliability import BINS, Bin, Histogram, Reliability, reliability
from motet.protocols.evaluation.shares import leave_one_out, shapley, subsets

__all__ = [
    "AVERAGE",
    "BINS",
    "PUBLIC",
    "Bin",
    "Bucket",
    "Comparison",
    "DocumentLosses",
    "Evaluation",
    "Gap",
    "Histogram",
    "Interval",
    "Measured",
    "OptOut",
    "Positions",
    "RankPoint",
    "Reliability",
    "Seeds",
    "bits_per_byte",
    "difference",
    "draws",
    "gap_closed",
    "intervals",
    "leave_one_out",
    "matrix",
    "opt_outs",
    "pool",
    "reliability",
    "shapley",
    "subsets",
    "summary",
]
