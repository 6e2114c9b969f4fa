"""`motet bench codec` reports what the files and the formula say. How fast anything is, is never asserted."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import typer

from motet.bench.data import TENSORS, Inputs, specs_of, write_inputs
from motet.bench.measure import Job, measure
from motet.bench.memory import MemoryWatch
from motet.bench.rows import DENSITIES, MEASURED, Case, cases
from motet.bench.trials import bound_of, trial_of
from motet.cli import run
from motet.protocols.codec import FileSource
from motet.protocols.codec.changes import narrow, widen
from motet.protocols.codec.native_kernels import NativeKernels
from motet.protocols.codec.numpy_kernels import NumpyKernels
from motet.protocols.output import bench_group

PARAMS = 200_000
KEYS = {
    *("method", "path", "density", "bits_per_parameter", "bound", "over_bound_percent", "encode_mb_s", "decode_mb_s"),
    *("encode_vs_sha256", "decode_vs_sha256", "extra_rss_mb"),
}
ONE_OF_EACH = [case for case in cases(MEASURED, native=True) if case.density in (None, 0.2, 0.4)]


def bound(k: float) -> float:
    return -k * math.log2(k) - (1 - k) * math.log2(1 - k) + k


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Never write into them."""
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(Inputs.in_folder(folder), specs_of(PARAMS))
    return Inputs.in_folder(folder)


def floats(path: Path) -> dict[str, np.ndarray]:
    with FileSource(path) as source:
        return {spec.name: widen(source.read(spec, 0, spec.nbytes // 2), "BF16") for spec in source.specs}


def test_the_input_is_what_it_says(inputs: Inputs) -> None:
    differences, anchor = floats(inputs.difference), floats(inputs.anchor)
    assert len(differences) == TENSORS
    assert differences.keys() == anchor.keys()
    values = np.concatenate(list(differences.values()))
    assert len(values) == PARAMS
    assert values.std() == pytest.approx(1e-3, rel=0.02)
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.01  # independent positions
    assert abs(np.corrcoef(values, np.concatenate(list(anchor.values())))[0, 1]) < 0.01
    assert np.mean(np.abs(values) < 1e-3) == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.01)  # Gaussian


def test_the_input_is_the_same_every_time(inputs: Inputs, tmp_path: Path) -> None:
    again = Inputs.in_folder(tmp_path)
    told: list[tuple[int, int]] = []
    write_inputs(again, specs_of(PARAMS), on_progress=lambda done, total: told.append((done, total)))
    assert again.difference.read_bytes() == inputs.difference.read_bytes()
    assert again.anchor.read_bytes() == inputs.anchor.read_bytes()
    assert told[-1] == (4 * PARAMS, 4 * PARAMS)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
def test_a_row_is_what_the_file_says(case: Case, inputs: Inputs, tmp_path: Path) -> None:
    for path in (inputs.difference, inputs.anchor):
        (tmp_path / path.name).symlink_to(path)
    measured = measure(Job(case=case, folder=str(tmp_path)))
    row, size = measured.row, (tmp_path / "measured").stat().st_size
    assert set(row.model_dump()) == KEYS
    assert (row.method, row.path) == (case.method, case.path)
    assert row.bits_per_parameter * PARAMS / 8 == pytest.approx(size, abs=1e-3)
    assert row.density == (None if case.density is None else pytest.approx(case.density, rel=0.05))
    if row.density is None:
        assert row.bound is row.over_bound_percent is None
    else:
        assert row.bound == pytest.approx(bound(row.density), rel=2e-3)
        assert row.over_bound_percent == pytest.approx(100 * (row.bits_per_parameter / row.bound - 1))
    assert row.encode_vs_sha256 == pytest.approx(row.encode_mb_s / measured.sha256_mb_s)
    assert row.decode_vs_sha256 == pytest.approx(row.decode_mb_s / measured.sha256_mb_s)
    assert min(row.encode_mb_s, row.decode_mb_s) > 0
    assert row.extra_rss_mb >= 0


@pytest.mark.parametrize("method", ["safetensors", "zstd-3", "2-bit", "lossless"])
def test_a_trial_makes_the_expert(method: str, inputs: Inputs, tmp_path: Path) -> None:
    """Packed and unpacked: the anchor plus the differences, or plus the ternary update where there is a density."""
    density = 0.2 if method in ("2-bit", "zstd-3") else None
    here = Inputs.in_folder(tmp_path)
    for path, target in ((here.difference, inputs.difference), (here.anchor, inputs.anchor)):
        path.symlink_to(target)
    trial = trial_of(Case(method=method, path="numpy", density=density), NumpyKernels())
    trial.prepare(here)
    trial.encode(here, tmp_path / "out")
    found = np.concatenate(list(trial.decode(here, tmp_path / "out")))
    changes = floats(here.difference if density is None else tmp_path / "ternary.safetensors")
    anchor = floats(here.anchor)
    wanted = np.concatenate([narrow(anchor[name] + change, "BF16") for name, change in changes.items()])
    assert np.array_equal(found, wanted)
    if density is not None:
        assert np.mean(np.concatenate(list(changes.values())) != 0) == pytest.approx(density, abs=0.01)
        assert all(len(np.unique(np.abs(change))) == 2 for change in changes.values())
    if method == "2-bit":
        assert (tmp_path / "out").stat().st_size == PARAMS // 4 + 4 * TENSORS


def test_cases_side_by_side() -> None:
    both = cases(MEASURED, native=True)
    ternary = [(case.density, case.path) for case in both if case.method == "ternary"]
    assert ternary == [(density, path) for density in DENSITIES for path in ("numpy", "native")]
    assert {case.method for case in both} == set(MEASURED)
    assert {case.path for case in cases(MEASURED, native=False)} == {"numpy"}
    assert {case.method for case in cases(("raw", "2-bit"), native=True)} == {"raw", "2-bit"}


def test_memory_is_seen() -> None:
    watch = MemoryWatch.begin()
    before = watch.extra_mb()
    block = np.ones(64 << 20, np.uint8)
    assert block[::4096].all()
    del block
    assert watch.extra_mb() - before == pytest.approx(67, abs=25) or not watch.exact


def test_rooms_share_one_group() -> None:
    app = typer.Typer()
    group = bench_group(app)
    assert bench_group(app) is group
    assert bench_group(typer.Typer()) is not group


def test_the_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "codec", "--help"]) == 0
    said = capsys.readouterr().out
    for each in (*MEASURED, "--params", "--tmp", "--json", "fsync", "SHA-256"):
        assert each in said, each
    assert run(["bench", "--help"]) == 0
    assert "codec" in capsys.readouterr().out


