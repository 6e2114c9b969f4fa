"""`motet try`: an owner measures a composite on the own text, before or after joining; nothing is uploaded.

Guarantees: what is fetched is verified, a broken fetch resumes; the own expert is read or measured here and added in
memory; a guest, who has the signed charter alone, signs with a key that is thrown away.

    data = DataConfig(files=("notes/*.jsonl",))
    home = guest(charter_file, directory, data=data, coordinator="ed25519:…")                    # or OwnerHome.load
    plan = plan_trial(home)                       # what would be fetched, in bytes, and scored
    trial = try_composite(home)                   # the newest composite; motet.client.composite_trial says what is told
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from motet.client.composite_trial import CompositeTrial, measure, systems
from motet.client.data import Corpus, load_corpus
from motet.client.devices import arithmetic_of, device_of
from motet.client.evaluation import pull, require_composite
from motet.client.outbox import packed_contributions
from motet.client.own_expert import Source, find_source, read_source
from motet.client.owner import CONFIG_FILE, DataConfig, OwnerConfig, OwnerHome, read_signed
from motet.client.preparation import anchor_is_here, fetch_anchor
from motet.moe.lowrank import AnyExpert
from motet.moe.scoring import load_composite, windows_of
from motet.protocols import transfer
from motet.protocols.charter import Charter
from motet.protocols.composite_manifest import (
    MANIFEST_FILE,
    CompositeManifest,
    read_composite_manifest,
    verify_composite,
)
from motet.protocols.contribution import Terms
from motet.protocols.errors import ConfigurationError, DataError, TransferBroken, TransferRefused
from motet.protocols.signing import SigningKey

GUEST = "guest"
UNNAMED = "(yours)"
"""What an expert is called that is added: nothing that a member could be."""
GUEST_BYTES = 1 << 18
"""About how much of a guest's text is scored, unless told otherwise."""
GUEST_OPTIONS = "files --data, text_field --text-field, format --format, max_bytes --max-bytes"

Tell = Callable[[str], None]
Fetched = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialPlan:
    """What a trial would do. `here` are bytes that need not be fetched."""

    composite: str
    members: tuple[str, ...]
    bytes: int
    here: int
    free: int
    documents: int
    text_bytes: int
    systems: tuple[str, ...]
    conversations: bool
    """Whether the text is conversations, which the anchor's tokenizer renders."""
    fetched: tuple[str, ...]
    """What the plan itself had to fetch."""

    def as_json(self) -> dict[str, Any]:
        """The plan as a JSON object."""
        return {name: getattr(self, name) for name in self.__slots__}

    def lines(self) -> list[str]:
        """The plan for people."""
        return [
            f"composite  {self.composite}: {', '.join(self.members) or 'the anchor alone'}",
            f"fetch      {self.bytes - self.here:,} bytes of {self.bytes:,}; {self.free:,} are free",
            f"score      {self.documents} documents, {self.text_bytes:,} bytes, under {', '.join(self.systems)}",
            f"nothing was fetched{' but ' * bool(self.fetched)}{' and '.join(self.fetched)}, and nothing leaves",
        ]


def guest(
    charter_file: Path,
    directory: Path,
    *,
    data: DataConfig,
    coordinator: str,
) -> OwnerHome:
    """Somebody who has not joined: a folder for what is fetched, and a key that lives as long as this object.

    Args:
        charter_file: the signed charter.
        directory: the folder; nothing but what is fetched is written there.
        data: the text; relative patterns are seen from the working directory, and `GUEST_BYTES` are used if it does
            not say how many.
        coordinator: the key that must have signed the charter.

    Raises:
        ConfigurationError: there is no such file, or the charter names another key.
        SignatureError: the charter's signature does not hold.
    """
    charter = read_signed(charter_file, "charter").open(Charter, by=coordinator)
    if charter.coordinator != coordinator:
        raise ConfigurationError(
            f"the charter names {charter.coordinator} as its coordinator but is signed by {coordinator}; ask the "
            "coordinator for the right one"
        )
    patterns = tuple(str(Path(pattern).expanduser().absolute()) for pattern in data.files)
    config = OwnerConfig(
        name=GUEST,
        coordinator=coordinator,
        data=data.model_copy(update={"files": patterns, "max_bytes": data.max_bytes or GUEST_BYTES}),
        terms=Terms(licence="LicenseRef-none"),
    )
    return OwnerHome(path=directory.absolute(), config=config, charter=charter, key=SigningKey.generate())


