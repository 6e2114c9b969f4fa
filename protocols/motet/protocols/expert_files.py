"""The files that an expert is: the update that defines it, and the whole expert that a store keeps. Needs no torch.

The update *defines* the expert: float32 anchor plus float32 change, rounded to the anchor's dtype (`codec.changes`).
Owner and coordinator make the same bits of the same update, and every figure is measured after that rounding. A later
version of an expert may change the version before it instead of the anchor; routing rows travel whole in each.
A low-rank expert is two factors for every feed-forward matrix W (out, in) of the anchor, A (rank, in) and B (out, rank)
in bfloat16, and its matrix is W + B A; they travel whole too, and no version of it has a base.

    with StoredTensors.of_anchor(directory) as stored:           # or of_expert(earlier)
        materialise_file(update, manifest, stored, store / "expert.safetensors")      # rank=16 for a low-rank one
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray

from motet.protocols.anchor_manifest import AnchorManifest, checkpoint_files
from motet.protocols.codec import UpdateReader, apply
from motet.protocols.codec.header import bytes_of
from motet.protocols.codec.kernels import Kernels
from motet.protocols.codec.pipeline import WORKERS
from motet.protocols.errors import ExpertError
from motet.protocols.tensor_files import TensorReader, TensorSpec, TensorWriter

_Chunk = tuple[TensorSpec, int, NDArray[Any]]


def router_weight_name(layer: int) -> str:
    """The name of a layer's routing row in an update and in an expert's store file: (hidden,) F32."""
    return f"model.layers.{layer}.mlp.router.weight"


def router_bias_name(layer: int) -> str:
    """The name of a layer's routing intercept in an update and in an expert's store file: (1,) F32."""
    return f"model.layers.{layer}.mlp.router.bias"


ROUTER_TOKENS = "model.router.tokens"
"""The name of an expert's evidence by token in an update and in an expert's store file: (vocabulary,) BF16."""
FACTOR = ".lora_"
"""What tells a low-rank expert's factors from other tensors, as PEFT names them."""
EVIDENCE_LIMIT = 6.0
"""Nats: the most that one token may say in it, either way."""
EVIDENCE_STEP = 0.125
"""Its values are multiples of this: exact in bfloat16 up to the limit, and no more is told than is of use."""


def row_specs(manifest: AnchorManifest) -> list[TensorSpec]:
    """The routing of an expert for this anchor: layer by layer weight and intercept, then the evidence by token."""
    specs = []
    for layer in range(manifest.layers):
        specs.append(TensorSpec(name=router_weight_name(layer), dtype="F32", shape=(manifest.hidden_size,)))
        specs.append(TensorSpec(name=router_bias_name(layer), dtype="F32", shape=(1,)))
    return [*specs, TensorSpec(name=ROUTER_TOKENS, dtype="BF16", shape=(manifest.vocabulary_size,))]


def factor_names(ffn_name: str) -> tuple[str, str]:
    """The names of a low-rank expert's factors A (rank, in) and B (out, rank) for a feed-forward tensor (out, in)."""
    stem = ffn_name.removesuffix(".weight")
    return f"{stem}{FACTOR}A.weight", f"{stem}{FACTOR}B.weight"


def factor_specs(manifest: AnchorManifest, rank: int) -> list[TensorSpec]:
    """The factors of a low-rank expert for this anchor, in the order of its feed-forward tensors, A before B."""
    specs = []
    for spec in manifest.ffn():
        (out, into), (a, b) = spec.shape, factor_names(spec.name)
        specs.append(TensorSpec(name=a, dtype="BF16", shape=(rank, into)))
        specs.append(TensorSpec(name=b, dtype="BF16", shape=(out, rank)))
    return specs


def rank_of(specs: Iterable[TensorSpec]) -> int | None:
    """The rank of the expert that tensors of these specs make; None for a full expert's. Checks nothing else."""
    return next((spec.shape[0] for spec in specs if spec.name.endswith(f"{FACTOR}A.weight") and spec.shape), None)


def update_specs(manifest: AnchorManifest, rank: int | None = None) -> list[TensorSpec]:
    """Exactly what an update holds, and its routing.

    A full expert's (`rank` None): bf16 differences under the anchor's names; a low-rank one's: its factors.
    """
    if rank is not None:
        return factor_specs(manifest, rank) + row_specs(manifest)
    differences = [TensorSpec(name=spec.name, dtype="BF16", shape=spec.shape) for spec in manifest.ffn()]
    return differences + row_specs(manifest)


