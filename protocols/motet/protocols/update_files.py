"""Update files as people handle them: look inside, check, make one of a safetensors file, and turn one back into it.

Guarantees: every file that is written appears whole or not at all, memory stays at a few chunks, and no tensor is
taken under another name, dtype or shape than the anchor's manifest gives it. Needs no torch.

    with opened(Path("medicine.motetup")) as update:            # or a container; then update.contribution is its
        description = describe(update.path)
    with Differences(source, manifest) as values:               # or TrainedWeights(source, manifest, stored)
        pack(values, manifest, Path("medicine.motetup"), settings)
    write_difference(Path("medicine.motetup"), Path("difference.safetensors"))
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from motet.protocols.anchor_manifest import AnchorManifest
from motet.protocols.canonical import file_digest, open_regular
from motet.protocols.codec import CodecSettings, Header, UpdateReader, apply, encode, verify
from motet.protocols.codec.changes import Floats, narrow, widen, words_of
from motet.protocols.codec.frames import MAGIC
from motet.protocols.codec.header import bytes_of
from motet.protocols.container import MANIFEST_NAME, read_container
from motet.protocols.contribution import Contribution, require_lowrank_method
from motet.protocols.errors import CodecError, ExpertError, NotFiniteError
from motet.protocols.expert_files import StoredTensors, expert_specs, rank_of, update_specs
from motet.protocols.tensor_files import TensorReader, TensorSpec, TensorWriter

Progress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    """Progress that nobody asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An update file, and the contribution that it came in."""

    path: Path
    contribution: Contribution | None


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """An update file as it is, or the one of a container, unpacked into the temporary folder until the block ends.

    Raises:
        DocumentError, SignatureError: it is a container that is damaged, or whose signature does not hold.
        CodecError: a container's update is not the one that its manifest names.
    """
    if not _is_container(path):
        yield Opened(path=path, contribution=None)
        return
    with tempfile.TemporaryDirectory(prefix="motet-") as folder:
        signed, update = read_container(path, Path(folder))
        contribution = signed.open(Contribution)
        _same(f"{path.name}: digest of the update", file_digest(update), contribution.update)
        with UpdateReader(update) as reader:
            _same(f"{path.name}: anchor", reader.header.anchor, contribution.anchor)
            _same(f"{path.name}: base", reader.header.base, contribution.base)
        yield Opened(path=update, contribution=contribution)


def check(
    path: Path,
    manifest: AnchorManifest | None = None,
    stored: StoredTensors | None = None,
    *,
    on_progress: Progress = _silent,
) -> Header:
    """Read and decode all of an update file; raises CodecError at the first problem.

    Args:
        path: the file.
        manifest: the anchor's, whose digest, names, dtypes and shapes the update must have; None checks none of them.
        stored: what the update changes: it is applied too, and every value must be finite. Needs `manifest`.
        on_progress: told how many values are done, of how many.
    """
    if manifest is None:
        return verify(path, on_progress=on_progress)
    rank = rank_in(path)
    if stored is None:
        return verify(path, wanted=update_specs(manifest, rank), anchor=manifest.digest, on_progress=on_progress)
    with UpdateReader(path, wanted=update_specs(manifest, rank)) as update:
        _same(f"{path.name}: anchor", update.header.anchor, manifest.digest)
        update.check_footer()
        done = 0
        for _, _, words in apply(update, stored, expert_specs(manifest, rank)):
            done += len(words)
            on_progress(done, update.header.values)
        return update.header


def rank_in(path: Path) -> int | None:
    """The rank of the low-rank expert in an update file; None for a full one's. Raises CodecError."""
    with UpdateReader(path) as update:
        return rank_of(update.specs)


def check_footer(path: Path) -> None:
    """Compare a file's digest with its footer. Raises CodecError when they differ."""
    with UpdateReader(path) as update:
        update.check_footer()


def write_difference(path: Path, out: Path, *, on_progress: Progress = _silent) -> None:
    """Write an update's difference as a safetensors file: as it was where it travelled unchanged, else in F32.

    Raises:
        CodecError: the update is damaged.
        StorageError: the disk is full.
    """
    with UpdateReader(path) as update:
        done, total = 0, update.header.values

        def words(spec: TensorSpec) -> Iterator[memoryview]:
            nonlocal done
            for change in update.changes(spec.name):
                yield narrow(change.values(), spec.dtype).data
                done += change.count
                on_progress(done, total)

        specs = [
            tensor.spec if tensor.method in ("lossless", "raw") else _wide(tensor.spec)
            for tensor in update.header.tensors
        ]
        with TensorWriter(out, specs) as writer:
            for spec in specs:
                writer.write(spec.name, words(spec))


