"""The report says what it measured and where the composite falls short."""

import pytest

from motet.protocols.errors import DocumentError
from motet.protocols.evaluation import subsets
from motet.protocols.report import Report, Wire, row_names, row_of_set

DIGEST = "sha256:" + "a" * 64
COLUMNS = ("public", "law", "news")


def report(**changes: dict[str, float]) -> Report:
    """A report in which everything is as promised, but for the rows given."""
    rows = {
        "anchor": {"public": 2.0, "law": 4.0, "news": 4.0},
        "expert:law": {"public": 2.5, "law": 3.0, "news": 4.2},
        "expert:news": {"public": 2.5, "law": 4.2, "news": 3.0},
        "soup": {"public": 2.2, "law": 3.5, "news": 3.5},
        "composite": {"public": 2.1, "law": 3.1, "news": 3.1},
        "composite-without:law": {"public": 2.1, "law": 4.0, "news": 3.1},
        "composite-without:news": {"public": 2.1, "law": 3.1, "news": 4.0},
    }
    return Report(
        domains=COLUMNS,
        bits_per_byte=rows | changes,
        wire={"law": {"method": "ternary", "update_bytes": 10, "sent_bytes": 11, "gain_kept": 0.98}},
        seconds={"train": 1.0},
        composite={"path": "/c", "stock_path": None, "digest": DIGEST, "members": ("law", "news")},
    )


def test_a_composite_that_keeps_its_promises_has_no_shortfall() -> None:
    assert report().shortfalls() == []


def test_a_domain_lost_to_the_soup_is_named() -> None:
    poor = report(composite={"public": 2.0, "law": 3.6, "news": 3.1})
    assert any(line.startswith("on law the composite") for line in poor.shortfalls())


def test_an_average_lost_to_the_soup_is_named() -> None:
    poor = report(composite={"public": 9.0, "law": 3.1, "news": 3.1})
    assert any("on average" in line for line in poor.shortfalls())


def test_an_expert_nobody_would_miss_is_named() -> None:
    poor = report(**{"composite-without:news": {"public": 2.1, "law": 3.1, "news": 3.12}})
    assert any(line.startswith("leaving news out") for line in poor.shortfalls())
    assert any(line.startswith("! leaving news out") for line in poor.table())


def test_the_table_has_a_line_for_every_row_and_a_column_for_every_domain() -> None:
    head, *lines = report().table()
    assert head.split() == [*COLUMNS, "average"]
    assert [line.split()[0] for line in lines] == [
        "anchor",
        "expert:law",
        "expert:news",
        "soup",
        "composite",
        "composite-without:law",
        "composite-without:news",
    ]
    assert lines[0].split()[1:] == ["2.000", "4.000", "4.000", "3.333"]


def test_how_each_update_travelled_has_a_line() -> None:
    head, law = report().wire_table()
    assert head.split() == ["method", "update", "bytes", "sent", "bytes", "gain", "kept"]
    assert law.split() == ["law", "ternary", "10", "11", "98.0%"]
    untold = report().model_copy(update={"wire": {"news": Wire(method="raw", update_bytes=1, sent_bytes=2)}})
    assert untold.wire_table()[1].split()[-1] == "-"


def test_a_report_survives_its_own_json() -> None:
    assert Report.parse(report().canonical()) == report()


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(DocumentError, match="nonsense"):
        Report.parse(report().canonical()[:-1] + b',"nonsense":1}')


def test_every_expert_set_has_a_row_and_no_row_shows_two() -> None:
    for experts in ((), ("law",), ("law", "news"), ("code", "law", "news"), ("a", "b", "c", "d")):
        rows = [row_of_set(chosen, experts) for chosen in subsets(experts)]
        assert len(set(rows)) == 2 ** len(experts)
        assert set(rows) <= set(row_names(experts, sets=True))
    assert [row for row in row_names(("code", "law", "news"), sets=True) if row.startswith("set:")] == [
        "set:code",
        "set:law",
        "set:news",
    ]
    assert row_names(("law", "news"), sets=True) == row_names(("law", "news"))
