"""Every error Motet raises on purpose.

    MotetError
    ├── ConfigurationError         a TOML file or an option cannot be used as it stands
    ├── DocumentError              a charter, manifest or receipt does not parse or breaks a rule
    │   └── SignatureError         the signature on a document does not hold
    ├── AnchorError                the anchor directory cannot be read or is not supported
    │   └── AnchorMismatch         it is not the anchor that the charter pins
    ├── StatisticsError            calibration statistics are missing, damaged or of another anchor
    ├── TensorFileError            a tensor file is malformed
    ├── CodecError                 an update file is malformed, or values cannot be encoded
    │   └── NotFiniteError         a value in it, or one that it makes, is NaN or infinite
    ├── ExpertError                an expert or its routing rows do not fit the anchor, or are not finite
    ├── DataError                  an owner's data is empty, unreadable or too small
    ├── TrainingError              training cannot start, or diverged
    ├── SpoolError                 the owner's spool cannot be used
    │   └── WorkerBusy             another worker holds it
    ├── TransferError              a transfer failed for good
    │   ├── TransferRefused        the other side said no, and why
    │   └── TransferBroken         the connection broke; what arrived is kept
    ├── AdmissionRefused           a contribution breaks a rule of the charter
    ├── LedgerError                the ledger's chain does not hold
    ├── AssemblyError              a composite cannot be assembled from these members
    │   └── ExportError            a composite cannot be expressed in a stock architecture
    ├── ExpertSetError             an expert set is empty or names an unknown expert
    │   └── CacheExpertSetError    a key-value cache was filled under other expert sets
    ├── FederationError            a process or a peer of the federation failed
    └── StorageError               the disk is full or not writable

Messages say what was seen, what was wanted and what to do next. The command line turns each class into
its exit code (`MotetError.exit_code`); README lists them.
"""

from typing import ClassVar


class MotetError(Exception):
    """Root of every error that Motet raises on purpose."""

    exit_code: ClassVar[int] = 1


class ConfigurationError(MotetError):
    """A configuration file or an option cannot be used as it stands."""

    exit_code = 3


class DocumentError(MotetError):
    """A charter, manifest or receipt does not parse or breaks one of its own rules."""

    exit_code = 4


class SignatureError(DocumentError):
    """The signature on a document does not hold."""


class AnchorError(MotetError):
    """The anchor directory cannot be read, or its architecture is not supported."""

    exit_code = 5


class AnchorMismatch(AnchorError):  # noqa: N818 - reads as what happened
    """The anchor at hand is not the one that was asked for.

    Attributes:
        expected: the digest that the charter or the manifest pins.
        actual: the digest of what was found.
    """

    def __init__(self, message: str, *, expected: str, actual: str) -> None:
        super().__init__(message)
        self.expected = expected
        self.actual = actual


class StatisticsError(MotetError):
    """Calibration statistics are missing, damaged, or of another anchor."""

    exit_code = 5


class TensorFileError(MotetError):
    """A tensor file is malformed: its header, its sizes or its names."""

    exit_code = 4


class CodecError(MotetError):
    """An update file is malformed, damaged or of another anchor, or values cannot be encoded; says where."""

    exit_code = 17


class NotFiniteError(CodecError):
    """A value of an update is NaN or infinite, or the value of the expert that it makes is."""


class ExpertError(MotetError):
    """An expert's tensors or routing rows do not fit the anchor, or hold values that are not finite."""

    exit_code = 4


class DataError(MotetError):
    """An owner's data is empty, unreadable, or too small to train and to hold out."""

    exit_code = 6


class TrainingError(MotetError):
    """Training cannot start, or its loss is no longer finite."""

    exit_code = 7


class SpoolError(MotetError):
    """The owner's spool holds something that cannot be read, or cannot be written."""

    exit_code = 8


class WorkerBusy(SpoolError):  # noqa: N818
    """Another worker holds the spool.

    Attributes:
        pid: the process id of that worker, None if it is not known.
    """

    def __init__(self, message: str, *, pid: int | None) -> None:
        super().__init__(message)
        self.pid = pid


class TransferError(MotetError):
    """A transfer failed and trying again unchanged would fail again."""

    exit_code = 9


class TransferRefused(TransferError):  # noqa: N818
    """The other side refused the transfer.

    Attributes:
        reason: a short stable word such as "unknown-owner" or "replayed".
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class TransferBroken(TransferError):  # noqa: N818
    """The connection broke; what arrived is kept, and the same call resumes."""

    exit_code = 10


class AdmissionRefused(MotetError):  # noqa: N818
    """A contribution breaks a rule of the charter.

    Attributes:
        reason: a short stable word such as "wrong-anchor", kept in the ledger beside the message.
    """

    exit_code = 11

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class LedgerError(MotetError):
    """The ledger's hash chain does not hold, or an entry contradicts an earlier one."""

    exit_code = 12


class AssemblyError(MotetError):
    """A composite cannot be assembled from these members, or its files are not what its manifest says."""

    exit_code = 13


class ExportError(AssemblyError):
    """A composite cannot be expressed in a stock architecture."""


class ExpertSetError(MotetError):
    """An expert set is empty, malformed, or names an unknown expert."""

    exit_code = 14


class CacheExpertSetError(ExpertSetError):
    """A key-value cache was filled under other expert sets than the ones asked for now."""


class FederationError(MotetError):
    """A process or a peer of the federation failed or did not answer."""

    exit_code = 15


class StorageError(MotetError):
    """The disk is full, or a folder cannot be written."""

    exit_code = 16
