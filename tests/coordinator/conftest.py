"""A coordinator's home with a tiny anchor, and owners who can join and contribute to it."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from motet.coordinator.founding import init
from motet.coordinator.home import CoordinatorHome
from motet.coordinator.intake import Intake
from motet.coordinator.ledger_store import Draft
from motet.coordinator.store import ExpertStore
from motet.moe.anchor import Anchor
from motet.moe.statistics import measure
from motet.protocols.canonical import file_digest
from motet.protocols.charter import Addresses, ExpertRules
from motet.protocols.codec import CodecSettings, Header, Method, TensorHeader, UpdateReader, encode
from motet.protocols.codec.changes import narrow
from motet.protocols.codec.frames import FrameWriter
from motet.protocols.contribution import CodecRecord, Contribution, JoinRequest, Terms, TrainingRecord, Withdrawal
from motet.protocols.errors import CodecError
from motet.protocols.expert_files import EVIDENCE_STEP, ROUTER_TOKENS, StoredTensors, materialise_file, update_specs
from motet.protocols.receipts import Receipt
from motet.protocols.signing import Signed, SigningKey, seal
from motet.protocols.tensor_files import TensorSpec

PUBLIC = [f"Public document number {number}, about the weather in town {number * 7}." for number in range(60)]


def flower_line() -> str:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


@dataclasses.dataclass(frozen=True)
class Owner:
    """An owner with keys, able to sign whatever a test asks for."""

    name: str
    key: SigningKey
    flower_key: str

    def request(self, home: CoordinatorHome, **changes: str) -> Signed:
        values = {"charter": home.charter.digest, "name": self.name, "owner": self.key.public}
        return seal(JoinRequest(**(values | {"flower_key": self.flower_key} | changes)), self.key)

    def manifest(self, home: CoordinatorHome, update: Path, **changes: object) -> Signed:
        values = {
            "charter": home.charter.digest,
            "anchor": home.charter.anchor.digest,
            "name": self.name,
            "owner": self.key.public,
            "update": file_digest(update),
            "update_bytes": update.stat().st_size,
            "terms": Terms(licence="CC0-1.0"),
            "training": TrainingRecord(
                steps=1, tokens=10, documents=1, held_out_documents=1, seed=0, public_share=0.25
            ),
            "codec": CodecRecord(method=method_of(update), gain_kept=0.98),
            "bits_per_byte": {"anchor": 2.0, "expert": 1.5, "trained": 1.49},
        }
        return seal(Contribution.model_validate(values | changes), self.key)

    def withdrawal(self, home: CoordinatorHome, contribution: str) -> Signed:
        return seal(Withdrawal(charter=home.charter.digest, contribution=contribution, owner=self.key.public), self.key)


def method_of(update: Path) -> Method:
    """What the matrices of an update travel in; anything if it is no update at all."""
    try:
        with UpdateReader(update) as reader:
            methods = {tensor.method for tensor in reader.header.tensors if len(tensor.shape) == 2}
    except CodecError:
        return "lossless"
    return min(methods, default="lossless")


class Values:
    """Tensors in memory as a codec source: uint16 bits for BF16, else floats."""

    def __init__(self, tensors: Mapping[str, np.ndarray[Any, Any]]) -> None:
        self.tensors = {name: tensor.reshape(-1) for name, tensor in tensors.items()}

    def read(self, spec: TensorSpec, start: int, count: int) -> np.ndarray[Any, Any]:
        return self.tensors[spec.name][start : start + count]


def random_values(specs: Sequence[TensorSpec], seed: int, poison: float | None = None, size: float = 0.01) -> Values:
    """Small differences and rows, evidence of a step either way, none by what opens texts; the last may be `poison`."""
    draw, tensors = np.random.default_rng(seed), {}
    for spec in specs:
        values = (draw.standard_normal(spec.shape) * size).astype(np.float32)
        if spec.name == ROUTER_TOKENS:
            values = np.copysign(np.float32(EVIDENCE_STEP), values)
            values[0] = 0.0  # the byte tokenizer's token that opens every text, which is no evidence
        if poison is not None and spec == specs[-1]:
            values.reshape(-1)[-1] = poison
        tensors[spec.name] = narrow(values, spec.dtype)
    return Values(tensors)


def write_unchecked(path: Path, header: Header, values: Values) -> Path:
    """A raw update file of anything at all, NaN included: what an encoder of somebody else's may write."""
    with FrameWriter(path, header) as writer:
        for index, tensor, span in header.spans():
            writer.write(index, span.number, values.tensors[tensor.name][span.start :][: span.count].tobytes())
    return path


