"""Makes the two tasks' data from the quickstart's text: only documents that no owner of the demonstration trains on.

    python examples/harness/build.py

Writes `choice/DOMAIN.jsonl`, lines of {"id", "context", "choices", "target"}, and `text/DOMAIN.jsonl`, lines of
{"id", "text"}. The same text gives the same bytes: orders and places follow from the documents' ids.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from motet.protocols.split import PUBLIC_SEED, PUBLIC_SHARE, is_held_out

HERE = Path(__file__).resolve().parent
TEXT = HERE.parent / "quickstart" / "text"
DOMAINS = ("public", "medicine", "mathematics")
CONTEXT, CONTINUATION = 240, 80
"""Characters before the cut, at least 1 and at most these; and after it, up to the end of a word."""
CUTS = (0.4, 0.8)
"""Where a document is cut, as shares of its length."""
CHOICES = 4


def main() -> None:
    """Write all six files."""
    for domain in DOMAINS:
        documents = held_out(domain)
        _write(HERE / "text" / f"{domain}.jsonl", documents)
        _write(HERE / "choice" / f"{domain}.jsonl", questions(documents))


def held_out(domain: str) -> list[dict[str, Any]]:
    """The documents of a slice that are scored and never trained on, as `motet demo` divides them."""
    with (TEXT / f"{domain}.jsonl").open(encoding="utf-8") as lines:
        documents = [json.loads(line) for line in lines]
    return [document for document in documents if is_held_out(document["text"], PUBLIC_SHARE, PUBLIC_SEED)]


def questions(documents: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Which of four passages goes on? In each of the wrong ones two other neighbouring words have changed places."""
    for document in documents:
        for share in CUTS:
            name = f"{document['id']}@{share}"
            context, right = _cut(document["text"], share)
            choices = sorted(_swapped(right), key=lambda wrong, name=name: _draw(name + wrong))[: CHOICES - 1]
            target = int(_draw(name), 16) % CHOICES
            choices.insert(target, right)
            yield {"id": name, "context": context, "choices": choices, "target": target}


def _swapped(passage: str) -> set[str]:
    """All that it becomes when two neighbouring words change places; the space before the first stays."""
    words = passage.split(" ")
    swaps = ([*words[:at], words[at + 1], words[at], *words[at + 2 :]] for at in range(1, len(words) - 1))
    return {" ".join(swap) for swap in swaps} - {passage}


def _cut(text: str, share: float) -> tuple[str, str]:
    """What comes before a space near `share` of the text, and what comes from it on."""
    at = text.index(" ", int(len(text) * share))
    end = text.find(" ", at + CONTINUATION)
    return text[max(0, at - CONTEXT) : at].lstrip(), text[at : end if end > 0 else None].rstrip()


def _draw(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _write(path: Path, lines: Sequence[dict[str, Any]] | Iterator[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
