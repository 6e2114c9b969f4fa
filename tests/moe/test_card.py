"""The model card: what the Hub reads, what a person reads, and owners' words that stay words."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from motet.moe.card import CARD_FILE, CardRecord, card_experts, native_card, read_record, stock_card
from motet.moe.export import export_stock
from motet.protocols.contribution import Terms
from motet.protocols.expert_sizes import ExpertSize

from .mixed_kinds import mixed

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64
SIZES = (
    ExpertSize(name="anchor", kind="anchor", rank=None, parameters=1200, bytes=2400),
    ExpertSize(name="law", kind="full", rank=None, parameters=1200, bytes=2400),
    ExpertSize(name="news", kind="lowrank", rank=4, parameters=30, bytes=60),
)
LAW = Terms(licence="CC-BY-4.0", attribution="The court's reports", expiry="2027-01-31")
HOSTILE = "| a \\| b |\n---\n\n# h <img src=x onerror=alert(1)> [x](javascript:y) `c` **b** ~~s~~ $x$ &lt; \u202ex"

FRONT_MATTER = f"""---
library_name: motet
license: other
license_name: terms-of-each-owner
pipeline_tag: text-generation
tags:
- motet
- moe
- mixture-of-experts
motet:
  anchor: sha256:{"a" * 64}
  experts:
  - name: anchor
    kind: anchor
    parameters: 1200
    bytes: 2400
  - name: law
    kind: full
    parameters: 1200
    bytes: 2400
    contribution: {ONE}
    terms:
      licence: CC-BY-4.0
      attribution: The court's reports
      expiry: '2027-01-31T00:00:00Z'
  - name: news
    kind: lowrank
    rank: 4
    parameters: 30
    bytes: 60
    contribution: {TWO}
  form: native"""


def record(*terms: Terms | None) -> CardRecord:
    return CardRecord(anchor="sha256:" + "a" * 64, experts=card_experts(SIZES, (ONE, TWO), terms), form="native")


def tables(card: str) -> list[list[list[str]]]:
    """The cells of a card's tables as a Markdown reader shows them; raises AssertionError for markup in a cell."""
    found: list[list[list[str]]] = []
    for token in MarkdownIt("commonmark").enable("table").parse(ModelCard(card).text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and found and token.level > 3:
            children = token.children or []
            assert {child.type for child in children} <= {"text", "text_special"}, children
            found[-1][-1].append("".join(child.content for child in children))
    return found


def test_it_tells_the_hub_and_people_the_same() -> None:
    card = native_card(record(LAW, None), tuned=False).decode()
    data = ModelCard(card).data.to_dict()
    assert (data["library_name"], data["license"], data["pipeline_tag"]) == ("motet", "other", "text-generation")
    assert {"motet", "moe"} <= set(data["tags"])
    assert "base_model" not in data, "an anchor is known by its digest, not by a name on the Hub"
    experts, terms = tables(card)
    assert experts[1:] == [
        ["0", "anchor", "anchor", "", "1,200", "2,400", ""],
        ["1", "law", "full", "", "1,200", "2,400", ONE],
        ["2", "news", "lowrank", "4", "30", "60", TWO],
    ]
    assert terms[1:] == [
        ["law", "CC-BY-4.0", "The court's reports", "any that the licence allows", "2027-01-31T00:00:00Z"]
    ]
    assert "`motet terms`" in card, "where the other owner's terms are"
    assert "`motet terms`" not in native_card(record(LAW, LAW), tuned=False).decode()


def test_its_bytes_are_always_the_same() -> None:
    """Whoever assembles with whatever release of a library must get them; a change is a change of every digest."""
    card = native_card(record(LAW, None), tuned=False).decode()
    front = card.partition("\n---\n")[0]
    assert front == FRONT_MATTER
    assert re.findall(r"[^\n -~]", card) == []


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(licence=TEXTS, attribution=TEXTS, purpose=TEXTS)
@example(licence="no", attribution=HOSTILE, purpose="2027-01-31")
@example(licence="\n---\n", attribution="a\r\n---\r\nlicense: mit", purpose="\\")
@example(licence="\x85", attribution="x", purpose="x")  # which YAML reads as a line feed unless it is escaped
@example(licence="\xa0", attribution="\x85\u2028 x \u00a0", purpose="{count}")
def test_what_owners_wrote_is_shown_and_read_back_letter_by_letter(
    tmp_path_factory: pytest.TempPathFactory, licence: str, attribution: str, purpose: str
) -> None:
    wanted = record(Terms(licence=licence, attribution=attribution, purpose=purpose), LAW)
    card = native_card(wanted, tuned=False)
    path = tmp_path_factory.getbasetemp() / "card"
    path.mkdir(exist_ok=True)
    (path / CARD_FILE).write_bytes(card)
    assert read_record(path) == wanted
    assert ModelCard(card.decode()).data.license == "other"
    _, terms = tables(card.decode())
    assert len(terms) == 3
    for cell, text in zip(terms[1][1:4], (licence, attribution, purpose), strict=True):
        assert [letter for letter in cell if letter.isalnum()] == [letter for letter in text if letter.isalnum()]


ADDRESS = "https://a.org/x, see www.1.com ftp://localhost a.b@c.de mailto:x@y.z (b.org) v1.2. CC-BY-4.0 a\u061cb"


def test_addresses_that_owners_wrote_are_no_links_where_markdown_is_githubs() -> None:
    card = native_card(record(Terms(licence="x", attribution=ADDRESS, purpose="x"), None), tuned=False).decode()
    _, terms = tables(card)
    assert terms[1][2] == ADDRESS.replace("\u061c", " "), "it is shown letter by letter"
    row = next(line for line in card.splitlines() if line.startswith("| law | x |"))
    assert re.findall(r"//|@|\bwww\.|[a-z]\.\w|\.[a-z]", row) == []
    assert "v1.2. CC-BY-4.0 a b" in row, "numbers are left alone"


@pytest.mark.parametrize(
    "content",
    [
        "no front matter",
        "---\nlicense: mit\n---\n",
        "---\nmotet: {experts: 3}\n---\n",
        "---\n- a\n---\n",
        "---\nmotet: [\n---\n",
        "---\n1: 2\n---\n",
        "---\nignore_metadata_errors: 1\n---\n",
        "---\nmodel-index: 3\n---\n",
        "---\nmotet: " + "[" * 1500 + "\n---\n",
        b"\xff\xfe",
    ],
)
def test_a_card_of_somebody_elses_tells_nothing(tmp_path: Path, content: str | bytes) -> None:
    assert read_record(tmp_path) is None
    (tmp_path / CARD_FILE).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read_record(tmp_path) is None


def test_an_export_says_what_its_experts_take_there_and_keeps_their_terms(tmp_path: Path) -> None:
    model, native = mixed(("art", "law")), tmp_path / "native"
    model.save_pretrained(native)
    export_stock(native, tmp_path / "untold")
    untold = read_record(tmp_path / "untold")
    assert untold is not None
    assert [(each.name, each.kind, each.rank) for each in untold.experts] == [
        ("anchor", "anchor", None),
        ("art", "lowrank", 3),
        ("law", "full", None),
    ]
    assert len({(each.parameters, each.bytes) for each in untold.experts}) == 1, "a low-rank one is expanded"
    assert [each.terms for each in untold.experts] == [None] * 3

    contributions = model.config.contributions
    told = CardRecord(anchor=ONE, experts=card_experts(model.experts, contributions, [LAW, None]), form="native")
    (native / CARD_FILE).write_bytes(native_card(told, tuned=False))
    export_stock(native, tmp_path / "told")
    found = read_record(tmp_path / "told")
    assert found is not None
    assert (found.anchor, found.form) == (ONE, "stock")
    assert [(each.contribution, each.terms) for each in found.experts[1:]] == [
        (contributions[0], LAW),
        (contributions[1], None),
    ]
    card = ModelCard.load(tmp_path / "told" / CARD_FILE)
    assert card.data.library_name == "transformers"
    assert "FlexOlmoForCausalLM" in card.text

    other = told.model_copy(update={"experts": card_experts(model.experts, contributions[::-1], [LAW, None])})
    (native / CARD_FILE).write_bytes(native_card(other, tuned=False))
    export_stock(native, tmp_path / "other")
    assert (tmp_path / "other" / CARD_FILE).read_bytes() == (tmp_path / "untold" / CARD_FILE).read_bytes()


def test_the_anchor_alone_has_nobody_to_choose() -> None:
    alone = CardRecord(experts=card_experts(SIZES[:1], (), ()), form="native")
    card = native_card(alone, tuned=False).decode()
    assert "Choosing" not in card
    assert len(tables(card)) == 1
    assert "the anchor alone" in stock_card(alone, architecture="MixtralForCausalLM").decode()
