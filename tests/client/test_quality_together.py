"""The baselines that several owners' text goes into: Flower's average, the jointly trained mixture, PHATGOOSE."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from motet.bench.quality.corpora import read_split
from motet.bench.quality.descent import Schedule
from motet.client.quality.expert import expert
from motet.client.quality.fedavg import average, fedavg, rounds
from motet.client.quality.joint import equal_steps, joint, joint_model, mixture, pooled
from motet.client.quality.material import NETWORKS, Judge, fine_tuned, frozen, owners_batches, read_record, read_rows
from motet.client.quality.phatgoose import phatgoose, phatgoose_model, read_gate, standardised
from motet.client.quality.specialist import specialist
from motet.moe.anchor import Anchor
from motet.moe.scoring import bits_per_byte, score
from motet.protocols.errors import AssemblyError, FederationError

from .quality_texts import SPEC, silent, write_texts

OWNERS = ("medicine", "law")
Made = dict[str, Path]


@pytest.fixture(scope="module")
def made(anchor_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Inputs of stages by name: anchor, corpora, specialists, experts."""
    texts = write_texts(tmp_path_factory.mktemp("texts"))
    found = {"anchor": anchor_directory, "public": texts["public"]}
    for name in OWNERS:
        inputs = found | {"domain": texts[name]}
        for kind, stage, spec in (
            ("specialist", specialist, SPEC),
            ("expert", expert, SPEC | {"kind": "filter", "rows": "logistic", "stay": 0.9, "temperature": 2.0}),
        ):
            out = tmp_path_factory.mktemp(kind)
            stage(spec, inputs, out, silent)
            inputs[kind] = out
        found |= {f"domain:{name}": texts[name]} | {f"{kind}:{name}": inputs[kind] for kind in ("specialist", "expert")}
    return found


@pytest.fixture(scope="module")
def bits(made: Made) -> Callable[..., dict[str, float]]:
    """`bits(model)`: bits per byte of each domain's validation text."""
    tokenizer = Anchor.load(made["anchor"]).tokenizer()

    def measure(model: object) -> dict[str, float]:
        texts = {name: read_split(made[f"domain:{name}"], "validation") for name in OWNERS}
        return {name: bits_per_byte(score(model, tokenizer, each, sequence_length=32)) for name, each in texts.items()}

    return measure


def test_flowers_average_counts_examples() -> None:
    ones, fours = {"w": torch.ones(2, 3)}, {"w": torch.full((2, 3), 4.0)}
    mean = average([(ones, 1), (fours, 2)], 1)
    assert mean["w"].dtype == torch.float32
    assert torch.allclose(mean["w"], torch.full((2, 3), 3.0))
    with pytest.raises(FederationError, match="no owner"):
        average([], 1)


def test_rounds_are_the_steps_and_nothing_else() -> None:
    parts = list(rounds(11, 3))
    assert [step for part in parts for step in part] == list(range(11))
    assert [len(part) for part in parts] == [3, 4, 4]
    assert [len(part) for part in rounds(2, 5)] == [1, 1]


def test_averaging_once_is_averaging_what_owners_trained_alone(made: Made, tmp_path: Path) -> None:
    spec = SPEC | {"rounds": 1, "learning_rate": 0.01, "steps": 3}
    fedavg(spec, made, tmp_path, silent)
    anchor = Anchor.load(made["anchor"])
    alone = [
        fine_tuned(frozen(anchor), anchor.ffn(), each, Schedule(steps=3, peak=0.01), silent)
        for each in owners_batches(spec, anchor, made).values()
    ]
    for name, tensor in load_file(tmp_path / NETWORKS).items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, ((alone[0][name] + alone[1][name]) / 2).bfloat16())


def test_every_owner_gains_by_averaging_in_rounds(made: Made, tmp_path: Path) -> None:
    fedavg(SPEC | {"rounds": 3, "learning_rate": 0.01}, made, tmp_path, silent)
    anchor = Anchor.load(made["anchor"])
    for name in OWNERS:
        judge = Judge.of(anchor, read_split(made[f"domain:{name}"], "validation"), 32)
        assert judge(load_file(tmp_path / NETWORKS)) < judge(anchor.ffn()) - 0.1
    assert read_record(tmp_path)["tokens"] == 2 * 12 * 4 * 32


def test_owners_read_public_text_in_orders_of_their_own(made: Made) -> None:
    first, second = owners_batches(SPEC, Anchor.load(made["anchor"]), made).values()
    assert not torch.equal(next(first.at(0))[-1], next(second.at(0))[-1])


def test_pooled_batches_are_the_owners_rows_dealt_out_again(made: Made) -> None:
    owners = list(owners_batches(SPEC, Anchor.load(made["anchor"]), made).values())
    batch = pooled(owners, seed=0)
    assert batch(4).shape == next(owners[0].at(0)).shape
    dealt = torch.cat([batch(4), batch(5)]).tolist()
    assert sorted(dealt) == sorted(torch.cat([next(each.at(2)) for each in owners]).tolist())
    assert torch.equal(batch(4), pooled(owners, seed=0)(4))


