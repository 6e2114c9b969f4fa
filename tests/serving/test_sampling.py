"""Drawing tokens: the likeliest, the nucleus, and the same again with the same seed."""

import pytest
import torch

from motet.serving.engine.job import Sampling
from motet.serving.engine.sampling import Sampler, likeliest, nucleus

LOGITS = torch.tensor([0.1, 2.0, -1.0, 2.0, 1.0])


def drawn(number: int, sample: int = 0, **how: float) -> list[int]:
    sampler = Sampler(Sampling(**how), sample=sample)
    return [sampler.draw(LOGITS) for _ in range(number)]


def test_no_temperature_takes_the_likeliest_and_the_lowest_of_equals() -> None:
    assert drawn(3, temperature=0.0) == [1, 1, 1]


def test_frequencies_are_the_tempered_probabilities() -> None:
    found = torch.bincount(torch.tensor(drawn(4000, temperature=0.7, seed=1)), minlength=5) / 4000
    assert (found - torch.softmax(LOGITS / 0.7, -1)).abs().max() < 0.03


def test_the_nucleus_is_the_fewest_tokens_that_reach_top_p() -> None:
    probabilities = torch.tensor([0.1, 0.4, 0.2, 0.3])
    assert (nucleus(probabilities, 0.7) > 0).tolist() == [False, True, False, True]
    assert (nucleus(probabilities, 0.71) > 0).tolist() == [False, True, True, True]
    assert (nucleus(probabilities, 1e-9) > 0).tolist() == [False, True, False, False]
    assert set(drawn(200, temperature=1.0, top_p=0.5, seed=2)) <= {1, 3}


def test_a_seed_repeats_and_each_sample_has_its_own() -> None:
    how = {"temperature": 1.0, "seed": 4}
    assert drawn(20, **how) == drawn(20, **how)
    assert drawn(20, sample=1, **how) == drawn(20, temperature=1.0, seed=5)
    assert drawn(20, sample=1, **how) != drawn(20, **how)
    assert drawn(5, temperature=1.0, seed=-(2**63)) == drawn(5, temperature=1.0, seed=-(2**63))


def test_log_probabilities_are_of_the_untempered_model() -> None:
    value, top = likeliest(LOGITS, 4, 2)
    assert value == pytest.approx(float(LOGITS.double().log_softmax(-1)[4]))
    assert {token for token, _ in top} == {1, 3}
    assert likeliest(LOGITS, 4, 0)[1] == ()
