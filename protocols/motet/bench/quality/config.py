"""What `motet bench quality` is to measure, as people write it in TOML; `docs/quality.md` lists every key.

    config = QualityConfig.from_toml(Path("small.toml"))
    files = Files.of(config, Path("build/benchmarks"))
    files.domains["medicine"].path, files.public.digest

Only `name`, `public` and `[domains]` have no default.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from motet.bench.quality.stages import File
from motet.protocols.charter import MAX_GAIN
from motet.protocols.documents import Name, Strict, TomlFile
from motet.protocols.evaluation.losses import AVERAGE, PUBLIC

MERGING = (
    *("best-single", "soup", "greedy-soup", "task-arithmetic", "ties", "dare", "breadcrumbs", "atlas", "cma-es"),
)
"""Baselines that make one feed-forward network out of all experts'."""
BASELINES = (
    "specialist",
    *MERGING,
    *("btm", "logit-average", "fedavg", "phatgoose", "joint", "joint-equal", "oracle"),
)
RESERVED = ("anchor", PUBLIC, AVERAGE)
"""Columns that are no owner's, and the expert that is none's."""

Kind = Literal["token", "filter", "embedding"]
Rates = Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)]


class AnchorConfig(Strict):
    """The public model that everything starts from, trained on the public corpus."""

    hidden_size: int = Field(128, ge=8)
    """Width of the residual stream."""
    layers: int = Field(2, ge=1)
    """Transformer blocks."""
    heads: int = Field(4, ge=1)
    """Attention heads; they share `hidden_size` equally, an even number of channels each."""
    intermediate_size: int = Field(256, ge=8)
    """Width of each feed-forward network."""
    vocabulary: int = Field(2048, ge=260)
    """Tokens of the byte-pair encoding that is trained on the public corpus, the 256 bytes included."""
    steps: int = Field(900, ge=1)
    """Optimiser steps."""
    batch_size: int = Field(16, ge=1)
    """Windows of text a step."""
    sequence_length: int = Field(128, ge=8)
    """Tokens a window, here and wherever the anchor's positions end."""
    learning_rate: float = Field(3e-3, gt=0, lt=1)
    """The peak of the schedule."""


class ExpertsConfig(Strict):
    """How every owner trains; the baselines that train have the same budget."""

    steps: int = Field(330, ge=1)
    """Optimiser steps an owner, public batches counted."""
    batch_size: int = Field(16, ge=1)
    """Windows of text a step."""
    sequence_length: int = Field(128, ge=8)
    """Tokens a window."""
    learning_rates: Rates = (1e-3, 2e-3)
    """Tried for specialists and for experts alike; validation documents choose."""
    public_share: float = Field(0.25, ge=0, lt=1)
    """The share of public text in an expert's batches."""
    ranks: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Ranks of low-rank experts to measure under `filter`, trained (`lowrank:R`) and squeezed out of full ones
    (`squeezed:R`)."""
    lowrank_learning_rates: Rates = (1.5e-2, 3e-2, 6e-2)
    """Tried for every low-rank expert that is trained; its owner's validation documents choose."""


class RoutingConfig(Strict):
    """Which routings the composite is measured with, and what validation documents may choose among."""

    kinds: tuple[Kind, ...] = Field(("token", "filter"), min_length=1)
    """The rows `composite:KIND` of the result."""
    log_prior_anchor: tuple[float, ...] = Field((0.0, 1.0, 2.0), min_length=1)
    """Log priors of the anchor, in nats, an expert's being 0."""
    stay: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = (0.98, 0.99, 0.995)
    """For `filter`: probabilities that a text stays in its domain from one token to the next."""
    temperature: tuple[Annotated[float, Field(gt=0)], ...] = Field((2.0, 4.0, 8.0), min_length=1)
    """What the evidence of a token is divided by."""
    rows: Literal["average", "logistic", "lda"] = "average"
    """For `token`: what the rows read, the average of the evidence over the prefix, or each position's hidden state."""
    gain: tuple[Annotated[float, Field(gt=0, le=MAX_GAIN)], ...] = Field((4.0, 8.0, 16.0), min_length=1)
    """For `token` with rows `average`: what the average is multiplied with."""


