"""Low-rank experts at their owner's: how they begin, what is trained, and that they resume and pack like full ones."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from motet.client.contribute import rides_flower
from motet.client.desk import Desk
from motet.client.lowrank import Expansion, factors_of, initial_factors, parameters_of
from motet.client.owner import OwnerHome, TrainingConfig
from motet.client.preparation import prepare
from motet.client.spool import Spool
from motet.client.training import Progress, TrainedExpert, expert_model, fingerprint, starting_factors, train
from motet.client.worker import make_contribution, run_worker
from motet.moe.lowrank import read_lowrank_update
from motet.moe.routing import RoutingRows
from motet.protocols.charter import RoutingRules
from motet.protocols.control import TrainRequest
from motet.protocols.errors import ConfigurationError
from tests.client.conftest import packed_of

LOWRANK = {"kind": "lowrank", "rank": 4, "learning_rate": 3e-2}


def trained(home: OwnerHome, folder: Path) -> TrainedExpert:
    made = train(prepare(home), home.config.training, folder)
    assert made is not None
    return made


def same(left: TrainedExpert, right: TrainedExpert) -> bool:
    pairs = zip(left.factors.items(), right.factors.items(), strict=True)
    return all(n == m and torch.equal(f.a, g.a) and torch.equal(f.b, g.b) for (n, f), (m, g) in pairs)


def test_factors_begin_as_lora_does_and_the_seed_decides(make_home) -> None:
    manifest = prepare(make_home()).anchor.manifest
    state = torch.random.get_rng_state()
    made = initial_factors(manifest, rank=4, scale=2.0, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    for spec in manifest.ffn():
        (out, into), each = spec.shape, made[spec.name]
        assert (each.a.shape, each.b.shape, each.scale) == ((4, into), (out, 4), 2.0)
        assert not each.b.any()
        assert float(each.a.abs().max()) <= 1 / math.sqrt(into)  # uniform, of variance 1 / (3 in)
        assert float(each.a.std()) == pytest.approx(1 / math.sqrt(3 * into), rel=0.3)
    again, other = (initial_factors(manifest, rank=4, scale=2.0, seed=seed) for seed in (1, 2))
    name = manifest.ffn()[0].name
    assert torch.equal(made[name].a, again[name].a)
    assert not torch.equal(made[name].a, other[name].a)


def test_only_factors_learn_and_every_one_of_them(make_home) -> None:
    home = make_home(training=LOWRANK)
    material = prepare(home)
    model, parameters = expert_model(material, factors=starting_factors(material, home.config.training))
    assert {id(each) for each in model.parameters() if each.requires_grad} == {id(each) for each in parameters.values()}
    assert sum(each.numel() for each in parameters.values()) == 2 * 3 * 4 * (32 + 48)
    with torch.no_grad():
        for name, each in parameters.items():
            each.add_(0.01) if "lora_B" in name else None
    ids = torch.randint(3, 259, (2, 6), generator=torch.Generator().manual_seed(0))
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in parameters.values())


def test_training_lowers_the_loss_and_resumes_to_the_same_bits(make_home, tmp_path: Path) -> None:
    home, seen = make_home(training=LOWRANK | {"steps": 12}), list[Progress]()
    material, settings = prepare(home), home.config.training
    whole = train(material, settings, tmp_path / "whole", on_progress=seen.append)
    assert whole is not None
    assert seen[-1].loss < seen[0].loss - 0.1
    steps: list[Progress] = []
    part = tmp_path / "part"
    assert train(material, settings, part, on_progress=steps.append, should_stop=lambda: len(steps) >= 5) is None
    resumed = train(material, settings, part)
    assert resumed is not None
    assert same(whole, resumed)
    assert (whole.kind, set(whole.ffn)) == ("lowrank", set(material.anchor.ffn()))


def test_factors_train_beside_an_anchor_of_half_the_bytes(make_home, tmp_path: Path) -> None:
    home, seen = make_home(training=LOWRANK | {"steps": 12, "dtype": "bfloat16"}), list[Progress]()
    material = prepare(home)
    made = train(material, home.config.training, tmp_path / "run", on_progress=seen.append)
    assert made is not None
    assert seen[-1].loss < seen[0].loss - 0.1
    assert {each.a.dtype for each in made.factors.values()} == {torch.float32}


def test_scaling_is_what_alpha_says(make_home, tmp_path: Path) -> None:
    home = make_home(training=LOWRANK | {"steps": 1, "alpha": 12.0})
    made = trained(home, tmp_path / "run")
    anchor = prepare(home).anchor
    name = anchor.manifest.ffn()[0].name
    each = made.factors[name]
    assert torch.allclose(made.ffn[name], anchor.tensor(name).float() + 3.0 * each.b @ each.a, atol=1e-6)


def test_the_manifest_tells_of_the_expert_that_the_update_defines(make_home) -> None:
    home = make_home(training=LOWRANK | {"steps": 30, "alpha": 12.0}, codec={"method": None})
    packed = packed_of(home)
    manifest, anchor = packed.contribution, prepare(home).anchor
    assert (manifest.kind, manifest.rank, manifest.base, manifest.codec.method) == ("lowrank", 4, None, "int8")
    assert manifest.bits_per_byte["expert"] < manifest.bits_per_byte["anchor"] - 0.05
    assert manifest.codec.gain_kept == pytest.approx(1, abs=0.02)
    assert manifest.codec.tuning_documents == 0
    expert = read_lowrank_update(packed.update, anchor, name="medicine", contribution=packed.digest)
    assert expert.rank == 4
    assert manifest.update_bytes < 2 * sum(tensor.numel() for tensor in Expansion(anchor, expert.factors).values())
    assert packed_of(home).digest == packed.digest
    assert rides_flower(home, packed)


def test_a_later_version_travels_whole(make_home) -> None:
    home = make_home(training=LOWRANK, codec={"method": "int8", "successive": "always"})
    first = packed_of(home)
    text = (home.path / "owner.toml").read_text()
    (home.path / "owner.toml").write_text(text.replace("steps = 6", "steps = 7"))
    second = packed_of(home)
    assert (second.contribution.version, second.contribution.base) == (first.contribution.version + 1, None)
    assert not (home.work / "versions").exists()


@pytest.mark.parametrize("kind", ["full", "lowrank"])
def test_large_updates_and_full_experts_go_over_the_data_plane(make_home, kind: str) -> None:
    home = make_home(training=LOWRANK | {"kind": kind})
    packed = packed_of(home)
    limited = home.charter.experts.model_copy(update={"inline_bytes": packed.contribution.update_bytes - 1})
    small = OwnerHome(
        path=home.path,
        config=home.config,
        charter=home.charter.model_copy(update={"experts": limited}),
        key=home.key,
    )
    assert rides_flower(home, packed) == (kind == "lowrank")
    assert not rides_flower(small, packed)


def test_what_the_charter_does_not_admit_is_refused_before_training(make_home, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="rank 65, wanted at most 64"):
        make_contribution(make_home(training=LOWRANK | {"rank": 65}))
    home = make_home("law", training=LOWRANK, codec={"method": "ternary"})
    with pytest.raises(ConfigurationError, match=r"'ternary'.*factors"):
        make_contribution(home)
    assert not (home.work / "training").exists()


def test_factors_go_on_from_no_version() -> None:
    with pytest.raises(ValueError, match="kind, start"):
        TrainingConfig(kind="lowrank", start="latest")


def test_a_full_expert_is_trained_as_before_there_were_others(make_home) -> None:
    home = make_home()
    material, settings = prepare(home), home.config.training
    known = fingerprint(material, settings)
    assert fingerprint(material, settings.model_copy(update={"rank": 8, "alpha": 3.0})) == known
    lowrank = settings.model_copy(update={"kind": "lowrank"})
    assert fingerprint(material, lowrank) != known
    assert fingerprint(material, lowrank) == fingerprint(material, lowrank.model_copy(update={"alpha": 32.0}))
    assert fingerprint(material, lowrank) != fingerprint(material, lowrank.model_copy(update={"alpha": 16.0}))


def test_tensors_become_factors_by_their_names(make_home) -> None:
    manifest = prepare(make_home()).anchor.manifest
    made = initial_factors(manifest, rank=2, scale=1.0, seed=0)
    named = {spec.name: made[spec.name] for spec in manifest.ffn()}
    again = factors_of(parameters_of(named), manifest, scale=0.5)
    assert {each.scale for each in again.values()} == {0.5}
    assert all(torch.equal(again[name].a, named[name].a) for name in named)


def test_a_worker_offers_a_low_rank_expert_in_flowers_reply(make_home) -> None:
    home = make_home(training=LOWRANK, codec={"method": None})
    request = TrainRequest(charter=home.charter.digest)
    Spool(home.path).submit("train", request)
    run_worker(home.path, once=True)
    (job,) = Desk.open(home.path, home.key.public).submit(request).jobs
    assert (job.state, job.result["transport"]) == ("done", "flower")


def test_rows_from_embeddings_learn_beside_factors(make_home, tmp_path: Path) -> None:
    home = make_home(training=LOWRANK)
    material = prepare(home)
    rows = RoutingRows(weight=torch.ones(2, 32) / 32, bias=torch.zeros(2))
    made = train(
        replace(material, rows=rows, routing=RoutingRules(kind="embedding", embedder=material.digest)),
        home.config.training,
        tmp_path / "run",
    )
    assert made is not None
    assert set(made.factors) == set(material.anchor.ffn())
    assert (made.rows.weight - rows.weight).abs().max() > 1e-3
