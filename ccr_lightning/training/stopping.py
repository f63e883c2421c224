"""Ending a training between two steps when somebody asks for it, with a checkpoint to go on from."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ccr_lightning import distributed

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """Training ended because a signal asked for it.

    Args:
        signum: The signal; the exit status is 128 more, as a shell has it.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


class StopOnSignal(Callback):
    """On SIGTERM or Ctrl-C ends training between two steps, on all devices, and saves a checkpoint there.

    It is enough that the process of one device gets the signal. Where a validation is due or runs, that ends first, and
    another step. A second Ctrl-C ends everything at once, without a checkpoint.

    Args:
        checkpoint: Where to save.

    Raises:
        Stopped: After saving.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._asked = 0
        self._saved = 0
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals from Lightning, whose own handler waits for other processes, maybe for ever."""
        self._step = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                signal.signal(signum, self._ask)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self._asked == signum == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = signum

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Saves if a process was asked to end, where no gradients are waiting for more and no validation is due."""
        if trainer.global_step == self._step or _validates_next(trainer):
            return
        self._step = trainer.global_step
        if asked := self._asked_of_any(pl_module):
            trainer.save_checkpoint(self._checkpoint)
            self._saved = asked

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Ends training once what the last step has logged is written."""
        if self._saved:
            raise Stopped(self._saved)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends before anything else is done with what was trained."""
        if asked := self._asked_of_any(pl_module):
            raise Stopped(asked)

    def _asked_of_any(self, module: LightningModule) -> int:
        return int(distributed.largest(torch.tensor(self._asked, device=module.device)))


def _validates_next(trainer: Trainer) -> bool:
    """Whether a checkpoint of now would go on behind a validation that has not been."""
    loop = trainer.fit_loop
    return loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