class EvaluationConfig(Strict):
    """How much text is scored; it is held out from training, document by document."""

    validation_documents: int = Field(100, ge=2)
    """At most so many documents a domain choose the settings."""
    validation_bytes: int = Field(100_000, ge=1)
    """At most so much text a domain chooses the settings."""
    merging_bytes: int = Field(100_000, ge=1)
    """About so much of that, a domain, judges merged networks, which some methods ask for a hundred times."""
    test_documents: int = Field(200, ge=2)
    """At most so many documents a domain are reported on."""
    test_bytes: int = Field(200_000, ge=1)
    """At most so much text a domain is reported on."""


class QualityConfig(TomlFile):
    """One measurement of `motet bench quality`."""

    keys_documented_in: ClassVar[str] = "docs/quality.md"

    name: Name
    """What the results are called."""
    seeds: int = Field(1, ge=1)
    """How often all of it is done, with the seeds 0, 1, ...; `--seeds` overrides it."""
    public: Path
    """The public corpus: JSONL, one document a line under `text`; relative to this file, or to `--corpora`."""
    domains: dict[Name, Path] = Field(min_length=1)
    """Name -> the corpus of one owner, likewise."""
    anchor: AnchorConfig = AnchorConfig()
    experts: ExpertsConfig = ExpertsConfig()
    routing: RoutingConfig = RoutingConfig()
    baselines: tuple[str, ...] = BASELINES
    """What the composite is compared with; all of them if not given. `gap_closed` needs `specialist`."""
    evaluation: EvaluationConfig = EvaluationConfig()

    @field_validator("baselines")
    @classmethod
    def _are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in value if name not in BASELINES]:
            raise ValueError(f"saw {', '.join(unknown)}, wanted any of {', '.join(BASELINES)}")
        return tuple(name for name in BASELINES if name in value)

    @field_validator("domains")
    @classmethod
    def _are_owners(cls, value: dict[str, Path]) -> dict[str, Path]:
        if taken := [name for name in RESERVED if name in value]:
            raise ValueError(f"saw a domain called {taken[0]}, which is an expert or a column of its own; rename it")
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        anchor, experts = self.anchor, self.experts
        if anchor.hidden_size % (2 * anchor.heads):
            raise ValueError(
                f"saw anchor.hidden_size {anchor.hidden_size} and anchor.heads {anchor.heads}; wanted an even number "
                "of channels a head"
            )
        if experts.sequence_length > anchor.sequence_length:
            raise ValueError(
                f"saw experts.sequence_length {experts.sequence_length} over anchor.sequence_length "
                f"{anchor.sequence_length}; wanted at most as much, the anchor knows no positions beyond"
            )
        if "filter" in self.routing.kinds and not self.routing.stay:
            raise ValueError("saw filter in routing.kinds and nothing in routing.stay; wanted probabilities there")
        self._require_ranks()
        if "oracle" in self.baselines and "specialist" not in self.baselines:
            raise ValueError("saw oracle in baselines without specialist in baselines, which it is made of; add it")
        return self

    def _require_ranks(self) -> None:
        ranks, hidden, intermediate = self.experts.ranks, self.anchor.hidden_size, self.anchor.intermediate_size
        if ranks and "filter" not in self.routing.kinds:
            raise ValueError("saw experts.ranks without filter in routing.kinds, under which they are measured; add it")
        if len(set(ranks)) != len(ranks):
            raise ValueError("saw a rank twice in experts.ranks, wanted each once")
        if large := [rank for rank in ranks if rank * (hidden + intermediate) >= hidden * intermediate]:
            raise ValueError(
                f"saw {large[0]} in experts.ranks with anchor.hidden_size {hidden} and anchor.intermediate_size "
                f"{intermediate}; wanted fewer parameters than a full expert's, a smaller rank"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The corpora of a configuration, named by their content."""

    public: File
    domains: Mapping[str, File]

    @classmethod
    def of(cls, config: QualityConfig, folder: Path) -> Self:
        """Find them, relative to a folder.

        Raises:
            ConfigurationError: one is not there.
        """
        domains = {name: File.of(folder / path) for name, path in config.domains.items()}
        return cls(public=File.of(folder / config.public), domains=domains)
