"""Gates for experiments: the same scores under other evidence, and nothing left behind."""

import pytest
import torch
from transformers import Olmo2Config, Olmo2ForCausalLM

from motet.coordinator.quality.gates import Probe, probed, table_of, weights_of
from motet.moe import Expert, RoutingRows, compose
from motet.moe.composite import MotetForCausalLM
from motet.moe.evidence import Evidence

STEP = Probe(rows="tokens", evidence="step", stay=0.9, temperature=2.0, prior=0.5)


@pytest.fixture(scope="module")
def experts() -> list[Expert]:
    anchor, draw = tiny_anchor(), torch.Generator().manual_seed(1)
    ffn = {name: tensor for name, tensor in anchor.named_parameters() if ".mlp." in name}
    return [
        Expert(
            name=name,
            contribution=name,
            ffn={key: (t + 0.3 * torch.randn(t.shape, generator=draw)).detach() for key, t in ffn.items()},
            rows=RoutingRows(
                weight=torch.randn(2, 32, generator=draw),
                bias=torch.randn(2, generator=draw),
                tokens=torch.randn(96, generator=draw),
            ),
        )
        for name in ("a", "b")
    ]


def tiny_anchor() -> Olmo2ForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return Olmo2ForCausalLM(Olmo2Config(vocab_size=96, pad_token_id=0, initializer_range=0.2, **sizes)).eval()


@pytest.fixture
def model(experts) -> MotetForCausalLM:
    return compose(tiny_anchor(), experts)


IDS = torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(5))


def logits_of(model: MotetForCausalLM) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS, use_cache=False).logits


def table(experts: list[Expert]) -> torch.Tensor:
    return torch.stack([torch.zeros(96), *(expert.rows.tokens for expert in experts)])


def test_the_forward_step_over_token_ids_is_the_filter_that_charters_name(model, experts) -> None:
    filtering = compose(
        tiny_anchor(), experts, log_priors={"anchor": 0.5}, evidence=Evidence(stay=0.9, temperature=2.0)
    )
    with probed(model, STEP, table(experts)):
        found = logits_of(model)
    assert torch.allclose(found, logits_of(filtering), atol=1e-5)


def test_token_by_token_it_is_the_composite_as_it_was(model) -> None:
    before = logits_of(model)
    with probed(model, Probe()):
        assert torch.allclose(logits_of(model), before, atol=1e-5)


def test_the_gates_come_back_also_after_an_error(model) -> None:
    before = logits_of(model)
    with pytest.raises(ValueError, match="stop"), probed(model, STEP, torch.ones(3, 96)):
        raise ValueError("stop")
    assert torch.equal(logits_of(model), before)


@pytest.mark.parametrize(
    ("probe", "gains"),
    [
        (Probe(evidence="leak", decay=0.5), [0.0, 2.0, 1.0 + 4.0, 2.5 + 6.0]),
        (Probe(evidence="average", gain=4.0), [0.0, 4 * 1.0, 4 * 2.0, 4 * 3.0]),
        (Probe(evidence="token", gain=2.0), [16.0, 4.0, 8.0, 12.0]),
    ],
)
def test_evidence_adds_up_as_it_says(probe: Probe, gains: list[float]) -> None:
    """Scores 8, 2, 4, 6: the first says nothing where evidence adds up, since nothing came before it."""
    scores = torch.tensor([[[0.0, 8.0], [0.0, 2.0], [0.0, 4.0], [0.0, 6.0]]])
    weights = weights_of(scores, probe)
    assert torch.allclose(weights[..., 1], torch.tensor([gains]).sigmoid(), atol=1e-6)


def test_controls_keep_the_spread_and_lose_the_owner(experts) -> None:
    own = table(experts)
    assert torch.equal(table_of("shuffled", own), own[[0, 2, 1]])
    noise = table_of("random", own)
    assert noise is not None
    assert not noise[0].any()
    assert torch.isclose(noise[1:].std(), own[1:].std(), rtol=0.2)
    assert table_of("own", own) is None
