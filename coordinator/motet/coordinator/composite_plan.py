"""What an assembly would do: who would go in, who is left out, and what the files would take on the disk.

Guarantees: nothing is written, and of the anchor only the manifest and the configuration are read, and the public text
where a tuning is planned; what the export would take is asked of what plans the export itself.

    found = plan(federation, without=["news"], drop_bias=True)
    found.members, found.native_bytes, found.stock_bytes, found.needed_bytes <= found.free_bytes
    found.not_exported        # why there would be no export though one is asked for
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from motet.coordinator.federation import Federation
from motet.coordinator.tuned_composites import TuningPlan, plan_tuning
from motet.protocols.composite_manifest import RoutingPolicy
from motet.protocols.contribution import Contribution
from motet.protocols.errors import ExportError

if TYPE_CHECKING:
    from motet.protocols.tensor_files import TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What an assembly would do. Sizes are those of the tensors, in bytes; the tokenizer is small beside them."""

    members: dict[str, str]
    """Name -> contribution digest, in the order of the expert ids."""
    lowrank: bool
    """Whether there is a low-rank expert among them, which the export holds dense and in float32."""
    free_bytes: int
    native_bytes: int
    """What the native form takes."""
    stock_bytes: int | None
    """What the export for plain transformers takes; None where none would be made."""
    not_exported: str | None = None
    """Why there would be no export though one is asked for."""
    expired: dict[str, str]
    """Name -> when its terms ended, of whom is left out for that."""
    tuning: TuningPlan | None = None
    """What the router would be tuned on; None if it is not tuned."""

    @property
    def needed_bytes(self) -> int:
        """What all forms take together; the native one twice if it is tuned, since the untuned one stays."""
        return self.native_bytes * (1 if self.tuning is None else 2) + (self.stock_bytes or 0)

    def as_json(self) -> dict[str, object]:
        """The plan as a JSON object; `not_exported` and `tuning` are there if there is something to say."""
        whole = {"members": self.members, "expired": self.expired}
        sizes = {name: getattr(self, name) for name in ("native_bytes", "stock_bytes", "needed_bytes", "free_bytes")}
        refused = {} if self.not_exported is None else {"not_exported": self.not_exported}
        tuning = {} if self.tuning is None else {"tuning": self.tuning.as_json()}
        return whole | sizes | refused | tuning

    def lines(self) -> list[str]:
        """The plan for people."""
        listed = [f"{number:3d}  {name}  {digest}" for number, (name, digest) in enumerate(self.members.items(), 1)]
        listed += left_out(self.expired)
        listed += [] if self.tuning is None else self.tuning.lines()
        twice = "" if self.tuning is None else ", twice: untuned and tuned"
        listed.append(f"native     {self.native_bytes:,} bytes{twice}")
        if self.stock_bytes is not None:
            dense = ", low-rank experts dense and in float32" if self.lowrank else ""
            listed.append(f"stock      {self.stock_bytes:,} bytes{dense}")
        if self.not_exported is not None:
            listed.append(f"stock      none: {self.not_exported}")
        short = "" if self.needed_bytes <= self.free_bytes else ", which is too little"
        return [*listed, f"about {self.needed_bytes:,} bytes, of {self.free_bytes:,} free{short}; nothing was written"]


def left_out(expired: dict[str, str]) -> list[str]:
    """A line for each who is in no new composite any more."""
    return [f"left out   {name}: its terms ended at {end}" for name, end in expired.items()]


def expired_names(federation: Federation, without: Sequence[str]) -> dict[str, str]:
    """Name -> when its terms ended, of the members that a composite does not hold for that, but those in `without`."""
    found = {each.name: each.terms.expiry for each in federation.expired().values() if each.name not in without}
    return {name: end for name, end in sorted(found.items()) if end is not None}


def plan(
    federation: Federation,
    without: Sequence[str],
    *,
    stock: bool = True,
    drop_bias: bool = False,
    tune: int | None = None,
) -> Plan:
    """What `motet.coordinator.composites.make` would do with these arguments.

    Raises ExpertSetError when a name in `without` is nobody's; with `tune`, of so many steps, as `plan_tuning` does.
    """
    from motet.coordinator.composite_layout import composite_tensors

    chosen = federation.chosen(without)
    ranks = [each.rank for each in chosen.values()]
    tensors = composite_tensors(federation.home.anchor_manifest, ranks, RoutingPolicy.of(federation.charter.routing))
    exported, refused = None, None
    if stock:
        try:
            exported = _stock_bytes(federation, chosen, tensors, drop_bias=drop_bias)
        except ExportError as error:
            refused = str(error)
    return Plan(
        members={each.name: digest for digest, each in chosen.items()},
        lowrank=any(ranks),
        free_bytes=shutil.disk_usage(federation.home.path).free,
        native_bytes=sum(spec.nbytes for spec in tensors),
        stock_bytes=exported,
        not_exported=refused,
        expired=expired_names(federation, without),
        tuning=None if tune is None else plan_tuning(federation, without, steps=tune),
    )


def _stock_bytes(
    federation: Federation, chosen: dict[str, Contribution], tensors: "list[TensorSpec]", *, drop_bias: bool
) -> int:
    from motet.coordinator.composite_layout import configuration
    from motet.moe.config import MotetConfig
    from motet.moe.export import stock_bytes
    from motet.moe.prefix import evidence_of

    anchor = json.loads((federation.home.anchor_directory / "config.json").read_text(encoding="utf-8"))
    routing = RoutingPolicy.of(federation.charter.routing)
    evidence = evidence_of(routing)
    settings = configuration(
        anchor,
        {digest: each.name for digest, each in chosen.items()},
        [each.rank for each in chosen.values()],
        routing,
        evidence=None if evidence is None else asdict(evidence),
    )
    return stock_bytes(tensors, MotetConfig(**settings), drop_bias=drop_bias)
