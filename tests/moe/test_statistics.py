"""Statistics count exactly the positions they say, and know which anchor they belong to."""

import math
import shutil

import pytest
import torch

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


def test_shrinkage_helps_with_few_samples_and_fades_with_many():
    torch.manual_seed(0)
    truth = torch.diag(torch.linspace(0.2, 2.0, 40, dtype=torch.float64))
    error = {}
    for count in (20, 100_000):
        samples = torch.randn(count, 40, dtype=torch.float64) @ truth.sqrt()
        sample = torch.cov(samples.T, correction=0)
        error[count] = [float((each - truth).norm()) for each in (sample, shrink(sample, count))]

    assert error[20][1] < 0.6 * error[20][0]
    assert error[100_000][1] == pytest.approx(error[100_000][0], rel=0.05)


def test_shrinkage_of_too_few_samples_is_positive_definite():
    samples = torch.randn(3, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    assert torch.linalg.eigvalsh(shrink(torch.cov(samples.T, correction=0), 3)).min() > 0
