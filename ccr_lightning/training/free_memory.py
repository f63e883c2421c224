"""Memory that nothing uses goes back to the system."""

from __future__ import annotations

import ctypes
import sys
import time
from typing import Any

from lightning.pytorch import Callback, Trainer

_SECONDS = 60


class ReturnFreeMemory(Callback):
    """Once a minute of training, gives the system back what C's allocator keeps, where that is glibc's.

    Batches of captions of many lengths leave holes of many sizes, which it hardly ever fills: a process on a CPU would
    grow for hours, by some MB a second at first.
    """

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Does so if it is time to."""
        if self._trim is not None and time.monotonic() - self._last > _SECONDS:
            self._trim(0)
            self._last = time.monotonic()
