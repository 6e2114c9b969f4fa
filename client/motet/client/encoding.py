"""A trained expert as the update that serves it best: encoded, its scale tuned, and what that cost measured.

An update may change the anchor, or the version that the coordinator admitted last; for lossy methods the better of the
two on the owner's text is taken, for lossless ones the smaller. A low-rank expert travels whole, and nothing is chosen.
Every figure is on held-out documents that no scale was tuned on.

    encoded = encode_expert(trained, material, home, folder)
    encoded.path, encoded.record.gain_kept, encoded.bits_per_byte
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from motet.client.devices import arithmetic_of, device_of
from motet.client.lowrank import Expansion
from motet.client.owner import OwnerHome
from motet.client.preparation import Material
from motet.client.training import TrainedExpert
from motet.client.tuning import split, tuned
from motet.client.versions import Version, Versions, before
from motet.moe.experts import read_update, swap_ffn, write_update
from motet.moe.lowrank import read_lowrank_update, write_lowrank_update
from motet.moe.scoring import Windows, bits_per_byte, score_windows, windows_of
from motet.protocols.codec import CodecSettings, rescale
from motet.protocols.container import UPDATE_NAME
from motet.protocols.contribution import CodecRecord, ExpertKind

Tell = Callable[[str], None]
"""Told a line for people."""

_EXACT = ("lossless", "raw")


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """An update file, and what it is worth. `bits_per_byte` has the rows "anchor", "trained" and "expert"."""

    path: Path
    previous: Version | None
    record: CodecRecord
    bits_per_byte: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidate:
    """One way to encode: the change to `previous`, its scales times `factor`; `loss` is less for the better."""

    path: Path
    previous: Version | None
    factor: float | None
    loss: float


def encode_expert(
    trained: TrainedExpert, material: Material, home: OwnerHome, folder: Path, *, tell: Tell = lambda line: None
) -> Encoded:
    """Write `update.motetup` into a folder, and measure it; `tell` is told before every evaluation, and may raise.

    Raises:
        ConfigurationError: the charter does not admit the method, or it does not suit the kind of expert.
        ExpertError, CodecError: the trained tensors do not fit the anchor, or are not finite.
        StorageError: the disk is full.
    """
    settings, path = home.codec_settings(trained.kind), folder / UPDATE_NAME
    yardstick = Yardstick.of(material, home, tell, kind=trained.kind)
    if trained.factors is None:
        best = _best_candidate(path, trained, settings, home, yardstick)
    else:
        write_lowrank_update(path, material.anchor, trained.factors, trained.rows, settings)
        best = _Candidate(path=path, previous=None, factor=None, loss=0.0)
    figures = yardstick.figures(trained.ffn, path, best.previous)
    return Encoded(
        path=path,
        previous=best.previous,
        record=CodecRecord(
            method=settings.method,
            scale_factor=best.factor,
            tuning_documents=yardstick.tuning_documents,
            gain_kept=gain_kept(figures),
        ),
        bits_per_byte=figures,
    )


def _best_candidate(
    path: Path, trained: TrainedExpert, settings: CodecSettings, home: OwnerHome, yardstick: "Yardstick"
) -> _Candidate:
    """The better of the ways to encode a full expert, written to `path` with its scales as tuned."""
    candidates = [
        _candidate(path.with_name(f"candidate-{number}"), each, settings, trained, home.config.codec.tune, yardstick)
        for number, each in enumerate(_starts(yardstick.material, home, yardstick))
    ]
    best = min(candidates, key=lambda candidate: candidate.loss)
    if best.factor is None:
        best.path.rename(path)
    else:
        rescale(best.path, path, best.factor)
    for candidate in candidates:
        candidate.path.unlink(missing_ok=True)
    return best


def _starts(material: Material, home: OwnerHome, yardstick: "Yardstick") -> list[Version | None]:
    """What the update may change; None is the anchor, and all there is without text to choose on."""
    successive = home.config.codec.successive
    admitted = None if successive == "never" else Versions.of(home, material.anchor).admitted()
    if admitted is None:
        return [None]
    if successive == "always":
        return [admitted]
    decidable = yardstick.tuning is not None or home.codec_settings("full").method in _EXACT
    return [None, admitted] if decidable else [None]


def gain_kept(figures: Mapping[str, float]) -> float | None:
    """The share of the trained expert's gain over the anchor that the encoded one keeps; None if it gained nothing."""
    gain = figures["anchor"] - figures["trained"]
    return round((figures["anchor"] - figures["expert"]) / gain, 4) if gain > 0 else None


