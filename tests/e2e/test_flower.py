"""The real Flower chain on the loopback: TLS, node authentication, a late joiner, a SuperNode killed while training.

The federation behind the ServerApp is a folder of files and the owners' training is a thread that counts; SuperLink,
SuperNodes, both apps, the spool and the thin app's packaging are the real ones.
"""

import itertools
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from motet.client.owner import ContributionConfig, DataConfig, OwnerConfig, OwnerHome
from motet.client.spool import Job, Spool
from motet.coordinator.flower_link import APP_DIRECTORY, SuperLink
from motet.coordinator.run_record import RunState, wait_for_run
from motet.coordinator.tls import ensure_tls
from motet.protocols.canonical import bytes_digest, hex_of, write_atomically
from motet.protocols.charter import Addresses, AnchorPin, Charter
from motet.protocols.contribution import (
    CodecRecord,
    Contribution,
    EvaluationReport,
    JoinRequest,
    Score,
    Terms,
    TrainingRecord,
)
from motet.protocols.control import EvaluateRequest
from motet.protocols.flower_home import free_port
from motet.protocols.processes import Troupe
from motet.protocols.receipts import Receipt
from motet.protocols.signing import Signed, SigningKey, seal

pytestmark = pytest.mark.slow

NOTHING = "sha256:" + "0" * 64
UPDATE = bytes(range(256)) * 4096
NODE = """
import logging, sys
from pathlib import Path
from motet.client.owner import OwnerHome
from motet.client.supernode import SuperNode, supervise
logging.basicConfig(level=logging.INFO)
node = SuperNode.of(OwnerHome.load(Path(sys.argv[1])))
raise SystemExit(supervise(node.command, node.environment(), ready=node.reachable))
"""


class Worker(threading.Thread):
    """Stands in for `motet work`: claims jobs, counts to the end, and signs what it says."""

    def __init__(self, home: OwnerHome, admitted: Path) -> None:
        super().__init__(daemon=True)
        self.home, self.admitted = home, admitted
        self.spool = Spool(home.path)
        self.may_finish, self.stop, self.training = threading.Event(), threading.Event(), threading.Event()
        self.ran: list[str] = []

    def run(self) -> None:
        while not self.stop.wait(0.1):
            if (job := self.spool.claim()) is not None:
                self.ran.append(job.kind)
                self.evaluate(job) if isinstance(job.request, EvaluateRequest) else self.train(job)
        self.spool.close()

    def train(self, job: Job) -> None:
        for step in itertools.count(1):
            self.spool.update(job.id, "running", progress=min(0.9, step / 50), detail=f"step {step}")
            self.training.set()
            if self.may_finish.wait(0.2) or self.stop.is_set():
                break
        manifest = self.contribution()
        folder = self.home.contribution(manifest.digest)
        write_atomically(folder / "contribution.json", seal(manifest, self.home.key).canonical())
        write_atomically(folder / "update.motetup", UPDATE)
        inline = self.home.config.contribution.transport == "flower"
        if not inline:
            write_atomically(self.admitted / hex_of(self.home.key.public), manifest.digest.encode())
        result = {"contribution": manifest.digest, "transport": "flower" if inline else "data-plane"}
        self.spool.update(job.id, "done", result=result)

    def evaluate(self, job: Job) -> None:
        assert isinstance(job.request, EvaluateRequest)
        report = EvaluationReport(
            charter=self.home.charter.digest,
            composite=job.request.composite,
            owner=self.home.key.public,
            domain=self.home.config.name,
            rows={"composite": Score(nats=1.0, bytes=8, documents=1, bits_per_byte_variance=0.0)},
        )
        self.spool.update(job.id, "done", result={"report": seal(report, self.home.key).model_dump(by_alias=True)})

    def contribution(self) -> Contribution:
        return Contribution(
            charter=self.home.charter.digest,
            anchor=NOTHING,
            name=self.home.config.name,
            owner=self.home.key.public,
            update=bytes_digest(UPDATE),
            update_bytes=len(UPDATE),
            terms=Terms(licence="CC0-1.0"),
            training=TrainingRecord(steps=1, tokens=1, documents=1, held_out_documents=1, seed=0, public_share=0.25),
            codec=CodecRecord(method="lossless"),
            bits_per_byte={"anchor": 2.0, "expert": 1.0},
        )


