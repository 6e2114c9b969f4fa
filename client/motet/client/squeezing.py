"""An expert made low-rank: an owner's own as its next contribution, anybody's as a file. Nothing leaves.

Guarantees: the contribution is signed and packed like any, with the routing rows that the expert had, and its `trained`
figure is the expert's before, so that `gain_kept` tells what squeezing and encoding left of the gain together; where
held-out text chose the rank, the contribution's figures are of other documents than those that chose.

    done = squeeze_own(OwnerHome.load(Path("owner")), Goal(energy=0.9))
    done.packed.contribution.rank, done.curve.points     # no job packs the full expert again in its place
    squeeze_file(Path("composite"), Path("anchor"), Goal(rank=16), expert="medicine", to=Path("medicine.motetup"))
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from motet.client.checkpoints import Checkpoints
from motet.client.data import Corpus, load_corpus
from motet.client.encoding import scoring_model
from motet.client.outbox import Packed, find_packed
from motet.client.owner import DataConfig, OwnerHome, require_kind
from motet.client.packing import origin_of, pack
from motet.client.preparation import Material, fetch_anchor, prepare
from motet.client.proxy_list import require_ready
from motet.client.spool import Spool
from motet.client.squeeze import Curve, Goal, Report, Score, squeezed
from motet.client.squeeze_sources import SourceExpert, file_source, packed_source, trained_source
from motet.client.training import TrainedExpert, fingerprint, train
from motet.client.tuning import split
from motet.client.worker import training_folder
from motet.moe.anchor import Anchor
from motet.moe.experts import swap_ffn
from motet.moe.lowrank import write_lowrank_update
from motet.moe.scoring import Windows, bits_per_byte, score_windows, windows_of
from motet.protocols.canonical import digest_of
from motet.protocols.codec import CodecSettings, Method
from motet.protocols.contribution import TrainingRecord
from motet.protocols.errors import ConfigurationError, DataError

MAX_RANK = 64
"""The largest rank looked at where no charter says another: what charters admit if they do not say."""
SEQUENCE_LENGTH = 256


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcome:
    """The curve, and what was made: a contribution, a file, or nothing."""

    curve: Curve
    packed: Packed | None = None
    file: Path | None = None


def squeeze_own(
    home: OwnerHome,
    goal: Goal,
    *,
    contribution: str | None = None,
    method: Method | None = None,
    to: Path | None = None,
    report: Report = lambda share, line: None,
) -> Outcome:
    """An owner's expert, measured on its held-out text, as a new contribution or a file.

    Args:
        home: the owner's.
        goal: what chooses the rank; without one nothing is made, and `to` must be None.
        contribution: one of the outbox by its digest; None takes the expert as it was trained here, if that is
            finished under owner.toml as it stands, else the newest contribution.
        method: how factors are encoded; None is what owner.toml and the charter say.
        to: an update file to write instead of a contribution; a new one.
        report: told how far it is.

    Raises:
        ConfigurationError: the charter does not admit the rank, the kind or the method, or there is no expert, or a
            file is to be written and it exists, or nothing chooses the rank.
        DataError: a loss is asked for, and one document is held out.
        ExpertError: see `squeezed`.
        WorkerBusy: the worker is at it; stop it first.
        MotetError: as preparing and packing raise it.
    """
    _require_new(to, goal)
    home = home if method is None else _with_method(home, method)
    settings = home.codec_settings("lowrank")
    require_kind(home.charter, "lowrank", goal.rank or 1)
    require_ready(home)
    with Spool(home.path).holding():
        report(0.0, "reading the text and the anchor")
        fetch_anchor(home)
        material = prepare(home)
        with _own_source(home, material, contribution) as own:
            return _made(own, material, home, goal, settings, to, report)


def squeeze_file(
    path: Path,
    directory: Path,
    goal: Goal,
    *,
    expert: str | None = None,
    method: Method = "int8",
    max_rank: int = MAX_RANK,
    texts: Sequence[str] = (),
    to: Path | None = None,
    report: Report = lambda share, line: None,
) -> Outcome:
    """An expert's file, or a member of a composite, as a low-rank expert's update file.

    Args:
        path: an update, a container, a store file, or a composite's folder.
        directory: the anchor's.
        goal: what chooses the rank; without one nothing is made, and `to` must be None.
        expert: the member's name.
        method: how factors are encoded.
        max_rank: the largest rank that may be chosen.
        texts: files or patterns of text to measure on, all of it; without any there are no bits per byte.
        to: the file to write, a new one; without it there is only the curve.
        report: told how far it is.

    Raises:
        ConfigurationError: a file is to be written and it exists, or nothing chooses the rank.
        MotetError: as `file_source` and `squeezed` raise it.
    """
    _require_new(to, goal)
    anchor, settings = Anchor.load(directory), CodecSettings(method=method)
    score = _score_of_texts(anchor, texts) if texts else None
    with file_source(path, anchor, expert=expert) as source:
        curve = squeezed(source, anchor, goal, limit=max_rank, settings=settings, score=score, report=report)
        if to is None or curve.rank is None:
            return Outcome(curve=curve)
        write_lowrank_update(to, anchor, curve.factors, source.rows, settings)
    return Outcome(curve=curve, file=to)


def _require_new(to: Path | None, goal: Goal) -> None:
    """Refuse to write where something is, such as the expert itself, and to write without knowing what."""
    if to is None:
        return
    if to.exists() or to.is_symlink():
        raise ConfigurationError(f"saw {to}, wanted a new file for the low-rank expert; choose another")
    if not goal.chooses:
        raise ConfigurationError(
            f"saw {to} to write and nothing that chooses the rank, wanted one of --rank, --energy and --loss; give "
            "one, or leave --to out to see the curve"
        )


def _with_method(home: OwnerHome, method: Method) -> OwnerHome:
    codec = home.config.codec.model_copy(update={"method": method})
    return replace(home, config=home.config.model_copy(update={"codec": codec}))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Own:
    """An owner's expert, how it was trained, and what names it where packing asks."""

    source: SourceExpert
    record: TrainingRecord
    key: str | None


