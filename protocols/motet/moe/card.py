"""The model card of a composite and of its stock export: the README.md that the Hugging Face Hub shows.

Guarantees: nothing is in a card but what the composite determines, so that equal composites have equal cards; what
owners wrote is shown letter by letter and is never markup; what Motet knows of the experts can be read back from the
front matter, under `motet`. A licence is every owner's own: no card claims one for the whole.

    experts = card_experts(composite_sizes(folder), contributions, terms)
    card = native_card(CardRecord(anchor=anchor.digest, experts=experts, form="native"), tuned=False)
    write_atomically(folder / CARD_FILE, card)
    read_record(folder).experts[1].terms.licence
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import yaml
from huggingface_hub import ModelCard

from motet.moe.config import MotetConfig
from motet.protocols.contribution import Terms
from motet.protocols.documents import Strict
from motet.protocols.expert_sizes import ExpertSize, sizes_in

CARD_FILE = "README.md"
MAX_CARD_BYTES = 16 << 20
"""No longer card is read: thousands of experts with the longest terms."""

_INVISIBLE = re.compile("[\x00-\x20\x7f-\xa0\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]+")
"""White space, controls, and what turns the direction of writing."""
_MARKUP = re.compile(r"[\\`*_{}\[\]<>#|!~$&]")
_ADDRESS = re.compile(r"[:/](?=/)|@|(?<=[^\W\d])\.(?=\S)|\.(?=[^\W\d])")
"""What makes a link of a bare address where Markdown is GitHub's: of https://a, www.a, a@b.c."""
_TAGS = ["motet", "moe", "mixture-of-experts"]
_LICENCE_NAME = "terms-of-each-owner"

_NATIVE = """\
# A composite of {count}

One model of a frozen public base model, the anchor, and of experts that their owners trained apart, each where its
text lies. Whoever runs it decides, request by request, whose expert takes part; the anchor always does.

{experts}

Parameters and bytes are those of an expert's own matrices or factors; the anchor's other tensors and the router come
once. `composite.json` lists every file with its digest, and its own digest names the composite.{tuned}

## Loading

```python
import motet.moe  # registers the model with transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "FOLDER"  # where this file lies
model = AutoModelForCausalLM.from_pretrained(path)
tokenizer = AutoTokenizer.from_pretrained(path)
inputs = tokenizer("A text begins", return_tensors="pt")
model.generate(**inputs, max_new_tokens=20)  # everybody takes part
```
{choosing}
## Terms

{terms}
"""

_CHOOSING = """
## Choosing who takes part

```python
model.generate(**inputs, max_new_tokens=20, expert_sets=[{name}])  # this one and the anchor
with motet.moe.without({name}):
    model.generate(**inputs, max_new_tokens=20)
```

`motet serve FOLDER` answers OpenAI's clients, each request with the experts that it names: `"experts":
{{"exclude": [{name}]}}` in its body leaves one out.
"""

_STOCK = """\
# A composite of {count}, for plain transformers

One mixture of a frozen public base model, the anchor, and of experts that their owners trained apart, each where its
text lies: the stock export, `{architecture}`, which loads without Motet.

{experts}

Parameters and bytes are those of this folder, in which low-rank experts are expanded; the anchor's other tensors and
the router come once.

## Loading

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "FOLDER"  # where this file lies
model = AutoModelForCausalLM.from_pretrained(path)
tokenizer = AutoTokenizer.from_pretrained(path)
```

## Choosing who takes part

A stock checkpoint has one set of experts, these, for every request; the native composite chooses by request. When an
owner withdraws, or an expert's terms end, export a composite without it, and stop using this one.

## Terms

{terms}
"""

_TUNED = " The router was\ntuned for these experts together, and holds for no other set."
_OWN_TERMS = """\
Every expert is lent under its owner's own terms, and all of them hold for who uses the experts together. What the
anchor is licensed under, its publisher says. No licence holds for the whole, so that this card names none."""
_UNTOLD = """\
Terms that are not told here are in the manifests that the owners signed: `motet terms` writes them where the
coordinator's home is."""


class CardExpert(ExpertSize):
    """One expert of a card; what is not there is not written, so that every field that may be None has that default."""

    rank: int | None = None
    contribution: str | None = None
    """The digest of the owner's signed manifest; None for the anchor."""
    terms: Terms | None = None
    """The manifest's terms; None where they are not known, and for the anchor."""


class CardRecord(Strict):
    """What the front matter tells under `motet`."""

    anchor: str | None = None
    """The anchor's digest; None where it is not known."""
    experts: tuple[CardExpert, ...]
    """By expert id, the anchor's own network first."""
    form: Literal["native", "stock"]


