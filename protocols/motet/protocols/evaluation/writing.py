"""The page written down: Markdown and HTML of the same sections.

Guarantees: whatever a system or a domain is called stays text, in both; the HTML refers to nothing outside itself.

    path.write_text(html(evaluation), encoding="utf-8")
"""

from typing import TYPE_CHECKING

from motet.protocols.evaluation.charts import BarChart
from motet.protocols.evaluation.sections import sections
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


def _cell(cell: Cell) -> str:
    return f"{cell.text} ({cell.detail})" if cell.detail else cell.text


def _plain(text: str) -> str:
    return text.translate(_SPECIAL)


def _is_bars(chart: object) -> bool:
    return isinstance(chart, BarChart)
