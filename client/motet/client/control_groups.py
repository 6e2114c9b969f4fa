"""What the control groups of this process leave it of the machine's memory: containers, systemd's scopes, Slurm's jobs.

Guarantees: a group counts for all groups under it, so that every one from this process's up to the root is read, and
the tightest decides; file contents that the kernel keeps only as long as nobody wants the memory count as free.
Versions 1 and 2, as the kernel's cgroup-v1/memory and cgroup-v2 pages describe them, mounted at /sys/fs/cgroup.

    left = group_free_bytes()                      # None where nothing limits it
    group_free_bytes(tmp_path)                     # of the files under another root
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MEMBERSHIP = "proc/self/cgroup"
MOUNT = "sys/fs/cgroup"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Files:
    """What a version of control groups calls its files, and the line of memory.stat that is wanted."""

    limits: tuple[str, ...]
    used: str
    reclaimable: str


_VERSION_1 = _Files(limits=("memory.limit_in_bytes",), used="memory.usage_in_bytes", reclaimable="total_inactive_file")
_VERSION_2 = _Files(limits=("memory.max", "memory.high"), used="memory.current", reclaimable="inactive_file")


def group_free_bytes(root: Path = Path("/")) -> int | None:
    """The memory in bytes that this process's groups leave it, 0 at least; None where no group has a limit.

    Args:
        root: the folder that holds proc/self/cgroup and sys/fs/cgroup.
    """
    left = [free for folder, files in _groups(root) if (free := _left(folder, files)) is not None]
    return min(left, default=None)


def _groups(root: Path) -> Iterator[tuple[Path, _Files]]:
    """The folders of this process's groups and of all above them, in either version."""
    lines: list[str] = []
    with suppress(OSError):
        lines = (root / MEMBERSHIP).read_text().splitlines()
    for line in lines:
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            yield from ((folder, _VERSION_1) for folder in _upwards(root / MOUNT / "memory", path))
        elif hierarchy == "0" and not controllers:
            yield from ((folder, _VERSION_2) for folder in _upwards(root / MOUNT, path))


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The mount point and every folder from it to the path; a container's may not show those that lie between."""
    folder = mount
    yield folder
    for part in PurePosixPath(path).parts:
        if part not in ("/", ".."):  # what lies outside of a namespace is not to be seen
            folder /= part
            yield folder


def _left(folder: Path, files: _Files) -> int | None:
    """What one group leaves; None without a limit."""
    limits = [limit for name in files.limits if (limit := _number(folder / name)) is not None]
    used = _number(folder / files.used)
    if not limits or used is None:
        return None
    return max(0, min(limits) - max(0, used - _reclaimable(folder / "memory.stat", files.reclaimable)))


def _number(path: Path) -> int | None:
    """The number in a file; None without one, such as "max"."""
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def _reclaimable(path: Path, name: str) -> int:
    with suppress(OSError, ValueError, KeyError):
        return int(dict(line.split(maxsplit=1) for line in path.read_text().splitlines())[name])
    return 0
