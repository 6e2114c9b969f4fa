"""What leaves the owner's machine, and how: over the data plane, inside Flower's reply, or as a file.

packed = find_packed(home)
print("\\n".join(describe(packed, home)))         # what leaves, before anything does
sent = send(home, packed)                         # resumes; sent.receipt is verified and kept
export(packed, Path("medicine.motet"))            # for `motet admit` on the other side
withdraw(home, packed.digest)                     # at any time
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from motet.client.outbox import Packed
from motet.client.owner import OwnerHome, read_signed
from motet.client.spool import Spool
from motet.client.told_evidence import told_evidence
from motet.client.versions import forget_start
from motet.protocols import transfer
from motet.protocols.canonical import canonical_json, write_atomically
from motet.protocols.container import write_container
from motet.protocols.contribution import Contribution, Withdrawal
from motet.protocols.control import Phase, TrainRequest
from motet.protocols.documents import Strict, first_problem
from motet.protocols.errors import ConfigurationError
from motet.protocols.jobs import contribution_of
from motet.protocols.receipts import Receipt
from motet.protocols.signing import Signed, seal

SENT_NAME = "sent.json"
WITHDRAWAL_NAME = "withdrawal.json"


class _SentRecord(Strict):
    sent_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """What came of sending: the coordinator's verified receipt, and all bytes that it took, repeats included."""

    receipt: Signed
    sent_bytes: int

    @property
    def verdict(self) -> Receipt:
        """The receipt's content: admitted or refused, and why."""
        return self.receipt.open(Receipt)


def describe(packed: Packed, home: OwnerHome) -> list[str]:
    """What leaves when this contribution is sent, line by line, for the owner to agree to.

    Raises TransferError when the update is not the one that was signed.
    """
    manifest = packed.contribution
    figures, told = manifest.bits_per_byte, told_evidence(packed, home)
    return [
        f"contribution {packed.digest}, version {manifest.version} of {manifest.name}",
        f"update       {manifest.update_bytes:,} bytes, {_encoding(manifest)}: {_changes(manifest)}, and one routing "
        "row per layer",
        *([] if told is None else told.lines()),
        f"measured     {figures['anchor']:.3f} bits per byte with the anchor, {figures['expert']:.3f} with the "
        f"expert, on {_reported(manifest)} held-out documents that nothing was chosen on",
        _trained_on(manifest),
        f"terms        {manifest.terms}",
        f"signed by    {manifest.owner}",
        "stays here   the documents, the optimiser's state, all statistics of their text but those named above",
        *_proxies(packed),
        *(f"warning      {each}" for each in warnings(packed)),
    ]


def warnings(packed: Packed) -> list[str]:
    """What an owner should know before this contribution leaves."""
    manifest = packed.contribution
    lost = manifest.bits_per_byte["expert"] - manifest.bits_per_byte["anchor"]
    if lost <= 0:
        return []
    advice = (
        "an adapter that was trained on another base, such as the anchor's instruct sibling, does that"
        if not manifest.training.steps
        else "train with more text, or at a lower learning rate"
    )
    return [f"on your own text this expert is worse than the anchor, by {lost:.3f} bits per byte: {advice}"]


def described(packed: Packed, home: OwnerHome) -> dict[str, Any]:
    """What `describe` says as a JSON object: the manifest, what its evidence tells, and warnings."""
    told = told_evidence(packed, home)
    return {
        "manifest": packed.contribution.as_json(),
        "evidence": None if told is None else told.as_json(),
        "warnings": warnings(packed),
    }


def _changes(manifest: Contribution) -> str:
    if manifest.kind == "lowrank":
        return f"two factors of rank {manifest.rank} for each of the anchor's feed-forward matrices"
    return (
        f"the change to {'the anchor' if manifest.base is None else 'version ' + manifest.base}'s feed-forward layers"
    )


