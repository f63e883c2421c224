"""SIGTERM before and after training: a command ends as with Ctrl-C, and puts away what it has begun."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from ccr_lightning.errors import Stopped


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(signum)


def _take_back() -> None:
    if signal.getsignal(signal.SIGTERM) is _stop:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_take_back)  # a process that loads batches, say, has nothing to put away


@contextmanager
def terminated_in_order() -> Iterator[None]:
    """Lets SIGTERM raise :class:`~ccr_lightning.errors.Stopped` in the block, unless somebody else takes the signal."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        _take_back()