def joined(home: OwnerHome) -> bool:
    """Whether this is an owner's home, or a guest's folder."""
    return (home.path / CONFIG_FILE).exists()


def plan_trial(
    home: OwnerHome, *, composite: str | None = None, folder: Path | None = None, source: Source | None = None
) -> TrialPlan:
    """What `try_composite` would fetch and score; of a composite that is not here only the list of files is fetched,
    and for conversations the anchor if it is not here either.

    Raises as `try_composite` does.
    """
    fetched = _fetched_for_plan(home, composite, folder)
    manifest = _published(home, composite) if folder is None else _in_folder(folder, composite, home)
    size = sum(file.size for file in manifest.files)
    member, source = _own(home, manifest, source)
    texts = _texts(home, _corpus(home), added=source is not None)
    return TrialPlan(
        composite=manifest.digest,
        members=tuple(each.name for each in manifest.members),
        bytes=size,
        here=size if folder is not None else min(size, _bytes_in(home.composite(manifest.digest))),
        free=shutil.disk_usage(_existing(home.path)).free,
        documents=len(texts),
        text_bytes=sum(len(text.encode()) for text in texts),
        systems=tuple(systems(member=member is not None, added=source is not None)),
        conversations=home.config.data.format == "messages",
        fetched=fetched,
    )


def try_composite(
    home: OwnerHome,
    *,
    composite: str | None = None,
    folder: Path | None = None,
    source: Source | None = None,
    tell: Tell = lambda line: None,
    progress: Fetched = lambda done, total: None,
) -> CompositeTrial:
    """Fetch, and measure on the owner's text.

    Args:
        home: an owner's home, or a guest's.
        composite: its digest; None takes the newest that the coordinator publishes.
        folder: where the composite lies already; nothing of it is fetched then.
        source: the own expert; None takes what is packed in the outbox, if anything is.
        tell: told a line before each step.
        progress: told the bytes fetched and in total.

    Raises:
        TransferRefused: there is no such composite, or the charter lets no guests in.
        TransferBroken, StorageError: it cannot be fetched; the same call resumes.
        AssemblyError, AnchorMismatch: it is not what it should be.
        DataError: the text cannot be used.
        MotetError: as reading the own expert raises it.
    """
    folder = _composite_folder(home, composite, folder, progress)
    manifest = read_composite_manifest(folder)
    member, source = _own(home, manifest, source)
    corpus = _corpus(home)
    expert: AnyExpert | None = None
    if source is not None:
        tell("reading your expert")
        with _door():
            expert = read_source(source, home, name=member or UNNAMED)
    if manifest.tuning is not None and expert is not None:
        tell("the router of this composite was tuned for its members; yours is added with its own rows")
    texts = _texts(home, corpus, added=expert is not None)
    return _measured(home, folder, texts, corpus, expert, member, tell)


def _composite_folder(home: OwnerHome, composite: str | None, folder: Path | None, progress: Fetched) -> Path:
    """Where the composite lies, verified: the folder that was named, or one into which it is fetched."""
    if folder is None:
        with _door():
            return pull(home, composite or _published(home, None).digest, progress=progress)
    require_composite(verify_composite(folder), composite or _in_folder(folder, None, home).digest, home)
    return folder


def _measured(
    home: OwnerHome,
    folder: Path,
    texts: Sequence[str],
    corpus: Corpus,
    expert: AnyExpert | None,
    member: str | None,
    tell: Tell,
) -> CompositeTrial:
    settings = home.config.training
    torch.set_num_threads(settings.threads)
    model = load_composite(folder, arithmetic_of(settings))
    model.to(device_of(settings))  # type: ignore[arg-type]
    windows = windows_of(
        AutoTokenizer.from_pretrained(folder, local_files_only=True),
        texts,
        sequence_length=window_length(home, model.config.max_position_embeddings),
        batch_size=settings.batch_size,
        answers=corpus.answers,
    )
    losses = measure(
        model,
        windows,
        expert=expert,
        member=member,
        log_prior=home.charter.routing.log_prior_expert,
        on_system=lambda system: tell(f"scoring {system}"),
    )
    return CompositeTrial.of(losses)


