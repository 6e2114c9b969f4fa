"""The page: every section once, the same in Markdown and HTML, whatever names are; nothing fetched, readable aloud."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from motet.protocols.errors import DocumentError
from motet.protocols.evaluation import (
    Comparison,
    Evaluation,
    Histogram,
    Interval,
    OptOut,
    Positions,
    RankPoint,
    gap_closed,
    opt_outs,
    reliability,
)
from motet.protocols.evaluation.tables import gap_table, routing_table

CELLS = {
    "anchor": {"public": 2.0, "law": 4.0, "average": 3.0},
    "expert:law": {"public": 2.4, "law": 3.0, "average": 2.7},
    "composite": {"public": 2.1, "law": 3.2, "average": 2.65},
    "composite-without:law": {"public": 2.0, "law": 4.1, "average": 3.05},
}
RANKS = (
    RankPoint(system="lowrank:2", rank=2, parameters=1_200, share=0.0625, average=2.7, gap_mean=0.44, gain_kept=0.62),
    RankPoint(system="lowrank:16", rank=16, parameters=9_600, share=0.5, average=2.6, gap_mean=1.02, gain_kept=1.01),
    RankPoint(system="squeezed:2", rank=2, parameters=1_200, share=0.0625, average=2.9, gap_mean=-0.2, gain_kept=0.1),
    RankPoint(system="composite:filter", parameters=19_200, share=1.0, average=2.61, gap_mean=0.9, gap_worst=0.85),
)
SECTIONS = [
    "Bits per byte",
    "Gap closed",
    "Low-rank experts",
    "Comparisons",
    "Opting out",
    "Routing",
    "Calibration",
    "Loss by position",
    "What each expert brings",
]
VOID = {"meta", "circle", "line", "rect", "path", "polyline"}


def full(**changes: object) -> Evaluation:
    """A page with every section."""
    sure, unsure = (
        Histogram(tokens=(*[0] * 9, 8), mass=(*[0.0] * 9, 7.6)),
        Histogram(tokens=(8, *[0] * 9), mass=(0.4, *[0.0] * 9)),
    )
    positions = Positions(nats=(8.0, 6.0, 4.0), tokens=(2, 2, 2)).buckets()
    given = {
        "title": "Law",
        "notes": ("Measured on one document.",),
        "systems": CELLS,
        "intervals": {"composite": {"law": (3.1, 3.3), "average": (2.6, 2.7)}},
        "gap_closed": gap_closed(CELLS, specialist={"law": 3.0}),
        "ranks": RANKS,
        "comparisons": (Comparison.of("composite", "soup", {"law": Interval(-0.0123, -0.02, 0.01)}),),
        "opt_out": opt_outs(CELLS),
        "routing": {"law": ({"anchor": 0.25, "law": 0.75},), "public": ({"anchor": 0.9, "law": 0.1},)},
        "entropy": {"law": (0.56,), "public": (0.33,)},
        "calibration": {"law": reliability("law", {"law": sure, "public": unsure})},
        "calibration_error": {"law": (0.0512,)},
        "positions": {"law": {"anchor": positions, "composite": positions}},
        "shapley": {"law": {"law": 0.8, "average": 0.35}},
        "leave_one_out": {"law": {"law": 0.9, "average": 0.4}},
        "seeds": 3,
        "seconds": 61.0,
    }
    return Evaluation(**given | changes)


class Reader(HTMLParser):
    """Reads a page as a strict browser would, and as a screen reader."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_both_forms_have_every_section_in_the_same_order() -> None:
    page = full()
    assert Reader(page.html()).headings == SECTIONS
    assert re.findall(r"^## (.+)$", page.markdown(), re.MULTILINE) == SECTIONS


def test_a_section_without_figures_is_left_out() -> None:
    page = full(gap_closed={}, routing={}, shapley={})
    kept = [title for title in SECTIONS if title not in ("Gap closed", "Routing")]
    assert Reader(page.html()).headings == kept
    empty = Evaluation()
    assert Reader(empty.html()).headings == []
    assert "##" not in empty.markdown()