def card_experts(
    sizes: Iterable[ExpertSize], contributions: Sequence[str], terms: Sequence[Terms | None]
) -> tuple[CardExpert, ...]:
    """The experts of a card: sizes by expert id, the anchor's first; contributions and terms of all but the anchor."""
    told = zip(sizes, (None, *contributions), (None, *terms), strict=True)
    return tuple(CardExpert(**size.model_dump(), contribution=each, terms=own) for size, each, own in told)


def native_card(record: CardRecord, *, tuned: bool) -> bytes:
    """The card of a composite in its native form; `tuned` says that its router was fitted jointly."""
    choosing = [_CHOOSING.format(name=json.dumps(each.name)) for each in record.experts[1:2]]
    text = _NATIVE.format(
        count=_count(record),
        experts=_experts_table(record),
        tuned=_TUNED if tuned else "",
        choosing="".join(choosing),
        terms=_terms(record),
    )
    return _with_front_matter(record, "motet", text)


def stock_record(config: MotetConfig, composite: CardRecord | None, directory: Path) -> CardRecord:
    """What the card of the export in `directory` tells: sizes of its files, and terms as the composite's card told.

    `composite` counts only if it is of the contributions in `config`.
    """
    contributions = config.contributions or []
    if composite is not None and [each.contribution for each in composite.experts[1:]] != contributions:
        composite = None
    terms = [None] * len(contributions) if composite is None else [each.terms for each in composite.experts[1:]]
    expanded = zip(sizes_in(directory, config.names), config.ranks, strict=True)
    sizes = [
        size if rank is None else size.model_copy(update={"kind": "lowrank", "rank": rank}) for size, rank in expanded
    ]
    anchor = None if composite is None else composite.anchor
    return CardRecord(anchor=anchor, experts=card_experts(sizes, contributions, terms), form="stock")


def stock_card(record: CardRecord, *, architecture: str) -> bytes:
    """The card of an export that plain transformers loads as `architecture`."""
    text = _STOCK.format(
        count=_count(record), architecture=architecture, experts=_experts_table(record), terms=_terms(record)
    )
    return _with_front_matter(record, "transformers", text)


def read_record(directory: Path) -> CardRecord | None:
    """What the card in a folder tells; None if there is none, or one that Motet did not write."""
    path = directory / CARD_FILE
    try:
        if path.stat().st_size > MAX_CARD_BYTES:
            return None
        return CardRecord.model_validate(ModelCard(path.read_text(encoding="utf-8")).data.get("motet"))
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError):
        return None


def _with_front_matter(record: CardRecord, library: str, text: str) -> bytes:
    # Not by `ModelCardData`, whose next release may order or add keys, and with them change every composite's digest.
    fields = {
        "library_name": library,
        "license": "other",
        "license_name": _LICENCE_NAME,
        "pipeline_tag": "text-generation",
        "tags": _TAGS,
        "motet": record.model_dump(mode="json", exclude_none=True),
    }
    # Unicode is escaped: a text with U+0085 would not be read back as it was.
    front = yaml.safe_dump(fields, sort_keys=False, allow_unicode=False, line_break="\n")
    return f"---\n{front}---\n\n{text}".encode()


def _count(record: CardRecord) -> str:
    count = len(record.experts) - 1
    return f"{count} expert{'' if count == 1 else 's'}" if count else "the anchor alone"


def _experts_table(record: CardRecord) -> str:
    head = ("id", "expert", "kind", "rank", "parameters", "bytes", "contribution")
    return _table(head, [(str(number), *_sizes(each)) for number, each in enumerate(record.experts)])


def _sizes(expert: CardExpert) -> tuple[str, ...]:
    rank = "" if expert.rank is None else str(expert.rank)
    return expert.name, expert.kind, rank, f"{expert.parameters:,}", f"{expert.bytes:,}", expert.contribution or ""


def _terms(record: CardRecord) -> str:
    owned = record.experts[1:]
    rows = [
        (
            each.name,
            each.terms.licence,
            each.terms.attribution or "none asked for",
            each.terms.purpose or "any that the licence allows",
            each.terms.expiry or "without end",
        )
        for each in owned
        if each.terms is not None
    ]
    table = [_table(("expert", "licence", "attribution", "purpose", "until"), rows)] if rows else []
    return "\n\n".join([_OWN_TERMS, *table, *([_UNTOLD] if len(rows) < len(owned) else [])])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(each) for each in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """A text as Markdown shows it letter by letter in a table, on one line."""
    quoted = _MARKUP.sub(r"\\\g<0>", _INVISIBLE.sub(" ", text).strip())
    return _ADDRESS.sub(lambda found: f"&#{ord(found[0])};", quoted)
