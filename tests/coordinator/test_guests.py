"""What those who have not joined may be given: the newest composite that stands, if the charter lets them in."""

from collections.abc import Callable
from pathlib import Path

import pytest

from motet.coordinator.federation import Federation
from motet.coordinator.home import CoordinatorHome
from motet.coordinator.intake import Intake


@pytest.mark.slow
def test_the_current_composite_is_the_newest_that_stands(
    home: CoordinatorHome, medicine: object, make_owner: Callable[[str], object], admit_quickly: Callable[..., str]
) -> None:
    federation = Federation(home)
    assert federation.intake.current() is None
    admit_quickly(medicine)
    alone = federation.assemble()
    law = make_owner("law")
    (home.path / "law.json").write_bytes(law.request(home).canonical())
    federation.admit_file(home.path / "law.json")
    contribution = admit_quickly(law, seed=1)
    both = federation.assemble()
    assert alone.digest != both.digest
    assert federation.intake.current() == both.digest
    federation.intake.withdraw(law.withdrawal(home, contribution))
    assert federation.intake.current() == alone.digest


def test_entries_of_a_kind_come_newest_first(home: CoordinatorHome, medicine: object) -> None:
    kinds = [entry.sequence for entry in home.ledger.newest_first("enrolled")]
    assert kinds == [entry.sequence for entry in reversed(home.ledger.entries()) if entry.kind == "enrolled"]
    assert list(home.ledger.newest_first("composite")) == []


def test_guests_come_in_only_where_the_charter_says_so(home: CoordinatorHome) -> None:
    assert Intake(home).guests is False
    rules = home.charter.experts.model_copy(update={"try_before_joining": True})
    object.__setattr__(home, "charter", home.charter.model_copy(update={"experts": rules}))
    assert Intake(home).guests is True


def test_a_charter_says_so_when_its_founder_does(
    anchor_with_statistics: Path, public_text: Path, tmp_path: Path
) -> None:
    from motet.cli import run

    options = ("--name", "x", "--anchor", anchor_with_statistics, "--public-text", public_text)
    where = ("--data-plane", "localhost:1", "--flower", "localhost:2", "--try-before-joining")
    assert run([str(each) for each in ("init", tmp_path / "home", *options, *where)]) == 0
    home = CoordinatorHome(tmp_path / "home")
    assert home.charter.experts.try_before_joining
    home.close()
