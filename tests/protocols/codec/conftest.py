"""Updates for the codec's tests: differences as a trained expert's look, in files and in memory."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from motet.protocols.tensor_files import TensorSpec, TensorWriter

ANCHOR = "sha256:" + "a" * 64
BASE = "sha256:" + "b" * 64


def bf16(values: np.ndarray) -> np.ndarray:
    """Float32 as bf16 bits, rounded towards zero: any bits will do."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def floats(bits: np.ndarray) -> np.ndarray:
    """bf16 bits as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


class MemorySource:
    """Tensors in memory as a codec source."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.tensors = {name: tensor.reshape(-1) for name, tensor in tensors.items()}

    def read(self, spec: TensorSpec, start: int, count: int) -> np.ndarray:
        return self.tensors[spec.name][start : start + count]


def specs_of(shapes: Mapping[str, tuple[int, ...]]) -> list[TensorSpec]:
    """Matrices in bf16, everything else in float32, as `update_specs` of an anchor says."""
    return [
        TensorSpec(name=name, dtype="BF16" if len(shape) == 2 else "F32", shape=shape) for name, shape in shapes.items()
    ]


def random_tensors(specs: Sequence[TensorSpec], *, seed: int = 0, spread: float = 1e-3) -> dict[str, np.ndarray]:
    """Heavy-tailed differences, and routing rows."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for spec in specs:
        values = (rng.standard_t(4, spec.shape) * spread).astype(np.float32)
        tensors[spec.name] = bf16(values) if spec.dtype == "BF16" else values
    return tensors


SHAPES = {
    "model.layers.0.mlp.gate_proj.weight": (37, 64),
    "model.layers.0.mlp.up_proj.weight": (37, 64),
    "model.layers.0.mlp.down_proj.weight": (64, 37),
    "model.layers.0.mlp.router.weight": (64,),
    "model.layers.0.mlp.router.bias": (1,),
}


@pytest.fixture(scope="session")
def specs() -> list[TensorSpec]:
    """The tensors of a tiny update: matrices of odd sizes, and one layer's routing row."""
    return specs_of(SHAPES)


@pytest.fixture(scope="session")
def tensors(specs: list[TensorSpec]) -> dict[str, np.ndarray]:
    """Their values: uint16 bits and float32. Never write into them."""
    return random_tensors(specs)


@pytest.fixture(scope="session")
def difference_file(specs: list[TensorSpec], tensors: dict[str, np.ndarray], tmp_path_factory) -> Path:
    """The same as a safetensors file."""
    path = tmp_path_factory.mktemp("difference") / "difference.safetensors"
    with TensorWriter(path, specs) as writer:
        for spec in specs:
            writer.write(spec.name, tensors[spec.name].tobytes())
    return path
