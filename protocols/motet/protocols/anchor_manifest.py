"""What an anchor is: its tensors, configuration and tokenizer, and the one digest that names them all.

Reads safetensors headers and streams their bytes through SHA-256, never a tensor in memory. Single and
sharded checkpoints of the same tensors have the same digest, and so do configurations that differ only in
who saved them and when.

    manifest = AnchorManifest.of(Path("anchor"))
    manifest.digest          # "sha256:…", what a charter pins
    manifest.ffn()           # what an expert's update must match, tensor by tensor
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from motet.protocols.canonical import Digest, digest_of, file_digest
from motet.protocols.documents import Document, Strict
from motet.protocols.errors import AnchorError, TensorFileError
from motet.protocols.tensor_files import TensorReader, TensorSpec

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
VOLATILE_CONFIGURATION = ("_name_or_path", "transformers_version")
"""Configuration keys that tell who saved a checkpoint, not what it computes."""

_FFN = re.compile(r"model\.layers\.(\d+)\.mlp\.(gate_proj|up_proj|down_proj)\.weight")


EMBEDDING = "model.embed_tokens.weight"
"""The name of the token embedding: (vocabulary, hidden)."""


INPUT_NORM = "model.layers.0.input_layernorm.weight"
"""The name of the first norm where one comes before attention and MLP; those that come after have other names."""


def ffn_name(layer: int, projection: str) -> str:
    """The name of one feed-forward tensor, the same in an anchor, an update and an expert's store file."""
    return f"model.layers.{layer}.mlp.{projection}.weight"


class AnchorTensor(Strict):
    """One tensor: name, safetensors dtype ("BF16"), shape, and the digest of its raw little-endian bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: Digest

    @property
    def spec(self) -> TensorSpec:
        """Name, dtype and shape alone."""

        return TensorSpec(name=self.name, dtype=self.dtype, shape=self.shape)


class AnchorManifest(Document):
    """The content of an anchor; `digest` is its name. Tensors are sorted by name."""

    schema_: Literal["motet.anchor/1"] = Field("motet.anchor/1", alias="schema")
    tensors: tuple[AnchorTensor, ...]
    configuration: Digest
    tokenizer: Digest

    @classmethod
    def of(cls, directory: Path) -> Self:
        """Read the anchor in `directory`, every byte of it.

        Raises:
            AnchorError: a file is missing or damaged, or the feed-forward layers are not those of a gated MLP.
        """
        try:
            configuration = json.loads((directory / "config.json").read_text(encoding="utf-8"))
            tensors = sorted(_tensors(checkpoint_files(directory)), key=lambda tensor: tensor.name)
            return cls(
                tensors=tuple(tensors),
                configuration=configuration_digest(configuration),
                tokenizer=digest_of({path.name: file_digest(path) for path in tokenizer_files(directory)}),
            )
        except (OSError, ValueError, TensorFileError) as error:
            raise AnchorError(
                f"cannot read an anchor from {directory}: {error}; fetch it again or name another"
            ) from error

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [tensor.name for tensor in self.tensors]
        if EMBEDDING not in names:
            raise ValueError(f"saw no tensor {EMBEDDING}, wanted the anchor's token embedding under that name")
        if names != sorted(set(names)):
            raise ValueError("tensors: saw names repeated or out of order, wanted each once and sorted")
        wanted = {ffn_name(layer, projection) for layer in range(self.layers) for projection in PROJECTIONS}
        if not wanted or wanted != {name for name in names if ".mlp." in name}:
            raise ValueError(
                f"saw feed-forward tensors other than {ffn_name(0, 'gate_proj')} and its kin in every layer"
            )
        shapes = {
            (t.shape if t.name.endswith("down_proj.weight") else t.shape[::-1], t.dtype) for t in self._ffn_tensors
        }
        if len(shapes) != 1 or len(next(iter(shapes))[0]) != 2:
            raise ValueError(f"saw feed-forward shapes and dtypes that differ between layers: {sorted(shapes)}")
        return self

    @cached_property
    def _ffn_tensors(self) -> tuple[AnchorTensor, ...]:
        return tuple(tensor for tensor in self.tensors if _FFN.fullmatch(tensor.name))

    @cached_property
    def layers(self) -> int:
        """Number of layers with a feed-forward network."""
        return len({match[1] for tensor in self.tensors if (match := _FFN.fullmatch(tensor.name))})

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self._down.shape[0]

    @property
    def intermediate_size(self) -> int:
        """Width inside the feed-forward network."""
        return self._down.shape[1]

    @cached_property
    def vocabulary_size(self) -> int:
        """Number of token ids that have an embedding."""
        return next(tensor.shape[0] for tensor in self.tensors if tensor.name == EMBEDDING)

    @cached_property
    def normalises_mlp_input(self) -> bool:
        """Whether a norm comes before attention and MLP, so that no channel of what an MLP reads is constant."""
        return any(tensor.name == INPUT_NORM for tensor in self.tensors)

    def ffn(self) -> list[TensorSpec]:
        """The feed-forward tensors in layer order: gate_proj, up_proj, down_proj of each."""
        by_name = {tensor.name: tensor.spec for tensor in self._ffn_tensors}
        return [by_name[ffn_name(layer, projection)] for layer in range(self.layers) for projection in PROJECTIONS]

    @cached_property
    def _down(self) -> AnchorTensor:
        name = ffn_name(0, "down_proj")
        return next(tensor for tensor in self.tensors if tensor.name == name)


def configuration_digest(configuration: dict[str, Any]) -> str:
    """The digest of a model configuration without the keys that only tell who saved it."""
    return digest_of({key: value for key, value in configuration.items() if key not in VOLATILE_CONFIGURATION})


def checkpoint_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint: the index's if there is one, else `model.safetensors`.

    Raises ValueError when the index names a file outside the directory.
    """
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return [directory / "model.safetensors"]
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    if any(Path(name).name != name for name in names):
        raise ValueError(f"{index.name} names files outside the directory: {names}")
    return [directory / name for name in names]


def tokenizer_files(directory: Path) -> list[Path]:
    """The tokenizer's files that are present, in a fixed order."""
    return [directory / name for name in TOKENIZER_FILES if (directory / name).exists()]


def _tensors(files: Iterable[Path]) -> Iterable[AnchorTensor]:

    for path in files:
        with TensorReader(path) as reader:
            for spec in reader.specs:
                state = hashlib.sha256()
                for chunk in reader.chunks(spec.name):
                    state.update(chunk)
                digest = "sha256:" + state.hexdigest()
                yield AnchorTensor(name=spec.name, dtype=spec.dtype, shape=spec.shape, sha256=digest)
