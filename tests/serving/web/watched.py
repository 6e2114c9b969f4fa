"""What the pages show in tests: a composite that speaks words of the test's choice, and a coordinator's home."""

import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from motet.coordinator.federation import Federation
from motet.coordinator.home import CoordinatorHome
from motet.coordinator.intake import Intake
from motet.coordinator.ledger_store import Draft
from motet.coordinator.run_record import OwnerProgress, RunPhase, RunRecord, RunState
from motet.coordinator.store import ExpertStore
from motet.protocols.codec import CodecSettings, encode
from motet.protocols.contribution import Contribution, EvaluationReport, Score, Terms
from motet.protocols.expert_files import StoredTensors, materialise_file, update_specs
from motet.protocols.expert_sizes import ExpertSize, composite_sizes
from motet.protocols.report import row_names
from motet.protocols.signing import seal
from motet.protocols.training_steps import TrainingStep
from motet.serving.api.app import build_app
from motet.serving.api.service import Service
from motet.serving.engine.engine import Engine
from motet.serving.engine.loading import Composite, in_memory
from motet.serving.hooks import Hooks, Record
from motet.serving.run import listening, web_server
from motet.serving.web import mount

from ...coordinator.conftest import Owner, random_values
from ...moe.mixed_kinds import mixed
from ..conftest import ANCHOR_DIGEST, COMPOSITE_DIGEST, NAME

MARKUP = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
"""What nobody's page may ever run."""
TERMS = {
    "medicine": Terms(licence="CC0-1.0", attribution="The clinic's notes", purpose="Research", expiry="2099-01-31"),
    "law": Terms(licence="Apache-2.0", attribution=MARKUP, purpose="</dd></article><script>alert(1)</script>"),
}
WORDS = re.findall(
    r"\w+",
    "the patient court pleads with fever and a fine of two weeks under section nine is given every day by law "
    "nurse judge dose appeal ward bench symptom statute acute consent for",
)
"""What the pages speak in tests."""


def speaking(words: Sequence[str], *, template: str | None = None) -> Composite:
    """A tiny composite each of whose tokens is one of these words; an unknown one is read as the first.

    With a `template` it answers conversations.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    torch.set_num_threads(1)
    vocabulary = {word: number for number, word in enumerate(["<bos>", "<pad>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", pad_token="<pad>")
    fast.chat_template = template
    model = mixed(vocab_size=len(vocabulary), max_position_embeddings=192)
    return in_memory(model, fast, anchor=ANCHOR_DIGEST, digest=COMPOSITE_DIGEST)


@dataclass
class Site:
    """A server with its pages, and what its meter was given."""

    url: str
    service: Service
    records: list[Record] = field(default_factory=list)


@contextmanager
def site(composite: Composite, *, home: Path | None = None, hooks: Hooks | None = None) -> Iterator[Site]:
    """What `motet serve` runs, in this process."""
    records: list[Record] = []
    hooks = hooks or Hooks(meter=records.append)
    with listening("127.0.0.1", 0) as listener, Engine(composite, max_batch=8, withdrawn=hooks.withdrawn) as engine:
        app = build_app(service := Service(composite, engine, NAME, hooks))
        mount(app, home=home)
        server = web_server(app, grace=5)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Site(f"http://127.0.0.1:{listener.getsockname()[1]}", service, records)
        finally:
            server.should_exit = True
            thread.join()


@dataclass
class Watched:
    """A home in which something happens."""

    home: CoordinatorHome
    owners: dict[str, Owner]
    record: RunRecord

    def progress(self, phase: RunPhase = "gather", **steps: int) -> None:
        """Owners tell how far their training is, of 100 steps; who is not named is not there."""
        told = {
            owner.key.public: OwnerProgress(
                name=name,
                connected=name in steps,
                standing="open",
                job="running" if name in steps else None,
                progress=steps.get(name, 0) / 100,
                detail=f"{TrainingStep(step=steps[name], steps=100, loss=5 - steps[name] / 25)}, 900 tokens/s"
                if name in steps
                else "",
            )
            for name, owner in self.owners.items()
        }
        self.record.publish(RunState(run="7", phase=phase, updated=1.0, owners=told))

    def refuse(self, name: str) -> None:
        """What the owner sends is refused: no such licence is taken here."""
        update = self.home.path / "update"
        signed = self.owners[name].manifest(self.home, self._encoded(update, 9), terms=Terms(licence="Own-1.0"))
        Intake(self.home).admit(signed, update, 1)

    def admit(self, name: str, seed: int) -> str:
        """An expert in store and ledger without the child processes; its digest."""
        home, update = self.home, self.home.path / "update"
        signed = self.owners[name].manifest(home, self._encoded(update, seed), terms=TERMS[name])
        digest = signed.open(Contribution).digest
        with StoredTensors.of_anchor(home.anchor_directory) as stored:
            materialise_file(update, home.anchor_manifest, stored, ExpertStore(home.experts_directory).file_of(digest))
        body = {"signed": signed.as_json(), "received_bytes": update.stat().st_size}
        home.ledger.append(lambda _: Draft(kind="admitted", subject=digest, body=body))
        return digest

    def evaluate(self, composite: str) -> None:
        """Every owner's report: on its own text its expert, and what holds it, does best."""
        federation = Federation(self.home)
        rows = row_names(tuple(member.name for member in federation.composites()[composite].members))
        for name, owner in self.owners.items():
            if name in TERMS:
                bits = dict.fromkeys(rows, 6.0) | {row: 4.5 for row in rows if row.startswith("composite")}
                bits |= {f"expert:{name}": 4.0, f"composite-without:{name}": 5.9}
                report = EvaluationReport(
                    charter=self.home.charter.digest,
                    composite=composite,
                    owner=owner.key.public,
                    domain=name,
                    rows={row: _score(each) for row, each in bits.items()},
                )
                federation.keep_evaluation(seal(report, owner.key))

    def size_of(self, name: str) -> ExpertSize:
        """What an expert takes in the only composite there is."""
        (composite,) = (path for path in (self.home.path / "composites").iterdir() if (path / "config.json").exists())
        return next(each for each in composite_sizes(composite) if each.name == name)

    def withdraw(self, name: str, contribution: str) -> None:
        """The owner takes it back."""
        Intake(self.home).withdraw(self.owners[name].withdrawal(self.home, contribution))

    def _encoded(self, path: Path, seed: int) -> Path:
        path.unlink(missing_ok=True)
        specs = update_specs(self.home.anchor_manifest)
        anchor = self.home.charter.anchor.digest
        encode(path, random_values(specs, seed), specs, CodecSettings(method="lossless"), anchor=anchor)
        return path


@contextmanager
def watched(template: Path, directory: Path, make_owner: Callable[[str], Owner]) -> Iterator[Watched]:
    """A home with three owners, two experts, a refusal, a composite and its evaluation."""
    shutil.copytree(template, directory)
    home = CoordinatorHome(directory)
    owners = {name: make_owner(name) for name in ("law", "medicine", "news")}
    for owner in owners.values():
        home.enrol(owner.request(home))
    try:
        with RunRecord.hold(directory, "7") as record:
            found = Watched(home, owners, record)
            for seed, name in enumerate(TERMS):
                found.admit(name, seed)
            found.refuse("news")
            found.evaluate(Federation(home).assemble().digest)
            yield found
    finally:
        home.close()


def _score(bits: float) -> Score:
    return Score(nats=bits * 8 * 0.6931471805599453, bytes=8, documents=2, bits_per_byte_variance=0.04)
