"""A federation on paper: a ledger of signed contributions, and a composite on disk that is made of them."""

import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from openai import OpenAI

from motet.coordinator.ledger_store import Draft, LedgerStore
from motet.moe import compose
from motet.protocols.canonical import file_digest
from motet.protocols.charter import Addresses, AnchorPin, Charter
from motet.protocols.composite_manifest import MANIFEST_FILE, CompositeManifest
from motet.protocols.contribution import CodecRecord, Contribution, JoinRequest, Terms, TrainingRecord, Withdrawal
from motet.protocols.signing import Signed, SigningKey, seal
from motet.serving.api.app import build_app
from motet.serving.api.service import Service
from motet.serving.engine.engine import Engine
from motet.serving.engine.loading import Composite
from motet.serving.expert_sets import Roster
from motet.serving.governing import governed
from motet.serving.run import listening, web_server

from ..conftest import byte_tokenizer
from ..moe.conftest import tiny_anchor
from ..moe.mixed_kinds import RANKS, expert_of
from .conftest import NAME, TEMPLATE

ANCHOR = "sha256:" + "a" * 64
TERMS = {
    "art": Terms(licence="CC-BY-NC-4.0"),
    "law": Terms(licence="CC0-1.0", purpose="Research only"),
    "math": Terms(licence="CC0-1.0"),
    "news": Terms(licence="CC0-1.0"),
}


@dataclass(frozen=True)
class Federation:
    """A home with a ledger, who signed what, and the composite's folder."""

    home: Path
    composite: Path
    keys: dict[str, SigningKey]
    signed: dict[str, Signed]

    def contribution(self, name: str) -> Contribution:
        return self.signed[name].open(Contribution)

    @property
    def roster(self) -> Roster:
        digests = {self.contribution(name).digest: name for name in self.signed}
        named = {digest: digests[digest] for digest in sorted(digests)}
        return Roster(names=("anchor", *named.values()), contributions=tuple(named), anchor=ANCHOR)

    def withdraw(self, name: str) -> None:
        """As the coordinator does when the owner's tombstone comes in."""
        contribution = self.contribution(name)
        tombstone = Withdrawal(charter=contribution.charter, contribution=contribution.digest, owner=contribution.owner)
        signed = seal(tombstone, self.keys[name])
        with LedgerStore(self.home / "ledger.sqlite") as ledger:
            body = {"signed": signed.as_json()}
            ledger.append(lambda _: Draft(kind="withdrawn", subject=contribution.digest, body=body))

    def beside(self, directory: Path) -> "Federation":
        """The same with a ledger of its own."""
        shutil.copytree(self.home, directory / "home")
        return replace(self, home=directory / "home")

    def backup(self, directory: Path) -> dict[str, bytes]:
        """The ledger's files, as a backup made in `directory` has them."""
        directory.mkdir()
        connected = (sqlite3.connect(each / "ledger.sqlite") for each in (self.home, directory))
        source, target = map(closing, connected)
        with source as ledger, target as backup:
            ledger.backup(backup)
        head = (self.home / "ledger.sqlite.head").read_bytes()
        return {"ledger.sqlite": (directory / "ledger.sqlite").read_bytes(), "ledger.sqlite.head": head}

    def restore(self, files: dict[str, bytes]) -> None:
        """Puts the files of a backup in their places, each by a rename."""
        for path in self.home.glob("ledger.sqlite-*"):
            path.unlink()
        for name, content in files.items():
            (self.home / "new").write_bytes(content)
            (self.home / "new").replace(self.home / name)


def found_federation(directory: Path, terms: dict[str, Terms] = TERMS, *, context: int | None = 192) -> Federation:
    """With a context of None there is no composite, only what was signed."""
    coordinator = SigningKey.generate()
    charter = Charter(
        name="test",
        anchor=AnchorPin(digest=ANCHOR, statistics=ANCHOR, public_text=ANCHOR, bundle=ANCHOR),
        addresses=Addresses(data_plane="a.example:1", flower="a.example:2"),
        coordinator=coordinator.public,
        certificate_authority="-----BEGIN CERTIFICATE-----",
    )
    keys = {name: SigningKey.generate() for name in terms}
    signed = {name: seal(_contribution(charter, name, own, keys[name]), keys[name]) for name, own in terms.items()}
    home = directory / "home"
    home.mkdir(parents=True)
    with LedgerStore(home / "ledger.sqlite") as ledger:
        _append(ledger, "charter", charter.digest, seal(charter, coordinator))
        for name, key in keys.items():
            request = JoinRequest(charter=charter.digest, name=name, owner=key.public, flower_key=name)
            _append(ledger, "enrolled", key.public, seal(request, key))
            _append(ledger, "admitted", signed[name].open(Contribution).digest, signed[name])
    federation = Federation(home=home, composite=directory / "composite", keys=keys, signed=signed)
    if context is not None:
        _write_composite(federation, context)
    return federation


def _append(ledger: LedgerStore, kind: str, subject: str, signed: Signed) -> None:
    ledger.append(lambda _: Draft(kind=kind, subject=subject, body={"signed": signed.as_json()}))


def _contribution(charter: Charter, name: str, terms: Terms, key: SigningKey) -> Contribution:
    rank = RANKS[name]
    return Contribution(
        charter=charter.digest,
        anchor=ANCHOR,
        name=name,
        owner=key.public,
        kind="full" if rank is None else "lowrank",
        rank=rank,
        update=ANCHOR,
        update_bytes=1,
        terms=terms,
        training=TrainingRecord(steps=1, tokens=1, documents=1, held_out_documents=1, seed=0, public_share=0.25),
        codec=CodecRecord(method="lossless"),
        bits_per_byte={},
    )


def _write_composite(federation: Federation, context: int) -> None:
    torch.set_num_threads(1)
    tokenizer, folder = byte_tokenizer(), federation.composite
    tokenizer.chat_template = TEMPLATE
    anchor = tiny_anchor(vocab_size=len(tokenizer), max_position_embeddings=context)
    named = {name: federation.contribution(name).digest for name in federation.signed}
    experts = [replace(expert_of(anchor, name), contribution=digest) for name, digest in named.items()]
    compose(anchor, experts, log_priors={"anchor": 0.5}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    files = [
        {"name": path.name, "size": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(folder.iterdir())
    ]
    members = [
        {"name": name, "contribution": digest, "expert": ANCHOR, "rank": RANKS[name]}
        for digest, name in sorted((digest, name) for name, digest in named.items())
    ]
    manifest = CompositeManifest.model_validate({"anchor": ANCHOR, "members": members, "routing": {}, "files": files})
    (folder / MANIFEST_FILE).write_bytes(manifest.canonical())


@dataclass(frozen=True)
class Served:
    """A governed server."""

    url: str
    notes: tuple[str, ...]
    service: Service

    def client(self, key: str = "none", **settings: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60, **settings)


@contextmanager
def served(
    composite: Composite, *, state: Path, policy: Path | None = None, home: Path | None = None
) -> Iterator[Served]:
    """What `motet serve` runs, in this process."""
    with (
        governed(composite, policy=policy, home=home, state=state) as given,
        closing(listening("127.0.0.1", 0)) as listener,
        Engine(composite, max_batch=8, withdrawn=given.hooks.withdrawn) as engine,
    ):
        app = build_app(service := Service(composite, engine, NAME, given.hooks))
        given.extend(app)
        server = web_server(app, grace=5)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", given.notes, service)
        finally:
            server.should_exit = True
            thread.join()
