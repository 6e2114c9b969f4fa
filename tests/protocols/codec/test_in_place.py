"""What is added to: bytes stay as they are, a bytearray is taken over, so that a chunk of the anchor is there once."""

import numpy as np
import pytest

from motet.protocols.codec.changes import Change, DenseChange, SparseChange, narrow, widen
from motet.protocols.codec.numpy_kernels import NumpyKernels
from motet.protocols.errors import TensorFileError
from motet.protocols.tensor_files import TensorReader, TensorSpec, TensorWriter

BEFORE = narrow(np.array([1, -2, 3, 0.5], np.float32), "BF16").view(np.uint16)


def sparse() -> Change:
    at, changes = np.array([1, 3], np.int32), np.array([0.25, -4], np.float32)
    return SparseChange(start=0, count=4, where="here", positions=at, changes=changes, kernels=NumpyKernels())


def dense() -> Change:
    changes = np.array([0, 0.25, 0, -4], np.float32)
    return DenseChange(start=0, count=4, where="here", slab=lambda start, stop: changes[start:stop])


@pytest.mark.parametrize("change", [sparse(), dense()], ids=["sparse", "dense"])
def test_only_a_bytearray_is_changed(change: Change) -> None:
    kept, given = BEFORE.tobytes(), bytearray(BEFORE.tobytes())
    found = change.add_to(kept, "BF16")
    assert widen(found, "BF16").tolist() == [1, -1.75, 3, -3.5]
    assert kept == BEFORE.tobytes()
    taken = change.add_to(given, "BF16")
    assert np.array_equal(taken, found)
    assert given == found.tobytes()


def test_a_slice_is_read_into_memory_that_is_there(tmp_path) -> None:
    with TensorWriter(tmp_path / "file", [TensorSpec(name="a", dtype="U8", shape=(10,))]) as writer:
        writer.write("a", bytes(range(10)))
    with TensorReader(tmp_path / "file") as reader:
        target = bytearray(4)
        reader.slice_into("a", 3, target)
        assert target == reader.slice("a", 3, 4) == bytes([3, 4, 5, 6])
        with pytest.raises(TensorFileError, match="wanted some of its 10"):
            reader.slice_into("a", 7, target)
