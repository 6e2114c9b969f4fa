"""The coordinator's home as the ServerApp uses it: owners by key, digests, and every call repeatable.

federation = RunFederation.open(Path("home"))
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from motet.coordinator import federation
from motet.protocols.contribution import JoinRequest
from motet.protocols.signing import Signed


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFederation:
    """A `Federation` in the words of `motet.coordinator.server_app.Federation`."""

    inner: federation.Federation

    @classmethod
    def open(cls, home: Path) -> Self:
        """Open the home; it stays open until the process ends."""
        return cls(inner=federation.Federation.open(home))

    @property
    def charter(self) -> str:
        """The charter's digest."""
        return self.inner.charter.digest

    def enrolled(self) -> Mapping[str, JoinRequest]:
        """Owner -> join request."""
        return self.inner.enrolled()

    def admitted(self) -> Mapping[str, str]:
        """Owner -> digest of the active contribution."""
        return {each.owner: digest for digest, each in self.inner.admitted().items()}

    def expired(self) -> Mapping[str, str]:
        """Owner -> digest of the contribution whose terms have ended."""
        return {each.owner: digest for digest, each in self.inner.expired().items()}

    def admit_inline(self, manifest: bytes, update: bytes) -> Signed:
        """Judge an update that came through Flower."""
        return self.inner.admit_inline(manifest, update)

    def assemble(self) -> str:
        """Assemble what is admitted; the composite's digest."""
        return self.inner.assemble().digest

    def keep_evaluation(self, report: Signed) -> None:
        """Verify and keep an owner's report."""
        self.inner.keep_evaluation(report)

    def evaluate_public(self, composite: str, *, sets: bool) -> None:
        """Score the held-out public text, on one thread: owners on this machine may be scoring theirs."""
        import torch

        torch.set_num_threads(1)
        self.inner.score_public(composite, sets=sets)
