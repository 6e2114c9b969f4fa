"""The routing experiments' figures as Markdown tables: `python evidence_tables.py routing.json`."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HEAD = (
    "| system | average | gap closed, mean / worst | public text | against `own token` |",
    "| --- | --- | --- | --- | --- |",
)


def lines(study: Mapping[str, Any]) -> Iterator[str]:
    """One table: bits per byte over all columns, gap closed, public text against the anchor, paired difference."""
    yield from HEAD
    public = study["anchor"]["bits_per_byte"]["public"] if "anchor" in study else None
    for system, found in study.items():
        row = found["bits_per_byte"]
        average = row.get("average", sum(row.values()) / len(row))
        gap = found["gap"] and f"{found['gap']['mean']:.1%} / {found['gap']['worst']:.1%}"
        harm = "" if public is None or "public" not in row else f"{row['public'] / public - 1:+.2%}"
        against = found.get("against own token")
        told = "" if not against else f"{against[0]:+.2%} ({against[1]:+.2%} to {against[2]:+.2%})"
        yield f"| {system} | {average:.3f} | {gap or ''} | {harm} | {told} |"


def markdown(found: Mapping[str, Any]) -> str:
    """Every experiment under a heading, every study as a table."""
    parts: list[str] = []
    for experiment, studies in found.items():
        parts.append(f"## {experiment}, {studies['seeds']} seeds")
        for name, study in studies.items():
            if name != "seeds":
                parts += [f"### {name}", "\n".join(lines(study))]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