@contextmanager
def _own_source(home: OwnerHome, material: Material, contribution: str | None) -> Iterator[_Own]:
    """The expert that is meant."""
    config, folder = home.config.training, training_folder(home)
    finished = Checkpoints(folder=folder, fingerprint=fingerprint(material, config)).steps() == config.steps
    trained = train(material, config, folder) if finished and contribution is None else None
    if trained is not None:
        source = trained_source(home.config.name, trained)
        yield _Own(source=source, record=trained.record, key=trained.fingerprint)
        return
    packed = find_packed(home, contribution)
    with packed_source(packed, home, material.anchor) as source:
        yield _Own(source=source, record=packed.contribution.training, key=origin_of(packed))


def _made(
    own: _Own,
    material: Material,
    home: OwnerHome,
    goal: Goal,
    settings: CodecSettings,
    to: Path | None,
    report: Report,
) -> Outcome:
    source = own.source
    choosing, reported = _halves(material.corpus, goal)
    score = _score(scoring_model(material, home), _windows(material.anchor, home, choosing))
    limit = home.charter.experts.max_rank
    curve = squeezed(source, material.anchor, goal, limit=limit, settings=settings, score=score, report=report)
    if curve.rank is None:
        return Outcome(curve=curve)
    if to is not None:
        write_lowrank_update(to, material.anchor, curve.factors, source.rows, settings)
        return Outcome(curve=curve, file=to)
    report(0.9, "packing")
    expert = _expert(source, curve, own.record.model_copy(update={"held_out_documents": len(reported.held_out)}))
    told = replace(material, corpus=reported)
    packed = pack(expert, told, home, tell=lambda line: report(0.9, line), stands_for=own.key)
    return Outcome(curve=curve, packed=packed)


def _expert(source: SourceExpert, curve: Curve, record: TrainingRecord) -> TrainedExpert:
    """What is packed: the factors, beside the expert that they are measured against."""
    named = {"schema": "motet.squeeze/1", "expert": source.digest, "rank": curve.rank}
    return TrainedExpert(
        ffn=source.ffn,
        rows=source.rows,
        record=record,
        fingerprint=digest_of(named),
        factors=curve.factors,
    )


def _halves(corpus: Corpus, goal: Goal) -> tuple[Corpus, Corpus]:
    """The held-out documents that the curve is of, and those that the contribution's figures are of.

    They are all of them both times, unless they choose the rank.
    """
    if goal.loss is None:
        return corpus, corpus
    choosing, reported = split(corpus.held_out)
    if not choosing:
        raise DataError("saw one held-out document, wanted two at least, one to choose by; hold out more under [data]")
    return replace(corpus, held_out=tuple(choosing)), replace(corpus, held_out=tuple(reported))


def _windows(anchor: Anchor, home: OwnerHome, corpus: Corpus) -> Windows:
    settings = home.config.training
    return windows_of(
        anchor.tokenizer(),
        corpus.held_out,
        sequence_length=settings.sequence_length,
        batch_size=settings.batch_size,
        answers=corpus.answers,
    )


def _score_of_texts(anchor: Anchor, texts: Sequence[str]) -> Score:
    corpus = load_corpus(DataConfig(files=tuple(texts)), Path.cwd())
    length = min(SEQUENCE_LENGTH, int(anchor.config.get("max_position_embeddings", SEQUENCE_LENGTH)))
    windows = windows_of(anchor.tokenizer(), [*corpus.train, *corpus.held_out], sequence_length=length)
    return _score(anchor.model(torch.float32), windows)


def _score(model: PreTrainedModel, windows: Windows) -> Score:
    def score(ffn: Mapping[str, Tensor]) -> float:
        with swap_ffn(model, ffn):
            return bits_per_byte(score_windows(model, windows))

    return score