def _trained_on(manifest: Contribution) -> str:
    record = manifest.training
    if not record.steps:
        return f"trained      elsewhere; routing is measured on {record.documents} documents of your text"
    return f"trained on   {record.documents} documents, {record.steps} steps, {record.tokens:,} tokens"


def _proxies(packed: Packed) -> list[str]:
    """The public documents that the manifest names, and what stays here of how they were chosen; nothing if none."""
    if not packed.contribution.proxies:
        return []
    return [
        f"proxies      {len(packed.contribution.proxies)} documents of the public text, in the manifest; scores and "
        "classifier stay here",
        *(f"  {line}" for line in packed.proxies_preview()),
    ]


def _reported(manifest: Contribution) -> int:
    return manifest.training.held_out_documents - manifest.codec.tuning_documents


def _encoding(manifest: Contribution) -> str:
    """How the update is encoded, and what is left of the expert's gain."""
    kept = manifest.codec.gain_kept
    survives = "" if kept is None else f", {100 * kept:.1f} % of the expert's gain kept"
    return manifest.codec.method + survives


def send(home: OwnerHome, packed: Packed, *, progress: Callable[[int, int], None] = lambda done, total: None) -> Sent:
    """Upload over the data plane and keep the receipt; a contribution that has one is not sent again.

    Raises:
        TransferRefused, TransferBroken: see `motet.protocols.transfer.upload`; the same call resumes.
        SignatureError: the receipt is not the coordinator's.
    """
    before = _sent_before(packed)
    if packed.receipt.exists():
        kept = read_signed(packed.receipt, "receipt")
        kept.open(Receipt, by=home.charter.coordinator)
        return Sent(receipt=kept, sent_bytes=before)
    charter = home.charter
    with transfer.connect(charter.addresses.data_plane, charter.certificate_authority.encode()) as channel:
        outcome = transfer.upload(
            channel,
            signed=packed.signed,
            update=packed.update,
            key=home.key,
            audience=transfer.audience_of(charter),
            coordinator=charter.coordinator,
            progress=progress,
        )
    sent = before + outcome.sent_bytes
    write_atomically(packed.folder / SENT_NAME, canonical_json({"sent_bytes": sent}))
    write_atomically(packed.receipt, outcome.receipt.canonical())
    return Sent(receipt=outcome.receipt, sent_bytes=sent)


def export(packed: Packed, path: Path) -> Path:
    """Write the contribution as one file (`motet.protocols.container`), for a site without a connection.

    It ends no job: nobody here learns whether the file arrives, or what becomes of it.

    Raises:
        StorageError: the disk is full.
    """
    write_container(path, packed.signed, packed.update)
    return path


def job_result(packed: Packed, sent: Sent | None, *, inline: bool = False) -> dict[str, Any]:
    """What a training job that made this contribution has to say (`JobState.result`)."""
    return {
        "contribution": packed.digest,
        "receipt": None if sent is None else sent.receipt.model_dump(mode="json", by_alias=True),
        "update_bytes": packed.contribution.update_bytes,
        "sent_bytes": 0 if sent is None else sent.sent_bytes,
        "inline": inline,
        "transport": "flower" if inline else "data-plane",
    }


def settle_jobs(home: OwnerHome, packed: Packed, sent: Sent | None, *, inline: bool = False) -> None:
    """End the jobs that wait for the owner's consent to this contribution, now that it is given.

    They are done when it was admitted or is on offer, and failed when the coordinator refused it. Where none waits and
    nothing was refused, the job that the coordinator has asked for, or will, is done already: run, it would train
    another expert in place of the one that was chosen. What was sent leaves alone a job that the worker is at, which
    its owner did not stop, and one that was done before; what rides in Flower's reply needs a job to answer.
    """
    spool, refused = Spool(home.path), sent is not None and sent.verdict.status != "admitted"
    state: Phase = "failed" if refused else "done"
    detail = "contributed" if sent is None else verdict_line(sent)
    result = job_result(packed, sent, inline=inline)
    waiting = [job for job in spool.jobs() if job.state == "waiting" and contribution_of(job) == packed.digest]
    for job in waiting:
        spool.update(job.id, state, detail=detail, result=result)
    if not waiting and not refused:
        leave: tuple[Phase, ...] = () if inline else ("running", "done")
        spool.fulfil(TrainRequest(charter=home.charter.digest), detail=detail, result=result, leave=leave)


