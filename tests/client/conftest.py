"""An owner's home around a tiny anchor, and a coordinator simulated down to its TLS and signatures."""

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from motet.client.outbox import Packed
from motet.client.owner import CodecConfig, ContributionConfig, DataConfig, OwnerConfig, OwnerHome, TrainingConfig
from motet.client.worker import make_contribution
from motet.coordinator.tls import ensure_tls
from motet.protocols.canonical import file_digest
from motet.protocols.charter import Addresses, AnchorPin, Charter
from motet.protocols.composite_manifest import RoutingPolicy
from motet.protocols.contribution import Contribution, Terms, Withdrawal
from motet.protocols.expert_files import StoredTensors, materialise_file
from motet.protocols.receipts import Receipt
from motet.protocols.signing import Signed, SigningKey, seal
from motet.protocols.transfer import audience_of, serve, write_bundle

from .lending import keep_rows, keep_training, lend_rows, lend_training

MakeHome = Callable[..., OwnerHome]
WORDS = [
    "kidney",
    "heart",
    "liver",
    "lung",
    "bone",
    "skin",
    "blood",
    "nerve",
    "muscle",
    "brain",
    "acute",
    "chronic",
    "benign",
    "mild",
    "severe",
    "left",
    "right",
]


def sentences(count: int, *, seed: int = 0, words: int = 40) -> list[str]:
    """Different documents of made-up medicine."""
    import random

    draw = random.Random(seed)
    return [f"case {seed}-{number}: " + " ".join(draw.choices(WORDS, k=words)) for number in range(count)]


def packed_of(home: OwnerHome) -> Packed:
    """The contribution that a home's settings make, read anew; what another home has trained, it does not train."""
    home = OwnerHome.load(home.path)
    lend_training(home)
    packed = make_contribution(home)
    assert packed is not None
    keep_training(home)
    return packed


def edit(home: OwnerHome, before: str, after: str) -> None:
    """Change a line of owner.toml that must be there."""
    path = home.path / "owner.toml"
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after), encoding="utf-8")


def published(home: OwnerHome, folder: Path) -> str:
    """A real composite of this owner's expert, under the owner's name; its digest."""
    from motet.coordinator.assembly import Member, assemble
    from motet.moe.anchor import Anchor

    packed, anchor, file = packed_of(home), Anchor.load(home.anchor), folder.with_suffix(".safetensors")
    with StoredTensors.of_anchor(home.anchor) as stored:
        materialise_file(packed.update, anchor.manifest, stored, file, rank=packed.contribution.rank)
    member = Member(name=home.config.name, contribution=packed.digest, expert_file=file)
    return assemble(anchor, [member], RoutingPolicy.of(home.charter.routing), folder).digest


@dataclass
class Coordinator:
    """The simplest TransferPolicy: admits or refuses everything, publishes what it is told to."""

    key: SigningKey
    charter: Charter
    intake_directory: Path
    verdict: str = "admitted"
    reason: str = "wrong-anchor"
    received: list[Contribution] = field(default_factory=list)
    withdrawn: list[Withdrawal] = field(default_factory=list)
    published: dict[str, Path] = field(default_factory=dict)
    owners: set[str] | None = None
    guests: bool = False
    newest: str | None = None

    @property
    def audience(self) -> str:
        return audience_of(self.charter)

    def check(self, manifest: Contribution, signed: Signed) -> Signed | None:
        return None

    def admit(self, signed: Signed, update: Path, received_bytes: int) -> Signed:
        manifest = signed.open(Contribution)
        assert file_digest(update) == manifest.update
        self.received.append(manifest)
        return self._receipt(manifest.digest, manifest.owner, self.verdict, received_bytes)

    def withdraw(self, signed: Signed) -> Signed:
        withdrawal = signed.open(Withdrawal)
        self.withdrawn.append(withdrawal)
        return self._receipt(withdrawal.contribution, withdrawal.owner, "withdrawn", 0)

    def publication(self, digest: str) -> tuple[Path, str] | None:
        folder = self.published.get(digest)
        name = "bundle.json" if digest == self.charter.anchor.bundle else "composite.json"
        return None if folder is None else (folder, name)

    def current(self) -> str | None:
        return self.newest

    def enrolled(self, owner: str) -> bool:
        return self.owners is None or owner in self.owners

    def _receipt(self, contribution: str, owner: str, status: str, received_bytes: int) -> Signed:
        refused = status == "refused"
        receipt = Receipt(
            charter=self.charter.digest,
            contribution=contribution,
            owner=owner,
            status=status,
            reason=self.reason if refused else None,
            message="saw another anchor" if refused else None,
            received_bytes=received_bytes,
            entry=self.charter.digest,
            sequence=1,
        )
        return seal(receipt, self.key)


