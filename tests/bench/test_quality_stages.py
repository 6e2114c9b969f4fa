"""Stages are named by what they are made of, come in order, and take about as long as their like."""

from pathlib import Path

import pytest

from motet.bench.quality.pace import Pace, chains, duration
from motet.bench.quality.stages import File, Stage, in_order
from motet.protocols.errors import ConfigurationError


def stage(name: str, *parts: Stage | File, kind: str = "toy", weight: float = 1.0, version: int = 1) -> Stage:
    inputs = {str(at): part for at, part in enumerate(parts)}
    return Stage(kind, {"name": name}, inputs, name, weight=weight, version=version)


def text(path: Path, content: str) -> File:
    path.write_text(content)
    return File.of(path)


def test_the_digest_is_of_everything_that_matters(tmp_path: Path) -> None:
    base = stage("a", text(tmp_path / "one", "content"))
    same = Stage("toy", {"name": "a"}, {"0": text(tmp_path / "two", "content")}, "another label", weight=7)
    assert base.digest == same.digest
    assert stage("b", base).digest == stage("b", same).digest
    others = [
        stage("b", base),
        stage("a", text(tmp_path / "two", "Content")),
        stage("a", File.of(tmp_path / "one"), version=2),
        stage("a", File.of(tmp_path / "one"), kind="other"),
        Stage("toy", {"name": "a"}, {"text": File.of(tmp_path / "one")}, "a"),
        stage("a"),
    ]
    others.append(stage("b", others[1]))
    assert len({each.digest for each in (base, *others)}) == len(others) + 1
    assert base.digest == f"sha256:{base.name}"


def test_the_digest_is_the_same_for_ever() -> None:
    """A change here makes every cache forget what it holds."""
    made = stage("b", stage("a"), version=3)
    assert made.identity()["inputs"] == {"0": stage("a").digest}
    assert made.name == "717370efc98a10f64ed6a164da91321a5944b4d18cd7e180ef669c88485c078d"


def test_a_specification_is_json() -> None:
    with pytest.raises(TypeError):
        Stage("toy", {"path": Path()}, {}, "a")
    with pytest.raises(ValueError, match="JSON"):
        Stage("toy", {"rate": float("nan")}, {}, "a")


def test_a_missing_corpus(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.jsonl.*--corpora"):
        File.of(tmp_path / "nowhere.jsonl")


def test_inputs_come_first_and_once() -> None:
    a = stage("a")
    b, c = stage("b", a), stage("c", a)
    d = stage("d", c, b)
    assert [each.label for each in in_order([d, a, b])] == ["a", "c", "b", "d"]
    assert [each.label for each in in_order([stage("d", c, b), d])] == ["a", "c", "b", "d"]
    assert [each.label for each in in_order([d, b], have=lambda each: each.label == "d")] == ["d", "a", "b"]


def test_many_layers_take_no_time() -> None:
    top = stage("0")
    for depth in range(1, 2000):
        top = stage(str(depth), top, top, top)
    assert len(in_order([top])) == 2000


def test_the_longest_chain_comes_first() -> None:
    a = stage("a")
    b, c = stage("b", a), stage("c", a)
    d = stage("d", b)
    seconds = {each.digest: each_seconds for each, each_seconds in ((a, 1.0), (b, 2.0), (c, 10.0), (d, 3.0))}
    found = chains([a, b, c, d], seconds)
    assert [found[each.digest] for each in (a, b, c, d)] == [11, 5, 10, 3]


def test_a_guess_learns_from_what_ran() -> None:
    pace, anchor, expert = Pace(), stage("a", kind="anchor", weight=60), stage("b", kind="expert", weight=20)
    assert (pace.seconds(anchor), pace.seconds(expert)) == (60, 20)
    pace.note("anchor", 60, 90)
    assert (pace.seconds(anchor), pace.seconds(expert)) == (90, 30)
    pace.note("expert", 10, 2)
    assert (pace.seconds(anchor), pace.seconds(expert)) == (90, 4)


def test_what_is_left_is_shared_out_but_no_shorter_than_the_longest_chain() -> None:
    pace, base = Pace(), stage("a", weight=10)
    wide = [base, *(stage(str(at), base, weight=10) for at in range(4))]
    assert pace.left(wide, workers=1) == 50
    assert pace.left(wide, workers=2) == 25
    assert pace.left(wide, workers=8) == 20
    assert pace.left(wide, workers=8, spent={base.digest: 7}) == 13
    assert pace.left(wide, workers=8, spent={base.digest: 70}) == 10
    assert pace.left([], workers=8) == 0


def test_durations() -> None:
    assert [duration(each) for each in (0.4, 99, 100, 3600, 9000)] == ["0 s", "99 s", "2 min", "60 min", "2 h 30 min"]
