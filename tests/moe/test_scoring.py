"""Scores: every token once, bytes as UTF-8 counts them, and rows that equal models built the long way."""

import math
from pathlib import Path

import pytest
import torch

from motet.moe.anchor import Anchor
from motet.moe.composite import compose
from motet.moe.experts import Expert, soup, swap_ffn
from motet.moe.routing import RoutingRows
from motet.moe.scoring import bits_per_byte, examine, score, score_rows, score_windows, windows_of
from motet.protocols.contribution import Score
from motet.protocols.errors import AssemblyError, DataError

DOCUMENTS = [
    "short",
    "a longer document, cut into several windows " * 3,
    "Ödem, 心臓, 🫀",
    "b" * 15,
    "c" * 16,
]


@pytest.fixture(scope="module")
def anchor(anchor_directory: Path) -> Anchor:
    return Anchor.load(anchor_directory)


@pytest.fixture(scope="module")
def composite_directory(anchor: Anchor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("composite")
    compose(anchor.model(), experts_of(anchor)).save_pretrained(directory)
    anchor.tokenizer().save_pretrained(directory)
    return directory


def experts_of(anchor: Anchor) -> list[Expert]:
    """Two experts far enough from the anchor and each other that rows differ."""
    experts = []
    for number, name in enumerate(("medicine", "law"), start=1):
        draw = torch.Generator().manual_seed(number)
        ffn = {
            key: (tensor.float() + torch.randn(tensor.shape, generator=draw) * 0.2).to(tensor.dtype)
            for key, tensor in anchor.ffn().items()
        }
        shape = (anchor.manifest.layers, anchor.manifest.hidden_size)
        rows = RoutingRows(weight=torch.randn(shape, generator=draw), bias=torch.zeros(shape[0]))
        experts.append(Expert(name=name, contribution=f"sha256:{number:064}", ffn=ffn, rows=rows))
    return experts


def naive_nats(model, tokenizer, document: str, sequence_length: int) -> float:
    """One window at a time, one token at a time."""
    tokens, nats = tokenizer(document, add_special_tokens=False)["input_ids"], 0.0
    for start in range(0, len(tokens), sequence_length - 1):
        window = [tokenizer.bos_token_id, *tokens[start : start + sequence_length - 1]]
        with torch.no_grad():
            logits = model(torch.tensor([window])).logits[0].float()
        for place, token in enumerate(window[1:]):
            nats -= float(torch.log_softmax(logits[place], dim=-1)[token])
    return nats


def test_scores_equal_a_naive_loop(anchor: Anchor) -> None:
    model, tokenizer = anchor.model(torch.float32), anchor.tokenizer()
    wanted = sum(naive_nats(model, tokenizer, document, 16) for document in DOCUMENTS)
    for batch_size in (1, 3, 64):
        saw = score(model, tokenizer, DOCUMENTS, sequence_length=16, batch_size=batch_size)
        assert saw.nats == pytest.approx(wanted, rel=1e-6)


def test_every_token_is_scored_once(anchor: Anchor) -> None:
    tokenizer = anchor.tokenizer()
    windows = windows_of(tokenizer, DOCUMENTS, sequence_length=16, batch_size=3)
    counted = [0] * len(DOCUMENTS)
    for _, labels, document in windows.batches:
        for row, index in zip(labels, document.tolist(), strict=True):
            counted[index] += int((row != -100).sum())
    assert counted == [len(tokenizer(document)["input_ids"]) for document in DOCUMENTS]


def test_bytes_are_utf8_bytes(anchor: Anchor) -> None:
    saw = score(anchor.model(torch.float32), anchor.tokenizer(), ["Ödem 心臓 🫀"], sequence_length=16)
    assert saw.bytes == 5 + 1 + 6 + 1 + 4
    assert bits_per_byte(saw) == pytest.approx(saw.nats / math.log(2) / 17)


def test_the_variance_is_that_of_resampled_documents(anchor: Anchor, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = anchor.model(torch.float32), anchor.tokenizer()
    same = score(model, tokenizer, ["alike"] * 7, sequence_length=16)
    assert same.bits_per_byte_variance == pytest.approx(0, abs=1e-12)
    mixed = score(model, tokenizer, DOCUMENTS, sequence_length=16)
    single = [bits_per_byte(score(model, tokenizer, [document], sequence_length=16)) for document in DOCUMENTS]
    assert 0 < mixed.bits_per_byte_variance < (max(single) - min(single)) ** 2
    assert mixed == score(model, tokenizer, DOCUMENTS, sequence_length=16)
    monkeypatch.setattr("motet.moe.scoring.RESAMPLED_TOGETHER", 1)
    assert mixed == score(model, tokenizer, DOCUMENTS, sequence_length=16)  # drawn one resample after the other


def test_nothing_to_score_is_an_error(anchor: Anchor) -> None:
    for documents in ([], ["text", ""]):
        with pytest.raises(DataError, match="wanted text"):
            windows_of(anchor.tokenizer(), documents, sequence_length=16)


def test_rows_equal_models_built_one_by_one(anchor: Anchor, composite_directory: Path) -> None:
    rows = score_rows(composite_directory, DOCUMENTS, sequence_length=16)
    medicine, law = experts_of(anchor)
    windows = windows_of(anchor.tokenizer(), DOCUMENTS, sequence_length=16)
    dense = anchor.model(torch.float32)
    expected: dict[str, Score] = {"anchor": score_windows(dense, windows)}
    mean = soup([medicine.ffn, law.ffn])
    for row, ffn in {"expert:medicine": medicine.ffn, "expert:law": law.ffn, "soup": mean}.items():
        with swap_ffn(dense, ffn):
            expected[row] = score_windows(dense, windows)
    wide = [in_float32(expert) for expert in (medicine, law)]
    expected["composite"] = score_windows(compose(anchor.model(torch.float32), wide), windows)
    expected["composite-without:medicine"] = score_windows(compose(anchor.model(torch.float32), wide[1:]), windows)
    expected["composite-without:law"] = score_windows(compose(anchor.model(torch.float32), wide[:1]), windows)
    assert rows.keys() == expected.keys()
    for row, wanted in expected.items():
        assert rows[row].nats == pytest.approx(wanted.nats, rel=1e-6), row
    assert len({round(each.nats, 3) for each in rows.values()}) == len(rows)


def test_an_examination_is_the_rows_and_sums_over_the_same_tokens(composite_directory: Path, anchor: Anchor) -> None:
    found = examine(composite_directory, DOCUMENTS, own="law", sequence_length=16)
    assert found.rows == score_rows(composite_directory, DOCUMENTS, sequence_length=16)
    assert found.diagnostics.tokens == sum(len(anchor.tokenizer()(document)["input_ids"]) for document in DOCUMENTS)
    assert len(found.diagnostics.layers) == anchor.manifest.layers
    assert set(found.diagnostics.positions) == {"anchor", "expert:law", "composite"}
    for row, positions in found.diagnostics.positions.items():
        assert sum(positions.nats) == pytest.approx(found.rows[row].nats)
    strangers = examine(composite_directory, DOCUMENTS[1:2], sequence_length=16)
    assert set(strangers.diagnostics.positions) == {"anchor", "composite"}


def test_of_a_text_of_few_tokens_only_the_rows_are_told(composite_directory: Path, anchor: Anchor) -> None:
    few, enough = (examine(composite_directory, ["a" * count], sequence_length=16) for count in (9, 10))
    assert len(anchor.tokenizer()("a" * 10)["input_ids"]) == 10
    assert set(few.rows) == set(enough.rows)
    assert few.diagnostics is None
    assert enough.diagnostics.positions["composite"].tokens == (0, 0, 10, 0)


def test_every_expert_set_equals_a_composite_that_never_had_the_others(anchor: Anchor, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(3)
    shape = (anchor.manifest.layers, anchor.manifest.hidden_size)
    rows = RoutingRows(weight=torch.randn(shape, generator=draw), bias=torch.zeros(shape[0]))
    news = Expert(
        name="news", contribution="sha256:" + "3" * 64, ffn=soup([e.ffn for e in experts_of(anchor)]), rows=rows
    )
    experts = [*experts_of(anchor), news]
    compose(anchor.model(), experts).save_pretrained(tmp_path)
    anchor.tokenizer().save_pretrained(tmp_path)
    scored = examine(tmp_path, DOCUMENTS, sets=True, sequence_length=16).rows
    assert [row for row in scored if row.startswith("set:")] == ["set:law", "set:medicine", "set:news"]
    windows = windows_of(anchor.tokenizer(), DOCUMENTS, sequence_length=16)
    for expert in experts:
        alone = score_windows(compose(anchor.model(torch.float32), [in_float32(expert)]), windows)
        assert scored[f"set:{expert.name}"].nats == pytest.approx(alone.nats, rel=1e-6)


def test_half_precision_is_close_and_never_below_what_is_stored(
    anchor: Anchor, composite_directory: Path, tmp_path
) -> None:
    def rows_of(directory: Path, dtype: torch.dtype) -> dict[str, Score]:
        return score_rows(directory, DOCUMENTS, sequence_length=16, dtype=dtype)

    whole, half = (rows_of(composite_directory, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert any(half[row].nats != whole[row].nats for row in whole)
    for row, wanted in whole.items():
        assert half[row].nats == pytest.approx(wanted.nats, rel=0.02), row
    compose(anchor.model(torch.float32), [in_float32(each) for each in experts_of(anchor)]).save_pretrained(tmp_path)
    anchor.tokenizer().save_pretrained(tmp_path)
    assert rows_of(tmp_path, torch.bfloat16) == rows_of(tmp_path, torch.float32)


def in_float32(expert: Expert) -> Expert:
    ffn = {name: tensor.float() for name, tensor in expert.ffn.items()}
    return Expert(name=expert.name, contribution=expert.contribution, ffn=ffn, rows=expert.rows)


def test_a_folder_without_a_composite_is_named(tmp_path: Path) -> None:
    with pytest.raises(AssemblyError, match="cannot load a composite"):
        score_rows(tmp_path / "nothing", DOCUMENTS, sequence_length=16)
