"""The example's report as JSON, Markdown and one HTML page: the federation's own, and what the example adds.

    write_pages(Path("docs/results/smollm2"), told, evaluation_html)

`told` holds: command, seed, machine, model, settings, texts, report (`motet.report/1`), export, generated, separation.
"""

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from layer_table import STATES

from motet.protocols.canonical import write_atomically
from motet.protocols.report import Report

Rows = Sequence[Sequence[str]]


def write_pages(directory: Path, told: Mapping[str, Any], page: str) -> None:
    """Write `results.json`, `results.md` and `results.html`.

    Args:
        directory: made if missing.
        told: see the module.
        page: the federation's evaluation page, HTML; the example's tables are put before its end.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / "results.json", json.dumps(told, indent=1).encode() + b"\n")
    write_atomically(directory / "results.md", markdown(told).encode())
    tables = "".join(f"<h2>{html.escape(title)}</h2>{_html_table(rows)}" for title, rows in sections(told))
    end = "</main>" if "</main>" in page else "</body>"
    head, _, tail = page.rpartition(end)
    write_atomically(directory / "results.html", f"{head}{tables}{end}{tail}".encode())


def markdown(told: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    report = Report.model_validate(told["report"])
    lines = [f"# One federation of low-rank experts on {told['model']['name']}", "", *_preamble(told), ""]
    lines += ["## Bits per byte of held-out text", "", "```", *report.table(), "```", ""]
    lines += ["## On the wire", "", "```", *report.wire_table(), "```", ""]
    for title, rows in sections(told):
        lines += [f"## {title}", "", *_markdown_table(rows), ""]
    lines += [*_reading(told), ""]
    return "\n".join(lines)


def sections(told: Mapping[str, Any]) -> list[tuple[str, Rows]]:
    """The example's tables: title, and rows of which the first is the head."""
    separation, generated = told["separation"], told["generated"]
    phases = told["report"]["seconds"]
    return [
        ("Routing, layer by layer: AUC of own against public text", _by_layer(separation)),
        ("Routing, all layers", _summary(separation)),
        (
            f"Continued by plain transformers ({generated['model']}, {generated['parameters']:,} parameters)",
            [
                ("domain", "prompt and what follows"),
                *((name, text) for name, text in generated["continuations"].items()),
            ],
        ),
        ("Seconds", [("phase", "seconds"), *((name, f"{spent:.0f}") for name, spent in phases.items())]),
    ]


def _by_layer(separation: Mapping[str, Any]) -> Rows:
    """Position by position, and behind it the same of each document's mean score."""
    names = list(separation)
    head = ["layer", *(f"{name}, {states}" for name in names for states in STATES)]
    layers = range(len(separation[names[0]]["anchor"])) if names else range(0)
    return [head, *([str(layer), *_cells(separation, names, layer)] for layer in layers)]


def _cells(separation: Mapping[str, Any], names: Sequence[str], layer: int) -> list[str]:
    return [
        f"{separation[name][states][layer]:.3f} ({separation[name][f'{states}_documents'][layer]:.2f})"
        for name in names
        for states in STATES
    ]


def _summary(separation: Mapping[str, Any]) -> Rows:
    """Means over layers beside what the filter follows."""
    head = (
        "expert",
        "rows, anchor",
        "rows, composite",
        "rows, export",
        "change of the worst layer, composite",
        "export",
        "one token",
        "posterior",
        "documents",
    )
    rows = []
    for name, found in separation.items():
        changes = [
            min(after - before for before, after in zip(found["anchor"], found[states], strict=True))
            for states in STATES[1:]
        ]
        means = (math.fsum(found[states]) / len(found[states]) for states in STATES)
        heard = (f"{found[key]:.3f}" if key in found else "-" for key in ("token", "posterior"))
        documents = f"{found['documents']['own']} own, {found['documents']['public']} public"
        rows.append(
            (name, *(f"{mean:.3f}" for mean in means), *(f"{change:+.3f}" for change in changes), *heard, documents)
        )
    return [head, *rows]


def _preamble(told: Mapping[str, Any]) -> list[str]:
    machine, model = told["machine"], told["model"]
    return [
        f"`{told['command']}`, seed {told['seed']}.",
        "",
        f"- Machine: {machine['cpus']} CPUs ({machine['processor']}), {machine['memory_gb']} GB; load average "
        f"{machine['load_before']} when it began, {machine['load_after']} at the end; the run alone keeps it at three.",
        f"- Anchor: {model['parameters']:,} parameters, {model['layers']} layers, `{model['digest']}`.",
        f"- Owners: {', '.join(told['settings'])}.",
        f"- Texts: {told['texts']}.",
    ]


def _reading(told: Mapping[str, Any]) -> list[str]:
    lines = [
        "AUC: the probability that a position of the owner's held-out text scores above one of held-out public text; "
        "0.5 is chance. In brackets the same of each document's mean score. The rows are logistic, fitted on the "
        "anchor's states without intercept. A filter composite weighs by the evidence of tokens instead, which is the "
        "same at every layer; in the export these rows decide themselves, so that its states are what they made them.",
    ]
    if dropped := told["export"].get("dropped_bias"):
        lines += [
            "",
            "The export routes token by token with these rows. On public text it has "
            f"{dropped['without_bias']:.4f} bits per byte, the filter {dropped['with_bias']:.4f}: dropping the filter "
            f"costs {dropped['cost']:+.4f}.",
        ]
    return lines


def _markdown_table(rows: Rows) -> list[str]:
    cells = [[" ".join(str(cell).split()).replace("|", "\\|") for cell in row] for row in rows]
    return [
        f"| {' | '.join(cells[0])} |",
        f"|{' --- |' * len(cells[0])}",
        *(f"| {' | '.join(row)} |" for row in cells[1:]),
    ]


def _html_table(rows: Rows) -> str:
    head, *body = [[html.escape(str(cell)) for cell in row] for row in rows]
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body]
    return f"<table>{''.join(lines)}</table>"