@dataclass
class Federation:
    """What a home and a coordinator share."""

    charter: Charter
    key: SigningKey
    chain: bytes
    private_key: bytes
    anchor: Path


@pytest.fixture(scope="session")
def anchor_bundle(make_anchor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny anchor with public text and statistics; never write into it."""
    import json

    from motet.client.data import load_public
    from motet.moe.anchor import STATISTICS_FILE, Anchor
    from motet.moe.statistics import measure

    directory = make_anchor(tmp_path_factory.mktemp("bundle"))
    lines = [
        json.dumps({"text": f"country {n} exports {' '.join(WORDS[n % 7 :: 3])} and imports {n}"}) for n in range(60)
    ]
    (directory / "public.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    public = load_public(directory / "public.jsonl")
    measure(Anchor.load(directory), public.train).save(directory / STATISTICS_FILE)
    return directory


@pytest.fixture(scope="session")
def federation(anchor_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Federation:
    from motet.moe.anchor import Anchor

    tls = ensure_tls(tmp_path_factory.mktemp("tls"), ["localhost"])
    key = SigningKey.generate()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    charter = Charter(
        name="test",
        anchor=AnchorPin(
            digest=Anchor.load(anchor_bundle).digest,
            statistics=file_digest(anchor_bundle / "statistics.safetensors"),
            public_text=file_digest(anchor_bundle / "public.jsonl"),
            bundle=write_bundle(anchor_bundle).digest,
        ),
        addresses=Addresses(data_plane=f"127.0.0.1:{port}", flower="127.0.0.1:1"),
        coordinator=key.public,
        certificate_authority=tls.authority.read_text(),
    )
    return Federation(
        charter=charter,
        key=key,
        chain=tls.server.read_bytes(),
        private_key=tls.server_key.read_bytes(),
        anchor=anchor_bundle,
    )


@pytest.fixture
def make_home(federation: Federation, tmp_path: Path) -> Iterator[MakeHome]:
    """`make_home(name, training={...}, contribution={...}, codec={...}, texts=[...])` joins with own text."""
    import json

    alike: list[OwnerHome] = []

    def make(
        name: str = "medicine", *, texts: list[str] | None = None, training=None, contribution=None, codec=None
    ) -> OwnerHome:
        path = tmp_path / name
        path.mkdir()
        lines = [json.dumps({"text": text}) for text in (sentences(60) if texts is None else texts)]
        (path / "own.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        config = OwnerConfig(
            name=name,
            coordinator=federation.key.public,
            data=DataConfig(files=("own.jsonl",)),
            terms=Terms(licence="Apache-2.0"),
            training=TrainingConfig(
                **{"steps": 6, "batch_size": 4, "sequence_length": 32, "warmup": 2, "device": "cpu"}
                | {"checkpoint_every": 2, "learning_rate": 1e-2}
                | (training or {})
            ),
            codec=CodecConfig(**{"method": "lossless"} | (codec or {})),
            contribution=ContributionConfig(**{"consent": "automatic"} | (contribution or {})),
        )
        home = OwnerHome.create(path, config, seal(federation.charter, federation.key))
        home.anchor.symlink_to(federation.anchor)
        if texts is None:
            lend_rows(home)
            alike.append(home)
        return home

    yield make
    for home in alike:
        keep_rows(home)


@pytest.fixture
def coordinator(federation: Federation, tmp_path: Path) -> Iterator[Coordinator]:
    """A coordinator that listens at the charter's address for the length of a test."""
    policy = Coordinator(key=federation.key, charter=federation.charter, intake_directory=tmp_path / "intake")
    server = serve(
        policy,
        address=federation.charter.addresses.data_plane,
        certificate_chain=federation.chain,
        private_key=federation.private_key,
    )
    yield policy
    server.stop(0).wait()
