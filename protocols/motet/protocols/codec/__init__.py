"""The codec: an expert's update as bytes on the wire, near the entropy bound, through bounded memory.

    encode(path, source, specs, CodecSettings(method="ternary", density=0.2), anchor=digest)
    with UpdateReader(path, wanted=specs, anchor=digest) as update:
        for spec, start, values in apply(update, stored, anchor_specs):
            ...

docs/format.md describes the file; tests/vectors hold examples of it that are kept for ever. Rooms: `sparse`, `blocks`
and `planes` are the methods, from a chunk's values to its payload and back; `frames` and `header` the file around
them; `survey` the choice of thresholds and scales; `changes` what a decoded chunk does to the anchor; `kernels` the
inner loops, in numpy and native.
"""

from motet.protocols.codec.changes import Change, DenseChange, SparseChange
from motet.protocols.codec.decoder import UpdateReader, apply, verify
from motet.protocols.codec.description import Description, describe, entropy_bound, expected_bits
from motet.protocols.codec.encoder import Encoding, FileSource, encode, rescale
from motet.protocols.codec.header import CHUNK_VALUES, Header, TensorHeader
from motet.protocols.codec.planning import Source
from motet.protocols.codec.settings import METHODS, CodecSettings, Method

__all__ = [
    "CHUNK_VALUES",
    "METHODS",
    "Change",
    "CodecSettings",
    "DenseChange",
    "Description",
    "Encoding",
    "FileSource",
    "Header",
    "Method",
    "Source",
    "SparseChange",
    "TensorHeader",
    "UpdateReader",
    "apply",
    "describe",
    "encode",
    "entropy_bound",
    "expected_bits",
    "rescale",
    "verify",
]
