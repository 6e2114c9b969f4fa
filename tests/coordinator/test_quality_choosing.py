"""Validation documents choose, and public text is kept from harm first."""

from motet.coordinator.quality.choosing import Trial, choose, settings_of


def trial(name: float, public: float, law: float) -> Trial:
    return Trial(settings={"log_prior_anchor": name}, bits={"public": public, "law": law})


def chosen(*trials: Trial, limit: float = 0.015) -> float:
    return choose(trials, anchor_public=2.0, limit=limit).settings["log_prior_anchor"]


def test_the_best_average_of_the_harmless() -> None:
    harmful, best, other = trial(0, 2.04, 1.0), trial(1, 2.02, 1.2), trial(2, 2.0, 1.3)
    assert chosen(harmful, best, other) == 1
    assert chosen(harmful, best, other, limit=0.025) == 0


def test_the_least_harmful_where_all_harm() -> None:
    assert chosen(trial(0, 2.2, 1.0), trial(1, 2.1, 1.4), trial(2, 2.3, 0.9)) == 1


def test_the_first_of_equals() -> None:
    assert chosen(trial(3, 2.0, 1.0), trial(1, 2.0, 1.0)) == 3


def test_public_text_may_get_better_without_end() -> None:
    assert chosen(trial(0, 1.5, 1.9), trial(1, 2.0, 1.5)) == 0


def test_a_grid_is_all_its_combinations() -> None:
    found = list(settings_of({"stay": [0.9, 0.99], "temperature": [1.0, 2.0]}))
    assert len(found) == 4
    assert {"stay": 0.99, "temperature": 1.0} in found
    assert list(settings_of({"log_prior_anchor": [0.0]})) == [{"log_prior_anchor": 0.0}]
