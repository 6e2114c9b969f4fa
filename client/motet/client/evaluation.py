"""Evaluation where the text is: a composite is fetched, checked and scored at home; only sums leave, signed.

report = evaluate(home, composite_digest)       # Signed(EvaluationReport), kept for the next time it is asked for
folder = pull(home, composite_digest)           # the files alone, verified
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from motet.client.data import Corpus, load_corpus
from motet.client.devices import arithmetic_of, device_of
from motet.client.owner import OwnerHome
from motet.client.preparation import fetch_anchor
from motet.moe.scoring import Examination, examine
from motet.protocols import transfer
from motet.protocols.canonical import digest_of, hex_of, storage_errors, write_atomically
from motet.protocols.composite_manifest import CompositeManifest, read_composite_manifest, verify_composite
from motet.protocols.contribution import EvaluationReport
from motet.protocols.documents import MAX_DOCUMENT_BYTES
from motet.protocols.errors import AnchorMismatch, AssemblyError, TransferBroken
from motet.protocols.evaluation.sums import LEAST_TOKENS
from motet.protocols.locks import locked
from motet.protocols.report import row_names
from motet.protocols.signing import Signed, seal

REPORT_BYTES = MAX_DOCUMENT_BYTES // 4
"""Reports ride in messages with others; of a composite so large that they would not, the rows alone are told."""


def evaluate(
    home: OwnerHome,
    composite: str,
    *,
    sets: bool = False,
    on_progress: Callable[[float, str], None] = lambda share, detail: None,
) -> Signed:
    """Score a composite on the owner's held-out text; an answer given before on the same windows is given again.

    Args:
        home: the owner's home.
        composite: the digest of the composite.
        sets: whether to score every expert set, for Shapley values.
        on_progress: told the share done, 0 to 1, and a line about it.

    Raises:
        TransferRefused, TransferBroken, StorageError: it cannot be fetched.
        AssemblyError, AnchorMismatch: it is not what it should be.
        DataError: the owner's text cannot be used, or `sets`, and there are more than eight experts.
    """
    if home.config.data.format == "messages":
        fetch_anchor(home)  # its tokenizer renders them
    corpus = load_corpus(home.config.data, home.path)
    kept = _answer_file(home, composite, corpus, sets)
    if kept.exists():
        return Signed.parse(kept.read_bytes())
    folder = pull(home, composite, progress=lambda done, total: on_progress(0.5 * done / max(1, total), "fetching"))
    found = _examine(home, folder, corpus, sets, on_progress)
    signed = seal(_report(home, composite, found), home.key)
    write_atomically(kept, signed.canonical())
    return signed


def _report(home: OwnerHome, composite: str, found: Examination) -> EvaluationReport:
    """What leaves: the rows, and the diagnostics as far as a message has room for them."""
    report = EvaluationReport(
        charter=home.charter.digest,
        composite=composite,
        owner=home.key.public,
        domain=home.config.name,
        rows=found.rows,
        diagnostics=found.diagnostics,
    )
    if len(report.canonical()) > REPORT_BYTES:
        return report.model_copy(update={"diagnostics": None})
    return report


def _examine(
    home: OwnerHome, folder: Path, corpus: Corpus, sets: bool, on_progress: Callable[[float, str], None]
) -> Examination:
    members = tuple(member.name for member in read_composite_manifest(folder).members)
    count = len(row_names(members, sets=sets))
    done: list[str] = []

    def on_row(row: str) -> None:
        on_progress(0.5 + 0.5 * len(done) / count, f"scoring {row}")
        done.append(row)

    settings = home.config.training
    torch.set_num_threads(settings.threads)
    return examine(
        folder,
        corpus.held_out,
        answers=corpus.answers,
        own=home.config.name,
        sets=sets,
        sequence_length=settings.sequence_length,
        batch_size=settings.batch_size,
        device=device_of(settings),
        dtype=arithmetic_of(settings),
        on_row=on_row,
    )


def pull(home: OwnerHome, composite: str, *, progress: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """The folder of a composite, fetched unless it is there, every byte of it verified; one call at a time.

    Raises:
        TransferRefused, TransferBroken, StorageError: it cannot be fetched; the same call resumes.
        AssemblyError: it is not the composite of that digest.
        AnchorMismatch: it is made from another anchor than the charter's.
    """
    folder = home.composite(composite)
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f".{folder.name}.lock")):  # `motet pull` may meet the worker here
        if not (folder / "composite.json").exists():
            _fetch(home, composite, folder, progress)
        try:
            require_composite(verify_composite(folder), composite, home)
        except AssemblyError:
            shutil.rmtree(folder)  # so that the next call fetches it anew
            raise
    return folder


def _fetch(home: OwnerHome, composite: str, folder: Path, progress: Callable[[int, int], None]) -> None:
    charter = home.charter
    try:
        with transfer.connect(charter.addresses.data_plane, charter.certificate_authority.encode()) as channel:
            transfer.fetch(
                channel,
                digest=composite,
                into=folder,
                key=home.key,
                audience=transfer.audience_of(charter),
                progress=progress,
            )
    except TransferBroken as error:
        raise TransferBroken(
            f"cannot fetch the composite: {error}. Composites come over the data plane, "
            f"{charter.addresses.data_plane}, alone: behind Flower's port an owner trains and contributes, and is left "
            f"out of evaluation unless the coordinator's folder of this composite is copied to {folder}"
        ) from error


def require_composite(manifest: CompositeManifest, composite: str, home: OwnerHome) -> None:
    """Raises AssemblyError for another composite than asked for, AnchorMismatch for one of another anchor."""
    if manifest.digest != composite:
        raise AssemblyError(f"saw the composite {manifest.digest}, wanted {composite}; fetch it again")
    if manifest.anchor != home.charter.anchor.digest:
        raise AnchorMismatch(
            f"saw a composite of the anchor {manifest.anchor}, wanted {home.charter.anchor.digest} as in the charter; "
            "ask the coordinator",
            expected=home.charter.anchor.digest,
            actual=manifest.anchor,
        )


def _answer_file(home: OwnerHome, composite: str, corpus: Corpus, sets: bool) -> Path:
    window = home.config.training.sequence_length
    text = {"corpus": corpus.digest, "sequence_length": window, "domain": home.config.name, "least": LEAST_TOKENS}
    key = digest_of({"composite": composite, "charter": home.charter.digest, **text} | ({"sets": True} if sets else {}))
    return home.work / "evaluations" / f"{hex_of(key)}.json"
