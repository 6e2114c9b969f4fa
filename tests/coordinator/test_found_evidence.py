"""Tables of evidence: every one that is counted passes, and none that would let an expert speak everywhere."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from motet.coordinator.admission import examine_update
from motet.coordinator.found_evidence import OPENING, FoundEvidence, evidence_problem
from motet.coordinator.home import CoordinatorHome
from motet.coordinator.inspection import read_findings
from motet.coordinator.public_tokens import keep_public_tokens, read_public_tokens
from motet.moe.token_evidence import TokenCounts, token_evidence
from motet.protocols.charter import RoutingRules
from motet.protocols.codec import CodecSettings, encode
from motet.protocols.codec.changes import narrow
from motet.protocols.contribution import Contribution
from motet.protocols.errors import AdmissionRefused
from motet.protocols.expert_files import EVIDENCE_LIMIT, EVIDENCE_STEP, ROUTER_TOKENS, update_specs

from .conftest import PUBLIC, random_values

VOCABULARY = 12


def counted(documents: list[list[int]]) -> TokenCounts:
    counts = TokenCounts()
    for document in documents:
        counts.tokens.update(document)
        counts.documents.update(set(document))
    return counts


def array_of(counts: TokenCounts) -> NDArray[Any]:
    return np.array([counts.tokens[token] for token in range(VOCABULARY)])


texts = st.lists(st.lists(st.integers(0, VOCABULARY - 1), max_size=40), min_size=1, max_size=12).filter(any)


@given(texts, texts, st.sampled_from([1, 1000]), st.sampled_from([1, 1000]))
def test_a_table_that_was_counted_passes_whatever_the_texts(
    own: list[list[int]], public: list[list[int]], much: int, more: int
) -> None:
    sides = counted(own * 3), counted(public)
    for counts, times in zip(sides, (much, more), strict=True):
        for token in counts.tokens:
            counts.tokens[token] *= times
    table = token_evidence(*sides, VOCABULARY).numpy()
    found = FoundEvidence.of(table, array_of(sides[1]))
    assert evidence_problem(found, largest=float(np.abs(table).max()), counted=True) is None


def test_the_sum_by_hand() -> None:
    public = np.array([1, 0, 2])  # and half of one each: 3/9, 1/9, 5/9
    found = FoundEvidence.of(np.array([0.125, 0.0, -6.0], np.float32), public)
    assert found.mass == pytest.approx((3 * math.exp(0.125) + 1 + 5 * math.exp(-6)) / 9)
    assert found.most == pytest.approx(1.1 * (math.exp(0.0625) + math.exp(-6) + 1 / 9))
    assert found.stepped


def test_what_opens_every_text_says_nothing() -> None:
    public = np.array([OPENING, 1, 0, 2])
    assert FoundEvidence.of(np.array([0.0, 0.125, 0.0, -6.0], np.float32), public).mass == pytest.approx(
        (1 + 3 * math.exp(0.125) + 1 + 5 * math.exp(-6)) / 10
    )
    for nats, refused in ((EVIDENCE_STEP, True), (EVIDENCE_LIMIT, True), (0.0, False), (-EVIDENCE_LIMIT, False)):
        found = FoundEvidence.of(np.array([nats, 0.0, 0.0, 0.0], np.float32), public)
        problem = evidence_problem(found, largest=abs(nats), counted=True)
        assert (problem is not None and "by the token that opens every text, wanted none" in problem) == refused


def test_text_of_another_script_is_clipped_and_passes() -> None:
    own, public = counted([[9, 10, 11] * 100] * 5), counted([[0, 1, 2, 3] * 10_000])
    table = token_evidence(own, public, VOCABULARY).numpy()
    found = FoundEvidence.of(table, array_of(public))
    assert table.max() == EVIDENCE_LIMIT
    assert found.mass < 0.1
    assert evidence_problem(found, largest=EVIDENCE_LIMIT, counted=True) is None


@pytest.fixture
def verdict(home: CoordinatorHome, medicine: object, tmp_path: Path) -> Callable[..., str | None]:
    """`verdict(table, kind="filter")`: the reason why an update with this evidence is refused, if it is."""

    def judge(table: NDArray[Any], *, kind: str = "filter") -> str | None:
        specs, path = update_specs(home.anchor_manifest), tmp_path / "u"
        values = random_values(specs, 0)
        values.tensors[ROUTER_TOKENS] = narrow(table.astype(np.float32), "BF16")
        encode(path, values, specs, CodecSettings(method="lossless"), anchor=home.charter.anchor.digest)
        contribution = medicine.manifest(home, path).open(Contribution)
        public = read_public_tokens(home.public_tokens_file) if kind == "filter" else None
        charter = home.charter.model_copy(update={"routing": RoutingRules(kind=kind)})
        try:
            examine_update(contribution, read_findings(path, specs, public), specs, charter)
        except AdmissionRefused as refusal:
            return refusal.reason
        return None

    return judge


def test_who_would_speak_everywhere_is_refused(home: CoordinatorHome, verdict: Callable[..., str | None]) -> None:
    ones = np.ones(home.anchor_manifest.vocabulary_size)
    public = read_public_tokens(home.public_tokens_file)
    seen = public > 0
    assert verdict(0 * ones) is None
    assert verdict(-EVIDENCE_LIMIT * ones) is None  # speaks nowhere
    one = (ones.cumsum() - 1) == (public == 0).argmax()
    assert verdict(EVIDENCE_LIMIT * one) is None  # knows a word that public text lacks
    opening = (ones.cumsum() - 1) == home.anchor.tokenizer().bos_token_id
    assert verdict(EVIDENCE_LIMIT * opening) == "wrong-evidence"
    assert verdict(1e7 * ones) == "out-of-range"
    assert verdict((EVIDENCE_LIMIT + EVIDENCE_STEP) * one) == "out-of-range"
    assert verdict(EVIDENCE_LIMIT * ~seen) == "wrong-evidence"
    for level in (EVIDENCE_LIMIT, 1.0, 0.5):
        assert verdict(level * ones) == "wrong-evidence"
        assert verdict(level * seen) == "wrong-evidence"
    assert verdict(EVIDENCE_STEP / 2 * seen) == "wrong-evidence"  # between the steps


def test_where_no_filter_reads_it_evidence_is_zero(home: CoordinatorHome, verdict: Callable[..., str | None]) -> None:
    table = np.zeros(home.anchor_manifest.vocabulary_size)
    assert verdict(table, kind="token") is None
    table[7] = -EVIDENCE_STEP
    assert verdict(table, kind="filter") is None
    assert verdict(table, kind="token") == "wrong-evidence"


def test_evidence_that_nobody_looked_at_is_refused() -> None:
    assert evidence_problem(None, largest=0.0, counted=True) is not None


def test_public_tokens_are_counted_as_owners_count_them(home: CoordinatorHome, tmp_path: Path) -> None:
    size = home.anchor_manifest.vocabulary_size
    keep_public_tokens(tmp_path / "again.npy", home.anchor_directory, size)
    counts = read_public_tokens(tmp_path / "again.npy")
    assert np.array_equal(counts, read_public_tokens(home.public_tokens_file))
    lines = (home.anchor_directory / "public.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == PUBLIC
    whole = TokenCounts.of(home.anchor.tokenizer(), PUBLIC).tokens
    assert 0 < counts.clip(0).sum() < sum(whole.values())  # what is held out is not counted
    assert list(np.flatnonzero(counts == OPENING)) == [home.anchor.tokenizer().bos_token_id]
    (tmp_path / "again.npy").write_bytes(b"kept")
    keep_public_tokens(tmp_path / "again.npy", home.anchor_directory, size)
    assert (tmp_path / "again.npy").read_bytes() == b"kept"
