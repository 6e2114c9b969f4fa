"""Every method from values to a file and back, and what the file says of itself."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from motet.protocols.codec import (
    METHODS,
    CodecSettings,
    FileSource,
    UpdateReader,
    apply,
    describe,
    encode,
    entropy_bound,
    rescale,
    verify,
)
from motet.protocols.codec.kernels import PATH_VARIABLE
from motet.protocols.codec.native_kernels import NativeKernels
from motet.protocols.codec.numpy_kernels import NumpyKernels
from motet.protocols.errors import CodecError, ConfigurationError, NotFiniteError
from motet.protocols.tensor_files import TensorSpec

from .conftest import ANCHOR, BASE, MemorySource, bf16, floats, random_tensors, specs_of

SMALL = 1 << 10
"""Values in a chunk: many chunks in a small file."""


def dense(tensors: dict[str, np.ndarray], spec: TensorSpec) -> np.ndarray:
    values = tensors[spec.name]
    return floats(values) if spec.dtype == "BF16" else values


def decoded(path: Path, specs: list[TensorSpec], **options) -> dict[str, np.ndarray]:
    with UpdateReader(path, wanted=specs, anchor=ANCHOR, **options) as update:
        return {spec.name: update.tensor(spec.name) for spec in specs}


def encoded(path: Path, tensors, specs, *, chunk_values: int = SMALL, **settings) -> Path:
    encode(path, MemorySource(tensors), specs, CodecSettings(**settings), anchor=ANCHOR, chunk_values=chunk_values)
    return path


@pytest.mark.parametrize("method", ["lossless", "raw"])
def test_lossless_methods_bring_back_every_bit(method, specs, tensors, tmp_path) -> None:
    found = decoded(encoded(tmp_path / "u", tensors, specs, method=method), specs)
    for spec in specs:
        assert np.array_equal(found[spec.name].view(np.uint32), dense(tensors, spec).view(np.uint32))


@pytest.mark.parametrize("method", METHODS)
def test_rows_travel_unchanged_with_every_method(method, specs, tensors, tmp_path) -> None:
    found = decoded(encoded(tmp_path / "u", tensors, specs, method=method), specs)
    for name in ("model.layers.0.mlp.router.weight", "model.layers.0.mlp.router.bias"):
        assert np.array_equal(found[name], tensors[name])


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 1.0])
def test_ternary_keeps_the_largest_of_the_whole_update(density, specs, tensors, tmp_path) -> None:
    found = decoded(encoded(tmp_path / "u", tensors, specs, method="ternary", density=density), specs)
    matrices = [spec for spec in specs if len(spec.shape) == 2]
    values = np.concatenate([dense(tensors, spec).reshape(-1) for spec in matrices])
    changes = np.concatenate([found[spec.name].reshape(-1) for spec in matrices])
    kept = changes != 0
    assert abs(kept.mean() - density) < 0.003
    assert np.array_equal(np.sign(values[kept]), np.sign(changes[kept]))
    if not kept.all():
        assert np.abs(values[kept]).min() >= np.abs(values[~kept]).max()
    for spec in matrices:  # one magnitude a tensor: the mean of what it keeps
        change, value = found[spec.name], dense(tensors, spec)
        assert np.abs(change[change != 0]) == pytest.approx(np.abs(value[change != 0]).mean(), rel=1e-6)


def test_zeros_are_never_kept(tmp_path) -> None:
    specs = specs_of({"a.weight": (4, 8)})
    values = np.zeros((4, 8), np.float32)
    values[1, 2], values[3, 7] = 0.5, -0.25
    found = decoded(encoded(tmp_path / "u", {"a.weight": bf16(values)}, specs, method="ternary", density=1.0), specs)
    assert np.flatnonzero(found["a.weight"]).tolist() == [10, 31]


def test_balanced_rows_compete_in_units_of_their_own_size(tmp_path) -> None:
    specs = specs_of({"a.weight": (64, 128), "b.weight": (32, 128)})
    rng = np.random.default_rng(7)
    spread = np.exp(rng.normal(0, 1, (64, 1)))
    tensors = {"a.weight": bf16(rng.standard_normal((64, 128)) * spread), "b.weight": bf16(np.zeros((32, 128)))}
    tensors["b.weight"][3] = bf16(rng.standard_normal(128) * 1e-4)
    for balance, low, high in ((0.0, 0.0, 1.0), (1.0, 0.02, 0.25)):
        path = encoded(tmp_path / "u", tensors, specs, method="ternary", density=0.05, balance=balance)
        change, value = decoded(path, specs)["a.weight"], floats(tensors["a.weight"])
        kept = change != 0
        shares = kept.mean(axis=1)
        assert low <= shares.min()
        assert shares.max() <= high
        assert np.abs(change[kept]) == pytest.approx(np.abs(value[kept]).mean(), rel=1e-6)
        size = np.sqrt((value.astype(np.float64) ** 2).mean(axis=1, keepdims=True)) ** balance
        weighed = np.abs(value) / size
        assert weighed[kept].min() >= weighed[~kept].max() * (1 - 2**-7)  # ranks are rounded to bf16
        assert (decoded(path, specs)["b.weight"][3] != 0).any() == (balance == 1.0)
        assert not decoded(path, specs)["b.weight"][4].any()


@pytest.mark.parametrize("balance", [0.0, 0.75])
def test_the_factor_makes_up_for_what_is_dropped(balance, specs, tensors, tmp_path) -> None:
    settings = CodecSettings(method="ternary", density=0.05, balance=balance)
    made = encode(tmp_path / "u", MemorySource(tensors), specs, settings, anchor=ANCHOR)
    matrices = [spec for spec in specs if len(spec.shape) == 2]
    values = np.concatenate([dense(tensors, spec).reshape(-1) for spec in matrices])
    found = decoded(tmp_path / "u", specs)
    kept = np.concatenate([found[spec.name].reshape(-1) != 0 for spec in matrices])
    assert made.factor == pytest.approx((np.abs(values).sum() / np.abs(values[kept]).sum()) ** 0.5, rel=1e-5)
    assert made.header == verify(tmp_path / "u")


def test_row_scales_follow_each_row(specs, tensors, tmp_path) -> None:
    path = encoded(tmp_path / "u", tensors, specs, method="ternary", density=0.3, row_scales=True)
    name = "model.layers.0.mlp.up_proj.weight"
    change, value = decoded(path, specs)[name], floats(tensors[name])
    mean = np.abs(value[change != 0]).mean()
    for row, kept in zip(value, change != 0, strict=True):
        if kept.any():
            made = np.abs(change[np.where((value == row).all(axis=1))[0][0]][kept])
            assert made == pytest.approx((np.abs(row[kept]).mean() * mean) ** 0.5, rel=2 ** (1 / 32) - 1)


@pytest.mark.parametrize("step", [0.05, 0.5, 1.0, 3.0])
def test_levels_miss_by_at_most_a_dead_zone(step, specs, tensors, tmp_path) -> None:
    found = decoded(encoded(tmp_path / "u", tensors, specs, method="levels", step=step), specs)
    matrices = [spec for spec in specs if len(spec.shape) == 2]
    values = np.concatenate([dense(tensors, spec).reshape(-1) for spec in matrices])
    size = step * np.sqrt((values.astype(np.float64) ** 2).mean())
    changes = np.concatenate([found[spec.name].reshape(-1) for spec in matrices])
    assert np.abs(changes - values).max() <= 0.63 * size


@pytest.mark.parametrize(("method", "limit"), [("int8", 127), ("int4", 7)])
@pytest.mark.parametrize("block", [8, 64, 100])
def test_blocks_miss_by_half_a_step(method, limit, block, specs, tensors, tmp_path) -> None:
    path = encoded(tmp_path / "u", tensors, specs, method=method, block=block, chunk_values=1 << 22)
    found = decoded(path, specs)
    for spec in specs[:3]:
        value, change = dense(tensors, spec).reshape(-1), found[spec.name].reshape(-1)
        for start in range(0, len(value), block):
            part = slice(start, start + block)
            assert np.abs(change[part] - value[part]).max() <= np.abs(value[part]).max() / limit * 0.51


@pytest.mark.parametrize("method", METHODS)
def test_numpy_and_native_write_the_same_file(method, specs, tensors, tmp_path) -> None:
    for paths in (NumpyKernels(), NativeKernels()):
        encode(
            tmp_path / paths.path,
            MemorySource(tensors),
            specs,
            CodecSettings(method=method),
            anchor=ANCHOR,
            chunk_values=SMALL,
            paths=paths,
        )
    assert (tmp_path / "numpy").read_bytes() == (tmp_path / "native").read_bytes()
    reference = decoded(tmp_path / "native", specs, paths=NumpyKernels())
    for name, values in decoded(tmp_path / "numpy", specs, paths=NativeKernels()).items():
        assert np.array_equal(values, reference[name])


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_workers_changes_nothing(workers, specs, difference_file, tmp_path) -> None:
    with FileSource(difference_file) as source:
        for count in (1, workers):
            encode(
                tmp_path / str(count), source, specs, CodecSettings(method="ternary"), anchor=ANCHOR,
                chunk_values=SMALL, workers=count,
            )  # fmt: skip
    assert (tmp_path / "1").read_bytes() == (tmp_path / str(workers)).read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_applying_is_the_definition_of_an_expert(method, specs, tensors, tmp_path) -> None:
    import torch

    path = encoded(tmp_path / "u", tensors, specs, method=method)
    matrices = [spec for spec in specs if len(spec.shape) == 2]
    anchor = random_tensors(matrices, seed=1, spread=0.02)
    anchor["model.layers.0.mlp.up_proj.weight"][3] = 0x8000  # negative zeros
    made: dict[str, list[np.ndarray]] = {spec.name: [] for spec in matrices}
    with UpdateReader(path, wanted=specs, anchor=ANCHOR) as update:
        changes = {spec.name: update.tensor(spec.name) for spec in matrices}
        stored = MemorySource(anchor)
        for spec, start, words in apply(update, lambda *chunk: stored.read(*chunk).tobytes(), matrices):
            assert start == sum(map(len, made[spec.name]))
            made[spec.name].append(words)
    for spec in matrices:
        before = torch.from_numpy(anchor[spec.name].view(np.int16)).view(torch.bfloat16)
        change = torch.from_numpy(changes[spec.name])
        wanted = torch.where(change == 0, before, (before.float() + change).bfloat16()).view(torch.int16)
        assert np.array_equal(np.concatenate(made[spec.name]), wanted.numpy().reshape(-1).view(np.uint16))


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_an_anchor_may_have_another_dtype(dtype, specs, tensors, tmp_path) -> None:
    path = encoded(tmp_path / "u", tensors, specs, method="ternary")
    name = "model.layers.0.mlp.down_proj.weight"
    spec = TensorSpec(name=name, dtype=dtype, shape=(64, 37))
    words = np.random.default_rng(2).standard_normal(64 * 37).astype({"F32": "<f4", "F16": "<f2"}[dtype])
    size = words.itemsize
    with UpdateReader(path) as update:
        change = update.tensor(name).reshape(-1)
        parts = apply(update, lambda _, start, count: words.tobytes()[start * size : (start + count) * size], [spec])
        made = np.concatenate([part for _, _, part in parts])
    assert np.array_equal(made, (words.astype(np.float32) + change).astype(words.dtype))


def test_an_expert_that_is_not_finite_is_refused(tmp_path) -> None:
    specs = specs_of({"a.weight": (2, 8)})
    path = encoded(tmp_path / "u", {"a.weight": bf16(np.full((2, 8), 3e38))}, specs, method="raw")
    with UpdateReader(path) as update, pytest.raises(CodecError, match=r"a\.weight, chunk 0: saw a value that is not"):
        list(apply(update, lambda spec, start, count: bf16(np.full(count, 3e38)).tobytes(), specs))


@pytest.mark.parametrize("bits", [0x7FC0, 0x7FFF, 0x7F80, 0xFF80])
@pytest.mark.parametrize("method", ["ternary", "balanced", "levels", "int4", "lossless", "raw"])
def test_values_that_are_not_finite_are_not_encoded(method, bits, specs, tensors, tmp_path) -> None:
    broken = {name: values.copy() for name, values in tensors.items()}
    broken["model.layers.0.mlp.up_proj.weight"][5, 7] = bits
    settings = {"method": "ternary", "balance": 0.5} if method == "balanced" else {"method": method}
    with pytest.raises(NotFiniteError, match=r"up_proj\.weight: saw NaN or infinity"):
        encoded(tmp_path / "u", broken, specs, **settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["ternary", "levels"])
def test_rescaling_changes_scales_alone(method, specs, tensors, tmp_path) -> None:
    path = encoded(tmp_path / "u", tensors, specs, method=method)
    rescale(path, tmp_path / "other", 2.5)
    verify(tmp_path / "other")
    before, after = decoded(path, specs), decoded(tmp_path / "other", specs)
    looked = decoded(path, specs, factor=2.5)
    for spec in specs:
        factor = 2.5 if len(spec.shape) == 2 else 1.0
        assert after[spec.name] == pytest.approx(before[spec.name] * factor, rel=1e-6)
        assert np.array_equal(after[spec.name], looked[spec.name])
    with pytest.raises(CodecError, match="out of its range"):
        rescale(path, tmp_path / "wild", 1e12)


@pytest.mark.parametrize("settings", [{"row_scales": True}, {"balance": 0.5}, {"method": "levels"}])
def test_a_factor_writes_what_rescaling_would(settings, specs, tensors, tmp_path) -> None:
    settings = CodecSettings(**{"method": "ternary", "density": 0.1} | settings)
    made = {}
    for name, factor in {"plain": 1.0, "larger": 1.75, "own": None}.items():
        made[name] = encode(tmp_path / name, MemorySource(tensors), specs, settings, anchor=ANCHOR, factor=factor)
        assert made[name].header == verify(tmp_path / name)
        assert made[name].factor == made["plain"].factor
    for name, factor in {"larger": 1.75, "own": made["plain"].factor}.items():
        rescale(tmp_path / "plain", tmp_path / "wanted", factor)
        assert (tmp_path / name).read_bytes() == (tmp_path / "wanted").read_bytes()
    with pytest.raises(CodecError, match="out of its range"):
        encode(tmp_path / "wild", MemorySource(tensors), specs, settings, anchor=ANCHOR, factor=1e12)
    assert not (tmp_path / "wild").exists()


def test_a_step_that_would_cut_values_off_is_refused(specs, tensors, tmp_path) -> None:
    with pytest.raises(CodecError, match=r"steps of .*, wanted at most 256 steps") as caught:
        encoded(tmp_path / "u", tensors, specs, method="levels", step=0.003)
    assert list(tmp_path.iterdir()) == []
    step = float(re.search(r"a step of at least (\S+),", str(caught.value)).group(1))
    found = decoded(encoded(tmp_path / "u", tensors, specs, method="levels", step=step), specs)
    with pytest.raises(CodecError, match="wanted at most 256 steps"):
        encoded(tmp_path / "v", tensors, specs, method="levels", step=0.98 * step)
    values = {spec.name: dense(tensors, spec) for spec in specs[:3]}
    size = step * np.sqrt(np.mean(np.concatenate([each.reshape(-1) for each in values.values()]) ** 2, dtype=float))
    for name, value in values.items():
        assert np.abs(found[name] - value).max() <= 0.63 * size


@pytest.mark.parametrize("settings", [{}, {"balance": 1.0}, {"method": "levels", "step": 300.0}])
@pytest.mark.parametrize("value", [3e38, 2e5])
def test_values_that_no_scale_reaches_are_refused_not_cut(settings, value, tmp_path) -> None:
    specs = specs_of({"a.weight": (4, 8)})
    values = np.full((4, 8), value, np.float32)
    values[1, 1:] = 0
    with pytest.raises(CodecError, match=r"a\.weight: saw values that take a scale of .*, wanted at most 10000"):
        encoded(tmp_path / "u", {"a.weight": bf16(values)}, specs, **{"method": "ternary", "density": 1.0} | settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bits", [0x0001, 0x8001, 0x0080])
def test_a_balanced_row_of_next_to_nothing_is_finite(bits, tmp_path) -> None:
    specs = specs_of({"a.weight": (16, 64)})
    matrix = bf16(np.random.default_rng(8).standard_normal((16, 64)))
    matrix[3] = 0
    matrix[3, 5] = bits
    path = encoded(tmp_path / "u", {"a.weight": matrix}, specs, method="ternary", balance=1.0, density=0.25)
    change = decoded(path, specs)["a.weight"]
    assert 0.2 < (change != 0).mean() < 0.3
    assert not change[3, :5].any()


def test_what_the_format_cannot_hold_is_a_codec_error(tmp_path) -> None:
    long = TensorSpec(name="a.weight", dtype="BF16", shape=(1, (1 << 22) + 1))
    source = MemorySource({"a.weight": np.zeros((1, (1 << 22) + 1), np.uint16)})
    for method in METHODS:
        with pytest.raises(CodecError, match=r"a\.weight: .*rows of at most 4194304"):
            encode(tmp_path / "u", source, [long], CodecSettings(method=method), anchor=ANCHOR)
    short = [TensorSpec(name="a.weight", dtype="BF16", shape=(1, 4))]
    for digests in ({"anchor": "sha256:a"}, {"anchor": ANCHOR, "base": "b"}, {"anchor": ANCHOR, "chunk_values": 1}):
        with pytest.raises(CodecError, match=f"^u: {list(digests)[-1]}: "):
            encode(tmp_path / "u", source, short, CodecSettings(), **digests)
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_is_no_update_and_nobody_waits_for_it(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
        with pytest.raises(CodecError, match="cannot be read"):
            UpdateReader(path)


def test_a_reader_that_cannot_begin_lets_go_of_its_file(specs, tensors, tmp_path, monkeypatch) -> None:
    path = encoded(tmp_path / "u", tensors, specs, method="lossless")
    opened = lambda: sum(each.resolve() == path for each in Path("/proc/self/fd").iterdir())  # noqa: E731
    monkeypatch.setenv(PATH_VARIABLE, "zip")
    with pytest.raises(ConfigurationError) as caught:
        UpdateReader(path)
    assert opened() == 0, caught  # its frames are alive in the traceback
    with pytest.raises(CodecError):
        UpdateReader(path, wanted=[], paths=NumpyKernels())
    assert opened() == 0


def test_another_anchor_base_or_shape_is_refused(specs, tensors, tmp_path) -> None:
    path = tmp_path / "medicine.motetup"
    encode(path, MemorySource(tensors), specs, CodecSettings(), anchor=ANCHOR, base=BASE)
    with pytest.raises(CodecError, match=r"medicine\.motetup: anchor: saw sha256:a+, wanted sha256:b+"):
        UpdateReader(path, anchor=BASE)
    with pytest.raises(CodecError, match=r"base: saw sha256:b+, wanted None"):
        UpdateReader(path, anchor=ANCHOR)
    UpdateReader(path, anchor=ANCHOR, base=BASE).close()
    with pytest.raises(CodecError, match=r"router\.bias: saw F32 \(1,\), wanted no such tensor"):
        UpdateReader(path, wanted=specs[:-1])
    other = [*specs[:-1], TensorSpec(name=specs[-1].name, dtype="F32", shape=(2,))]
    with pytest.raises(CodecError, match=r"saw F32 \(1,\), wanted F32 \(2,\)"):
        UpdateReader(path, wanted=other)


@pytest.mark.parametrize("density", [0.01, 0.05, 0.1, 0.2, 0.25, 0.35, 0.4, 0.5])
def test_ternary_stays_within_one_per_cent_of_the_bound(density, tmp_path) -> None:
    specs = specs_of({f"model.layers.{layer}.mlp.up_proj.weight": (1 << 11, 1 << 11) for layer in range(2)})
    tensors = random_tensors(specs, seed=3)
    path = encoded(tmp_path / "u", tensors, specs, method="ternary", density=density, chunk_values=1 << 22)
    found = describe(path)
    assert found.density == pytest.approx(density, rel=0.005)
    assert found.bound == entropy_bound(found.density)
    assert 8 * path.stat().st_size == pytest.approx(found.bits_per_parameter * found.parameters)
    assert found.bits_per_parameter <= 1.01 * found.bound


def test_rows_of_different_density_go_below_the_bound(tmp_path) -> None:
    specs = specs_of({"a.weight": (1024, 1024)})
    rng = np.random.default_rng(4)
    spread = np.exp(rng.normal(0, 0.5, (1024, 1)))
    tensors = {"a.weight": bf16(rng.standard_normal((1024, 1024)) * spread)}
    for density in (0.01, 0.05, 0.2, 0.5):
        path = encoded(tmp_path / "u", tensors, specs, method="ternary", density=density, chunk_values=1 << 20)
        change = decoded(path, specs)["a.weight"]
        assert (change != 0).mean() == pytest.approx(density, rel=0.02)
        assert describe(path).over_bound_percent < 0


def test_lossless_of_gaussian_differences_takes_two_thirds(tmp_path) -> None:
    specs = specs_of({"a.weight": (1024, 1024)})
    tensors = {"a.weight": bf16(np.random.default_rng(5).standard_normal((1024, 1024)) * 1e-3)}
    path = encoded(tmp_path / "u", tensors, specs, method="lossless", chunk_values=1 << 22)
    assert path.stat().st_size < 0.665 * specs[0].nbytes


@pytest.mark.parametrize(("method", "balance", "passes"), [("ternary", 0, 2), ("ternary", 0.5, 4), ("lossless", 0, 1)])
def test_progress_reaches_its_total(method, balance, passes, specs, tensors, tmp_path) -> None:
    told: list[tuple[int, int]] = []
    encode(
        tmp_path / "u",
        MemorySource(tensors),
        specs,
        CodecSettings(method=method, balance=balance),
        anchor=ANCHOR,
        on_progress=lambda done, total: told.append((done, total)),
    )
    total = passes * 3 * 37 * 64 + 65
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
