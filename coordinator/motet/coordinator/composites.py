"""Making composites on request: what would go in, the native form, and the export for plain transformers.

made = make(federation, without=("news",), stock=True, drop_bias=False)
made.summary.path, made.summary.stock_path, made.summary.digest
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from motet.coordinator.federation import Federation
from motet.protocols.canonical import hex_of
from motet.protocols.errors import ExpertSetError
from motet.protocols.report import CompositeSummary


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What an assembly would do."""

    members: dict[str, str]
    """Name -> contribution digest, in the order of the expert ids."""
    free_bytes: int
    needed_bytes: int
    """About what the native form takes."""

    def as_json(self) -> dict[str, object]:
        """The plan as a JSON object."""
        return {"members": self.members, "needed_bytes": self.needed_bytes, "free_bytes": self.free_bytes}

    def lines(self) -> list[str]:
        """The plan for people."""
        listed = [f"{number:3d}  {name}  {digest}" for number, (name, digest) in enumerate(self.members.items(), 1)]
        return [*listed, f"about {self.needed_bytes:,} bytes, of {self.free_bytes:,} free; nothing was written"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A composite and its exports."""

    summary: CompositeSummary

    def as_json(self) -> dict[str, object]:
        """The composite as a JSON object."""
        return self.summary.model_dump(mode="json")

    def lines(self) -> list[str]:
        """The composite for people."""
        summary = self.summary
        stock = [f"stock      {summary.stock_path}"] if summary.stock_path else []
        members = ", ".join(summary.members) or "none: the anchor alone"
        return [f"composite  {summary.digest}", f"members    {members}", f"native     {summary.path}", *stock]


def plan(federation: Federation, without: Sequence[str]) -> Plan:
    """What `make` would assemble; raises ExpertSetError when a name in `without` is nobody's."""
    active = federation.admitted()
    names = {contribution.name for contribution in active.values()}
    if unknown := sorted(set(without) - names):
        raise ExpertSetError(
            f"saw no expert called {unknown[0]}, only {', '.join(sorted(names)) or 'none at all'}; name one of them"
        )
    chosen = {each.name: digest for digest, each in active.items() if each.name not in without}
    files = [federation.intake.expert_file(digest) for digest in chosen.values()]
    anchor = sum(path.stat().st_size for path in federation.home.anchor_directory.glob("*.safetensors"))
    return Plan(
        members=chosen,
        free_bytes=shutil.disk_usage(federation.home.path).free,
        needed_bytes=anchor + sum(path.stat().st_size for path in files),
    )


def make(
    federation: Federation,
    without: Sequence[str] = (),
    *,
    stock: bool = True,
    drop_bias: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Made:
    """Assemble, and export for plain transformers; what is there already is not made again.

    Args:
        federation: an open one.
        without: names of experts to leave out.
        stock: whether to export as well.
        drop_bias: leave the router's biases out of the export instead of folding them in.
        progress: called with the bytes copied so far and in total.

    Raises:
        ExpertSetError, AssemblyError, ExportError, StorageError: as the two steps raise them.
    """
    composite = federation.assemble(without, progress=progress)
    exported = _export(federation, composite.path, composite.digest, drop_bias) if stock else None
    return Made(summary=summary_of(federation, composite.digest, exported))


def summary_of(federation: Federation, digest: str, stock: Path | None = None) -> CompositeSummary:
    """Where a composite and its export lie, and who is in it."""
    folder = federation.home.stock_directory / hex_of(digest)
    found = stock or (folder if folder.is_dir() else None)
    return CompositeSummary(
        path=str((federation.home.composites_directory / hex_of(digest)).absolute()),
        stock_path=None if found is None else str(found.absolute()),
        digest=digest,
        members=tuple(member.name for member in federation.composites()[digest].members),
    )


def _export(federation: Federation, composite: Path, digest: str, drop_bias: bool) -> Path:
    from motet.moe.export import export_stock

    out = federation.home.stock_directory / (hex_of(digest) + ("-without-bias" if drop_bias else ""))
    if not out.is_dir():
        out.parent.mkdir(parents=True, exist_ok=True)
        export_stock(composite, out, drop_bias=drop_bias)
    return out
