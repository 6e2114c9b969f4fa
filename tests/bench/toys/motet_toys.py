"""Stages that take no time, installed as a distribution of its own, as any room installs its own."""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from motet.protocols.errors import TrainingError


def number(spec: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, tell: Callable[[str], None]) -> None:
    """A number, plus the numbers that it is made of, plus the length of its files; notes that it ran, and where."""
    with Path(os.environ["TOYS_RAN"]).open("a") as ran:
        ran.write(json.dumps([spec["value"], os.getpid()]) + "\n")
    print("a library prints", spec["value"])  # noqa: T201
    os.system("echo and so does its child")
    tell(f"at {spec['value']}")
    assert sys.stdin.read() == ""
    time.sleep(spec.get("seconds", 0))
    _fail(spec.get("fails"))
    parts = [json.loads((path / "number.json").read_text()) for path in inputs.values() if path.is_dir()]
    texts = [len(path.read_text()) for path in inputs.values() if path.is_file()]
    (out / "number.json").write_text(json.dumps(spec["value"] + sum(parts) + sum(texts)))
    (out / "random.json").write_text(json.dumps(random.random()))


def _fail(how: str | None) -> None:
    match how:
        case "die":
            print("the last words", flush=True)  # noqa: T201
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(3)
        case "motet":
            raise TrainingError("the loss is no longer finite")
        case str():
            raise ZeroDivisionError(how)
