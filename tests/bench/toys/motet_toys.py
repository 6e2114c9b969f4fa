"""Stages that take no time, installed as a distribution of its own, as any room installs its own."""

import json
import math
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from motet.bench.quality.config import Files, QualityConfig
from motet.bench.quality.stages import Plan, Stage
from motet.protocols.errors import TrainingError

SYSTEMS = {"anchor": 4.0, "specialist": 2.0, "soup": 3.2, "dare+public": 3.0, "composite:filter": 2.1}
SIZES = [100, 250, 400, 90, 160]


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


def scores(spec: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, tell: Callable[[str], None]) -> None:
    """Losses about those of `SYSTEMS`, in bits per byte; an expert is read to depend on it."""
    noise, found = random.Random(spec["seed"]), {}
    for system, bits in SYSTEMS.items():
        found[system] = {
            domain: {"nats": [bits * size * math.log(2) * noise.uniform(0.98, 1.02) for size in SIZES], "bytes": SIZES}
            for domain in ("public", *(name for name in inputs if name != "anchor"))
        }
    settings = {"composite:filter": {"stay": 0.9}}
    value = {"split": spec["split"], "systems": found, "settings": settings}
    (out / "scores.json").write_text(json.dumps(value))


def plan(config: QualityConfig, seeds: int, files: Files) -> Plan:
    """An anchor a seed, an expert for each domain, and scores of both splits; what `motet.bench.quality.plan` does."""
    stages, each = [], []
    for seed in range(seeds):
        text = {"text": files.public}
        anchor = Stage("number", {"value": config.anchor.steps, "seed": seed}, text, f"anchor, seed {seed}", weight=3)
        made: dict[str, Stage] = {"anchor": anchor}
        for name, file in files.domains.items():
            spec = {"value": config.experts.steps, "seed": seed}
            made[name] = Stage("number", spec, {"anchor": anchor, "text": file}, f"expert:{name}, seed {seed}")
        each.append(
            [
                Stage("scores", {"seed": seed, "split": split}, made, f"{split}, seed {seed}", weight=0.1)
                for split in ("validation", "test")
            ]
        )
        stages += [*made.values(), *each[-1]]
    return Plan(stages=stages, scores=each)


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
