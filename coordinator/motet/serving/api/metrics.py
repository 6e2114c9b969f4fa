"""Counters for Prometheus, each server's its own.

metrics = Metrics()
metrics.answered("/v1/completions", 200)
metrics.exposition(engine.load())                                  # the text that /metrics answers
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from motet.serving.engine.engine import Load
from motet.serving.hooks import Record

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """What is counted."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self.requests = Counter("motet_requests", "Answers by path and status.", ["path", "status"], registry=own)
        self.prompt_tokens = Counter("motet_prompt_tokens", "Tokens of prompts.", registry=own)
        self.cached_tokens = Counter("motet_cached_prompt_tokens", "Of these, not computed again.", registry=own)
        self.generated = Counter("motet_generated_tokens", "Tokens generated.", ["finish_reason"], registry=own)
        self.mass = Counter("motet_gate_mass_tokens", "Gate mass, in generated tokens.", ["expert"], registry=own)
        self.first_token = Histogram(
            "motet_time_to_first_token_seconds", "From a request to its first token.", buckets=_SECONDS, registry=own
        )
        self._waiting = Gauge("motet_waiting_jobs", "Jobs in the queue.", registry=own)
        self._running = Gauge("motet_running_sequences", "Sequences in the batch.", registry=own)
        self._kept = Gauge("motet_kept_positions", "Positions kept to be used again.", registry=own)
        self._passes = Counter("motet_model_passes", "Passes of the model.", registry=own)
        self._passes_told = 0

    def answered(self, path: str, status: int) -> None:
        """An answer was given."""
        self.requests.labels(path, str(status)).inc()

    def used(self, record: Record, cached: int) -> None:
        """What an answer used; `cached` tokens of its prompts were known."""
        self.prompt_tokens.inc(record.prompt_tokens)
        self.cached_tokens.inc(cached)
        for choice in record.choices:
            self.generated.labels(choice.finish_reason).inc(choice.tokens)
        for expert, mass in record.mass().items():
            self.mass.labels(expert).inc(mass)

    def exposition(self, load: Load) -> bytes:
        """Everything, as Prometheus reads it."""
        self._waiting.set(load.waiting)
        self._running.set(load.running)
        self._kept.set(load.kept)
        self._passes.inc(load.passes - self._passes_told)
        self._passes_told = load.passes
        return generate_latest(self.registry)