def _candidate(
    path: Path,
    previous: Version | None,
    settings: CodecSettings,
    trained: TrainedExpert,
    tune: bool,
    yardstick: "Yardstick",
) -> _Candidate:
    anchor, base = yardstick.material.anchor, None if previous is None else previous.base
    with before(previous, anchor) as sent:
        encoding = write_update(path, anchor, trained.ffn, trained.rows, settings, base=base, before=sent)
    if settings.method in _EXACT:
        return _Candidate(path=path, previous=previous, factor=None, loss=path.stat().st_size)
    factor = encoding.factor if settings.surveyed else None
    if factor is None or not tune or yardstick.tuning is None:
        loss = yardstick.tuning_loss(path, previous, factor or 1.0)
    else:
        factor, loss = tuned(lambda each: yardstick.tuning_loss(path, previous, each), around=factor)
    return _Candidate(path=path, previous=previous, factor=factor, loss=loss)


def scoring_model(material: Material, home: OwnerHome) -> PreTrainedModel:
    """The anchor on the owner's device, in no narrower a dtype than it is stored in."""
    settings, anchor = home.config.training, material.anchor
    stored = next(iter(anchor.ffn().values())).dtype
    model = anchor.model(dtype=torch.promote_types(arithmetic_of(settings), stored))
    model.to(device_of(settings))  # type: ignore[arg-type]
    return model


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Yardstick:
    """The anchor with an expert in place of its networks, scored on the owner's held-out text; `tell` is told of it.

    `tuning` is the part that scales and bases are chosen on, None for exact methods, for low-rank experts, and when
    there are too few documents; `report` is the rest.
    """

    material: Material
    model: PreTrainedModel
    tuning: Windows | None
    report: Windows
    tell: Tell
    kind: ExpertKind

    @classmethod
    def of(cls, material: Material, home: OwnerHome, tell: Tell, *, kind: ExpertKind = "full") -> "Yardstick":
        """Load the anchor and cut the text; figures are of stored weights, so never in a narrower dtype."""
        settings, tokenizer = home.config.training, material.anchor.tokenizer()

        def cut(documents: list[str]) -> Windows:
            return windows_of(
                tokenizer,
                documents,
                sequence_length=settings.sequence_length,
                batch_size=settings.batch_size,
                answers=material.corpus.answers,
            )

        tuning, report = split(material.corpus.held_out)
        if kind == "lowrank" or home.codec_settings(kind).method in _EXACT:
            tuning, report = [], list(material.corpus.held_out)
        return cls(
            material=material,
            model=scoring_model(material, home),
            tuning=cut(tuning) if tuning else None,
            report=cut(report),
            tell=tell,
            kind=kind,
        )

    @property
    def tuning_documents(self) -> int:
        """How many documents are tuned on."""
        return 0 if self.tuning is None else len(self.tuning.sizes)

    def tuning_loss(self, update: Path, previous: Version | None, factor: float) -> float:
        """Bits per byte, on the text to tune on, of the expert that an update defines with its scales times `factor`.

        With a single held-out document there is none to tune on, and nothing is chosen by this figure.
        """
        self.tell(f"trying scales times {factor:.2f}")
        return self.score(self._expert(update, previous, factor), self.tuning or self.report)

    def figures(self, trained: Mapping[str, Tensor], update: Path, previous: Version | None) -> dict[str, float]:
        """Bits per byte on the text to report on: the anchor, the expert as trained, and as the update defines it."""
        self.tell("measuring what is left of the expert's gain")
        found = {
            "anchor": bits_per_byte(score_windows(self.model, self.report)),
            "trained": self.score(trained, self.report),
            "expert": self.score(self._expert(update, previous, 1.0), self.report),
        }
        return {row: round(figure, 6) for row, figure in found.items()}

    def score(self, ffn: Mapping[str, Tensor], windows: Windows) -> float:
        """Bits per byte with these feed-forward networks in place of the anchor's."""
        with swap_ffn(self.model, ffn):
            return bits_per_byte(score_windows(self.model, windows))

    def _expert(self, update: Path, previous: Version | None, factor: float) -> Mapping[str, Tensor]:
        anchor, base = self.material.anchor, None if previous is None else previous.base
        if self.kind == "lowrank":
            return Expansion(anchor, read_lowrank_update(update, anchor, name="", contribution="").factors)
        return read_update(update, anchor, name="", contribution="", base=base, factor=factor).ffn
