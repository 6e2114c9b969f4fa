"""The small messages of the control plane, as they travel inside Flower's records.

    status = OwnerStatus.parse(record_bytes)

Nothing here is secret and nothing here is proof: what must be believed (contributions, evaluations) is
signed by the owner's worker and carried in `JobState.result` as a `Signed` document.
"""

from typing import Any, Literal

from pydantic import Field

from motet.protocols.canonical import Digest
from motet.protocols.documents import Document, Name, PublicKey, Strict

JobKind = Literal["train", "evaluate"]
Phase = Literal["queued", "running", "waiting", "done", "failed"]
"""`waiting` is a job that needs the owner's consent: `motet contribute` gives it."""


class JobState(Strict):
    """Where one job of an owner stands."""

    id: str = Field(pattern=r"^[a-z]+-[0-9a-f]{16}$")
    kind: JobKind
    state: Phase
    progress: float = Field(0.0, ge=0, le=1)
    detail: str = Field("", max_length=2000)
    """One line for people: the step, the loss, or why it failed."""
    updated: float
    """Seconds since the epoch, by the owner's clock."""
    result: dict[str, Any] | None = None
    """What the finished job has to say; None until then."""


class OwnerStatus(Document):
    """An owner's answer to a status query."""

    schema_: Literal["motet.owner-status/1"] = Field("motet.owner-status/1", alias="schema")
    owner: PublicKey
    name: Name
    worker_alive: bool
    jobs: tuple[JobState, ...] = ()


class TrainRequest(Document):
    """The coordinator asks for an expert under its charter."""

    schema_: Literal["motet.train-request/1"] = Field("motet.train-request/1", alias="schema")
    charter: Digest


class EvaluateRequest(Document):
    """The coordinator asks for the scores of a composite on the owner's held-out text."""

    schema_: Literal["motet.evaluate-request/1"] = Field("motet.evaluate-request/1", alias="schema")
    charter: Digest
    composite: Digest
    sets: bool = False
    """Whether every expert set is to be scored, for Shapley values; up to 2^8 of them."""

    def as_json(self) -> dict[str, Any]:
        """The request as a JSON object; one for the usual rows is the same job that it was before there were sets."""
        whole = super().as_json()
        return whole if self.sets else {key: whole[key] for key in whole if key != "sets"}