def test_measuring_needs_no_torch() -> None:
    code = "import sys, motet.bench.measure, motet.bench.run, motet.bench.commands\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--methods", "ternary,zip"), 2, "zip"),
        (("--params", "1999"), 3, "--params"),
        (("--tmp", "/nowhere/at/all"), 3, "--tmp"),
    ],
)
def test_a_wrong_call(arguments, code, said, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "codec", *arguments]) == code
    found = capsys.readouterr()
    assert said in found.err
    assert found.out == ""


@pytest.mark.parametrize("density", DENSITIES)
def test_both_paths_write_the_same_at_every_density(density: float, inputs: Inputs, tmp_path: Path) -> None:
    here = Inputs.in_folder(tmp_path)
    here.difference.symlink_to(inputs.difference)
    here.anchor.symlink_to(inputs.anchor)
    for path, kernels in (("numpy", NumpyKernels()), ("native", NativeKernels())):
        trial = trial_of(Case(method="ternary", path=path, density=density), kernels)
        trial.prepare(here)
        trial.encode(here, tmp_path / path)
        assert bound_of(trial.kept(tmp_path / path)) == pytest.approx(bound(density), rel=2e-3)
    assert (tmp_path / "numpy").read_bytes() == (tmp_path / "native").read_bytes()


@pytest.mark.slow
def test_a_run_in_json(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "motet.cli", "bench", "codec", "--params", "201000", "--json", "--tmp", str(tmp_path)]
    done = subprocess.run([*line, "--methods", "levels,raw,2-bit"], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert set(report) == {"rows", "params"}
    assert report["params"] == PARAMS  # rounded down to whole rows
    assert all(set(row) == KEYS for row in report["rows"])
    made = [(row["method"], row["path"]) for row in report["rows"]]
    assert made == [("levels", "native"), ("raw", "numpy"), ("2-bit", "numpy")]
    assert "3 of 3" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_it_is_interrupted(number: signal.Signals, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "motet.cli", "bench", "codec", "--params", str(PARAMS), "--tmp", str(tmp_path)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as command:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*/logs/measure.log")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(command.pid, number)
        said, told = command.communicate(timeout=60)
    assert command.returncode == 130, told
    assert said == ""
    assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == []
