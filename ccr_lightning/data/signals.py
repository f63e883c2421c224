"""Processes that load batches end when the one that they load for says so."""

from __future__ import annotations

import signal


def leave_signals_to_the_parent(worker: int) -> None:
    """Ignores SIGTERM and Ctrl-C, which a terminal or a scheduler sends to a whole group of processes.

    The parent may still need batches to end in order; a worker whose parent has died ends by itself.

    Args:
        worker: Its number.
    """
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)