@pytest.mark.parametrize("routing", ["token", "filter"])
def test_the_mixture_learns_every_domain_and_loads_again(
    routing: str, made: Made, bits: Callable[..., dict[str, float]], tmp_path: Path
) -> None:
    anchor = Anchor.load(made["anchor"])
    spec = SPEC | {"budget": "steps", "learning_rate": 0.01, "routing": routing, "stay": 0.9, "temperature": 2.0}
    joint(spec, made, tmp_path, silent)
    model, before = joint_model(tmp_path, anchor), bits(anchor.model(torch.float32))
    assert read_record(tmp_path)["steps"] == 24
    assert model.config.names == ("anchor", "law", "medicine")
    assert all(after < before[name] - 0.1 for name, after in bits(model).items())
    for name, own in anchor.ffn().items():
        assert torch.equal(model.expert_ffn("anchor")[name], own.float())
        assert not torch.equal(model.expert_ffn("law")[name], model.expert_ffn("medicine")[name])
    row = model.model.layers[0].mlp.router.weight[1]
    assert torch.equal(row, read_rows(made["expert:law"], anchor).weight[0]) == (routing == "filter")


def test_what_training_starts_with_is_the_anchor(made: Made, bits: Callable[..., dict[str, float]]) -> None:
    anchor = Anchor.load(made["anchor"])
    model = mixture(SPEC | {"routing": "token"}, anchor, made)
    assert bits(model) == pytest.approx(bits(anchor.model(torch.float32)), abs=1e-5)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * (2 * 3) + 2 * 2
    assert not any(".experts.0." in name for name in trained)


def test_another_anchors_mixture_is_refused(made: Made, make_anchor: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "joint"
    out.mkdir()
    joint(SPEC | {"budget": "steps", "learning_rate": 0.01, "routing": "token", "steps": 1}, made, out, silent)
    other = Anchor.load(make_anchor(tmp_path / "other", seed=1))
    with pytest.raises(AssemblyError, match="of another anchor"):
        joint_model(out, other)


def test_equal_compute_is_fewer_steps_the_more_experts_there_are(made: Made) -> None:
    shape = Anchor.load(made["anchor"]).model().config
    assert equal_steps(shape, 100, 1, 32) == 100  # one owner's mixture is the owner's own
    rest = 2 * (4 * 32**2 + 2 * 32 * 32) + shape.vocab_size * 32
    networks = 2 * 3 * 32 * 48
    assert equal_steps(shape, 100, 4, 32) == 400 * (2 * rest + 5 * networks) // (2 * rest + 14 * networks)
    assert 100 < equal_steps(shape, 100, 2, 32) < 200


@pytest.fixture(scope="module")
def gates(made: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    found = {}
    for name in ("anchor", *OWNERS):
        inputs = {"anchor": made["anchor"], "domain": made["public"]}
        if name != "anchor":
            inputs |= {"domain": made[f"domain:{name}"], "specialist": made[f"specialist:{name}"]}
        out = tmp_path_factory.mktemp("gate")
        phatgoose(SPEC, inputs, out, silent)
        found[name] = read_gate(out)
    return found


def test_gates_are_trained_and_nothing_else(made: Made, gates: dict[str, Tensor]) -> None:
    assert all(gate.shape == (2, 32) and gate.abs().amax(dim=1).min() > 0.005 for gate in gates.values())
    assert not torch.equal(gates["law"], gates["medicine"])


def test_two_networks_share_a_token_by_how_alike_gate_and_input_are(made: Made, gates: dict[str, Tensor]) -> None:
    anchor = Anchor.load(made["anchor"])
    networks = {name: load_file(made[f"specialist:{name}"] / NETWORKS) for name in OWNERS}
    model = phatgoose_model(anchor, networks, gates)
    layer, hidden = model.model.layers[1].mlp, torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    names, weights = list(model.config.names), []
    layer.gate.register_forward_hook(lambda module, arguments, out: weights.append(out))
    mixed = layer(hidden)[0]
    x = standardised(hidden[0])
    scores = torch.stack([x @ standardised(gates[name][1]) / 32**0.5 for name in names], dim=1)
    top = scores.topk(2, dim=1)
    wanted = torch.zeros_like(scores).scatter(1, top.indices, top.values.softmax(dim=1))
    assert torch.allclose(weights[0], wanted, atol=1e-6)
    assert torch.allclose(x.var(dim=1, correction=0), torch.ones(5), atol=1e-5)
    each = torch.stack([layer.experts[number](hidden[0]) for number in range(3)], dim=1)
    assert torch.allclose(mixed, (wanted.unsqueeze(-1) * each).sum(dim=1), atol=1e-6)


def test_the_routed_specialists_beat_the_anchor(
    made: Made, gates: dict[str, Tensor], bits: Callable[..., dict[str, float]]
) -> None:
    anchor = Anchor.load(made["anchor"])
    networks = {name: load_file(made[f"specialist:{name}"] / NETWORKS) for name in OWNERS}
    model, before = (
        phatgoose_model(anchor, networks | {"anchor": anchor.ffn()}, gates),
        bits(anchor.model(torch.float32)),
    )
    assert all(after < before[name] - 0.05 for name, after in bits(model).items())
    with pytest.raises(AssemblyError, match="one for each of anchor, law, medicine"):
        phatgoose_model(anchor, networks, {"law": gates["law"]})
