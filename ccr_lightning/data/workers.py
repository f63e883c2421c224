"""Processes that load batches: how they begin, when they end, and what it means that one has ended too early."""

from __future__ import annotations

import atexit
import gc
import os
import re
import signal
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from multiprocessing.process import BaseProcess
from typing import Any
from weakref import WeakSet

from ccr_lightning.errors import CCRError

_WORKERS: WeakSet[BaseProcess] = WeakSet()  # of all loaders of this process
os.register_at_fork(after_in_child=_WORKERS.clear)  # another process has none yet
_ENDED = re.compile(r"DataLoader worker \(pid\S* [\d, ]+\) (?:is killed by signal: (?P<signal>[^.]+)|exited unexpect)")


def begin_worker(worker: int) -> None:
    """Leaves signals and objects to the parent: SIGTERM and Ctrl-C, which are sent to a whole group, are ignored.

    The parent may still need batches to end in order. It ends its workers itself, see :func:`end_with_this_process`,
    and a worker whose parent has died ends, too.

    Args:
        worker: Its number.
    """
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)
    gc.freeze()  # a collection of what is the parent's would write to, and so copy, all of its pages


def end_with_this_process(batches: Iterator[Any]) -> Iterator[Any]:
    """Sees to it that no worker is waited for when this process ends: multiprocessing would ask them with SIGTERM.

    Args:
        batches: What a loader of torch returns to loop over.

    Returns:
        The same.
    """
    if workers := getattr(batches, "_workers", ()):
        _register()
        _WORKERS.update(workers)
    return batches


@cache
def _register() -> None:
    """Not before there are workers, and so after multiprocessing has: the last one to register comes first."""
    atexit.register(_end_workers)


def _end_workers() -> None:
    if alive := [worker for worker in _WORKERS if worker.is_alive()]:
        with suppress(ValueError):  # in another thread; torch would raise an error in the first one
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in alive:
        worker.kill()


def explain_worker(error: BaseException) -> CCRError | None:
    """Returns an error of a worker as a user should read it, or None if it is not one that can be put right.

    Args:
        error: What torch raised in the process that the worker loads for: that the worker has died, or its own error
            with its traceback in the message.

    Example:
        >>> print(explain_worker(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")))
        a process that loads batches has died (Killed), often for want of memory: lower data.num_workers.
    """
    if isinstance(error, CCRError) and "Original Traceback (most recent call last):" in str(error):
        own = str(error).rpartition(f"{type(error).__module__}.{type(error).__name__}: ")[2]
        return CCRError(own.removesuffix("\\n").strip())  # as printable() writes a line's end
    if not isinstance(error, RuntimeError):
        return None
    if "Too many open files" in str(error):
        return CCRError(
            "too many files are open to receive batches of other processes: raise the limit (ulimit -n), or lower "
            "data.num_workers."
        )
    if not (found := _ENDED.match(str(error))):
        return None
    how = found["signal"] or "without a word"
    if how == "Bus error":
        why = "for want of shared memory: enlarge /dev/shm (docker run --shm-size 8g), or"
    else:
        why = "often for want of memory:"
    return CCRError(f"a process that loads batches has died ({how}), {why} lower data.num_workers.")