def verdict_line(sent: Sent) -> str:
    """What the coordinator decided, in one line; all of it is the coordinator's own words."""
    verdict = sent.verdict
    reason = f" ({verdict.reason})" if verdict.reason else ""
    return f"{verdict.status} by the coordinator{reason}" + (f": {verdict.message}" if verdict.message else "")


def contribute(
    home: OwnerHome, packed: Packed, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> Sent | None:
    """The owner's consent: send the way that owner.toml says, and finish the jobs that waited for it.

    What rides in Flower's reply is not sent by this call, and it returns None: the ClientApp hands the update over when
    the coordinator asks for it. Raises as `send` does, and ConfigurationError for the transport "file".
    """
    if home.config.contribution.transport == "file":
        raise ConfigurationError(
            'saw transport = "file" under [contribution] in owner.toml, which lets nothing leave over a connection; '
            "write a file with `motet contribute --to FILE`, or choose another transport"
        )
    inline = rides_flower(home, packed) and not packed.receipt.exists()
    sent = None if inline else send(home, packed, progress=progress)
    settle_jobs(home, packed, sent, inline=sent is None)
    forget_start(home)
    return sent


def rides_flower(home: OwnerHome, packed: Packed) -> bool:
    """Whether the update travels inside Flower's reply: the charter allows that size, and the owner chose so.

    An owner who leaves the transport at "auto" chose so for low-rank experts.
    """
    transport, lowrank = home.config.contribution.transport, packed.contribution.kind == "lowrank"
    small = packed.contribution.update_bytes <= home.charter.experts.inline_bytes
    return small and (transport == "flower" or (transport == "auto" and lowrank))


def sign_withdrawal(home: OwnerHome, contribution: str, *, reason: str | None = None) -> Signed:
    """The owner's signed word that a contribution is taken back; canonical bytes of it make the file to carry.

    Raises:
        ConfigurationError: `contribution` is no digest, or the reason is too long.
    """
    try:
        withdrawal = Withdrawal(
            charter=home.charter.digest, contribution=contribution, owner=home.key.public, reason=reason
        )
    except ValidationError as error:
        raise ConfigurationError(f"cannot withdraw: {first_problem(error)}; correct it and try again") from error
    return seal(withdrawal, home.key)


def withdraw(home: OwnerHome, contribution: str, *, reason: str | None = None) -> Receipt:
    """Withdraw over the data plane; the signed withdrawal and its receipt are kept beside the contribution.

    Raises:
        TransferRefused: the coordinator knows no such contribution of this owner.
        TransferBroken: the line broke too often; calling again is harmless.
    """
    signed = sign_withdrawal(home, contribution, reason=reason)
    charter, folder = home.charter, home.contribution(contribution)
    with transfer.connect(charter.addresses.data_plane, charter.certificate_authority.encode()) as channel:
        receipt = transfer.withdraw(
            channel,
            signed=signed,
            key=home.key,
            audience=transfer.audience_of(charter),
            coordinator=charter.coordinator,
        )
    if folder.is_dir():
        write_atomically(folder / WITHDRAWAL_NAME, signed.canonical())
        write_atomically(folder / "receipt.json", receipt.canonical())
    return receipt.open(Receipt)


def _sent_before(packed: Packed) -> int:
    path = packed.folder / SENT_NAME
    return _SentRecord.model_validate_json(path.read_bytes()).sent_bytes if path.exists() else 0
