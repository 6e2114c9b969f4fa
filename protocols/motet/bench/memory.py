"""How much memory this process took at most since a moment that the caller chooses.

watch = MemoryWatch.begin()
...
watch.extra_mb()
"""

import ctypes
import gc
import resource
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

_RESET_PEAK = "5"
"""What makes Linux forget the peak (proc_pid_clear_refs(5))."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryWatch:
    """Resident bytes when the watch began; pages of files that are read, not mapped, are not among them."""

    before: int
    exact: bool
    """Whether the peak was forgotten then; if not, `extra_mb` counts a higher one from before as well."""

    @classmethod
    def begin(cls) -> Self:
        """Give freed memory back to the system, so that it cannot be taken again unseen, and begin."""
        gc.collect()
        with suppress(OSError, AttributeError):  # glibc only
            ctypes.CDLL(None).malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
            exact = True
        except OSError:
            exact = False
        return cls(before=psutil.Process().memory_info().rss, exact=exact)

    def extra_mb(self) -> float:
        """The peak since then less what there was, in megabytes (10^6)."""
        return max(0, _peak() - self.before) / 1e6


def _peak() -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
