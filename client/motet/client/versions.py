"""The versions of an owner's expert: what the coordinator holds of each, and what encoding left out.

A later version may travel as the change since the newest one that the coordinator has admitted. What the encoding of
that one left out is part of the change (error feedback: Seide et al. 2014; Karimireddy et al. 2019, arXiv 1901.09847).
Left out means: beyond the update at the scale of the least squared error. A tuned scale is larger, to make up for
everything that was dropped; to feed that surplus back would spend the next update on taking it away again.

    work/versions/<anchor>/<name>/<version>/expert.safetensors      what the coordinator holds, bit for bit
                                            trained.safetensors     the trained expert's difference to the anchor
                                            residual.safetensors    what the encoding left out of it
                                            version.json            the contribution's digest

    versions = Versions.of(home, anchor)
    versions.keep(contribution, update, trained, previous)
    versions.admitted()                       # the newest with a receipt that says so, or None
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from motet.client.outbox import packed_contributions
from motet.client.owner import OwnerHome
from motet.moe.anchor import Anchor
from motet.moe.experts import Base, Before, Difference, stored_tensors, values_of
from motet.moe.routing import RoutingRows
from motet.protocols.canonical import Digest, hex_of, storage_errors, write_atomically
from motet.protocols.codec import CHUNK_VALUES, UpdateReader
from motet.protocols.contribution import Contribution
from motet.protocols.documents import Document
from motet.protocols.expert_files import StoredTensors, materialise_file
from motet.protocols.tensor_files import TensorReader, TensorSpec, TensorWriter

_EXPERT, _TRAINED, _RESIDUAL = "expert.safetensors", "trained.safetensors", "residual.safetensors"
_RECORD, _START = "version.json", "start.json"


class _Record(Document):
    schema_: Literal["motet.version/1"] = Field("motet.version/1", alias="schema")
    contribution: Digest


class _Start(Document):
    schema_: Literal["motet.start/1"] = Field("motet.start/1", alias="schema")
    contribution: Digest | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """One version that was packed."""

    number: int
    contribution: str
    folder: Path

    @property
    def base(self) -> Base:
        """This version as what a later update is applied to."""
        return Base(contribution=self.contribution, file=self.folder / _EXPERT)

    def trained(self, anchor: Anchor) -> dict[str, Tensor]:
        """The expert as it was trained, before encoding: float32, its difference to the anchor rounded to bf16."""
        with TensorReader(self.folder / _TRAINED) as change:
            return {name: tensor.float() + change.tensor(name).float() for name, tensor in anchor.ffn().items()}

    @contextmanager
    def sent(self, anchor: Anchor) -> Iterator[Before]:
        """The trained expert less what the encoding left out: what the next difference is against."""
        with (
            stored_tensors(anchor) as stored,
            self._slices(_TRAINED, anchor) as trained,
            self._slices(_RESIDUAL, anchor) as residual,
        ):
            before, change, left_out = values_of(stored), values_of(trained), values_of(residual)

            def sent(spec: TensorSpec, start: int, count: int) -> Tensor:
                half = TensorSpec(name=spec.name, dtype="BF16", shape=spec.shape)
                return before(spec, start, count) + change(half, start, count) - left_out(half, start, count)

            yield sent

    def _slices(self, name: str, anchor: Anchor) -> StoredTensors:
        return StoredTensors({spec.name: self.folder / name for spec in anchor.manifest.ffn()})


@dataclass(frozen=True, kw_only=True, slots=True)
class Versions:
    """The versions of one expert on one anchor."""

    home: OwnerHome
    anchor: Anchor

    @classmethod
    def of(cls, home: OwnerHome, anchor: Anchor) -> Self:
        """The versions in an owner's home of its expert on this anchor."""
        return cls(home=home, anchor=anchor)

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return _folder(self.home)

    def all(self) -> list[Version]:
        """Every version kept, the oldest first."""
        found = [path.parent for path in self.folder.glob(f"[0-9]*/{_RECORD}")]
        return sorted((_read(folder) for folder in found), key=lambda version: version.number)

    def admitted(self) -> Version | None:
        """The version that the coordinator holds, if what a later one needs of it is kept here.

        It holds the newest contribution that it has admitted, unless that one was withdrawn, or a later one was refused
        because its base is gone.
        """
        said = [
            (packed, verdict) for packed in packed_contributions(self.home) if (verdict := packed.verdict(self.home))
        ]
        lost = {packed.contribution.base for packed, verdict in said if verdict.reason == "wrong-base"}
        decided = [(packed.digest, verdict.status) for packed, verdict in said if verdict.status != "refused"]
        if not decided or decided[-1][1] != "admitted" or decided[-1][0] in lost:
            return None
        return next((version for version in self.all() if version.contribution == decided[-1][0]), None)

    def start(self) -> Version | None:
        """The version that a training which goes on from the latest begins with: the same until `forget_start`.

        A receipt that comes meanwhile must not turn the training under way into another one.
        """
        path = self.folder / _START
        if not path.exists():
            admitted = self.admitted()
            start = _Start(contribution=None if admitted is None else admitted.contribution)
            write_atomically(path, start.canonical())
        contribution = _Start.parse(path.read_bytes()).contribution
        return next((version for version in self.all() if version.contribution == contribution), None)

    def keep(
        self,
        contribution: Contribution,
        update: Path,
        trained: Mapping[str, Tensor],
        rows: RoutingRows,
        previous: Version | None,
    ) -> None:
        """Keep a version that was just packed, and drop those that no later one can change.

        Args:
            contribution: its manifest.
            update: its file.
            trained: the expert as it was trained.
            rows: its routing rows.
            previous: the version that the update changes; None for the anchor.

        Raises:
            StorageError: the disk is full; the version is then not kept.
        """
        folder = self.folder / str(contribution.version)
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        base = None if previous is None else previous.base
        with stored_tensors(self.anchor, base) as stored:
            materialise_file(update, self.anchor.manifest, stored, folder / _EXPERT, base=contribution.base)
        with stored_tensors(self.anchor) as stored:
            difference = Difference(trained, rows, values_of(stored), self.anchor.manifest)
            self._write(folder / _TRAINED, lambda spec: _chunks(difference, spec))
        factor = contribution.codec.scale_factor
        if factor is None:
            self._write_error(folder, trained, rows)
        else:
            self._write_left_out(folder, update, trained, rows, previous, factor)
        write_atomically(folder / _RECORD, _Record(contribution=contribution.digest).canonical())
        self._drop_all_but(folder, previous, self.admitted(), self._pinned())

    def forget(self, number: int) -> None:
        """Drop a version that could not be kept whole."""
        shutil.rmtree(self.folder / str(number), ignore_errors=True)

    def _write_error(self, folder: Path, trained: Mapping[str, Tensor], rows: RoutingRows) -> None:
        """The residual of an update whose scale was not tuned: trained less what the coordinator holds."""
        with StoredTensors.of_expert(folder / _EXPERT, self.anchor.manifest) as held:
            residual = Difference(trained, rows, values_of(held), self.anchor.manifest)
            self._write(folder / _RESIDUAL, lambda spec: _chunks(residual, spec))

    def _write_left_out(
        self,
        folder: Path,
        update: Path,
        trained: Mapping[str, Tensor],
        rows: RoutingRows,
        previous: Version | None,
        factor: float,
    ) -> None:
        """The residual of an update whose scale was tuned: what was encoded less the update at the scale before."""
        with before(previous, self.anchor) as sent, UpdateReader(update, factor=1 / factor) as untuned:
            encoded = Difference(trained, rows, sent, self.anchor.manifest)

            def left_out(spec: TensorSpec) -> Iterator[bytes]:
                for change in untuned.changes(spec.name):
                    bits = torch.from_numpy(encoded.read(spec, change.start, change.count).view("int16"))
                    rest = bits.view(torch.bfloat16).float() - torch.from_numpy(change.values())
                    yield rest.bfloat16().view(torch.int16).numpy().tobytes()

            self._write(folder / _RESIDUAL, left_out)

    def _write(self, path: Path, chunks: Callable[[TensorSpec], Iterator[bytes]]) -> None:
        """A file of bf16 differences under the names of the anchor's feed-forward tensors."""
        specs = [TensorSpec(name=spec.name, dtype="BF16", shape=spec.shape) for spec in self.anchor.manifest.ffn()]
        with TensorWriter(path, specs) as writer:
            for spec in specs:
                writer.write(spec.name, chunks(spec))

    def _pinned(self) -> Version | None:
        return self.start() if (self.folder / _START).exists() else None

    def _drop_all_but(self, folder: Path, *versions: Version | None) -> None:
        wanted = {folder, *(version.folder for version in versions if version is not None)}
        for old in self.folder.glob("[0-9]*"):
            if old not in wanted:
                shutil.rmtree(old)


def _chunks(source: Difference, spec: TensorSpec) -> Iterator[bytes]:
    values = spec.nbytes // 2
    for start in range(0, values, CHUNK_VALUES):
        yield source.read(spec, start, min(CHUNK_VALUES, values - start)).tobytes()


def forget_start(home: OwnerHome) -> None:
    """What was trained has left: the next training that goes on from the latest version may take a newer one."""
    (_folder(home) / _START).unlink(missing_ok=True)


def _folder(home: OwnerHome) -> Path:
    return home.work / "versions" / hex_of(home.charter.anchor.digest)[:16] / home.config.name


@contextmanager
def before(version: Version | None, anchor: Anchor) -> Iterator[Before]:
    """What the difference of an update that changes a version, or else the anchor, is taken against."""
    if version is not None:
        with version.sent(anchor) as sent:
            yield sent
        return
    with stored_tensors(anchor) as stored:
        yield values_of(stored)


def _read(folder: Path) -> Version:
    record = _Record.parse((folder / _RECORD).read_bytes())
    return Version(number=int(folder.name), contribution=record.contribution, folder=folder)
