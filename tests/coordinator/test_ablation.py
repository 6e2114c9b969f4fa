"""Ablation: figures that are the report's, sets that are all there, and rank correlations as textbooks have them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from motet.cli import run
from motet.coordinator.ablation import ablate, plan
from motet.coordinator.ablation_result import Ablation, Agreement, Trial, sets_of, to_check
from motet.coordinator.federation import Federation
from motet.coordinator.home import CoordinatorHome
from motet.coordinator.rank_correlation import kendall, spearman
from motet.moe.scoring import bits_per_byte
from motet.protocols.contribution import Contribution
from motet.protocols.errors import AssemblyError, DataError

from .conftest import Owner

Admit = Callable[..., str]
LAW = ["§ 1 No party shall.", "§ 2 Every party may. " * 9, "Whereas and therefore."]


@pytest.fixture
def federation(home: CoordinatorHome, admit_quickly: Admit, make_owner: Callable[[str], object]) -> Federation:
    """Three admitted experts."""
    for seed, name in enumerate(("news", "law", "code"), start=1):
        owner = make_owner(name)
        home.enrol(owner.request(home))
        admit_quickly(owner, seed=seed)
    return Federation(home)


@pytest.fixture
def law(tmp_path: Path) -> Path:
    path = tmp_path / "law.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*LAW, "  "]), encoding="utf-8")
    return path


def by_experts(found: Ablation) -> dict[tuple[str, ...], Trial]:
    return {trial.experts: trial for trial in found.trials}


def test_predictions_and_composites_score_as_in_the_report(federation: Federation, law: Path) -> None:
    told: list[tuple[int, int]] = []
    found = ablate(federation, {"law": law}, check=3, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 15) for done in range(1, 16)]
    assert found.documents == {"public": len(federation.public_held_out()), "law": 3}
    trials, everyone = by_experts(found), ("code", "law", "news")
    assert len(trials) == len(found.trials) == 7
    rows = federation.score_public(federation.assemble().digest)
    wanted = {row: bits_per_byte(score) for row, score in rows.items()}
    assert found.anchor["public"] == pytest.approx(wanted["anchor"], rel=1e-5)
    assert trials[everyone].predicted["public"] == pytest.approx(wanted["soup"], rel=1e-5)
    assert trials[everyone].assembled["public"] == pytest.approx(wanted["composite"], rel=1e-5)
    for name in everyone:
        others = tuple(other for other in everyone if other != name)
        assert trials[(name,)].predicted["public"] == pytest.approx(wanted[f"expert:{name}"], rel=1e-5)
        assert trials[others].assembled["public"] == pytest.approx(wanted[f"composite-without:{name}"], rel=1e-5)
    assert len({round(trial.predicted["law"], 9) for trial in found.trials}) == 7
    averages = [sum(trial.predicted.values()) for trial in found.trials]
    assert averages == sorted(averages)


def test_only_what_was_asked_for_is_assembled_and_nothing_written(federation: Federation) -> None:
    before = sorted(federation.home.path.rglob("*"))
    found = ablate(federation, {}, check=2)
    checked = [trial for trial in found.trials if trial.assembled is not None]
    assert len(checked) == found.agreement.checked == 5
    for wanted in (*found.trials[:2], by_experts(found)[("code", "law", "news")]):
        assert wanted in checked
    assert ablate(federation, {}).agreement is None
    assert sorted(federation.home.path.rglob("*")) == before


def test_who_leaves_while_the_experts_are_read_is_in_no_set(
    home: CoordinatorHome, admit_quickly: Admit, make_owner: Callable[[str], Owner]
) -> None:
    owners = {name: make_owner(name) for name in ("news", "law")}
    for owner in owners.values():
        home.enrol(owner.request(home))
    admitted = {name: admit_quickly(owner, seed=seed) for seed, (name, owner) in enumerate(owners.items(), start=1)}

    class Leaving(Federation):
        """Law withdraws as soon as anybody has read who is there."""

        def admitted(self) -> dict[str, Contribution]:
            found = super().admitted()
            if admitted["law"] in found:
                self.intake.withdraw(owners["law"].withdrawal(home, admitted["law"]))
            return found

    assert [trial.experts for trial in ablate(Leaving(home), {}).trials] == [("news",)]


def test_a_plan_counts_what_would_be_scored(federation: Federation, law: Path) -> None:
    planned = plan(federation, {"law": law}, check=2)
    assert (planned.averages, planned.composites, planned.models) == (7, 5, 13)
    assert planned.experts == ("code", "law", "news")
    assert planned.documents["law"] == 3
    assert "13 models" in planned.lines()[-1]
    assert plan(federation, {}, check=100).composites == 7


def test_the_command(federation: Federation, law: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["ablate", "--dir", str(federation.home.path), "--text", f"law={law}"]
    assert run([*call, "--check", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [len(each["experts"]) > 0 for each in said["sets"]] == [True] * 7
    assert set(said["sets"][0]["predicted"]) == {"public", "law", "average"}
    assert said["agreement"]["checked"] == sum(each["assembled"] is not None for each in said["sets"]) == 3
    assert said["sets"][0]["assembled"]
    assert set(said["agreement"]) == {"checked", "spearman", "kendall", "regret"}
    assert run([*call, "--dry-run"]) == 0
    assert "8 models" in capsys.readouterr().out
    assert run([*call, "--text", f"law={law}"]) == 2
    assert run([*call[:3], "--text", str(law)]) == 2


def test_what_cannot_be_scored_is_named(federation: Federation, home: CoordinatorHome, tmp_path: Path) -> None:
    broken, empty = tmp_path / "broken.jsonl", tmp_path / "empty.jsonl"
    broken.write_text('{"text": "good"}\n{"words": "bad"}\n')
    empty.write_text('\n{"text": " "}\n')
    for texts, complaint in (
        ({"law": broken}, r"broken.jsonl \(KeyError"),
        ({"law": empty}, "saw no document"),
        ({"law": tmp_path / "none"}, "FileNotFoundError"),
        ({"public": broken}, "a text called public"),
        ({"average": broken}, "a text called average"),
    ):
        with pytest.raises(DataError, match=complaint):
            plan(federation, texts)


def test_without_an_expert_there_is_nothing_to_choose(home: CoordinatorHome) -> None:
    with pytest.raises(AssemblyError, match="saw no admitted expert"):
        ablate(Federation(home), {})


def test_all_sets_of_eight_and_some_of_more() -> None:
    eight = [f"expert-{number}" for number in range(8)]
    assert len(set(sets_of(eight))) == len(sets_of(eight)) == 255
    sizes = [len(chosen) for chosen in sets_of([*eight, "ninth"])]
    assert (sizes.count(2), sizes.count(8), sizes.count(9), len(sizes)) == (36, 9, 1, 46)
    assert sets_of(["alone"]) == [frozenset({"alone"})]


@pytest.mark.parametrize(
    ("whole", "count", "places"),
    [(4, 0, []), (4, 1, [0, 4, 9]), (0, 1, [0, 4, 9]), (4, 2, [0, 1, 4, 5, 9]), (9, 2, [0, 1, 4, 8, 9])],
)
def test_the_best_and_all_and_others_spread_over_the_rest_are_checked(
    whole: int, count: int, places: list[int]
) -> None:
    names = [f"e{place}" for place in range(10)]
    ranked = [frozenset(names) if place == whole else frozenset({name}) for place, name in enumerate(names)]
    assert [ranked.index(chosen) for chosen in to_check(ranked, count)] == places
    assert to_check(ranked, 5) == ranked


def test_agreement_is_of_what_was_assembled() -> None:
    figures = [(1.0, 1.4), (2.0, None), (3.0, 1.1), (4.0, 1.6), (5.0, 1.9)]
    trials = [
        Trial(
            experts=(f"e{number}",),
            predicted={"public": first},
            assembled=None if second is None else {"public": second},
        )
        for number, (first, second) in enumerate(figures)
    ]
    found = Agreement.of(trials)
    assert (found.checked, found.spearman, found.regret) == (4, 0.8, 0.3)
    assert found.kendall == pytest.approx(2 / 3, abs=1e-6)
    assert "rho is 0.80 and Kendall's tau 0.67" in found.line()
    assert Agreement.of(trials[:2]) is None
    alike = [Trial(experts=("a",), predicted={"public": 1.0}, assembled={"public": 2.0})] * 2
    assert (Agreement.of(alike).spearman, Agreement.of(alike).kendall) == (None, None)
    assert "undefined" in Agreement.of(alike).line()


@pytest.mark.parametrize(
    ("first", "second", "rho", "tau"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1.0, 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0, -1.0),
        ([1, 2, 3], [1, 3, 2], 0.5, 1 / 3),
        ([1, 2, 2, 3], [1, 2, 3, 4], 0.9486832980505138, 0.9128709291752769),
        ([1, 1], [1, 2], None, None),
        ([1], [2], None, None),
    ],
)
def test_rank_correlations(first: list[float], second: list[float], rho: float | None, tau: float | None) -> None:
    assert spearman(first, second) == (None if rho is None else pytest.approx(rho))
    assert kendall(first, second) == (None if tau is None else pytest.approx(tau))


def test_rank_correlations_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    first, second = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4]
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)
    assert kendall(first, second) == pytest.approx(stats.kendalltau(first, second).statistic)
