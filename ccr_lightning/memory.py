"""How much memory there is, for this process, and which errors mean that there is no more."""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ccr_lightning.errors import CCRError, OutOfMemory

_CGROUP = Path("/sys/fs/cgroup")
_SAYS_SO = re.compile(
    r"DefaultCPUAllocator: can't allocate memory|not enough memory: you tried to allocate|std::bad_alloc|"
    r"(CUDA|HIP|XPU|MPS backend) (error: )?out of memory|STATUS_ALLOC_FAILED|Unable to allocate|Caught MemoryError|"
    r"Cannot allocate memory|failed to map segment from shared object|"
    r"could not create a primitive(?! descriptor)"  # oneDNN's; of a descriptor it says so of what it cannot do
)
# Python's and C++'s: a thread needs a stack, and a place among the processes that the user or the container may have
_SAYS_SO_OF_A_THREAD = re.compile(r"can't start new thread|\AResource temporarily unavailable\Z")
FOR_A_THREAD = "raise `ulimit -u` or the container's limit of processes, or give it more memory"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that there is no more memory, or no further thread, or comes from one that does.

    It may be one of Python, torch, numpy, the system or a process that loads batches. ``OutOfMemory`` does not count:
    it has been explained.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes do not match"))
        (True, False)
    """
    return any(_is_of_memory(of) for of in _with_origins(error)) or lacks_thread(error)


def lacks_thread(error: BaseException) -> bool:
    """Return whether an error means that no further thread can be started, for want of memory or by a limit.

    Example:
        >>> lacks_thread(RuntimeError("can't start new thread")), lacks_thread(MemoryError())
        (True, False)
    """
    return any(
        isinstance(of, RuntimeError) and _SAYS_SO_OF_A_THREAD.search(str(of)) is not None for of in _with_origins(error)
    )


def _is_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    says = isinstance(error, RuntimeError | OSError | ImportError) or type(error).__name__ == "SafetensorError"
    return says and _SAYS_SO.search(str(error)) is not None


def _with_origins(error: BaseException) -> Iterator[BaseException]:
    origin: BaseException | None = error
    while origin is not None and not isinstance(origin, OutOfMemory):
        yield origin
        origin = origin.__cause__ or (None if origin.__suppress_context__ else origin.__context__)


def explain_memory(error: BaseException, where: str, advice: str) -> str:
    """Return what to say of an error that means that there is no more memory, or no further thread.

    Args:
        error: What it says is kept if it was made for the user to read: it may name the file that was written.
        where: In words that follow "out of memory".
        advice: What to do for memory.

    Example:
        >>> explain_memory(MemoryError(), "in training", "lower the batch size").split(" (")[0]
        'out of memory in training'
    """
    free = in_words(available_memory()[1])
    if lacks_thread(error):
        says = f"no further thread can be started {where} ({free} of memory are free now): {FOR_A_THREAD}"
    else:
        says = f"out of memory {where} ({free} are free now): {advice}"
    return f"{says}; what failed: {error}" if isinstance(error, CCRError) else f"{says}."


def refuse_out_of_memory(error: BaseException, path: Path) -> None:
    """Raise ``OutOfMemory`` if that is what an error means, before it is taken for a fault of a file.

    Args:
        error: Any, of reading the file.
        path: The file, or its folder.
    """
    if is_out_of_memory(error):
        raise OutOfMemory(explain_memory(error, f"in reading {path}", "give it more")) from error


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
