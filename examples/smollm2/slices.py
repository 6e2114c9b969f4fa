"""The example's texts: a slice of the benchmark's corpora, so many documents of each to train on and so many to score.

Guarantees the same documents each time: the first of every corpus that fall on either side of Motet's own split.

    texts = write_texts(corpora, Path("out/text"), domains=("medicine", "law", "code"))
    texts.owners["law"]                 # a path
    unpinned(corpora, ("public", "law"))        # those that are not what the benchmark's corpora.json pins
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from motet.protocols.canonical import write_atomically
from motet.protocols.errors import DataError
from motet.protocols.split import PUBLIC_SEED, PUBLIC_SHARE, is_held_out

HELD_OUT_SHARE = 0.3
"""Of an owner's text: `data.held_out_share` must say the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Documents to train on, and to score."""

    train: int
    held_out: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """Files of JSON lines."""

    public: Path
    owners: dict[str, Path]


PINS = Path(__file__).resolve().parents[1] / "benchmarks" / "corpora.json"
OWN, PUBLIC = Counts(train=22, held_out=10), Counts(train=14, held_out=10)


def write_texts(
    corpora: Path, out: Path, domains: Iterable[str], *, own: Counts = OWN, public: Counts = PUBLIC
) -> Texts:
    """Cut the slices out of `corpora`, a folder of `NAME.jsonl`; raises DataError when a corpus is missing or short."""
    out.mkdir(parents=True, exist_ok=True)
    return Texts(
        public=_slice(corpora / "public.jsonl", out, public, share=PUBLIC_SHARE, seed=PUBLIC_SEED),
        owners={name: _slice(corpora / f"{name}.jsonl", out, own, share=HELD_OUT_SHARE, seed=0) for name in domains},
    )


def unpinned(corpora: Path, names: Iterable[str]) -> list[str]:
    """The corpora that are there and not what the benchmark pins, sorted: no figures compare with theirs."""
    pins = json.loads(PINS.read_text(encoding="utf-8"))
    files = {name: corpora / f"{name}.jsonl" for name in sorted(names)}
    return [
        name
        for name, file in files.items()
        if file.exists() and hashlib.sha256(file.read_bytes()).hexdigest() != pins.get(name, {}).get("sha256")
    ]


def _slice(corpus: Path, out: Path, counts: Counts, *, share: float, seed: int) -> Path:
    try:
        texts = [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise DataError(
            f"cannot read {corpus}: {error.strerror}; build it with examples/benchmarks/corpora.py"
        ) from error
    sides = {
        held_out: [text for text in texts if is_held_out(text, share, seed) == held_out] for held_out in (False, True)
    }
    chosen = [*sides[False][: counts.train], *sides[True][: counts.held_out]]
    if len(chosen) < counts.train + counts.held_out:
        raise DataError(
            f"saw {len(texts)} documents in {corpus}, wanted {counts.train} to train on and {counts.held_out} to score"
        )
    path = out / corpus.name
    write_atomically(path, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in chosen).encode())
    return path
