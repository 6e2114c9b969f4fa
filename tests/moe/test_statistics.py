"""Statistics count exactly the positions they say, and know which anchor they belong to."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import save_file

from motet.moe.anchor import Anchor
from motet.moe.covariance import shrink
from motet.moe.statistics import Statistics, measure
from motet.protocols.errors import StatisticsError

TEXTS = ["The heart pumps blood.", "", "x", "A group is a monoid with inverses. " * 4, "def f(): return 1"]


@pytest.fixture(scope="module")
def anchor(anchor_directory):
    return Anchor.load(anchor_directory)


def mlp_inputs(anchor, text):
    """The MLP inputs (layers, tokens, hidden) of one text after BOS, one forward pass without padding or batch."""
    model, tokenizer = anchor.model(dtype=torch.float32), anchor.tokenizer()
    seen = []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0][0, 1:].double()))
    ids = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
    with torch.no_grad():
        model(torch.tensor([ids]))
    return torch.stack(seen)


def test_equals_a_two_pass_computation_without_padding(anchor):
    inputs = torch.cat([mlp_inputs(anchor, text) for text in TEXTS], dim=1)
    measured = measure(anchor, TEXTS, batch_size=3, sequence_length=256)

    assert measured.tokens == inputs.shape[1] == sum(len(text) for text in TEXTS)
    assert measured.mean.dtype == measured.covariance.dtype == torch.float32
    torch.testing.assert_close(measured.mean, inputs.mean(dim=1).float(), rtol=1e-4, atol=1e-6)
    expected = torch.stack([shrink(torch.cov(layer.T, correction=0), layer.shape[0]) for layer in inputs])
    torch.testing.assert_close(measured.covariance, expected.float(), rtol=1e-3, atol=1e-8)


def test_batches_do_not_change_what_is_measured(anchor):
    one, many = measure(anchor, TEXTS, batch_size=1), measure(anchor, TEXTS, batch_size=16)

    torch.testing.assert_close(one.mean, many.mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(one.covariance, many.covariance, rtol=1e-3, atol=1e-8)


def test_cuts_long_texts_and_skips_the_first_positions_of_each_piece(anchor):
    text = "abcdefghij" * 3  # pieces of 9 tokens after BOS: 9, 9, 9 and 3

    assert measure(anchor, [text], sequence_length=10).tokens == 30
    assert measure(anchor, [text], sequence_length=10, skip_first=4).tokens == 3 * 6


def test_stops_after_the_batch_that_reaches_the_limit(anchor):
    endless = ("ten tokens" for _ in iter(int, 1))

    assert measure(anchor, endless, batch_size=4, max_tokens=50).tokens == 80


def test_survives_a_round_trip_with_the_same_bytes(anchor, tmp_path):
    measured = measure(anchor, TEXTS)
    for name in ("a", "b"):
        measured.save(tmp_path / name)
    loaded = Statistics.load(tmp_path / "a", expect=anchor.digest)

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (loaded.tokens, loaded.anchor) == (measured.tokens, anchor.digest)
    assert torch.equal(loaded.covariance, measured.covariance)


def test_an_anchor_finds_its_statistics_and_refuses_those_of_another(anchor, make_anchor, tmp_path):
    own = shutil.copytree(anchor.directory, tmp_path / "own")
    measure(anchor, TEXTS).save(own / "statistics.safetensors")
    assert Anchor.load(own).statistics().tokens > 0

    other = make_anchor(tmp_path / "other", seed=1)
    shutil.copy(own / "statistics.safetensors", other)
    with pytest.raises(StatisticsError, match=r"measured on anchor sha256:.*wanted sha256:"):
        Anchor.load(other).statistics()


def test_refuses_a_damaged_file(anchor, tmp_path):
    path = tmp_path / "statistics.safetensors"
    measure(anchor, TEXTS).save(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StatisticsError, match="cannot read"):
        Statistics.load(path)


def test_refuses_texts_without_a_token(anchor):
    with pytest.raises(StatisticsError, match="counted 0 positions"):
        measure(anchor, ["", ""])


def test_refuses_what_is_not_finite():
    with pytest.raises(StatisticsError, match="NaN"):
        Statistics(anchor="a", tokens=2, mean=torch.full((1, 2), math.nan), covariance=torch.eye(2)[None])


@pytest.fixture(scope="module")
def wide(make_anchor, tmp_path_factory):
    sizes = {"hidden_size": 1040, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4}
    return Anchor.load(make_anchor(tmp_path_factory.mktemp("wide"), **sizes))


def test_a_wide_anchor_is_measured_in_low_rank_and_survives_a_round_trip(wide, tmp_path):
    for name in ("a", "b"):
        measure(wide, TEXTS, sequence_length=256).save(tmp_path / name)
    loaded = Statistics.load(tmp_path / "a", expect=wide.digest)

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (loaded.covariance.diagonal.shape, loaded.covariance.factor.shape) == ((1, 1040), (1, 1040, 256))
    inputs = torch.cat([mlp_inputs(wide, text) for text in TEXTS], dim=1)
    torch.testing.assert_close(loaded.mean, inputs.mean(dim=1).float(), rtol=1e-3, atol=1e-5)
    variance = inputs[0].var(dim=0, correction=0)
    assert torch.corrcoef(torch.stack([loaded.covariance.variance()[0].double(), variance]))[0, 1] > 0.999
    loaded.save(tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == (tmp_path / "a").read_bytes()


def test_a_chosen_rank_keeps_mean_and_variances(anchor):
    dense, low = measure(anchor, TEXTS), measure(anchor, TEXTS, rank=32)

    assert torch.equal(low.mean, dense.mean)
    variances = torch.diagonal(dense.covariance, dim1=1, dim2=2)
    torch.testing.assert_close(low.covariance.variance(), variances, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("rank", [0, 33])
def test_refuses_a_rank_that_cannot_be(anchor, rank):
    with pytest.raises(StatisticsError, match=f"saw rank {rank}, wanted 1 to 32"):
        measure(anchor, TEXTS, rank=rank)


MEAN, SQUARE, DIAGONAL, FACTOR = torch.zeros(2, 4), torch.zeros(2, 4, 4), torch.ones(2, 4), torch.zeros(2, 4, 3)
LOW_RANK = {"mean": MEAN, "covariance_diagonal": DIAGONAL, "covariance_factor": FACTOR}
ABOUT = {"anchor": "a", "schema": "motet.statistics/1", "tokens": 2}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (LOW_RANK | {"covariance": SQUARE}, "saw tensors covariance, covariance_diagonal, covariance_factor, mean"),
        ({"mean": MEAN, "covariance_diagonal": DIAGONAL}, "saw tensors covariance_diagonal, mean"),
        ({"mean": MEAN, "covariance": SQUARE, "extra": DIAGONAL}, "extra"),
        ({}, "of no name"),
        ({"mean": MEAN, "covariance": SQUARE[:1]}, "shape"),
        ({"mean": MEAN, "covariance": SQUARE.double()}, "float64, wanted float32"),
        (LOW_RANK | {"covariance_diagonal": DIAGONAL[:1], "covariance_factor": FACTOR[:1]}, r"\(2, 4\).*\(1, 4\)"),
        (LOW_RANK | {"covariance_factor": FACTOR[:1]}, "shape"),
        (LOW_RANK | {"covariance_factor": torch.zeros(2, 4, 5)}, "at most hidden"),
        (LOW_RANK | {"covariance_factor": FACTOR.half()}, "float16"),
        (LOW_RANK | {"covariance_factor": FACTOR * math.nan}, "NaN"),
        (LOW_RANK | {"covariance_diagonal": -DIAGONAL}, "negative variance"),
    ],
)
def test_refuses_files_of_mixed_or_malformed_tensors(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "s", metadata={"motet": json.dumps(ABOUT)})
    with pytest.raises(StatisticsError, match=message):
        Statistics.load(tmp_path / "s")


@pytest.mark.parametrize("about", [{}, [], {"schema": ABOUT["schema"]}, ABOUT | {"tokens": "2"}, ABOUT | {"schema": 3}])
def test_refuses_files_that_do_not_say_what_they_are(tmp_path, about):
    save_file(LOW_RANK, tmp_path / "s", metadata={"motet": json.dumps(about)})
    with pytest.raises(StatisticsError, match=r"wanted (schema|motet)"):
        Statistics.load(tmp_path / "s")