@dataclass
class Story:
    """What happened, for the tests below to look at."""

    home: Path
    workers: dict[str, Worker]
    states: list[RunState] = field(default_factory=list)
    command_lines: dict[int, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    ran_before_second_run: dict[str, list[str]] = field(default_factory=dict)
    leftovers: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    directory = tmp_path_factory.mktemp("federation")
    story = Story(home=directory / "coordinator", workers={})
    tls = ensure_tls(story.home / "tls", [])
    link = SuperLink(home=story.home, port=free_port(), tls=tls)
    for name in ("medicine", "mathematics", "code"):
        story.workers[name] = Worker(
            join(directory / name, name, story.home, link, tls.authority.read_text()), story.home / "admitted"
        )
    try:
        with Troupe(logs=directory / "logs", environment=os.environ) as troupe:
            play(story, link, troupe, directory)
    finally:
        for worker in story.workers.values():
            worker.stop.set()
    story.leftovers = list(processes(directory).values())
    logging.getLogger(__name__).info("%s", story.seconds)
    return story


def play(story: Story, link: SuperLink, troupe: Troupe, directory: Path) -> None:
    started = time.monotonic()

    def mark(name: str) -> None:
        story.seconds[name] = round(time.monotonic() - started, 1)

    def node(name: str) -> None:
        worker = story.workers[name]
        troupe.start(f"node-{name}", [sys.executable, "-c", NODE, str(worker.home.path)])
        worker.start()

    superlink = troupe.start("superlink", link.command(), environment=link.environment())
    link.wait_until_ready(superlink.poll)
    mark("superlink up")
    link.register_all({name: flower_key(worker) for name, worker in story.workers.items()})
    link.register("code", flower_key(story.workers["code"]))  # again, without harm
    mark("keys registered")
    node("medicine")
    node("mathematics")
    run = link.submit({"min-owners": 3}, app=lay_out_app(directory))
    mark("run submitted")

    first = story.workers["medicine"]
    wait_until(first.training.is_set, "medicine is training")
    mark("first owner is training")
    node("code")  # late: the run has begun
    story.command_lines |= processes(directory)
    os.kill(supernode_of(first.home.path), signal.SIGKILL)
    mark("SuperNode killed")
    for worker in story.workers.values():
        worker.may_finish.set()

    def watch(state: RunState) -> None:
        story.seconds.setdefault(state.phase, round(time.monotonic() - started, 1))
        story.states.append(state)
        story.command_lines.update(processes(directory))

    wait_for_run(story.home, run, status=lambda: link.status(run), on_change=watch)
    story.ran_before_second_run = {name: list(worker.ran) for name, worker in story.workers.items()}
    again = link.submit({"min-owners": 3}, app=lay_out_app(directory))
    story.states.append(wait_for_run(story.home, again, status=lambda: link.status(again)))
    mark("second run done")


def join(path: Path, name: str, coordinator: Path, link: SuperLink, authority: str) -> OwnerHome:
    key_path = coordinator / "coordinator.pem"
    if not key_path.exists():
        SigningKey.generate().save(key_path)
    key = SigningKey.load(key_path)
    charter = Charter(
        name="loopback",
        anchor=AnchorPin(digest=NOTHING, statistics=NOTHING, public_text=NOTHING, bundle=NOTHING),
        addresses=Addresses(data_plane="127.0.0.1:1", flower=link.address),
        coordinator=key.public,
        certificate_authority=authority,
    )
    (coordinator / "charter.digest").write_text(charter.digest)
    (coordinator / "admitted").mkdir(exist_ok=True)
    config = OwnerConfig(
        name=name,
        coordinator=key.public,
        data=DataConfig(files=("*.jsonl",)),
        terms=Terms(licence="CC0-1.0"),
        contribution=ContributionConfig(transport="flower" if name == "code" else "data-plane"),
    )
    home = OwnerHome.create(path, config, seal(charter, key))
    write_atomically(coordinator / "enrolled" / f"{name}.json", home.join_request().canonical())
    return home


def flower_key(worker: Worker) -> str:
    return worker.home.join_request().open(JoinRequest).flower_key


def lay_out_app(directory: Path) -> Path:
    """The packaged app with another ServerApp, which it carries along."""
    folder = directory / "app"
    shutil.copytree(APP_DIRECTORY, folder, dirs_exist_ok=True)
    shutil.copy(Path(__file__).with_name("fake_federation.py"), folder / "fake_federation.py")
    text = (APP_DIRECTORY / "pyproject.toml").read_text()
    text = text.replace("motet.coordinator.server_app:app", "fake_federation:app")
    (folder / "pyproject.toml").write_text(text.replace('["LICENSE"]', '["LICENSE", "fake_federation.py"]'))
    return folder


def supernode_of(home: Path) -> int:
    found = [pid for pid, line in processes(home).items() if "bin/flower-supernode" in line]
    assert len(found) == 1
    return found[0]


def processes(directory: Path) -> dict[int, str]:
    """The command lines that name the directory, this process's and its parents' apart."""
    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(directory) in line and process.pid not in mine:
            found[process.pid] = line
    return found


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def test_everybody_contributes_and_evaluates(story: Story) -> None:
    done = story.states[-1]
    assert done.phase == "done"
    assert {owner.name: owner.standing for owner in done.owners.values()} == dict.fromkeys(story.workers, "settled")
    for name in story.workers:
        kept = json.loads((story.home / "kept" / f"{name}.json").read_text())
        assert kept == {"times": 1, "composite": done.composite}
    assert (story.home / "kept" / "public.json").read_text() == done.composite


def test_each_job_ran_once_despite_the_killed_node(story: Story) -> None:
    assert story.ran_before_second_run == {name: ["train", "evaluate"] for name in story.workers}


def test_a_second_run_repeats_nothing(story: Story) -> None:
    assert {name: worker.ran for name, worker in story.workers.items()} == story.ran_before_second_run
    assert story.states[-1].run != story.states[0].run


def test_the_late_joiner_was_welcome(story: Story) -> None:
    seen = [owner.connected for state in story.states for owner in state.owners.values() if owner.name == "code"]
    assert seen[0] is False
    assert True in seen


def test_an_inline_update_is_answered_with_a_receipt(story: Story) -> None:
    home = story.workers["code"].home
    (path,) = home.outbox.glob("*/receipt.json")
    receipt = Signed.parse(path.read_bytes()).open(Receipt, by=home.charter.coordinator)
    assert (receipt.status, receipt.received_bytes) == ("admitted", len(UPDATE))


def test_every_process_names_its_directory(story: Story) -> None:
    kinds = " ".join(story.command_lines.values())
    for name in ("flower-superlink", "flower-superexec", "flower-supernode", "flwr-serverapp", "flwr-clientapp"):
        assert f"flower/bin/{name}" in kinds


def test_nothing_is_left_running(story: Story) -> None:
    assert story.leftovers == []
