"""The demonstration's own rooms, without a federation: its folder, its view, its stopwatch."""

import io
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

from motet.demo import commands, quickstart
from motet.demo.play import Stopwatch
from motet.demo.view import Bars, Lines, view_of
from motet.protocols.errors import ConfigurationError
from motet.protocols.report import Report

OWNER = {"name": "law", "job": "running", "progress": 0.1, "detail": "step 1 of 9", "standing": "open"}
ROWS = ("anchor", "expert:law", "soup", "composite", "composite-without:law")


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigurationError, match="--dir"):
        commands._make_room(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_what_an_earlier_demo_left_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    commands._make_room(folder)
    (folder / "report.json").write_text("old")
    commands._make_room(folder)
    assert [path.name for path in folder.iterdir()] == [commands.MARKER]


def test_without_keep_no_key_stays_behind(tmp_path: Path) -> None:
    for name in ("owners/law/keys/owner.pem", "coordinator/keys/coordinator.pem", "coordinator/ledger.sqlite"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("composites", "composites-stock"):
        (tmp_path / "coordinator" / name).mkdir()
    commands._clear(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["composites", "composites-stock", "coordinator"]


def test_lines_tell_what_is_new_and_nothing_twice() -> None:
    stream = io.StringIO()
    view = Lines(stream)
    for progress in (0.1, 0.2, 0.3, 0.3, 0.9):
        view.owners("train", [OWNER | {"progress": progress}])
    view.owners("train", [OWNER | {"progress": 1.0, "job": "done"}])
    told = [line.split("  ")[0] for line in stream.getvalue().splitlines()]
    assert told == [f"train: law running, {share} %" for share in (10, 30, 90)] + ["train: law done, 100 %"]


def test_an_owner_whose_expert_came_before_the_news_of_it_is_through() -> None:
    stream = io.StringIO()
    view = Lines(stream)
    view.owners("train", [OWNER])
    for phase in ("train", "train", "assemble"):
        view.owners(phase, [OWNER | {"standing": "settled"}])
    told = stream.getvalue().splitlines()
    assert told == ["train: law running, 10 %  step 1 of 9", "train: law through", "assemble: law through"]


def test_an_owner_who_was_not_heard_of_is_not_told_about() -> None:
    stream = io.StringIO()
    Lines(stream).owners("train", [OWNER | {"job": None}])
    assert stream.getvalue() == ""


def test_bars_are_full_when_an_owner_has_settled() -> None:
    progress = Progress(TextColumn("{task.description}"), console=Console(file=io.StringIO()))
    bars = Bars(progress)
    bars.owners("train", [OWNER])
    bars.owners("train", [OWNER | {"standing": "settled"}])
    assert [(task.description, task.completed) for task in progress.tasks] == [("train law", 1.0)]


def test_bars_of_a_phase_that_is_over_do_not_stick() -> None:
    progress = Progress(TextColumn("{task.description}"), console=Console(file=io.StringIO()))
    bars = Bars(progress)
    bars.owners("train", [OWNER])
    bars.owners("assemble", [OWNER])
    bars.owners("evaluate", [OWNER])
    told = [(task.description, task.completed, task.fields["detail"]) for task in progress.tasks]
    assert told == [("train law", 1.0, ""), ("evaluate law", 0.1, "step 1 of 9")]


def test_a_stream_that_is_no_terminal_gets_lines() -> None:
    with view_of(io.StringIO()) as view:
        assert isinstance(view, Lines)


def test_the_stopwatch_adds_up_and_counts_the_whole() -> None:
    watch = Stopwatch()
    with watch.phase("train"):
        time.sleep(0.11)
    watch.add("train", 1.0)
    assert watch.seconds == {"train": pytest.approx(1.1, abs=0.1)}
    assert watch.total()["total"] >= 0.1


def test_the_three_owners_have_text_to_read() -> None:
    for owner in quickstart.owners():
        pattern = Path(owner.files)
        assert list(pattern.parent.glob(pattern.name)), owner.name


def test_the_summary_says_what_falls_short_and_where_the_composite_lies() -> None:
    report = Report(
        domains=("public", "law"),
        bits_per_byte={row: {"public": 2.0, "law": 3.0} for row in ROWS},
        wire={"law": {"method": "lossless", "update_bytes": 788480, "sent_bytes": 790321}},
        seconds={"train": 41.0, "total": 60.0},
        composite={"path": "/c", "stock_path": "/s", "digest": "sha256:" + "0" * 64, "members": ("law",)},
        samples=({"prompt": "p", "expert": "law", "with_expert": "the court", "without_expert": "the cat"},),
    )
    text = "\n".join(commands.summary(report))
    assert "! on law the composite, 3.000, does not beat the soup, 3.000" in text
    assert "Composite  /c" in text
    assert "the court" in text
    assert "790,321" in text
    assert "Seconds    60 (train 41)" in text
