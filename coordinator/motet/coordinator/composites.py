"""Making composites on request: the native form, and the export for plain transformers.

made = make(federation, without=("news",), stock=True, drop_bias=True)
made.summary.path, made.summary.stock_path, made.summary.digest
made.expired                # who is in no new composite any more: name -> when its terms ended
made.bias.cost              # what dropping the router's bias costs on public text, in bits per byte
made.not_exported           # why there is no export though one was asked for
make(federation, tune=200).tuned.bits_per_byte["public"].after
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from motet.coordinator.composite_plan import expired_names, left_out
from motet.coordinator.federation import Federation
from motet.coordinator.tuned_composites import Tuned, tuned_composite
from motet.protocols.canonical import hex_of, storage_errors
from motet.protocols.composite_manifest import CompositeManifest
from motet.protocols.errors import MotetError
from motet.protocols.expert_sizes import composite_sizes
from motet.protocols.report import CompositeSummary

if TYPE_CHECKING:
    from motet.coordinator.assembly import Composite


@dataclass(frozen=True, kw_only=True, slots=True)
class DroppedBias:
    """What an export without the router's bias loses on held-out public text, in bits per byte.

    What it loses on the owners' text, which is where experts are worth something, only they could measure.
    """

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
            f"dropping {it} costs {self.cost:+.4f} there; what it costs on the owners' domains was not measured"
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
    not_exported: MotetError | None = None
    """Why there is no export though one was asked for: the composite cannot be expressed, or the disk is full."""

    def as_json(self) -> dict[str, object]:
        """The composite as a JSON object; `dropped_bias`, `tuning`, `not_exported` are there if it was so."""
        dropped = {} if self.bias is None else {"dropped_bias": self.bias.as_json()}
        tuning = {} if self.tuned is None else {"tuning": self.tuned.as_json()}
        refused = {} if self.not_exported is None else {"not_exported": str(self.not_exported)}
        return self.summary.model_dump(mode="json") | {"expired": self.expired} | dropped | tuning | refused

    def lines(self) -> list[str]:
        """The composite for people."""
        summary = self.summary
        stock = [f"stock      {summary.stock_path}"] if summary.stock_path else []
        stock += [self.bias.line()] if self.bias else []
        stock += self.tuned.lines() if self.tuned else []
        members = ", ".join(summary.members) or "none: the anchor alone"
        head = [f"composite  {summary.digest}", f"members    {members}", f"native     {summary.path}"]
        return [*head, *(f"expert     {each}" for each in summary.experts), *left_out(self.expired), *stock]


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

    Returns:
        What was made: the native form, and the export or, in `not_exported`, the error for which there is none.

    Raises:
        ExpertSetError, AssemblyError, StorageError: there is no native form.
        ConfigurationError, TrainingError: as `tuned_composite`.
    """
    composite, tuned = _native(federation, without, tune, progress, on_step)
    exported, refused = _exported(federation, composite, drop_bias) if stock else (None, None)
    bias = _bias_cost(federation, composite, exported) if exported is not None and drop_bias else None
    summary = summary_of(federation, composite.manifest, exported)
    if refused is not None:  # one made earlier, with the bias, is not what was asked for
        summary = summary.model_copy(update={"stock_path": None})
    return Made(
        summary=summary, bias=bias, tuned=tuned, expired=expired_names(federation, without), not_exported=refused
    )


def _native(
    federation: Federation,
    without: Sequence[str],
    tune: int | None,
    progress: Callable[[int, int], None] | None,
    on_step: Callable[[int, int], None],
) -> tuple["Composite", Tuned | None]:
    """The native form, and how its router was tuned if it was."""
    if tune is None:
        return federation.assemble(without, progress=progress), None
    return tuned_composite(federation, without, steps=tune, progress=progress, on_step=on_step)


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


def _exported(federation: Federation, composite: "Composite", drop_bias: bool) -> tuple[Path | None, MotetError | None]:
    """The export, or why there is none."""
    try:
        return _export(federation, composite, drop_bias), None
    except MotetError as error:
        return None, error


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