def test_the_html_is_whole_fetches_nothing_and_runs_nothing() -> None:
    text = full().html()
    assert text.startswith("<!doctype html>")
    read = Reader(text)
    assert read.open == []
    names = {tag for tag, _ in read.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    attributes = {name for _, attrs in read.tags for name in attrs}
    assert not {name for name in attributes if name.startswith("on")} | (attributes & {"src", "href", "style"})
    assert not re.search(r"https?:|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text


def test_tables_and_figures_can_be_read_aloud() -> None:
    read = Reader(full().html())
    count = {tag: sum(1 for seen, _ in read.tags if seen == tag) for tag in ("table", "caption")}
    assert count["table"] == count["caption"] > 8
    assert {attrs.get("scope") for tag, attrs in read.tags if tag == "th"} == {"col", "row"}
    drawings = [attrs for tag, attrs in read.tags if tag == "svg"]
    assert drawings
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in drawings)


def test_every_figure_is_printed_in_both_forms() -> None:
    page = full()
    wanted = ["2.650", "3.100 to 3.300", "80.0%", "-1.23%", "-2.00% to +1.00%, includes zero", "+28.12%", "+2.50%"]
    wanted += ["75.0%", "0.56 nats", "0.051", "of 8, predicted 95.0%", "5.77", "+0.800", "+0.400", "Seeds: 3"]
    wanted += ["lowrank:2", "1,200", "6.2%", "44.0%", "-20.0%", "101.0%", "85.0%"]
    for text in (page.html(), page.markdown()):
        assert [figure for figure in wanted if figure not in text] == []


def test_names_stay_text_in_both_forms() -> None:
    hostile = '<script>alert("1")</script>|*x*'
    page = Evaluation(title=hostile, systems={hostile: {"law": 1.0, hostile: 2.0}}, notes=(hostile,))
    text = page.html()
    assert "script" not in {tag for tag, _ in Reader(text).tags}
    rows = [line for line in page.markdown().splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4}
    assert "<script>" not in page.markdown().replace("\\<", "").replace("\\>", "")


def test_drawings_stay_inside_their_frame() -> None:
    drawings = re.findall(r"<svg.*?</svg>", full().html(), re.DOTALL)
    assert len(drawings) == 4
    for drawing in drawings:
        root = ET.fromstring(drawing)
        width, height = float(root.attrib["width"]), float(root.attrib["height"])
        for shape in root.iter():
            for name, value in shape.attrib.items():
                if name in ("x", "x1", "x2", "cx"):
                    assert 0 <= float(value) <= width
                if name in ("y", "y1", "y2", "cy"):
                    assert 0 <= float(value) <= height
        for line in root.iter("polyline"):
            pairs = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
            assert all(0 <= x <= width and 0 <= y <= height for x, y in pairs)


def test_opting_out_is_own_loss_harm_to_others_and_the_anchor() -> None:
    assert opt_outs(CELLS) == {
        "law": OptOut(
            change={"public": 2.0 / 2.1 - 1, "law": 4.1 / 3.2 - 1, "average": 3.05 / 2.65 - 1},
            own_over_anchor=4.1 / 4.0 - 1,
        )
    }
    assert opt_outs({"composite": {"public": 1.0}}) == {}
    without_own = {"composite": {"public": 1.0}, "composite-without:law": {"public": 1.1}}
    assert opt_outs(without_own)["law"].own_over_anchor is None


def test_the_json_reads_back() -> None:
    page = full()
    assert Evaluation.parse(page.canonical()) == page
    assert page.as_json()["systems"] == CELLS
    with pytest.raises(DocumentError, match="surprise"):
        Evaluation.parse(b'{"schema": "motet.evaluation-page/1", "surprise": 1}')


def test_positions_double_and_empty_buckets_are_left_out() -> None:
    buckets = Positions(nats=(1.0, 0.0, 3.0), tokens=(2, 0, 4)).buckets()
    assert [(bucket.first, bucket.last, bucket.tokens) for bucket in buckets] == [(0, 1, 2), (4, 7, 4)]
    assert buckets[0].bits_per_token == pytest.approx(0.5 / 0.6931471805599453)


@pytest.mark.parametrize("name", ["mean", "worst", "entropy"])
def test_a_domain_called_as_a_figure_keeps_its_own(name: str) -> None:
    gaps = gap_table({"soup": {name: 0.5, "law": 0.1}})
    assert [cell.text for _, cells in gaps.rows for cell in cells] == ["50.0%", "10.0%", "30.0%", "10.0%"]
    routing = routing_table("layer 0", {"law": {name: 0.25}}, {"law": 1.0})
    assert [cell.text for _, cells in routing.rows for cell in cells] == ["25.0%", "1.00 nats"]
