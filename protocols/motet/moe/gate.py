"""The gate: the weight of every expert in a layer, from that layer's scores or from the filter's posterior.

A composite routes in one of three ways. By rows, every layer weighs the experts by the softmax of its own scores. A
filter weighs them, in every layer alike, by the posterior over domains given all tokens so far (`motet.moe.evidence`),
which the model makes before its first layer; an average by the softmax of what it has heard (`motet.moe.average`).
Stock architectures can do the first and the last.

    gate = Gate(top_k=None, normalise=True)
    weights = gate(router(hidden), Routing(expert_mask=mask))        # (batch * seq, experts)
"""

from dataclasses import dataclass

from torch import Tensor, nn

from motet.moe.average import Heard
from motet.moe.gating import among_largest, gate_weights


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Routing:
    """What one forward pass tells its mixtures; every layer is handed it as an argument.

    expert_mask: (batch, experts) bool, the experts that may take part; None for all.
    posterior: (batch, seq, experts), what a filter believes at every position; None without a filter.
    heard: the average over the prefix; None without one.
    log_priors: (experts,) in nats, which the average is weighed with.
    """

    expert_mask: Tensor | None = None
    posterior: Tensor | None = None
    heard: Heard | None = None
    log_priors: Tensor | None = None

    @property
    def by_rows(self) -> bool:
        """Whether every layer scores the experts by its own rows."""
        return self.posterior is None and self.heard is None

    def attended(self, layer: int, output: Tensor, epsilon: float) -> None:
        """Layers with a norm behind their attention tell what it is about to norm, (batch, seq, hidden)."""
        if self.heard is not None:
            self.heard.attended(layer, output, epsilon)


class Gate(nn.Module):
    """How a layer weighs its experts. Has no parameters; hook it to see the weights.

    top_k: the number of experts per token; None for all that are allowed.
    normalise: whether the weights of the chosen experts are scaled to sum to one.
    """

    def __init__(self, *, top_k: int | None, normalise: bool) -> None:
        super().__init__()
        self.top_k, self.normalise = top_k, normalise

    def forward(self, scores: Tensor | None, routing: Routing) -> Tensor:
        """scores (batch, seq, experts) in nats, needed by rows only -> weights (batch * seq, experts)."""
        if routing.posterior is not None:
            posterior = routing.posterior.flatten(0, 1)
            return among_largest(posterior, posterior, self.top_k, self.normalise)
        if routing.heard is not None and routing.log_priors is not None:
            scores = routing.heard.scores(routing.log_priors)
        assert scores is not None  # noqa: S101 - a mixture makes them when rows decide
        mask = routing.expert_mask
        per_token = None if mask is None else mask.to(scores.device).repeat_interleave(scores.shape[1], dim=0)
        return gate_weights(scores.flatten(0, 1), per_token, self.top_k, self.normalise)
