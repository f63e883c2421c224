"""How much memory there is, for this process."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path


def available_memory() -> tuple[float, float]:
    """Return the bytes of memory that there are, and those that this process could still get.

    The machine, a container's limit (cgroup 2) and this process' own (``ulimit -v``) are asked.

    Example:
        >>> total, available = available_memory()
        >>> 0 < available <= total
        True
    """
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    available = total
    with suppress(OSError, ValueError, KeyError):
        available = 1024 * _kibibytes("/proc/meminfo", "MemAvailable")
    with suppress(OSError, ValueError):
        limit = float(Path("/sys/fs/cgroup/memory.max").read_text())
        used = float(Path("/sys/fs/cgroup/memory.current").read_text())
        total, available = min(total, limit), min(available, limit - used)
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        with suppress(OSError, ValueError, KeyError):
            total, available = (
                min(total, limit),
                min(available, limit - 1024 * _kibibytes("/proc/self/status", "VmSize")),
            )
    return total, max(0.0, min(available, total))


def _kibibytes(file: str, name: str) -> float:
    lines = (line.partition(":") for line in Path(file).read_text().splitlines())
    return float({key: rest for key, _, rest in lines}[name].split()[0])


def in_words(number: float) -> str:
    """Return a number of bytes in words.

    Example:
        >>> in_words(3_200_000_000), in_words(64_000_000)
        ('3.2 GB', '64 MB')
    """
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.0f} MB"
