"""Commands that run side by side and end together."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


class Stopped(Exception):
    """A command was ended by a signal to this process, or not started after it."""


class Commands:
    """Runs commands from several threads; SIGINT or SIGTERM to this process ends all of them, and none starts after it.

    Each has a session of its own, so that Ctrl-C in a terminal reaches this process alone; it passes SIGTERM on, once.
    """

    def __init__(self) -> None:
        self.signal: int | None = None  # which ended them
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.RLock()  # a second signal may come while the first is handled

    def run(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        """Run one and wait for it; what it says is added to the log.

        Raises:
            Stopped: If a signal came.
            CalledProcessError: If it fails for another reason; its ``cmd`` is the log.
        """
        with log.open("ab") as said:
            with self._lock:
                if self.signal is not None:
                    raise Stopped
                process = subprocess.Popen(command, stdout=said, stderr=said, env=environment, start_new_session=True)
                self._running.add(process)
            code = process.wait()
        with self._lock:
            self._running.discard(process)
        if code and self.signal is not None:
            raise Stopped
        if code:
            raise subprocess.CalledProcessError(code, str(log))

    @contextmanager
    def ended_by_signals(self) -> Iterator[None]:
        """Within it, signals end the commands, and this process goes on."""

        def handle(number: int, _frame: FrameType | None) -> None:
            self.end(number)

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def end(self, number: int) -> None:
        """End all, as after a signal of this number, and start none any more."""
        with self._lock:
            if self.signal is None:
                self.signal = number
                for process in self._running:
                    process.terminate()