WriteUpdate = Callable[..., Path]
"""`write_update(path, seed=0, specs=None, poison=None, settings=None, base=None, anchor=None, size=0.01)`.

What an owner trained, or something worse: with `poison` the file is raw, and that value is the last in it.
"""


@pytest.fixture
def write_update(home: CoordinatorHome) -> WriteUpdate:
    def write(
        path: Path,
        *,
        seed: int = 0,
        specs: list[TensorSpec] | None = None,
        poison: float | None = None,
        settings: CodecSettings = CodecSettings(method="lossless"),
        base: str | None = None,
        anchor: str | None = None,
        size: float = 0.01,
    ) -> Path:
        specs, anchor = specs or update_specs(home.anchor_manifest), anchor or home.charter.anchor.digest
        values = random_values(specs, seed, poison, size)
        if poison is None:
            encode(path, values, specs, settings, anchor=anchor, base=base)
            return path
        tensors = [TensorHeader(name=s.name, dtype=s.dtype, shape=s.shape, method="raw") for s in specs]
        return write_unchecked(path, Header(anchor=anchor, base=base, tensors=tuple(tensors)), values)

    return write


@pytest.fixture
def update(write_update: WriteUpdate, tmp_path: Path) -> Path:
    """What an owner trained, as a file."""
    return write_update(tmp_path / "update.motetup")


@pytest.fixture(scope="session")
def anchor_with_statistics(anchor_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("published") / "anchor"
    shutil.copytree(anchor_directory, directory)
    measure(Anchor.load(directory), PUBLIC[:20]).save(directory / "statistics.safetensors")
    return directory


@pytest.fixture(scope="session")
def public_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "public.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in PUBLIC))
    return path


@pytest.fixture(scope="session")
def home_template(anchor_with_statistics: Path, public_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "home"
    init(
        path,
        name="quickstart",
        anchor_directory=anchor_with_statistics,
        public_text=public_text,
        addresses=Addresses(data_plane="127.0.0.1:9443", flower="localhost:8000"),
        experts=ExpertRules(licences=("CC0-1.0", "Apache-2.0"), max_update_bytes=1 << 20, inline_bytes=1 << 19),
    )
    return path


@pytest.fixture
def home(home_template: Path, tmp_path: Path) -> Iterator[CoordinatorHome]:
    """A home of this test's own; always the same charter."""
    shutil.copytree(home_template, tmp_path / "home")
    opened = CoordinatorHome(tmp_path / "home")
    yield opened
    opened.close()


@pytest.fixture
def intake(home: CoordinatorHome) -> Intake:
    return Intake(home)


def opened(home: CoordinatorHome, receipt: Signed) -> Receipt:
    return receipt.open(Receipt, by=home.charter.coordinator)


def kinds(home: CoordinatorHome) -> list[str]:
    """The ledger at a glance."""
    return [entry.kind for entry in home.ledger.entries()]


@pytest.fixture(scope="session")
def make_owner() -> Callable[[str], Owner]:
    return lambda name: Owner(name=name, key=SigningKey.generate(), flower_key=flower_line())


@pytest.fixture
def admit_quickly(home: CoordinatorHome, write_update: WriteUpdate, tmp_path: Path) -> Callable[..., str]:
    """`admit_quickly(owner, seed=0)`: an expert in store and ledger without the child processes; its digest.

    With `rank` it is a low-rank one.
    """

    def admit(owner: Owner, *, seed: int = 0, version: int = 1, rank: int | None = None, **changes: object) -> str:
        manifest, kind = home.anchor_manifest, "full" if rank is None else "lowrank"
        specs = update_specs(manifest, rank)
        size = 0.01 if rank is None else 0.2  # the change is a product of two
        update = write_update(tmp_path / f"{owner.name}-{version}.motetup", seed=seed, specs=specs, size=size)
        signed = owner.manifest(home, update, version=version, kind=kind, rank=rank, **changes)
        digest = signed.open(Contribution).digest
        with StoredTensors.of_anchor(home.anchor_directory) as stored:
            materialise_file(update, manifest, stored, ExpertStore(home.experts_directory).file_of(digest), rank=rank)
        body = {"signed": signed.as_json(), "received_bytes": update.stat().st_size}
        home.ledger.append(lambda _: Draft(kind="admitted", subject=digest, body=body))
        return digest

    return admit


@pytest.fixture
def medicine(home: CoordinatorHome, make_owner: Callable[[str], Owner]) -> Owner:
    """An enrolled owner."""
    owner = make_owner("medicine")
    home.enrol(owner.request(home))
    return owner


@pytest.fixture
def law(home: CoordinatorHome, make_owner: Callable[[str], Owner]) -> Owner:
    """Another enrolled owner."""
    owner = make_owner("law")
    home.enrol(owner.request(home))
    return owner
