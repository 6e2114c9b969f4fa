"""The gate: scores token by token, or the posterior of a filter, and the few experts that a token may use."""

import torch

from motet.moe.gate import Gate, Routing
from motet.moe.gating import among_largest, gate_weights, sum_in_order

POSTERIOR = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], [[0.25, 0.0, 0.75], [1.0, 0.0, 0.0]]])


def test_scores_become_a_softmax_under_each_rows_mask() -> None:
    scores = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, False, True], [True, False, True, True]])
    weights = Gate(top_k=None, normalise=True)(scores, Routing(expert_mask=mask))
    assert weights.shape == (6, 4)
    for row in range(2):
        expected = gate_weights(scores[row], mask[row].expand(3, -1), None, True)
        assert torch.equal(weights.view(2, 3, 4)[row], expected)
        assert torch.allclose(expected, scores[row].masked_fill(~mask[row], -torch.inf).softmax(dim=-1))


def test_a_posterior_is_the_gate_whatever_the_scores() -> None:
    gate, routing = Gate(top_k=None, normalise=True), Routing(posterior=POSTERIOR)
    assert torch.equal(gate(None, routing), POSTERIOR.flatten(0, 1))
    assert torch.equal(gate(torch.randn(2, 2, 3), routing), POSTERIOR.flatten(0, 1))


def test_the_largest_of_a_posterior() -> None:
    routing = Routing(posterior=POSTERIOR)
    two = Gate(top_k=2, normalise=True)(None, routing)
    assert torch.allclose(two[0], torch.tensor([0.625, 0.375, 0.0]))
    assert torch.allclose(two[1], torch.tensor([0.1, 0.0, 0.8]) / 0.9)  # a tie goes to the lower id
    assert two[3].tolist() == [1.0, 0.0, 0.0]
    plain = Gate(top_k=1, normalise=False)(None, routing)
    assert plain.tolist() == torch.tensor([[0.5, 0, 0], [0, 0, 0.8], [0, 0, 0.75], [1, 0, 0]]).tolist()


def test_choosing_among_what_is_left_equals_a_smaller_posterior() -> None:
    draw = torch.Generator().manual_seed(0)
    weights = torch.rand(50, 5, generator=draw)
    weights[:, 2] = 0.0
    kept = [0, 1, 3, 4]
    for top_k in (None, 1, 2, 3, 4, 9):
        chosen = among_largest(weights, weights, top_k, True)
        assert torch.equal(chosen[:, kept], among_largest(weights[:, kept], weights[:, kept], top_k, True))
        assert not chosen[:, 2].any()


def test_sums_run_in_order() -> None:
    weights = torch.tensor([[1e8, 1.0, -1e8, 1.0]])
    assert sum_in_order(weights).tolist() == [[1.0]]
    assert sum_in_order(torch.rand(2, 3, 4)).shape == (2, 3, 1)
