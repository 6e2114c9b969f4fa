"""The plan: what is asked for and nothing else, equal work once, corpora that all seeds share."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from motet.bench.quality.config import Files, QualityConfig
from motet.bench.quality.plan import OVER_ALL, plan, variants
from motet.bench.quality.stages import File, Stage, in_order
from motet.protocols.canonical import bytes_digest

OWNERS = ("law", "medicine")


def config(**changes: object) -> QualityConfig:
    least = {"name": "tiny", "public": "public.jsonl", "domains": {name: f"{name}.jsonl" for name in OWNERS}}
    return QualityConfig.model_validate(least | changes)


def files(*, changed: str = "") -> Files:
    def file(name: str) -> File:
        return File(path=Path(name), digest=bytes_digest(f"{name}{'!' if name == changed else ''}".encode()))

    return Files(public=file("public"), domains={name: file(name) for name in OWNERS})


def stages(found: QualityConfig, seeds: int = 1, *, changed: str = "") -> dict[str, Stage]:
    """All stages by what they are called, which names each of them."""
    planned = plan(found, seeds, files(changed=changed))
    every = in_order([stage for seed in planned.scores for stage in seed])
    assert {stage.digest for stage in in_order(planned.stages)} == {stage.digest for stage in every}
    by_label = {stage.label: stage for stage in every}
    assert len(by_label) == len(every)
    return by_label


def labels(every: Iterable[str], kind: str) -> set[str]:
    return {label.removesuffix(", seed 0") for label in every if label.startswith(kind)}


def changed_by(before: QualityConfig, after: QualityConfig) -> set[str]:
    one, two = stages(before), stages(after)
    return {label for label in one if label not in two or one[label].digest != two[label].digest}


def test_everything_is_planned_for_every_system() -> None:
    every = stages(config())
    assert labels(every, "score") == {
        *("score networks", "score composite:token", "score composite:filter", "score ensembles", "score phatgoose"),
        *("score joint", "score joint-equal"),
    }
    wanted = {f"merge:{method}@{variant}" for method in OVER_ALL for variant in variants(config())}
    wanted |= {f"merge:{method}" for method in ("ties", "dare", "breadcrumbs", "atlas", "cma-es")}
    networks = every["score networks, seed 0"].inputs
    assert {name for name in networks if name.startswith("merge:")} == wanted
    assert {name for name in networks if name.startswith("specialist")} == {
        f"specialist{public}:{name}" for public in ("", "+public") for name in OWNERS
    }
    assert set(every["score phatgoose, seed 0"].inputs) > {"gate:anchor", "gate:law", "specialist:law"}


def test_what_nobody_asked_for_is_not_done() -> None:
    found = stages(config(baselines=["specialist", "soup"], routing={"kinds": ["token"]}))
    assert {stage.kind for stage in found.values()} == {"corpus", "anchor", "specialist", "expert", "merge", "score"}
    assert labels(found, "soup") == {f"soup@{variant}" for variant in variants(config())}
    bare = stages(config(baselines=[], routing={"kinds": ["token"]}))
    assert set(bare["score networks, seed 0"].inputs) == {"anchor", "public", "domain:law", "domain:medicine"}


def test_seeds_share_the_corpora_and_nothing_else() -> None:
    found = stages(config(), seeds=2)
    shared = {label for label in found if not label.endswith((", seed 0", ", seed 1"))}
    assert shared == {"corpus:public", "corpus:law", "corpus:medicine"}
    assert all("seed" not in found[label].spec for label in shared)
    assert found["anchor, seed 0"].digest != found["anchor, seed 1"].digest


def test_public_text_takes_no_grid_of_its_own() -> None:
    found = stages(config())
    alone, beside = found["specialist:law, seed 0"], found["specialist+public:law, seed 0"]
    assert beside.inputs["specialist"].digest == alone.digest
    assert "learning_rates" in alone.spec
    assert "learning_rates" not in beside.spec
    assert (alone.spec["public_share"], beside.spec["public_share"]) == (0.0, 0.25)


def test_without_public_text_there_is_no_such_variant() -> None:
    found = stages(config(experts={"public_share": 0.0}))
    assert labels(found, "soup") == {"soup@specialists", "soup@experts"}
    assert not labels(found, "specialist+public")


def test_dear_methods_wait_for_the_soups() -> None:
    inputs = stages(config())["ties, seed 0"].inputs
    assert {name for name in inputs if name.startswith("merge:")} == {
        f"merge:soup@{variant}" for variant in variants(config())
    }
    assert {name for name in inputs if name.startswith("network:experts/")} == {
        f"network:experts/{name}" for name in OWNERS
    }


def test_a_composite_of_each_kind_has_experts_of_that_kind() -> None:
    found = stages(config())
    for kind in ("token", "filter"):
        score = found[f"score composite:{kind}, seed 0"]
        assert {score.inputs[f"expert:{name}"].spec["kind"] for name in OWNERS} == {kind}
        assert score.spec["stock"] == (kind == "token")
        assert ("stay" in score.spec["grid"]) == (kind == "filter")
    only = stages(config(routing={"kinds": ["filter"]}))
    assert only["score composite:filter, seed 0"].spec["stock"] == "average"


def test_rows_are_part_of_what_a_token_expert_is() -> None:
    usual, by_state = stages(config()), stages(config(routing={"rows": "logistic"}))
    label = "expert:token:law, seed 0"
    assert usual[label].spec["rows"] == "average"
    assert usual[label].spec["gain"] == 8.0
    assert by_state[label].spec == {key: value for key, value in usual[label].spec.items() if key != "gain"} | {
        "rows": "logistic"
    }
    assert "gain" not in by_state["score composite:token, seed 0"].spec["grid"]
    assert usual["score composite:token, seed 0"].spec["grid"]["gain"] == [4.0, 8.0, 16.0]
    joint = usual["joint by steps, seed 0"].inputs["expert:law"]
    assert joint.digest == by_state[label].digest  # joint begins with rows over hidden states, whatever token has


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"routing": {"log_prior_anchor": [5.0]}}, {"score composite:token", "score composite:filter"}),
        ({"routing": {"stay": [0.5, 0.99, 0.999]}}, {"score composite:filter"}),
        ({"baselines": ["specialist", "oracle", "soup"]}, None),
        ({"evaluation": {"merging_bytes": 500}}, None),
    ],
)
def test_only_what_depends_on_a_change_is_done_again(change: dict[str, object], wanted: set[str] | None) -> None:
    before = config(routing={"stay": [0.98, 0.99, 0.995]})  # experts are trained with the one in the middle
    gone = labels(changed_by(before, config(**change)), "")
    kept = {"corpus:law", "anchor", "specialist:law", "expert:filter:law", "expert:token:law"}
    assert not gone & kept
    assert wanted is None or gone == wanted


def test_an_owner_s_corpus_reaches_only_what_is_made_of_it() -> None:
    one, two = stages(config()), stages(config(), changed="law")
    same = {label for label in one if one[label].digest == two[label].digest}
    assert {"corpus:public", "anchor, seed 0", "specialist:medicine, seed 0", "expert:token:medicine, seed 0"} <= same
    assert not same & {"corpus:law", "specialist:law, seed 0", "soup@specialists, seed 0", "score networks, seed 0"}


def test_ranks_add_stages_and_change_none() -> None:
    before, after = config(), config(experts={"ranks": [4, 8]})
    assert not changed_by(before, after)
    new = stages(after).keys() - stages(before).keys()
    made = {f"{way}:{rank}" for way in ("lowrank", "squeezed") for rank in (4, 8)}
    assert {label.removesuffix(", seed 0") for label in new} == {
        *(f"{each}:{name}" for each in made for name in OWNERS),
        *(f"score {each}" for each in made),
    }
    assert config(experts={"lowrank_learning_rates": [0.5]}).experts.ranks == ()
    assert not changed_by(before, config(experts={"lowrank_learning_rates": [0.5]}))


def test_low_rank_experts_have_a_grid_of_their_own_or_are_cut_out_of_full_ones() -> None:
    found = stages(config(experts={"ranks": [4], "lowrank_learning_rates": [0.01, 0.5]}))
    full, trained = found["expert:filter:law, seed 0"], found["lowrank:4:law, seed 0"]
    assert (trained.kind, trained.spec["learning_rates"], trained.spec["rank"]) == ("expert", [0.01, 0.5], 4)
    assert "specialist" not in trained.inputs
    assert {key: trained.spec[key] for key in full.spec} == dict(full.spec)
    squeezed = found["squeezed:4:law, seed 0"]
    assert (squeezed.kind, squeezed.inputs["expert"].digest) == ("squeeze", full.digest)
    for way, made in (("lowrank", trained), ("squeezed", squeezed)):
        score = found[f"score {way}:4, seed 0"]
        assert score.spec["systems"] == [f"{way}:4"]
        assert score.spec["grid"] == found["score composite:filter, seed 0"].spec["grid"]
        assert score.inputs["expert:law"].digest == made.digest