def expert_specs(manifest: AnchorManifest, rank: int | None = None) -> list[TensorSpec]:
    """Exactly what an expert's store file holds, and its routing.

    A full expert's (`rank` None): the feed-forward tensors in the anchor's dtype; a low-rank one's: its factors.
    """
    return (manifest.ffn() if rank is None else factor_specs(manifest, rank)) + row_specs(manifest)


class StoredTensors:
    """What an update changes: an anchor's tensors, or an earlier expert's. A context manager, for several threads.

    Routing rows and low-rank factors are not changed but replaced: what is stored of them reads as zeros.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        with ExitStack() as opened:
            readers = {path: opened.enter_context(TensorReader(path)) for path in dict.fromkeys(files.values())}
            self._readers = {name: readers[path] for name, path in files.items()}
            self._opened = opened.pop_all()

    @classmethod
    def of_anchor(cls, directory: Path) -> Self:
        """The tensors of an anchor's checkpoint. Raises TensorFileError when a file is malformed."""
        files: dict[str, Path] = {}
        for path in checkpoint_files(directory):
            with TensorReader(path) as reader:
                files |= {spec.name: path for spec in reader.specs}
        return cls(files)

    @classmethod
    def of_expert(cls, path: Path, manifest: AnchorManifest) -> Self:
        """The feed-forward tensors of a full expert's store file.

        Raises:
            ExpertError: the file does not fit the anchor.
            TensorFileError: it is malformed.
        """
        with TensorReader(path) as reader:
            require_specs(path, reader, expert_specs(manifest))
        return cls({spec.name: path for spec in manifest.ffn()})

    def __call__(self, spec: TensorSpec, start: int, count: int) -> bytearray:
        """Raw bytes of their own, as `codec.apply` asks for them."""
        found = bytearray(bytes_of(spec, count))
        if ".router." not in spec.name and FACTOR not in spec.name:
            self._readers[spec.name].slice_into(spec.name, bytes_of(spec, start), found)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


def materialise_file(
    update: Path,
    manifest: AnchorManifest,
    stored: StoredTensors,
    out: Path,
    *,
    rank: int | None = None,
    base: str | None = None,
    paths: Kernels | None = None,
    workers: int = WORKERS,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Turn an update into the expert's store file, a few chunks at a time.

    Args:
        update: the update's file.
        manifest: the anchor's, from which names, dtypes and shapes come.
        stored: what the update changes.
        out: the store file; it appears whole or not at all.
        rank: a low-rank expert's; None for a full one.
        base: the digest of the contribution whose expert `stored` is; None for the anchor itself.
        paths: kernels, the best there are when None.
        workers: threads.
        on_progress: told after every chunk how many values are done, of how many.

    Raises:
        CodecError: the update is damaged, does not fit the anchor or the base, or makes a value that is not finite.
        StorageError: the disk is full.
    """
    specs, wanted = expert_specs(manifest, rank), update_specs(manifest, rank)
    with (
        UpdateReader(update, wanted=wanted, anchor=manifest.digest, base=base, paths=paths) as reader,
        TensorWriter(out, specs) as writer,
    ):
        made = _told(apply(reader, stored, specs, workers=workers), reader.header.values, on_progress)
        for name, chunks in groupby(made, key=lambda chunk: chunk[0].name):
            writer.write(name, (words.data for _, _, words in chunks))


def _told(chunks: Iterable[_Chunk], total: int, on_progress: Callable[[int, int], None]) -> Iterator[_Chunk]:
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk[2])
        on_progress(done, total)


def require_specs(path: Path, reader: TensorReader, wanted: Sequence[TensorSpec]) -> None:
    """Refuse a file that holds anything but `wanted`, in any order; raises ExpertError for the first difference."""
    saw, expected = {spec.name: spec for spec in reader.specs}, {spec.name: spec for spec in wanted}
    for name in sorted(saw.keys() | expected.keys()):
        if saw.get(name) != expected.get(name):
            raise ExpertError(
                f"{path}: {name}: saw {_describe(saw.get(name))}, wanted {_describe(expected.get(name))}; "
                "pack the expert again on the charter's anchor"
            )


def _describe(spec: TensorSpec | None) -> str:
    return "no such tensor" if spec is None else f"{spec.dtype} {spec.shape}"
