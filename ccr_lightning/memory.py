"""How much memory there is, for this process, and which errors mean that there is no more."""

from __future__ import annotations

import errno
import os
import re
import resource
from contextlib import suppress
from pathlib import Path

from ccr_lightning.errors import OutOfMemory

_CGROUP = Path("/sys/fs/cgroup")
_SAYS_SO = re.compile(
    r"DefaultCPUAllocator: can't allocate memory|not enough memory: you tried to allocate|std::bad_alloc|"
    r"(CUDA|HIP|XPU|MPS backend) (error: )?out of memory|STATUS_ALLOC_FAILED|Unable to allocate|Caught MemoryError|"
    r"Cannot allocate memory|failed to map segment from shared object|"
    r"can't start new thread|\AResource temporarily unavailable\Z|"  # Python's and C++'s: a thread needs a stack
    r"could not create a primitive(?! descriptor)"  # oneDNN's; of a descriptor it says so of what it cannot do
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that there is no more memory, or comes from one that does.

    It may be one of Python, torch, numpy, the system or a process that loads batches. ``OutOfMemory`` does not count:
    it has been explained.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes do not match"))
        (True, False)
    """
    if isinstance(error, OutOfMemory):
        return False
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    says = isinstance(error, RuntimeError | OSError | ImportError) or type(error).__name__ == "SafetensorError"
    if says and _SAYS_SO.search(str(error)):
        return True
    origin = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return origin is not None and is_out_of_memory(origin)


def refuse_out_of_memory(error: BaseException, path: Path) -> None:
    """Raise ``OutOfMemory`` if that is what an error means, before it is taken for a fault of a file.

    Args:
        error: Any, of reading the file.
        path: The file, or its folder.
    """
    if is_out_of_memory(error):
        free = in_words(available_memory()[1])
        raise OutOfMemory(
            f"{path}: there is not enough memory to read it ({free} are free now); give it more."
        ) from error


def available_memory() -> tuple[float, float]:
    """Return the bytes of memory that there are, and those that this process could still get.

    The machine, a container's limit (cgroup 2) and this process' own (``ulimit -v``) are asked. What a container keeps
    of files that it has read counts as available: the system drops it for whoever asks for memory.

    Example:
        >>> total, available = available_memory()
        >>> 0 < available <= total
        True
    """
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    available = total
    with suppress(OSError, ValueError, KeyError):
        available = 1024 * _number(Path("/proc/meminfo"), "MemAvailable:")
    with suppress(OSError, ValueError, KeyError):
        limit = float((_CGROUP / "memory.max").read_text())
        used = float((_CGROUP / "memory.current").read_text())
        used -= _number(_CGROUP / "memory.stat", "inactive_file")
        total, available = min(total, limit), min(available, limit - used)
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        with suppress(OSError, ValueError, KeyError):
            total, available = (
                min(total, limit),
                min(available, limit - 1024 * _number(Path("/proc/self/status"), "VmSize:")),
            )
    return total, max(0.0, min(available, total))


def _number(file: Path, name: str) -> float:
    lines = [line.split() for line in file.read_text().splitlines()]
    return float({words[0]: words[1] for words in lines if len(words) > 1}[name])


def in_words(number: float) -> str:
    """Return a number of bytes in words.

    Example:
        >>> in_words(3_200_000_000), in_words(64_000_000)
        ('3.2 GB', '64 MB')
    """
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.0f} MB"
