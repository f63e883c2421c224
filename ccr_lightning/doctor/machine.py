"""Cores, memory, and what the system lets a process have."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ccr_lightning.doctor.finding import Finding
from ccr_lightning.memory import available_memory, in_words

_TOPIC = "machine"
_LITTLE_MEMORY = 3e9  # the main job's two processes take about as much
_LITTLE_SHARED = 256e6
_FEW_FILES = 1024


def examine() -> Iterator[Finding]:
    """Yield what is found about cores, memory, limits and the compiler."""
    yield _cores()
    yield _memory()
    yield from _shared_memory()
    yield _open_files()
    yield _compiler()


def _cores() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = f"{usable} of {os.cpu_count()}"
    if (share := _cgroup_cores()) is not None:
        found += f", of which a container may use {share:g}"
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is not None:
        found += f"; OMP_NUM_THREADS is {threads}"
    return Finding(_TOPIC, "cores", found)


def _cgroup_cores() -> float | None:
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else float(quota) / float(period)
    return None


def _memory() -> Finding:
    total, available = available_memory()
    found = f"{in_words(available)} of {in_words(total)} to be had"
    if available < _LITTLE_MEMORY:
        remedy = "close other programs, or train with --trainer.devices 1 and a smaller --data.batch_size"
        return Finding(_TOPIC, "memory", found, "advice", remedy)
    return Finding(_TOPIC, "memory", found)


def _shared_memory() -> Iterator[Finding]:
    if not os.path.isdir("/dev/shm"):
        return
    found = shutil.disk_usage("/dev/shm")
    if found.free < _LITTLE_SHARED:
        remedy = "workers of a loader may die of a bus error: docker run --shm-size 8g, or --data.num_workers 0"
        yield Finding(
            _TOPIC, "shared memory", f"{in_words(found.free)} of {in_words(found.total)} free", "advice", remedy
        )
    else:
        yield Finding(_TOPIC, "shared memory", f"{in_words(found.free)} of {in_words(found.total)} free")


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _FEW_FILES:
        may_raise = hard == resource.RLIM_INFINITY or hard >= _FEW_FILES
        remedy = f"ulimit -n {_FEW_FILES}" if may_raise else f"let the system allow {_FEW_FILES} (limits.conf)"
        return Finding(_TOPIC, "open files", f"{soft} at most", "advice", remedy)
    return Finding(_TOPIC, "open files", "any number" if soft == resource.RLIM_INFINITY else f"{soft} at most")


def _compiler() -> Finding:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        remedy = "only for --model.is_compiled true: install g++, say"
        return Finding(_TOPIC, "C++ compiler", "none", "ok", remedy)
    return Finding(_TOPIC, "C++ compiler", found)