def window_length(home: OwnerHome, positions: int) -> int:
    """Tokens of a window: as owner.toml says, and for a guest, who has none, no more than the anchor's positions."""
    length = home.config.training.sequence_length
    return length if joined(home) else min(length, positions)


def _corpus(home: OwnerHome) -> Corpus:
    """The owner's text, or a guest's, who is told what the options are called that stand for [data]."""
    if home.config.data.format == "messages":
        with _door():
            fetch_anchor(home)  # its tokenizer renders them
    try:
        return load_corpus(home.config.data, home.path)
    except DataError as error:
        if joined(home):
            raise
        raise DataError(f"{error}. Before joining, these options stand for [data]: {GUEST_OPTIONS}") from error


def _texts(home: OwnerHome, corpus: Corpus, *, added: bool) -> tuple[str, ...]:
    """What is scored: held-out documents, and of a guest's text, of which nothing was learnt, all."""
    return corpus.held_out if added or joined(home) else (*corpus.train, *corpus.held_out)


def _own(home: OwnerHome, manifest: CompositeManifest, source: Source | None) -> tuple[str | None, Source | None]:
    """What the composite calls the owner's expert, if it has one, and which is to be added."""
    packed = {each.digest for each in packed_contributions(home)}
    member = next((each for each in manifest.members if each.contribution in packed), None)
    found = source or find_source(home)
    there = found is not None and found.packed is not None and member is not None
    if there and found is not None and found.packed is not None and member is not None:
        found = None if found.packed.digest == member.contribution else found
    return None if member is None else member.name, found


def _published(home: OwnerHome, composite: str | None) -> CompositeManifest:
    """The manifest of a composite, or of the newest, from the coordinator; one that is here is not asked for."""
    if composite is not None and _manifest_is_here(home, composite):
        return _in_folder(home.composite(composite), composite, home)
    charter = home.charter
    try:
        with (
            _door(),
            transfer.connect(charter.addresses.data_plane, charter.certificate_authority.encode()) as channel,
        ):
            data = transfer.manifest_of(
                channel, composite or charter.digest, key=home.key, audience=transfer.audience_of(charter)
            )
    except TransferBroken as error:
        raise TransferBroken(
            f"cannot ask which composite there is: {error}. Composites come over the data plane, "
            f"{charter.addresses.data_plane}, alone; where it cannot be reached, ask for one as a folder, and give it "
            "with --composite"
        ) from error
    manifest = CompositeManifest.parse(data)
    require_composite(manifest, composite or manifest.digest, home)
    return manifest


def _manifest_is_here(home: OwnerHome, composite: str) -> bool:
    return (home.composite(composite) / MANIFEST_FILE).exists()


def _fetched_for_plan(home: OwnerHome, composite: str | None, folder: Path | None) -> tuple[str, ...]:
    """What a plan has to fetch, asked before it does."""
    listed = folder is not None or (composite is not None and _manifest_is_here(home, composite))
    anchored = home.config.data.format != "messages" or anchor_is_here(home)
    missing = {"the list of files": not listed, "the anchor": not anchored}
    return tuple(name for name, wanted in missing.items() if wanted)


def _in_folder(folder: Path, composite: str | None, home: OwnerHome) -> CompositeManifest:
    manifest = read_composite_manifest(folder)
    require_composite(manifest, composite or manifest.digest, home)
    return manifest


@contextmanager
def _door() -> Iterator[None]:
    """Tell those whom the coordinator does not know what they can do."""
    try:
        yield
    except TransferRefused as error:
        if error.reason != "unknown-owner":
            raise
        raise TransferRefused(
            "the coordinator hands nothing to those who have not joined, since the charter says no "
            "try_before_joining: join, or ask for the composite as a folder and give it with --composite",
            reason=error.reason,
        ) from error


def _bytes_in(folder: Path) -> int:
    """What is there of a fetch, whole files and parts."""
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file() and path.name != MANIFEST_FILE)


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.absolute().parents) if each.exists())
