"""What a composite is made of, as transformers keeps it in `config.json`.

Guarantees: the anchor's own configuration is kept whole, so that its sizes, its rotary parameters and its special
tokens are read from one place; expert 0 is always the anchor; names are unique.

    config = MotetConfig(anchor_config=anchor.config, expert_names=["anchor", "math"], contributions=["sha256:..."])
    config.hidden_size == config.anchor_config.hidden_size
"""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from motet.moe.average import Average
from motet.moe.evidence import Evidence
from motet.protocols.errors import AssemblyError

ANCHOR = "anchor"
"""The name of expert 0 in every composite: the anchor's own feed-forward network."""

_DELEGATED = frozenset(
    (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings"),
        *("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "initializer_range"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "use_cache"),
    )
)


class MotetConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """A composite's configuration. Raises AssemblyError when its parts contradict each other.

    anchor_config: the anchor's configuration, as an object or a mapping with its `model_type`.
    expert_names: by expert id; the first is "anchor".
    contributions: digests of experts 1, 2, ..., which identify an expert set by content.
    experts_per_token: the router's top k, None for all that the request allows. (A key named `top_k` would be taken
    for a sampling parameter by transformers and end up in the generation configuration.)
    normalise_top_k: whether the gate weights of the chosen experts are scaled to sum to one.
    log_priors: by expert id, in nats; the router's biases contain them. None is zero for every expert.
    expert_ranks: by expert id, the rank of a low-rank expert, None for a full one and the anchor. None: all are full.
    evidence: what adds up the evidence of tokens over the prefix: stay and temperature of a filter
    (`motet.moe.evidence`), or gain and unit of an average (`motet.moe.average`); None routes by the layers' rows.
    """

    model_type = "motet"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - transformers reads it from the class
    sub_configs_defaults = {"anchor_config": SubConfigSpec(config_class=AutoConfig, model_type="olmo2")}  # noqa: RUF012

    anchor_config: dict[str, Any] | PreTrainedConfig | None = None
    expert_names: list[str] | None = None
    contributions: list[str] | None = None
    experts_per_token: int | None = None
    normalise_top_k: bool = True
    log_priors: list[float] | None = None
    expert_ranks: list[int | None] | None = None
    evidence: dict[str, float] | None = None

    def __post_init__(self, **kwargs: Any) -> None:  # noqa: ANN401 - transformers passes what the file holds
        if "top_k" in kwargs:
            raise AssemblyError("saw top_k in a composite's configuration, wanted experts_per_token; rename it")
        self.expert_names = [ANCHOR] if self.expert_names is None else list(self.expert_names)
        self.contributions = [] if self.contributions is None else list(self.contributions)
        _check_experts(self.expert_names, self.contributions, self.experts_per_token)
        if self.log_priors is not None and len(self.log_priors) != len(self.expert_names):
            raise AssemblyError(
                f"saw {len(self.log_priors)} log_priors for {len(self.expert_names)} expert_names, wanted one for each"
            )
        self.expert_ranks = _checked_ranks(self.expert_ranks, self.expert_names)
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """Sizes and special tokens are the anchor's: caches, generation and trainers ask the model's configuration."""
        if name in _DELEGATED and "anchor_config" in self.__dict__:
            return getattr(self.anchor_config, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The anchor's configuration: what sizes the caches and steers generation."""
        return self.anchor  # the arguments only tell several text parts apart

    @property
    def anchor(self) -> PreTrainedConfig:
        """The anchor's configuration as the object it has become."""
        if not isinstance(self.anchor_config, PreTrainedConfig):
            raise AssemblyError("saw no anchor configuration, wanted one with its model_type; name it as anchor_config")
        return self.anchor_config

    @property
    def names(self) -> tuple[str, ...]:
        """Expert names by expert id."""
        return tuple(self.expert_names or ())

    @property
    def prefix(self) -> Evidence | Average | None:
        """What adds up the evidence over the prefix; None when the layers' rows decide."""
        settings = self.evidence
        if settings is None:
            return None
        if settings.keys() == {"gain", "unit"}:
            return Average(**settings)
        if settings.keys() == {"stay", "temperature"}:
            return Evidence(**settings)
        raise AssemblyError(
            f"saw evidence with {', '.join(sorted(settings)) or 'nothing'} in a composite's configuration, wanted stay "
            "and temperature, or gain and unit; assemble the composite again"
        )

    @property
    def priors(self) -> tuple[float, ...]:
        """Log priors in nats by expert id."""
        return tuple(self.log_priors or [0.0] * self.num_experts)

    @property
    def ranks(self) -> tuple[int | None, ...]:
        """Ranks by expert id; None for the anchor and for full experts."""
        return tuple(self.expert_ranks or [None] * self.num_experts)

    @property
    def num_experts(self) -> int:
        """Number of experts, the anchor included."""
        return len(self.names)


def _checked_ranks(ranks: list[int | None] | None, names: list[str]) -> list[int | None] | None:
    """None where all experts are full, so that such a composite's file is what it was before there were ranks."""
    if ranks is None or not any(rank is not None for rank in ranks):
        return None
    sound = all(rank is None or (type(rank) is int and rank >= 1) for rank in ranks)
    if len(ranks) != len(names) or ranks[0] is not None or not sound:
        raise AssemblyError(
            f"saw expert_ranks {ranks} for {len(names)} expert_names, wanted for each None or a rank of at least 1, "
            f"and None for {ANCHOR!r}"
        )
    return list(ranks)


def _check_experts(names: list[str], contributions: list[str], experts_per_token: int | None) -> None:
    if not names or names[0] != ANCHOR or len(set(names)) != len(names):
        raise AssemblyError(
            f"saw expert_names {names}, wanted unique names of which the first is {ANCHOR!r}; rename them"
        )
    if len(contributions) != len(names) - 1:
        raise AssemblyError(
            f"saw {len(contributions)} contributions for {len(names)} expert_names, wanted one digest for every expert "
            "but the anchor"
        )
    if experts_per_token is not None and experts_per_token < 1:
        raise AssemblyError(
            f"saw experts_per_token={experts_per_token}, wanted at least 1, or None for every allowed expert"
        )
