"""Making composites on request: what would go in, the native form, and the export for plain transformers.

made = make(federation, without=("news",), stock=True, drop_bias=True)
made.summary.path, made.summary.stock_path, made.summary.digest
made.expired                # who is in no new composite any more: name -> when its terms ended
made.bias.cost              # what dropping the router's bias costs on public text, in bits per byte
make(federation, tune=200).tuned.bits_per_byte["public"].after
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from motet.coordinator.federation import Federation
from motet.coordinator.tuned_composites import Tuned, TuningPlan, plan_tuning, tuned_composite
from motet.protocols.canonical import hex_of, storage_errors
from motet.protocols.composite_manifest import CompositeManifest
from motet.protocols.expert_files import expert_specs
from motet.protocols.expert_sizes import composite_sizes
from motet.protocols.report import CompositeSummary

if TYPE_CHECKING:
    from motet.coordinator.assembly import Composite


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What an assembly would do."""

    members: dict[str, str]
    """Name -> contribution digest, in the order of the expert ids."""
    free_bytes: int
    needed_bytes: int
    """About what the native form takes; twice if it is tuned, since the untuned one stays."""
    expired: dict[str, str]
    """Name -> when its terms ended, of whom is left out for that."""
    tuning: TuningPlan | None = None
    """What the router would be tuned on; None if it is not tuned."""

    def as_json(self) -> dict[str, object]:
        """The plan as a JSON object; `tuning` is there if the router would be tuned."""
        tuning = {} if self.tuning is None else {"tuning": self.tuning.as_json()}
        whole = {"members": self.members, "expired": self.expired}
        return {**whole, "needed_bytes": self.needed_bytes, "free_bytes": self.free_bytes} | tuning

    def lines(self) -> list[str]:
        """The plan for people."""
        listed = [f"{number:3d}  {name}  {digest}" for number, (name, digest) in enumerate(self.members.items(), 1)]
        listed += _left_out(self.expired)
        listed += [] if self.tuning is None else self.tuning.lines()
        return [*listed, f"about {self.needed_bytes:,} bytes, of {self.free_bytes:,} free; nothing was written"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DroppedBias:
    """What an export without the router's bias loses: bits per byte of the held-out public text."""

    with_bias: float
    without_bias: float
    filters: bool = False
    """Whether the composite is weighed by a filter, of which an export without bias keeps nothing."""

    @property
    def cost(self) -> float:
        """Bits per byte more than with the bias; negative where the text is better off without."""
        return round(self.without_bias - self.with_bias, 6)

    def as_json(self) -> dict[str, float]:
        """The cost as a JSON object."""
        return {"with_bias": self.with_bias, "without_bias": self.without_bias, "cost": self.cost}

    def line(self) -> str:
        """The cost for people."""
        what, it = ("no filter", "bias and filter") if self.filters else ("no bias", "it")
        return (
            f"{what:<10} {self.without_bias:.4f} bits per byte of public text, {self.with_bias:.4f} with it: "
            f"dropping {it} costs {self.cost:+.4f}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A composite and its export."""

    summary: CompositeSummary
    bias: DroppedBias | None = None
    """What dropping the router's bias from the export costs; None if it was not dropped."""
    tuned: Tuned | None = None
    """How the router was tuned; None if it is the members' own rows."""
    expired: dict[str, str]
    """Name -> when its terms ended, of whom was left out for that."""

    def as_json(self) -> dict[str, object]:
        """The composite as a JSON object; `dropped_bias` and `tuning` are there if that was done."""
        dropped = {} if self.bias is None else {"dropped_bias": self.bias.as_json()}
        tuning = {} if self.tuned is None else {"tuning": self.tuned.as_json()}
        return self.summary.model_dump(mode="json") | {"expired": self.expired} | dropped | tuning

    def lines(self) -> list[str]:
        """The composite for people."""
        summary = self.summary
        stock = [f"stock      {summary.stock_path}"] if summary.stock_path else []
        stock += [self.bias.line()] if self.bias else []
        stock += self.tuned.lines() if self.tuned else []
        members = ", ".join(summary.members) or "none: the anchor alone"
        head = [f"composite  {summary.digest}", f"members    {members}", f"native     {summary.path}"]
        return [*head, *(f"expert     {each}" for each in summary.experts), *_left_out(self.expired), *stock]


def _left_out(expired: dict[str, str]) -> list[str]:
    return [f"left out   {name}: its terms ended at {end}" for name, end in expired.items()]


def plan(federation: Federation, without: Sequence[str], *, tune: int | None = None) -> Plan:
    """What `make` would assemble; raises ExpertSetError when a name in `without` is nobody's.

    With `tune`, of so many steps, raises as `plan_tuning` does.
    """
    chosen = federation.chosen(without)
    anchor = federation.home.anchor_manifest
    specs = [spec for each in chosen.values() for spec in expert_specs(anchor, each.rank)]
    native = sum(spec.nbytes for spec in (*(tensor.spec for tensor in anchor.tensors), *specs))
    return Plan(
        members={each.name: digest for digest, each in chosen.items()},
        free_bytes=shutil.disk_usage(federation.home.path).free,
        needed_bytes=native if tune is None else 2 * native,
        expired=_expired(federation, without),
        tuning=None if tune is None else plan_tuning(federation, without, steps=tune),
    )


def make(
    federation: Federation,
    without: Sequence[str] = (),
    *,
    stock: bool = True,
    drop_bias: bool = False,
    tune: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Made:
    """Assemble, and export for plain transformers; what is there already is not made again.

    Args:
        federation: an open one.
        without: names of experts to leave out.
        stock: whether to export as well.
        drop_bias: leave the router's biases out of the export instead of folding them in, and score what that costs.
        tune: steps of tuning the router on the members' proxies; None leaves it as their own rows make it.
        progress: called with the bytes copied so far and in total.
        on_step: called with the steps of tuning done and in total.

    Raises:
        ExpertSetError, AssemblyError, ExportError, StorageError: as the two steps raise them.
        ConfigurationError, TrainingError: as `tuned_composite`.
    """
    tuned: Tuned | None = None
    if tune is None:
        composite = federation.assemble(without, progress=progress)
    else:
        composite, tuned = tuned_composite(federation, without, steps=tune, progress=progress, on_step=on_step)
    exported = _export(federation, composite, drop_bias) if stock else None
    bias = _bias_cost(federation, composite, exported) if exported is not None and drop_bias else None
    summary = summary_of(federation, composite.manifest, exported)
    return Made(summary=summary, bias=bias, tuned=tuned, expired=_expired(federation, without))


def _expired(federation: Federation, without: Sequence[str]) -> dict[str, str]:
    found = {each.name: each.terms.expiry for each in federation.expired().values() if each.name not in without}
    return {name: end for name, end in sorted(found.items()) if end is not None}


def summary_of(federation: Federation, composite: CompositeManifest, stock: Path | None = None) -> CompositeSummary:
    """Where a composite and its export lie, and who is in it; the export with the bias unless `stock` is given."""
    digest = composite.digest
    folder = _stock_folder(federation, composite)
    found = stock or (folder if folder.is_dir() else None)
    path = federation.home.composites_directory / hex_of(digest)
    return CompositeSummary(
        path=str(path),
        stock_path=None if found is None else str(found),
        digest=digest,
        members=tuple(member.name for member in composite.members),
        experts=composite_sizes(path),
    )


def _stock_folder(federation: Federation, composite: CompositeManifest, *, drop_bias: bool = False) -> Path:
    """Where an export lies; not under the digest alone a filter's, which earlier releases exported there by token."""
    form = "-prefix" if composite.routing.kind == "filter" else ""
    return federation.home.stock_directory / f"{hex_of(composite.digest)}{form}{'-without-bias' if drop_bias else ''}"


def _export(federation: Federation, composite: "Composite", drop_bias: bool) -> Path:
    from motet.moe.export import export_stock

    out = _stock_folder(federation, composite.manifest, drop_bias=drop_bias)
    if not out.is_dir():
        with storage_errors(out):
            out.parent.mkdir(exist_ok=True)
        export_stock(composite.path, out, drop_bias=drop_bias)
    return out


def _bias_cost(federation: Federation, composite: "Composite", exported: Path) -> DroppedBias:
    """Both forms on the same text: the composite, which has the bias, and its export, which has not."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import motet.moe.composite  # noqa: F401 - registers the native form with the Auto classes
    from motet.coordinator.anchor_rules import family_at
    from motet.moe.scoring import bits_per_byte, score_windows, windows_of

    tokenizer = AutoTokenizer.from_pretrained(composite.path, local_files_only=True)
    windows = windows_of(tokenizer, federation.public_held_out(), sequence_length=federation.sequence_length)

    def score(directory: Path) -> float:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
        return round(bits_per_byte(score_windows(model, windows)), 6)

    # Behind norms an export without bias averages over the prefix what the filter follows.
    lost = composite.manifest.routing.counted and not family_at(federation.home.anchor_directory).post_norm
    return DroppedBias(with_bias=score(composite.path), without_bias=score(exported), filters=lost)
