"""What both sides must agree on about jobs: their names, the status query, and what a finished one says.

    job_id(TrainRequest(charter=charter.digest))     # the same word on both sides: "train-1f0c…"
    contribution_of(job)                             # the digest that a finished training job announces, or None

A job's name is a digest of the request, so asking twice, by two runs or after a crash, is asking once.
"""

import re
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, ValidationError

from motet.protocols.canonical import Digest, hex_of
from motet.protocols.control import EvaluateRequest, JobKind, JobState, Phase, TrainRequest
from motet.protocols.documents import Document
from motet.protocols.signing import Signed

Request = TrainRequest | EvaluateRequest

MAX_WAIT_SECONDS = 20.0
MAX_SEEN = 256
"""Jobs that a status query can say it knows."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")  # a result is the owner's word, and digests become file names


class StatusQuery(Document):
    """The coordinator asks an owner how its jobs stand; the answer is an `OwnerStatus`."""

    schema_: Literal["motet.status-query/1"] = Field("motet.status-query/1", alias="schema")
    charter: Digest
    seen: dict[str, Phase] = Field(default_factory=dict, max_length=MAX_SEEN)
    """Job id -> state that the coordinator knows already."""
    wait_seconds: float = Field(0.0, ge=0, le=MAX_WAIT_SECONDS)
    """How long the answer may wait for a state that differs from `seen`: starting a ClientApp costs a second of CPU."""
    inline: Digest | None = None
    """The contribution whose bytes should ride in the answer; None asks for none."""
    receipts: tuple[Signed, ...] = Field(default=(), max_length=8)
    """Signed receipts for contributions that came inline."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InlineUpdate:
    """A small contribution that rides in the answer to a status query."""

    manifest: bytes
    """The signed contribution, JSON."""
    update: bytes
    """The update's file."""


def kind_of(request: Request) -> JobKind:
    """The kind of job that a request asks for."""
    return "train" if isinstance(request, TrainRequest) else "evaluate"


def job_id(request: Request) -> str:
    """The name of the job: its kind and 16 hexadecimal digits of the request's digest."""
    return f"{kind_of(request)}-{hex_of(request.digest)[:16]}"


def contribution_of(job: JobState) -> str | None:
    """The digest of the contribution that a training job made, `result["contribution"]`; None unless it is one."""
    found = (job.result or {}).get("contribution")
    return found if isinstance(found, str) and _DIGEST.fullmatch(found) else None


def rides_inline(job: JobState) -> bool:
    """Whether the owner offers that contribution through Flower: `result["transport"] == "flower"`."""
    return (job.result or {}).get("transport") == "flower"


def report_of(job: JobState) -> Signed | None:
    """The signed evaluation report of an evaluation job, `result["report"]`; None if there is none to read."""
    try:
        return Signed.model_validate((job.result or {}).get("report"))
    except ValidationError:
        return None
