"""Federations made of the commands that people type; what is costly is made once for all tests, and copied for each.

stage.motet("train", "--dir", stage.owner("medicine"))          a process of its own
stage.here("assemble", "--dir", stage.coordinator)              the same command line in this process, without its start
"""

import itertools
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from motet.cli import run
from motet.protocols.flower_home import free_port
from motet.protocols.processes import Troupe

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
ENVIRONMENT = os.environ | {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
NAMES = ("medicine", "mathematics")
SHORT = (
    *("--set", "training.steps=3", "--set", "training.batch_size=2", "--set", "training.sequence_length=32"),
    *("--set", "data.max_bytes=30000"),
)


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def message(self) -> str:
        """The one line that a failed command ends with, without the program's name."""
        assert len(re.findall(r"(?:^|: )motet: ", self.err, re.MULTILINE)) == 1, self.err
        assert "Traceback" not in self.err
        message = re.split(r"(?:^|: )motet: ", self.err, maxsplit=1, flags=re.MULTILINE)[1]
        assert message.count("\n") == 1, message
        return message.rstrip("\n")


def line_of(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "motet.cli", *map(str, arguments)]


def motet(*arguments: object, code: int = 0, file_bytes: int | None = None, text: str = "") -> Done:
    """Run a command to its end.

    Args:
        code: the exit code that is expected.
        file_bytes: no file may grow beyond it, as on a full disk.
        text: what is typed.
    """

    def limit() -> None:
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    ran = subprocess.run(
        line_of(*arguments),
        input=text,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=limit,
        check=False,
        timeout=120,
    )
    assert ran.returncode == code, f"{arguments}: {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
    return Done(code=ran.returncode, out=ran.stdout, err=ran.stderr)


def inside(*arguments: object) -> None:
    """Run a command that ends well in this process, which has torch already."""
    assert run([str(argument) for argument in arguments]) == 0, arguments


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One federation on disk."""

    root: Path
    data_plane: str
    """Where the data plane listens: the charter's address, unless a proxy stands before it."""
    capture: Any = None
    troupe: Troupe | None = None

    @property
    def coordinator(self) -> Path:
        return self.root / "coordinator"

    def owner(self, name: str) -> Path:
        return self.root / name

    def file(self, name: str) -> Path:
        """An owner's contribution as a file."""
        return self.root / f"{name}.motet"

    def outbox(self, name: str) -> Path:
        (folder,) = (self.owner(name) / "outbox").iterdir()
        return folder

    def motet(self, *arguments: object, **options: Any) -> Done:
        return motet(*arguments, **options)

    def here(self, *arguments: object, code: int = 0) -> Done:
        """Run a command line in this process, as `motet.cli.main` does."""
        self.capture.readouterr()
        ended = run([str(argument) for argument in arguments])
        said = self.capture.readouterr()
        assert ended == code, f"{arguments}: {ended}\n{said.out}\n{said.err}"
        return Done(code=ended, out=said.out, err=said.err)

    def copy(self, root: Path) -> "Stage":
        shutil.copytree(self.root, root, symlinks=True)
        return Stage(root=root, data_plane=self.data_plane, capture=self.capture, troupe=self.troupe)

    def serve(self, *, file_bytes: int | None = None) -> subprocess.Popen[bytes]:
        """Start the data plane and wait until it answers."""
        assert self.troupe is not None
        command = line_of("coordinate", "data-plane", "--dir", self.coordinator, "--listen", self.data_plane)
        limited = [] if file_bytes is None else ["prlimit", f"--fsize={file_bytes}"]
        child = self.troupe.start(f"data-plane-{time.monotonic_ns()}", limited + command)
        await_port(self.data_plane, child)
        return child

    def ledger(self) -> list[tuple[str, str]]:
        """(kind, subject) of every entry, the chain checked."""
        from motet.coordinator.ledger_store import LedgerStore

        with LedgerStore(self.coordinator / "ledger.sqlite") as ledger:
            return [(entry.kind, entry.subject) for entry in ledger.entries()]


def await_port(address: str, child: subprocess.Popen[bytes], seconds: float = 60.0) -> None:
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert child.poll() is None, f"ended with {child.returncode}"
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError(f"nothing answers on {address}")


def found(root: Path, anchor: Path, public: Path, *settings: str, data_plane: str, listen: str | None = None) -> Stage:
    """A coordinator's new home."""
    addresses = ("--data-plane", data_plane, "--flower", f"127.0.0.1:{free_port()}")
    text = ("--anchor", anchor, "--public-text", public)
    inside("init", root / "coordinator", "--name", "stage", *text, *addresses, *settings)
    return Stage(root=root, data_plane=listen or data_plane)


def public_text(folder: Path, documents: int = 60, characters: int = 300) -> Path:
    """The beginnings of the quickstart's first public documents: rows are fitted on all that there is."""
    path = folder / "public.jsonl"
    with (QUICKSTART / "text" / "public.jsonl").open() as lines, path.open("w") as some:
        for line in itertools.islice(lines, documents):
            some.write(json.dumps({"text": json.loads(line)["text"][:characters]}) + "\n")
    return path


def join(stage: Stage, name: str, data: Path, *settings: str) -> Path:
    """An owner's new home, enrolled, with the anchor beside it as on a site without a connection."""
    charter, home = stage.coordinator / "charter.signed.json", stage.owner(name)
    named = ("--name", name, "--data", data, "--licence", "CC0-1.0")
    inside("join", charter, "--dir", home, *named, *settings, "--yes")
    inside("admit", home / "join-request.json", "--dir", stage.coordinator)
    shutil.copytree(stage.coordinator / "anchor", home / "anchor")
    return home


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """Two owners enrolled and trained, their contributions in the outbox and as files; nothing admitted yet."""
    import torch

    torch.set_num_threads(1)
    text, folder = QUICKSTART / "text", tmp_path_factory.mktemp("trained")
    public, data_plane = public_text(folder), f"127.0.0.1:{free_port()}"
    stage = found(folder / "stage", QUICKSTART / "anchor", public, data_plane=data_plane)
    for name, how in zip(NAMES, (motet, inside), strict=True):
        home = join(stage, name, text / f"{name}.jsonl", *SHORT)
        how("train", "--dir", home)
        how("contribute", "--dir", home, "--to", stage.file(name), "--yes")
    return stage


@pytest.fixture(scope="session")
def gathered(trained: Stage, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """The same with both contributions admitted."""
    stage = trained.copy(tmp_path_factory.mktemp("gathered") / "stage")
    for name in NAMES:
        inside("admit", stage.file(name), "--dir", stage.coordinator)
    return stage


@pytest.fixture(scope="session")
def wide(make_anchor: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """One owner with an update of eight megabytes, enough to be cut in the middle; a proxy stands before the server."""
    from motet.client.data import load_public
    from motet.moe.anchor import STATISTICS_FILE, Anchor
    from motet.moe.statistics import measure

    folder = tmp_path_factory.mktemp("wide")
    anchor = make_anchor(folder / "anchor", hidden_size=32, intermediate_size=20000)
    public = public_text(folder, characters=60)  # a token a byte
    measure(Anchor.load(anchor), load_public(public).train[:6]).save(anchor / STATISTICS_FILE)
    proxy, server = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    stage = found(folder / "stage", anchor, public, data_plane=proxy, listen=server)
    few = ("--set", "training.steps=1", "--set", "data.max_bytes=12000", "--set", "data.held_out_share=0.3")
    whole = ("--set", "codec.method=raw")
    home = join(stage, "medicine", QUICKSTART / "text" / "medicine.jsonl", *SHORT, *few, *whole)
    inside("train", "--dir", home)
    return stage


@pytest.fixture
def troupe(tmp_path: Path) -> Iterator[Troupe]:
    with Troupe(logs=tmp_path / "logs", environment=ENVIRONMENT) as troupe:
        yield troupe


@pytest.fixture
def on_stage(tmp_path: Path, troupe: Troupe, capsys: pytest.CaptureFixture[str]) -> Callable[..., Stage]:
    """`on_stage(trained)`: a copy to do anything to."""

    def copy(stage: Stage, name: str = "stage") -> Stage:
        made = stage.copy(tmp_path / name)
        return Stage(root=made.root, data_plane=made.data_plane, capture=capsys, troupe=troupe)

    return copy


@dataclass
class Proxy:
    """A TCP relay to `target` that holds the bytes of both directions to a speed; every connection can be cut."""

    port: int
    target: int
    bytes_per_second: float = 4e6
    to_server: int = 0
    to_client: int = 0
    sockets: list[socket.socket] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator["Proxy"]:
        listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        try:
            yield self
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`, which would keep the port
            listener.close()
            self.cut()

    def cut(self) -> None:
        for each in self.sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self.sockets.clear()

    def until(self, *, to_server: int = 0, to_client: int = 0, seconds: float = 60.0) -> None:
        """Wait until so many bytes have passed."""
        deadline = time.monotonic() + seconds
        while self.to_server < to_server or self.to_client < to_client:
            assert time.monotonic() < deadline, f"{self.to_server} up, {self.to_client} down"
            time.sleep(0.01)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    client.close()
                    continue
                self.sockets += [client, server]
                threading.Thread(target=self._relay, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._relay, args=(server, client, False), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, upwards: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if upwards:
                    self.to_server += len(data)
                else:
                    self.to_client += len(data)
                time.sleep(len(data) / self.bytes_per_second)
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy_before(wide: Stage) -> Iterator[Proxy]:
    """The proxy at the wide stage's public address."""
    from motet.protocols.charter import Charter

    address = Charter.from_toml(wide.coordinator / "charter.toml").addresses.data_plane
    proxy = Proxy(port=int(address.rpartition(":")[2]), target=int(wide.data_plane.rpartition(":")[2]))
    with proxy.running():
        yield proxy


@pytest.fixture
def start(troupe: Troupe) -> Callable[..., subprocess.Popen[bytes]]:
    """`start("name", *arguments)` starts a command in the background."""
    return lambda name, *arguments: troupe.start(name, line_of(*arguments), may_end=True)


def processes_of(directory: Path) -> dict[int, str]:
    """Process id -> command line of everything that names the directory, this process and its ancestors aside."""
    here, found = {os.getpid(), os.getppid()}, {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if re.search(re.escape(str(directory)) + r"(/|\s|$|\")", line) and int(path.parent.name) not in here:
                found[int(path.parent.name)] = line
    return found


@dataclass
class DemoRun:
    """A `motet demo` in the background."""

    directory: Path
    process: subprocess.Popen[str]

    def await_processes(self, count: int, words: str = "", seconds: float = 90.0) -> dict[int, str]:
        """The demo's children with these words in their command lines, as soon as there are so many."""
        deadline = time.monotonic() + seconds
        while len(children := {pid: line for pid, line in self.children().items() if words in line}) < count:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, children
            time.sleep(0.1)
        return children

    def children(self) -> dict[int, str]:
        return {pid: line for pid, line in processes_of(self.directory).items() if pid != self.process.pid}

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def await_end(self, seconds: float = 60.0) -> tuple[int, str]:
        """Exit code and what it said on stderr."""
        _, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, err

    def await_no_children(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while children := self.children():
            assert time.monotonic() < deadline, children
            time.sleep(0.1)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Callable[..., DemoRun]]:
    """`demo()` starts one; whatever it leaves is ended after the test."""
    runs: list[DemoRun] = []

    def begin(*options: str) -> DemoRun:
        directory = tmp_path / f"demo-{len(runs)}"
        command = line_of("demo", "--dir", directory, *options)
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ, start_new_session=True
        )
        runs.append(DemoRun(directory=directory, process=process))
        return runs[-1]

    yield begin
    for each in runs:
        each.process.kill()
        for pid in each.children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        each.process.communicate()
