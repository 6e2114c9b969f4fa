"""The same federation without connections: every step a command in this process, contributions travel as files.

    report = play_by_file(Path("out/federation"), view, cast)

For trying the program in seconds; there is no Flower in it, and owners evaluate nothing for the coordinator.
"""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

from motet.cli import run
from motet.demo.cast import Cast
from motet.demo.play import Stopwatch, View
from motet.protocols.canonical import write_atomically
from motet.protocols.errors import FederationError
from motet.protocols.report import Report


def play_by_file(directory: Path, view: View, cast: Cast) -> Report:
    """As `motet.demo.play.play`, by file. Raises FederationError when a command fails."""
    coordinator, watch = directory / "coordinator", Stopwatch()
    with watch.phase("join"):
        texts = ["--anchor", str(cast.anchor), "--public-text", str(cast.public_text)]
        _command(
            "init",
            str(coordinator),
            "--name",
            cast.name,
            *texts,
            "--data-plane",
            "localhost:1",
            "--flower",
            "localhost:2",
        )
    for owner in cast.owners:
        view.step(f"{owner.name} joins, trains and hands its expert over as a file")
        with watch.phase("train"):
            _one(directory / "owners" / owner.name, coordinator, cast, owner.name, owner.files, owner.licence)
    with watch.phase("export"):
        made = _command("assemble", "--dir", str(coordinator), *cast.exporting)
        write_atomically(directory / "assembled.json", json.dumps(made, indent=2).encode())
    found = _command("report", "--dir", str(coordinator))
    return Report.model_validate(found | {"seconds": watch.total()})


def _one(home: Path, coordinator: Path, cast: Cast, name: str, files: str, licence: str) -> None:
    settings = [part for setting in cast.settings for part in ("--set", setting)]
    named = ("--name", name, "--data", files, "--licence", licence)
    _command("join", str(coordinator / "charter.signed.json"), "--dir", str(home), *named, *settings, "--yes")
    _command("admit", str(home / "join-request.json"), "--dir", str(coordinator))
    (home / "anchor").symlink_to(coordinator / "anchor")
    _command("train", "--dir", str(home))
    _command("contribute", "--dir", str(home), "--to", str(home / f"{name}.motet"), "--yes")
    _command("admit", str(home / f"{name}.motet"), "--dir", str(coordinator))


def _command(*arguments: str) -> dict[str, Any]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = run([*arguments, "--json"])
    if code != 0:
        raise FederationError(f"`motet {' '.join(arguments[:3])}` ended with code {code}")
    found: dict[str, Any] = json.loads(out.getvalue())
    return found
