"""The page written down: Markdown, HTML and lines for a terminal, of the same sections.

Guarantees: whatever a system or a domain is called stays text; the HTML refers to nothing outside itself.

    path.write_text(html(evaluation), encoding="utf-8")
    print("\\n".join(lines(evaluation)))
"""

from typing import TYPE_CHECKING

from motet.protocols.evaluation.charts import BarChart
from motet.protocols.evaluation.sections import MATRIX, sections
from motet.protocols.evaluation.tables import Cell, Table

if TYPE_CHECKING:
    from motet.protocols.evaluation.page import Evaluation

_SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>|#~&"} | {"\n": " ", "\r": " "})


def markdown(page: "Evaluation") -> str:
    """The page as Markdown, tables as GitHub writes them."""
    lines = [f"# {_plain(page.title)}", "", *(f"- {_plain(line)}" for line in facts(page)), ""]
    for section in sections(page):
        lines += [f"## {section.title}", "", section.note, ""]
        for table in section.tables:
            lines += [f"**{_plain(table.caption)}**", "", *_table_lines(table), ""]
    return "\n".join(lines)


def lines(page: "Evaluation") -> list[str]:
    """The sections beside the matrix itself as lines of text, figures without their small print."""
    found: list[str] = []
    for section in sections(page):
        for table in section.tables if section.title != MATRIX else ():
            found += ["", table.caption, *_aligned(table)]
    return found[1:]


def html(page: "Evaluation") -> str:
    """The page as one HTML file."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("motet.protocols.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html")
    return template.render(title=page.title, facts=facts(page), sections=sections(page), is_bars=_is_bars)


def facts(page: "Evaluation") -> list[str]:
    """The notes, and how often and how long it ran."""
    seeds = [] if page.seeds is None else [f"Seeds: {page.seeds}"]
    return [*page.notes, *seeds, *([] if page.seconds is None else [f"Seconds: {page.seconds:,.0f}"])]


def _table_lines(table: Table) -> list[str]:
    rows = [[label, *(_cell(cell) for cell in cells)] for label, cells in table.rows]
    head = [[table.corner, *table.columns], ["---", *("---:" for _ in table.columns)]]
    return [
        "| " + " | ".join(row if row.startswith("---") else _plain(row) for row in line) + " |" for line in head + rows
    ]


def _aligned(table: Table) -> list[str]:
    rows = [["", *table.columns], *([label, *(cell.text for cell in cells)] for label, cells in table.rows)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        f"{row[0]:<{widths[0]}}"
        + "".join(f"  {text:>{width}}" for text, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]


def _cell(cell: Cell) -> str:
    return f"{cell.text} ({cell.detail})" if cell.detail else cell.text


def _plain(text: str) -> str:
    return text.translate(_SPECIAL)


def _is_bars(chart: object) -> bool:
    return isinstance(chart, BarChart)
