"""SIGTERM before and after training: a command ends as with Ctrl-C, and puts away what it has begun."""

from __future__ import annotations

import os
import signal
import sys
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


def _ask_again(lost: sys.UnraisableHookArgs) -> bool:
    """Sends a signal once more whose exception got lost, in a ``__del__`` for example, which none can leave."""
    if isinstance(lost.exc_value, Stopped):
        signum = lost.exc_value.signum
    elif isinstance(lost.exc_value, KeyboardInterrupt):
        signum = signal.SIGINT
    else:
        return False
    first = threading.main_thread().ident
    assert first is not None
    again = threading.Timer(0.01, signal.pthread_kill, (first, signum))  # now its exception would be lost here
    again.daemon = True
    again.start()
    return True


os.register_at_fork(after_in_child=_take_back)  # a process that loads batches, say, has nothing to put away


@contextmanager
def terminated_in_order() -> Iterator[None]:
    """Lets SIGTERM raise :class:`~ccr_lightning.errors.Stopped` in the block, unless somebody else takes the signal.

    Where an exception cannot get out, that of a signal is raised again a moment later.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    say = sys.unraisablehook
    sys.unraisablehook = lambda lost: None if _ask_again(lost) else say(lost)
    signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        _take_back()
        sys.unraisablehook = say
