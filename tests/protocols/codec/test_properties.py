"""Any values that may be encoded come back; any change to a file is refused, or both decoders read the same in it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from motet.protocols.codec import CodecSettings, UpdateReader, encode, verify
from motet.protocols.codec.kernels import Kernels
from motet.protocols.codec.native_kernels import NativeKernels
from motet.protocols.codec.numpy_kernels import NumpyKernels
from motet.protocols.errors import CodecError
from motet.protocols.tensor_files import TensorSpec

from . import reference
from .conftest import ANCHOR, MemorySource, floats
from .surgery import fields
from .trial import SEEDS, Trial

quick = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SPECIAL = [0x0000, 0x8000, 0x0001, 0x8001, 0x007F, 0x0080, 0x3F80, 0xBF80, 0x3A83, 0x461C, 0x4B00, 0x7F7F, 0xFF7F]
finite = st.one_of(
    st.sampled_from(SPECIAL), st.integers(0x3900, 0x3BFF), st.integers(0xB900, 0xBBFF), st.integers(0, 0x7F7F)
)
matrices = arrays.arrays(np.uint16, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=finite)
choices = st.one_of(
    st.builds(
        CodecSettings,
        method=st.just("ternary"),
        density=st.floats(1e-3, 1),
        balance=st.sampled_from([0.0, 0.5, 1.0]),
        row_scales=st.booleans(),
    ),
    st.builds(CodecSettings, method=st.just("levels"), step=st.floats(1e-3, 1e3)),
    st.builds(CodecSettings, method=st.sampled_from(["int8", "int4"]), block=st.integers(8, 100)),
    st.builds(CodecSettings, method=st.sampled_from(["lossless", "raw"])),
)


@quick
@given(matrix=matrices, chosen=choices, paths=st.sampled_from([NumpyKernels(), NativeKernels()]))
def test_what_is_written_can_be_read(matrix: np.ndarray, chosen: CodecSettings, paths: Kernels, tmp_path: Path) -> None:
    spec, path = TensorSpec(name="a", dtype="BF16", shape=matrix.shape), tmp_path / "u"
    try:
        encode(path, MemorySource({"a": matrix}), [spec], chosen, anchor=ANCHOR, chunk_values=1 << 10, paths=paths)
    except CodecError:
        refused = True  # what no scale reaches
    else:
        refused = False
    if refused:
        values = np.abs(floats(matrix).astype(np.float64))
        rms = np.sqrt((values**2).mean())
        assert values.max() > 1e4 or (chosen.method == "levels" and values.max() > 256 * chosen.step * rms)
        return
    verify(path)
    with UpdateReader(path, wanted=[spec], anchor=ANCHOR) as update:
        found = update.tensor("a")
    np.testing.assert_array_equal(found.reshape(-1), reference.decode(path.read_bytes())[1]["a"])
    if chosen.method in ("lossless", "raw"):
        np.testing.assert_array_equal(found.view(np.uint32), floats(matrix).view(np.uint32))
    else:
        assert (np.sign(found) * np.sign(floats(matrix)) >= 0).all()


def test_tiny_steps_are_refused(tmp_path: Path) -> None:
    test_what_is_written_can_be_read.hypothesis.inner_test(
        np.full((3, 4), 0x3F80, np.uint16), CodecSettings(method="levels", step=1e-3), NumpyKernels(), tmp_path
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["ternary", "levels", "int8", "int4", "lossless", "raw"])
@pytest.mark.parametrize("bits", [0x0000, 0x8000, 0x0001, 0x7F7F])
def test_one_value_all_over(method: str, bits: int, tmp_path: Path) -> None:
    test_what_is_written_can_be_read.hypothesis.inner_test(
        np.full((30, 40), bits, np.uint16), CodecSettings(method=method, density=1.0), NumpyKernels(), tmp_path
    )


edits = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 1 << 16), st.sampled_from(["set", "cut", "add"]), st.integers(0, 255)),
    min_size=1,
    max_size=4,
)


@quick
@given(seed=st.sampled_from(sorted(SEEDS)), changes=edits)
def test_several_fields_changed_at_once(seed: str, changes: list, tmp_path: Path) -> None:
    trial = Trial(tmp_path, SEEDS[seed])
    found = fields(trial.parts, 0)
    contents = [bytearray(field.data if field.content is None else field.content) for field in found]
    for which, at, action, byte in changes:
        content = contents[which % len(contents)]
        at %= len(content) + 1
        match action:
            case "set" if at < len(content):
                content[at] = byte
            case "cut":
                del content[at : at + 1 + byte % 4]
            case _:
                content[at:at] = bytes([byte])
    payload = b"".join(field.changed(bytes(content)) for field, content in zip(found, contents, strict=True))
    trial(trial.parts.with_payload(0, payload).build())
