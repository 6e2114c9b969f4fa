"""What `motet inspect`, `verify` and `pack` say of an update file: lines for people, JSON for programs.

lines = [*contribution_lines(contribution), *summary(description), "", *table(description)]
"""

from typing import Any

from motet.protocols.anchor_manifest import AnchorManifest
from motet.protocols.codec import Description, Header
from motet.protocols.contribution import Contribution


def checks(
    header: Header, contribution: Contribution | None, manifest: AnchorManifest | None, *, applied: bool
) -> tuple[list[str], list[str]]:
    """What was checked, and what was not."""
    chunks = sum(1 for _ in header.spans())
    done = [f"header, {chunks:,} chunks and their checksums, footer; every value decoded and finite"]
    left = []
    if contribution is not None:
        done.append(f"signature of {contribution.owner}; the update is the one that it names")
    if manifest is not None:
        done.append(f"anchor {manifest.digest}; names, dtypes and shapes of {len(header.tensors):,} tensors")
    if applied:
        done.append("every value of the expert is finite")
    elif manifest is None:
        left.append("fit to an anchor: name its directory with --anchor")
    else:
        left.append(f"the expert's values: name the store file of {header.base} with --base")
    return done, left


def contribution_json(contribution: Contribution | None) -> dict[str, Any] | None:
    """The part of a contribution that says whose it is; None when there is none."""
    if contribution is None:
        return None
    shown = contribution.model_dump(mode="json", include={"name", "owner", "version", "charter", "terms"})
    return {"digest": contribution.digest} | shown


def contribution_lines(contribution: Contribution | None) -> list[str]:
    """The same as lines."""
    if contribution is None:
        return []
    return [
        f"contribution {contribution.digest}, version {contribution.version} of {contribution.name}",
        f"owner        {contribution.owner}",
        f"terms        {contribution.terms}",
    ]


def summary(description: Description) -> list[str]:
    """The whole file."""
    lines = [
        f"method       {', '.join(description.methods)}",
        f"bytes        {description.file_bytes:,} for {description.parameters:,} parameters",
        f"bits         {description.bits_per_parameter:.4f} per parameter",
        f"ratio        {description.ratio:.2f} times smaller than the tensors themselves",
    ]
    if description.density is not None:
        lines.append(f"density      {100 * description.density:.3f} % of the values kept")
    if description.bound is not None:
        over = description.over_bound_percent or 0.0
        side = "below it" if over < 0 else "over it"
        lines.append(
            f"bound        {description.bound:.4f} bits, H(k)+k; the ternary tensors are {abs(over):.2f} % {side}"
        )
    return [
        *lines,
        f"anchor       {description.anchor}",
        f"base         {description.base or 'the anchor itself'}",
    ]


def table(description: Description) -> list[str]:
    """One line for each tensor, columns as wide as they need to be."""
    rows = [("tensor", "dtype", "shape", "method", "density", "bits", "bytes")]
    for tensor in description.tensors:
        density = "" if tensor.density is None else f"{100 * tensor.density:.2f} %"
        shape = " x ".join(str(size) for size in tensor.shape)
        bits = f"{tensor.bits_per_parameter:.3f}"
        rows.append((tensor.name, tensor.dtype, shape, tensor.method, density, bits, f"{tensor.bytes:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = 4
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