def pack(
    source: "Differences | TrainedWeights",
    manifest: AnchorManifest,
    out: Path,
    settings: CodecSettings,
    *,
    scale_factor: float | None = None,
    on_progress: Progress = _silent,
) -> float | None:
    """Write an update to an anchor.

    Args:
        source: the differences.
        manifest: the anchor's.
        out: the file.
        settings: the method and its options.
        scale_factor: what every scale is multiplied with; None is what the survey of the values suggests
            (`codec.encoder.Encoding`), 1 the least squared error. For ternary and levels only.
        on_progress: told how many values are done, of how many.

    Returns:
        The factor taken; None for a method without scales to choose.

    Raises:
        CodecError, StorageError: as `codec.encode` does.
    """
    if source.rank is not None:
        require_lowrank_method(settings.method)
    specs, anchor = update_specs(manifest, source.rank), manifest.digest
    written = encode(out, source, specs, settings, anchor=anchor, factor=scale_factor, on_progress=on_progress)
    if not settings.surveyed:
        return None
    return written.factor if scale_factor is None else scale_factor


class _TensorFile:
    """A safetensors file with exactly the tensors that an anchor wants. A context manager, for several threads."""

    rank: int | None = None
    """Of the low-rank expert whose factors it holds; None for a full expert."""

    def __init__(self, path: Path, wanted: Sequence[TensorSpec], dtypes: Sequence[str], hint: str) -> None:
        self._reader = TensorReader(path)
        try:
            _require(path, self._reader, wanted, dtypes, hint)
        except BaseException:
            self._reader.close()
            raise

    def _words(self, name: str, start: int, count: int) -> tuple[NDArray[Any], str]:
        spec = self._reader.header[name].spec
        return words_of(self._reader.slice(name, bytes_of(spec, start), bytes_of(spec, count)), spec.dtype), spec.dtype

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()


class Differences(_TensorFile):
    """A codec source: differences, or factors, under the names of `update_specs`, BF16 or F32, which is rounded to it.

    Raises:
        ExpertError: the file lacks a tensor, has another one, or one of another dtype or shape.
        TensorFileError: it is malformed.
    """

    def __init__(self, path: Path, manifest: AnchorManifest) -> None:
        hint = "pack differences as `motet unpack` writes them, or give --weights for the trained weights themselves"
        with TensorReader(path) as reader:
            self.rank = rank_of(reader.specs)
        super().__init__(path, update_specs(manifest, self.rank), ("F32",), hint)

    def read(self, spec: TensorSpec, start: int, count: int) -> NDArray[Any]:
        """See `motet.protocols.codec.Source`."""
        words, dtype = self._words(spec.name, start, count)
        return words if dtype == spec.dtype else _rounded(words, spec.name)


class TrainedWeights(_TensorFile):
    """A codec source: trained weights and rows under the names of `expert_specs`, less what they started from.

    Raises:
        ExpertError: the file lacks a tensor, has another one, or one of another dtype or shape.
        TensorFileError: it is malformed.
    """

    def __init__(self, path: Path, manifest: AnchorManifest, stored: StoredTensors) -> None:
        hint = "with --weights, pack the anchor's feed-forward tensors in its dtype, and the routing rows in F32"
        super().__init__(path, expert_specs(manifest), (), hint)
        self._stored, self._specs = stored, {spec.name: spec for spec in manifest.ffn()}

    def read(self, spec: TensorSpec, start: int, count: int) -> NDArray[Any]:
        """See `motet.protocols.codec.Source`."""
        words, dtype = self._words(spec.name, start, count)
        if spec.name not in self._specs:
            return words
        before = words_of(self._stored(self._specs[spec.name], start, count), dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
            return _rounded(widen(words, dtype) - widen(before, dtype), spec.name)


def _rounded(values: Floats, name: str) -> NDArray[np.uint16]:
    if not np.isfinite(values).all():
        raise NotFiniteError(f"{name}: saw NaN or infinity, wanted finite values only; look for a diverged loss")
    return narrow(values, "BF16").view(np.uint16)


def _require(path: Path, reader: TensorReader, wanted: Sequence[TensorSpec], dtypes: Sequence[str], hint: str) -> None:
    """Refuse a file that holds anything but `wanted`, whose dtypes may also be any of `dtypes`."""
    saw, expected = {spec.name: spec for spec in reader.specs}, {spec.name: spec for spec in wanted}
    for name in sorted(saw.keys() | expected.keys()):
        found, want = saw.get(name), expected.get(name)
        if found is None or want is None or found.shape != want.shape or found.dtype not in (want.dtype, *dtypes):
            raise ExpertError(f"{path}: {name}: saw {_describe(found)}, wanted {_describe(want)}; {hint}")


def _describe(spec: TensorSpec | None) -> str:
    return "no such tensor" if spec is None else f"{spec.dtype} {spec.shape}"


def _wide(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(name=spec.name, dtype="F32", shape=spec.shape)


def _is_container(path: Path) -> bool:
    """Whether a file begins as a container does; an update, or what cannot be read, is left to its reader."""
    try:
        with open_regular(path) as file:
            head = file.read(512)
    except OSError:
        return False
    return not head.startswith(MAGIC) and head.startswith(MANIFEST_NAME.encode() + b"\0")


def _same(where: str, saw: object, wanted: object) -> None:
    if saw != wanted:
        raise CodecError(f"{where}: saw {saw}, wanted {wanted}; fetch it again, or ask its owner to pack it again")
