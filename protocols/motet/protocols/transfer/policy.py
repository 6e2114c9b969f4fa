"""What the service asks of the coordinator; `motet.coordinator.intake` answers."""

from pathlib import Path
from typing import Protocol

from motet.protocols.contribution import Contribution
from motet.protocols.signing import Signed


class TransferPolicy(Protocol):
    """The coordinator's decisions. Every method is called from several threads at once."""

    audience: str
    """What access requests must name (`motet.protocols.transfer.access.audience_of`)."""
    intake_directory: Path
    """Where uploads grow; on the file system that has room for them."""
    guests: bool
    """Whether a key that is no owner's may fetch what is published, as the charter says."""

    def check(self, manifest: Contribution, signed: Signed) -> Signed | None:
        """Look at a manifest before its bytes travel.

        Returns:
            The signed receipt when this contribution was decided before, else None: send the update.

        Raises:
            AdmissionRefused: it would never be admitted, with the reason.
        """
        ...

    def admit(self, signed: Signed, update: Path, received_bytes: int) -> Signed:
        """Decide on a complete update whose digest holds; may take minutes.

        Args:
            signed: the manifest.
            update: the file, which may be moved away; what is left of it is deleted afterwards.
            received_bytes: payload bytes that arrived for it, repeats included.

        Returns:
            A signed receipt, admitted or refused.
        """
        ...

    def withdraw(self, signed: Signed) -> Signed:
        """Record a signed `Withdrawal`; returns the signed receipt."""
        ...

    def publication(self, digest: str) -> tuple[Path, str] | None:
        """The directory and the manifest's file name of something published; None if nothing has that digest."""
        ...

    def current(self) -> str | None:
        """The digest of the newest composite that is published; None if there is none."""
        ...

    def enrolled(self, owner: str) -> bool:
        """Whether an owner, by public key, is one of the federation."""
        ...
