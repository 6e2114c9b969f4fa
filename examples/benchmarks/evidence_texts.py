"""Texts made of the corpora: documents that change their domain, and corpora of unusual federations."""

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path


def switching(tests: dict[str, list[str]], *, count: int, half: int = 400) -> list[str]:
    """Documents of two halves, each the beginning of a document of another domain: about `count` in all."""
    names = sorted(tests)
    pairs = list(pairwise([*names, names[0]]))
    found = []
    for number in range(count // len(pairs)):
        for first, second in pairs:
            one, other = tests[first], tests[second]
            found.append(one[number % len(one)][:half] + "\n" + other[number % len(other)][:half])
    return found


def as_records(texts: Sequence[str]) -> list[str]:
    """The same text in another format: each document a JSON record with its lines in a list."""
    return [json.dumps({"type": "note", "version": 1, "lines": text.splitlines()}) for text in texts]


def federations(train: dict[str, list[str]]) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Name -> owner -> documents: two owners of one domain with more or less in common, a tiny one, another format."""
    code, others = train["code"], {name: train[name] for name in ("medicine", "mathematics")}
    half = len(code) // 2
    for percent in (0, 50, 100):
        shift = half * (100 - percent) // 100
        yield f"code twice, {percent} % in common", others | {"code": code[:half], "code2": code[shift : shift + half]}
    yield "code once", others | {"code": code[:half]}
    yield (
        "medicine 100 times smaller",
        {"code": code, "mathematics": others["mathematics"], "medicine": train["medicine"][::100]},
    )
    yield (
        "medicine as records",
        {"code": code, "mathematics": others["mathematics"], "medicine": as_records(train["medicine"])},
    )


def write(path: Path, texts: Sequence[str]) -> Path:
    """JSON lines, unless the file holds just that."""
    content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    if not path.exists() or path.read_text(encoding="utf-8") != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return path
