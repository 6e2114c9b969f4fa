"""Founding a federation: a coordinator's home, made whole or not at all.

    charter = init(path, name="quickstart", anchor_directory=anchor, public_text=text, addresses=addresses)

Copies and checks what owners will fetch, makes keys and certificates, signs the charter, and begins the ledger with
it. Everything lies on the disk, fsynced, before the folder takes its name.
"""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from pydantic import TypeAdapter, ValidationError

from motet.coordinator.home import PUBLIC_TEXT_FILE, PUBLIC_TOKENS_FILE, STATISTICS_FILE, hosts_of
from motet.coordinator.ledger_store import Draft, LedgerStore
from motet.coordinator.public_tokens import keep_public_tokens
from motet.coordinator.tls import ensure_tls
from motet.protocols.anchor_manifest import checkpoint_files, tokenizer_files
from motet.protocols.canonical import CHUNK_BYTES, file_digest, storage_errors, sync_directory, write_atomically
from motet.protocols.charter import Addresses, AnchorPin, Charter, ExpertRules, RoutingRules, TrainingRules
from motet.protocols.documents import Name, first_problem
from motet.protocols.errors import AnchorError, ConfigurationError
from motet.protocols.signing import SigningKey, seal
from motet.protocols.split import PUBLIC_SEED, PUBLIC_SHARE, is_held_out
from motet.protocols.transfer.publication import write_bundle

if TYPE_CHECKING:
    from motet.moe.anchor import Anchor


def init(
    path: Path,
    *,
    name: str,
    anchor_directory: Path,
    public_text: Path,
    addresses: Addresses,
    experts: ExpertRules = ExpertRules(),
    routing: RoutingRules = RoutingRules(),
    training: TrainingRules = TrainingRules(),
    hosts: tuple[str, ...] = (),
) -> Charter:
    """Make a coordinator's home in the new or empty folder `path`, and the charter it runs under.

    Args:
        path: the new home.
        name: what the federation is called.
        anchor_directory: a supported checkpoint with `statistics.safetensors` beside it; copied.
        public_text: JSON lines with a "text" each; copied.
        addresses: where owners reach the coordinator.
        experts, routing, training: the rules; see `anchor_rules` for what an anchor makes of `routing`.
        hosts: further names and addresses for the server certificate.

    Raises:
        ConfigurationError: `path` holds something, the name or the public text is unusable, or the rules are none that
            composites of this anchor can follow.
        AnchorError, StatisticsError: the anchor or its statistics are unusable.
        StorageError: the disk is full or not writable.
    """
    from motet.coordinator.anchor_rules import rules_on
    from motet.moe.anchor import Anchor

    named = _checked(name)
    with _made_whole(path) as building:
        anchor = Anchor.load(anchor_directory)
        rules = rules_on(anchor.family, routing)
        terms = _Terms(name=named, addresses=addresses, experts=experts, routing=rules, training=training)
        pin = _publish(building, anchor, public_text, counted=rules.counted)
        return _found(building, terms, pin, hosts)


@contextmanager
def _made_whole(path: Path) -> Iterator[Path]:
    """A folder beside `path` that takes its name if all goes well, and is gone if not."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigurationError(f"{path} exists and is not an empty folder; choose another one for the new home")
    building = path.absolute().with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with storage_errors(path):
            building.mkdir(parents=True)
            yield building
            sync_directory(building)
            building.replace(path)
            sync_directory(path.absolute().parent)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


class _Terms(TypedDict):
    """The part of a charter that its author chooses."""

    name: str
    addresses: Addresses
    experts: ExpertRules
    routing: RoutingRules
    training: TrainingRules


def _checked(name: str) -> str:
    try:
        return TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise ConfigurationError(
            f"cannot call the federation {name!r}: {first_problem(error)}; use small letters, digits and -"
        ) from error


def _found(building: Path, terms: _Terms, pin: AnchorPin, hosts: tuple[str, ...]) -> Charter:
    """Make keys, certificates, charter and the ledger's first entry."""
    files = ensure_tls(building / "tls", [*hosts_of(terms["addresses"]), *hosts])
    key = SigningKey.generate()
    key.save(building / "keys" / "coordinator.pem")
    charter = Charter(
        anchor=pin,
        coordinator=key.public,
        certificate_authority=files.authority.read_text(encoding="ascii"),
        **terms,
    )
    _write_charter(building, charter, key)
    return charter


def _write_charter(building: Path, charter: Charter, key: SigningKey) -> None:
    signed = seal(charter, key)
    write_atomically(building / "charter.toml", charter.to_toml().encode())
    write_atomically(building / "charter.signed.json", signed.canonical())
    with LedgerStore(building / "ledger.sqlite") as ledger:
        ledger.append(lambda _: Draft(kind="charter", subject=charter.digest, body={"signed": signed.as_json()}))


def _publish(building: Path, anchor: "Anchor", public_text: Path, *, counted: bool) -> AnchorPin:
    """Copy what owners will fetch, and list it; nothing else of the anchor's folder is published.

    `counted` says whether admission will want the counts of the public text's tokens, which take as long as reading it.
    """
    anchor.statistics()
    _check_public_text(public_text)
    target = building / "anchor"
    target.mkdir()
    for source in _published_files(anchor.directory):
        _copy(source, target / source.name)
    _copy(public_text, target / PUBLIC_TEXT_FILE)
    bundle = write_bundle(target)
    write_atomically(building / "anchor-manifest.json", anchor.manifest.canonical())
    if counted:
        keep_public_tokens(building / PUBLIC_TOKENS_FILE, target, anchor.manifest.vocabulary_size)
    return AnchorPin(
        digest=anchor.digest,
        statistics=file_digest(target / STATISTICS_FILE),
        public_text=file_digest(target / PUBLIC_TEXT_FILE),
        bundle=bundle.digest,
    )


def _published_files(directory: Path) -> list[Path]:
    optional = [directory / name for name in ("generation_config.json", "model.safetensors.index.json", "LICENSE")]
    return [
        *checkpoint_files(directory),
        *tokenizer_files(directory),
        directory / "config.json",
        directory / STATISTICS_FILE,
        *(path for path in optional if path.exists()),
    ]


def _copy(source: Path, target: Path) -> None:
    try:
        with source.open("rb") as original, target.open("xb") as copy:
            shutil.copyfileobj(original, copy, CHUNK_BYTES)
            copy.flush()
            os.fsync(copy.fileno())
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise AnchorError(f"saw no {source}, wanted it beside the anchor; fetch the anchor again") from error
        raise


def _check_public_text(path: Path) -> None:
    """Both sides of the split must have something, or nobody could train or be scored on it."""
    sides = set()
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                text = json.loads(line)["text"]
                if not isinstance(text, str):
                    raise TypeError(f"line {number} has a text that is none")
                sides.add(is_held_out(text, PUBLIC_SHARE, PUBLIC_SEED))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f'cannot use {path} as public text: {error}; wanted JSON lines, each with a "text"'
        ) from error
    if sides != {True, False}:
        raise ConfigurationError(f"{path} is too small to train on and to hold out; give some dozens of documents")
