"""Both implementations of the kernels against plain definitions of them, and against each other."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from motet.protocols.codec.kernels import Kernels, best
from motet.protocols.codec.native_kernels import NativeKernels
from motet.protocols.codec.numpy_kernels import SLAB, NumpyKernels
from motet.protocols.errors import CodecError, ConfigurationError

BOTH: list[Kernels] = [NumpyKernels(), NativeKernels()]
each = pytest.mark.parametrize("kernels", BOTH, ids=lambda kernels: kernels.path)
quick = settings(max_examples=150, deadline=None, derandomize=True)

SPECIAL = [0x0000, 0x8000, 0x0001, 0x8001, 0x007F, 0x0080, 0x3F80, 0xBF80, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7F81]
SPECIAL += [0x7FC0, 0xFFC1, 0x7FFF, 0xFFFF]
THRESHOLDS = [0, 1, 2, 0x3F80, 0x7F80, 0x7FFE, 0x7FFF, 0x8000]
SIZES = [0, 1, 7, 8, 9, 63, 64, 65, SLAB - 1, SLAB, SLAB + 1, 2 * SLAB + 9]

bf16 = st.one_of(st.sampled_from(SPECIAL), st.integers(0, 0xFFFF))
chunks = arrays.arrays(np.uint16, st.integers(0, 700), elements=bf16)
thresholds = st.one_of(st.sampled_from(THRESHOLDS), st.integers(0, 0x8000))
floats = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)


def positions_of(gaps: NDArray[np.uint8]) -> list[int]:
    """What gap bytes stand for, one by one."""
    positions, at = [], 0
    for byte in gaps.tolist():
        at += byte
        if byte < 255:
            positions.append(at)
            at += 1
    return positions


def gaps_of(positions: list[int]) -> NDArray[np.uint8]:
    """The gap bytes of positions, one by one."""
    gaps, following = [], 0
    for position in positions:
        gap = position - following
        gaps += [255] * (gap // 255) + [gap % 255]
        following = position + 1
    return np.array(gaps, np.uint8)


def sparse(size: int, positions: list[int]) -> NDArray[np.uint16]:
    """Zeros with a large value, negative at every second one, at the positions."""
    bits = np.zeros(size, np.uint16)
    bits[positions] = np.resize(np.array([0x3F80, 0xBF81], np.uint16), len(positions))
    return bits


def random_bits(size: int) -> NDArray[np.uint16]:
    return np.random.default_rng(size).integers(0, 0x10000, size, dtype=np.uint16)


def check_scan(kernels: Kernels, bits: NDArray[np.uint16], threshold: int) -> None:
    expected = np.flatnonzero((bits & 0x7FFF).astype(int) >= threshold)
    found = kernels.scan(bits, threshold)
    assert (found.gaps.dtype, found.bitmap.dtype, found.kept.dtype) == (np.uint8, np.uint8, np.uint16)
    np.testing.assert_array_equal(found.gaps, gaps_of(expected.tolist()))
    np.testing.assert_array_equal(found.kept, bits[expected])
    reached = (bits & 0x7FFF).astype(int) >= threshold
    np.testing.assert_array_equal(found.bitmap, np.packbits(reached, bitorder="little"))
    for positions in (
        kernels.expand_gaps(found.gaps, bits.size, expected.size),
        kernels.expand_bitmap(found.bitmap, bits.size, expected.size),
    ):
        assert positions.dtype == np.int32
        np.testing.assert_array_equal(positions, expected)


@each
@quick
@given(bits=chunks)
def test_histogram_counts_magnitudes(kernels: Kernels, bits: NDArray[np.uint16]) -> None:
    counts = kernels.histogram(bits)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, np.bincount(bits & 0x7FFF, minlength=32768))


@each
@pytest.mark.parametrize("size", SIZES)
def test_histogram_and_scan_hold_at_the_borders(kernels: Kernels, size: int) -> None:
    bits = random_bits(size)
    np.testing.assert_array_equal(kernels.histogram(bits), np.bincount(bits & 0x7FFF, minlength=32768))
    for threshold in (0, 0x7000, 0x7FFF, 0x8000):
        check_scan(kernels, bits, threshold)


@each
@quick
@given(shape=st.tuples(st.integers(0, 20), st.integers(0, 40)), threshold=thresholds, data=st.data())
def test_rows_are_counted(kernels: Kernels, shape: tuple[int, int], threshold: int, data: st.DataObject) -> None:
    bits = data.draw(arrays.arrays(np.uint16, shape, elements=bf16))
    counts = kernels.count_rows(bits, threshold)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, ((bits & 0x7FFF).astype(int) >= threshold).sum(axis=1))


@each
@pytest.mark.parametrize("shape", [(2, SLAB + 5), (SLAB + 3, 1), (700, 771), (3, 0), (0, 3)])
def test_rows_longer_and_more_than_a_slab_are_counted(kernels: Kernels, shape: tuple[int, int]) -> None:
    bits = random_bits(shape[0] * shape[1]).reshape(shape)
    np.testing.assert_array_equal(kernels.count_rows(bits, 0x4000), ((bits & 0x7FFF) >= 0x4000).sum(axis=1))


@each
@quick
@given(bits=chunks, threshold=thresholds)
def test_scan_keeps_what_reaches_the_threshold(kernels: Kernels, bits: NDArray[np.uint16], threshold: int) -> None:
    check_scan(kernels, bits, threshold)


@each
@quick
@given(data=st.data(), size=st.integers(1, 5000))
def test_long_gaps_round_trip(kernels: Kernels, data: st.DataObject, size: int) -> None:
    positions = sorted(data.draw(st.sets(st.integers(0, size - 1), max_size=6)))
    check_scan(kernels, sparse(size, positions), 1)


@each
@pytest.mark.parametrize("before", [0, 1, 254, 255, 256, 509, 510, 511, SLAB - 1, SLAB, SLAB + 1, 3 * SLAB - 255])
@pytest.mark.parametrize("after", [0, 254, 255, 2 * SLAB])
def test_gaps_of_any_length_cross_slabs(kernels: Kernels, before: int, after: int) -> None:
    check_scan(kernels, sparse(before + after + 2, [before, before + after + 1]), 1)


@each
def test_gap_bytes_fill_several_slabs(kernels: Kernels) -> None:
    positions = np.cumsum(np.random.default_rng(5).choice([1, 2, 255, 256, 257, 600], SLAB)).tolist()
    gaps = gaps_of(positions)
    assert gaps.size > SLAB
    np.testing.assert_array_equal(kernels.expand_gaps(gaps, positions[-1] + 1, SLAB), positions)


@each
def test_scan_takes_views_into_bytes_and_strides(kernels: Kernels) -> None:
    bits = random_bits(1000)
    check_scan(kernels, np.frombuffer(b"x" + bits.tobytes(), np.uint16, offset=1), 0x4000)
    check_scan(kernels, bits[::3], 0x4000)


@quick
@given(gaps=st.binary(max_size=40), values=st.integers(0, 3000), count=st.integers(0, 41))
def test_gaps_are_taken_or_refused_alike(gaps: bytes, values: int, count: int) -> None:
    coded = np.frombuffer(gaps, np.uint8)
    wanted = positions_of(coded)
    valid = len(wanted) == count and (not wanted or wanted[-1] < values) and gaps[-1:] != b"\xff"
    for kernels in BOTH:
        if valid:
            np.testing.assert_array_equal(kernels.expand_gaps(coded, values, count), np.array(wanted, np.int32))
        else:
            with pytest.raises(CodecError):
                kernels.expand_gaps(coded, values, count)


@quick
@given(bitmap=st.binary(max_size=12), values=st.integers(0, 100), count=st.integers(0, 100))
def test_bitmaps_are_taken_or_refused_alike(bitmap: bytes, values: int, count: int) -> None:
    coded = np.frombuffer(bitmap, np.uint8)
    wanted = np.flatnonzero(np.unpackbits(coded, bitorder="little"))
    valid = len(wanted) == count and len(bitmap) == -(-values // 8) and (not count or wanted[-1] < values)
    for kernels in BOTH:
        if valid:
            np.testing.assert_array_equal(kernels.expand_bitmap(coded, values, count), wanted)
        else:
            with pytest.raises(CodecError):
                kernels.expand_bitmap(coded, values, count)


@each
@pytest.mark.parametrize(
    ("gaps", "values", "count", "message"),
    [
        ([1, 2], 100, 3, "saw gaps for 2 kept values, wanted 3"),
        ([1, 2, 0], 100, 2, "saw gaps for 3 kept values, wanted 2"),
        ([1, 2], 4, 2, "lead to value 4, wanted it below 4"),
        ([255, 0], 255, 1, "lead to value 255, wanted it below 255"),
        ([1, 255], 1000, 1, "end with a byte of 255"),
        ([255], 1000, 0, "end with a byte of 255"),
        ([], 2**31, 0, "wanted at most 2147483647"),
        ([], 10, -1, "wanted -1"),
    ],
)
def test_malformed_gaps_are_refused(kernels: Kernels, gaps: list[int], values: int, count: int, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        kernels.expand_gaps(np.array(gaps, np.uint8), values, count)


@each
def test_gaps_past_what_32_bits_hold_are_refused(kernels: Kernels) -> None:
    gaps = np.full(17_000_000, 255, np.uint8)  # 2^32 + 40 032 704: a sum of 32 bits would come out small
    gaps[-1] = 0
    with pytest.raises(CodecError, match="lead to value 4334999745"):
        kernels.expand_gaps(gaps, 2**31 - 1, 1)


@each
@pytest.mark.parametrize(
    ("bitmap", "values", "count", "message"),
    [
        ([0b1], 9, 1, "a bitmap of 1 bytes, wanted 2"),
        ([0b1, 0, 0], 9, 1, "a bitmap of 3 bytes, wanted 2"),
        ([0b1, 0b10], 9, 2, "padding bits set in a bitmap's last byte, 0x02"),
        ([0b111], 8, 2, "a bitmap of 3 kept values, wanted 2"),
        ([0b1], 8, 2, "a bitmap of 1 kept values, wanted 2"),
        ([0b1], 0, 1, "a bitmap of 1 bytes, wanted 0"),
        ([], 2**31, 0, "wanted at most 2147483647"),
    ],
)
def test_malformed_bitmaps_are_refused(
    kernels: Kernels, bitmap: list[int], values: int, count: int, message: str
) -> None:
    with pytest.raises(CodecError, match=message):
        kernels.expand_bitmap(np.array(bitmap, np.uint8), values, count)


def sum_of(stored: NDArray[np.uint16], changes: NDArray[np.float32]) -> NDArray[np.uint16]:
    """What `add_at` should write, rounded by PyTorch."""
    import torch

    exact = torch.from_numpy(stored.view(np.int16).copy()).view(torch.bfloat16).float() + torch.from_numpy(changes)
    rounded = exact.bfloat16().view(torch.int16).numpy().view(np.uint16)
    rounded = np.where(np.isnan(exact.numpy()), np.uint16(0x7FC0), rounded)
    return np.where(changes == 0, stored, rounded)


@each
@quick
@given(pairs=st.lists(st.tuples(bf16, floats), max_size=50), spare=st.integers(0, 5), seed=st.integers(0, 9))
def test_sums_are_what_torch_rounds(kernels: Kernels, pairs: list[tuple[int, float]], spare: int, seed: int) -> None:
    bits = np.array([pair[0] for pair in pairs] + [0x1234] * spare, np.uint16)
    positions = np.random.default_rng(seed).permutation(bits.size)[: len(pairs)].astype(np.int32)
    changes = np.array([pair[1] for pair in pairs], np.float32)
    expected = bits.copy()
    expected[positions] = sum_of(bits[positions], changes)
    kernels.add_at(bits, positions, changes)
    np.testing.assert_array_equal(bits, expected)


@each
def test_every_stored_value_plus_a_small_one(kernels: Kernels) -> None:
    stored = np.arange(2**16, dtype=np.uint16)
    for change in (2.0**-9, -1.0, 3e38, -1e-40, np.inf, np.nan):
        bits, changes = np.tile(stored, 5), np.full(5 * stored.size, change, np.float32)  # more than a slab
        expected = sum_of(bits, changes)
        kernels.add_at(bits, np.arange(bits.size, dtype=np.int32), changes)
        np.testing.assert_array_equal(bits, expected)


@each
def test_ties_go_to_even(kernels: Kernels) -> None:
    bits = np.array([0x3F80, 0x3F81, 0x3F80, 0x7F7F], np.uint16)  # 1, 1 + 2^-7, 1, the largest
    changes = np.array([2.0**-8, 2.0**-8, 2.0**-8 + 2.0**-20, 2.0**119], np.float32)
    kernels.add_at(bits, np.arange(4, dtype=np.int32), changes)
    assert bits.tolist() == [0x3F80, 0x3F82, 0x3F81, 0x7F80]


@each
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_change_of_zero_leaves_every_bit(kernels: Kernels, zero: float) -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    kernels.add_at(bits, np.arange(2**16, dtype=np.int32), np.full(2**16, zero, np.float32))
    np.testing.assert_array_equal(bits, np.arange(2**16))


@each
@pytest.mark.parametrize(
    ("positions", "changes"),
    [([0, 4], 2), ([0, -1], 2), ([3, 2**31 - 1], 2), ([-(2**31), 0], 2), ([0, 1], 1), ([0], 2), ([], 1)],
)
def test_a_position_outside_writes_nothing(kernels: Kernels, positions: list[int], changes: int) -> None:
    bits = np.array([1, 2, 3, 4], np.uint16)
    with pytest.raises(CodecError, match=r"saw (changes at positions|. changes for)"):
        kernels.add_at(bits, np.array(positions, np.int32), np.ones(changes, np.float32))
    assert bits.tolist() == [1, 2, 3, 4]


@each
def test_two_threads_share_one_instance(kernels: Kernels) -> None:
    chunk = random_bits(SLAB + 11)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                check_scan(kernels, chunk, 0x6000)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_best_is_native_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOTET_CODEC_PATH", raising=False)
    assert best().path == "native"
    assert best(1 << 20).path == "numpy"
    monkeypatch.setenv("MOTET_CODEC_PATH", "native")
    assert best(1 << 20).path == "native"
    monkeypatch.setenv("MOTET_CODEC_PATH", "numpy")
    assert best().path == "numpy"
    monkeypatch.setenv("MOTET_CODEC_PATH", "cuda")
    with pytest.raises(ConfigurationError, match="MOTET_CODEC_PATH is 'cuda'"):
        best()


def test_without_numba_numpy_is_best(tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError('no numba here')")
    script = "from motet.protocols.codec.kernels import best\nprint(best().path)"
    environment = {"PYTHONPATH": str(tmp_path), "PATH": ""}
    run = [sys.executable, "-c", script]
    found = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout == "numpy\n"
    forced = environment | {"MOTET_CODEC_PATH": "native"}
    refused = subprocess.run(run, env=forced, capture_output=True, text=True, check=False)
    assert "ConfigurationError: MOTET_CODEC_PATH is native, but numba cannot be imported" in refused.stderr
