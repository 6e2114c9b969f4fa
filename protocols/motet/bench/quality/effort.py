"""About how many seconds stages take on one core, from a count of operations; only guesses are made of them.

effort = Effort(config)
effort.anchor(), effort.dense(rates=2), effort.mixture(experts=2)
"""

from dataclasses import dataclass

from motet.bench.quality.config import QualityConfig

_OPERATIONS_A_SECOND = 5e10
_BYTES_A_TOKEN = 2.5
_JUDGEMENTS = {"greedy-soup": 10, "task-arithmetic": 11, "ties": 12, "dare": 12, "breadcrumbs": 12, "atlas": 100}
_JUDGEMENTS |= {"cma-es": 60, "best-single": 5, "soup": 1}


@dataclass(frozen=True, slots=True)
class Effort:
    """Guesses for one configuration."""

    config: QualityConfig

    def corpus(self) -> float:
        """Reading, comparing and splitting a corpus."""
        return 5.0

    def anchor(self) -> float:
        """Training the anchor, and its statistics."""
        size = self.config.anchor
        return 10 + self._seconds(3 * size.steps * size.batch_size * size.sequence_length)

    def dense(self, runs: int = 1) -> float:
        """Fine-tuning the feed-forward network with an owner's steps, so often."""
        return 5 + runs * self._seconds(3 * self._owner_tokens())

    def mixture(self, experts: int, runs: int = 1) -> float:
        """Training a mixture of so many experts, one of them moving, with an owner's steps, so often."""
        return 10 + runs * self._seconds(3 * self._owner_tokens(), experts)

    def squeeze(self) -> float:
        """Decomposing what an expert changes."""
        return 1.0

    def joint(self, budget: str) -> float:
        """Training all experts at once: N times an owner's steps, or the compute of all owners."""
        owners = len(self.config.domains)
        times = owners if budget == "steps" else owners * 2 / (owners + 1)
        return self._seconds(3 * times * self._owner_tokens(), owners + 1)

    def gate(self, steps: int) -> float:
        """Training a gate."""
        return 2 + self._seconds(3 * steps * self._owner_tokens() / self.config.experts.steps)

    def merge(self, method: str) -> float:
        """Judging merged networks on validation documents."""
        evaluation = self.config.evaluation
        text = min(evaluation.merging_bytes, evaluation.validation_bytes) * (1 + len(self.config.domains))
        return 2 + self._seconds(_JUDGEMENTS[method] * text / _BYTES_A_TOKEN)

    def scores(self, systems: float) -> float:
        """Scoring the test documents of every domain with so many dense models."""
        text = self.config.evaluation.test_bytes * (1 + len(self.config.domains))
        return 2 + self._seconds(systems * text / _BYTES_A_TOKEN)

    def _owner_tokens(self) -> int:
        experts = self.config.experts
        return experts.steps * experts.batch_size * experts.sequence_length

    def _seconds(self, tokens: float, experts: int = 1) -> float:
        """A forward pass over so many tokens; training counts a token three times (forward, and twice as much back)."""
        size = self.config.anchor
        layer = 4 * size.hidden_size**2 + 3 * experts * size.hidden_size * size.intermediate_size
        return 2 * tokens * (size.layers * layer + size.vocabulary * size.hidden_size) / _OPERATIONS_A_SECOND
