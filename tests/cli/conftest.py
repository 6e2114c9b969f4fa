"""Update files for the commands that look into them, and the command line in this process."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from motet.cli import run
from motet.protocols.anchor_manifest import AnchorManifest
from motet.protocols.codec import CodecSettings, FileSource, encode
from motet.protocols.codec.changes import narrow, widen
from motet.protocols.expert_files import update_specs
from motet.protocols.tensor_files import TensorReader, TensorSpec, TensorWriter

Motet = Callable[..., str]
GATE = "model.layers.0.mlp.gate_proj.weight"


@pytest.fixture
def motet(capsys: pytest.CaptureFixture[str]) -> Motet:
    """`motet("inspect", path, code=0)` returns what was said: on stdout if the code is 0, else on stderr."""

    def call(*arguments: object, code: int = 0) -> str:
        capsys.readouterr()
        assert run([str(argument) for argument in arguments]) == code, capsys.readouterr().err
        said = capsys.readouterr()
        if code:
            assert said.out == ""
        return said.err if code else said.out

    return call


@pytest.fixture(scope="module")
def manifest(anchor_directory: Path) -> AnchorManifest:
    return AnchorManifest.of(anchor_directory)


def write_tensors(path: Path, specs: list[TensorSpec], *, seed: int = 0, spread: float = 1e-2) -> Path:
    rng = np.random.default_rng(seed)
    with TensorWriter(path, specs) as writer:
        for spec in specs:
            values = (rng.standard_t(4, spec.shape) * spread).astype(np.float32)
            writer.write(spec.name, narrow(values.reshape(-1), spec.dtype).tobytes())
    return path


@pytest.fixture
def difference(manifest: AnchorManifest, tmp_path: Path) -> Path:
    return write_tensors(tmp_path / "difference.safetensors", update_specs(manifest))


def values(path: Path) -> dict[str, np.ndarray]:
    with FileSource(path) as source:
        return {spec.name: widen(source.read(spec, 0, spec_values(spec)), spec.dtype) for spec in source.specs}


def spec_values(spec: TensorSpec) -> int:
    return int(np.prod(spec.shape))


def dtypes(path: Path) -> dict[str, str]:
    with TensorReader(path) as reader:
        return {spec.name: spec.dtype for spec in reader.specs}


@pytest.fixture
def update(manifest: AnchorManifest, difference: Path, tmp_path: Path) -> Path:
    path = tmp_path / "medicine.motetup"
    with FileSource(difference) as source:
        settings = CodecSettings(method="ternary", density=0.1)
        encode(path, source, update_specs(manifest), settings, anchor=manifest.digest)
    return path


def set_word(path: Path, offset: int, word: int) -> None:
    """Two bytes of a file, in place."""
    data = bytearray(path.read_bytes())
    data[offset : offset + 2] = word.to_bytes(2, "little")
    path.write_bytes(data)
