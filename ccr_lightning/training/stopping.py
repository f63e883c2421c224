"""Checkpoints between two steps, to go on from: every so many steps, and when somebody asks training to end."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ccr_lightning import distributed
from ccr_lightning.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class SaveBetweenSteps(Callback):
    """Saves a checkpoint every so many steps, and one when SIGTERM or Ctrl-C asks training to end, which it then does.

    It is enough that the process of one device gets the signal. Where a validation is due, it saves a step later: a
    checkpoint from before would go on behind that validation. A second Ctrl-C ends everything at once.

    Args:
        path: Where to save; what is there is replaced.
        every: Steps.

    Raises:
        Stopped: After saving, where somebody asked.
    """

    def __init__(self, path: Path, every: int) -> None:
        self._path = path
        self._every = every
        self._asked = self._agreed = 0  # the signals of this process, and of all
        self._first = self._step = self._saved = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals from Lightning, whose own handler waits for other processes, maybe for ever."""
        self._first = self._step = self._saved = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                signal.signal(signum, self._ask)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self._asked == signum == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = signum

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Saves if it is time to, and no gradients wait for more."""
        if trainer.global_step == self._step or _validates_next(trainer):
            return
        self._step = trainer.global_step
        self._agreed = self._asked_of_any(pl_module.device)
        if self._agreed or self._step - self._saved >= self._every:
            trainer.save_checkpoint(self._path)
            self._saved = self._step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends training before another epoch if somebody asked in the last one, the end of which has been saved."""
        if trainer.global_step > self._first:
            self.end_if_asked(pl_module.device)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Ends training once what the last step has logged is written."""
        if self._agreed:
            raise Stopped(self._agreed)

    def end_if_asked(self, device: torch.device) -> None:
        """Ends if somebody has asked, in the last step or since, before anything else is done with what was trained.

        Args:
            device: That of this process; all processes have to call this once the trainer has given the signals back.
        """
        if asked := self._asked_of_any(device):
            raise Stopped(asked)

    def _asked_of_any(self, device: torch.device) -> int:
        return int(distributed.largest(torch.tensor(self._asked, device=device)))


def _validates_next(trainer: Trainer) -> bool:
    """Whether a checkpoint of now would go on behind a validation that has not been."""
    loop = trainer.fit_loop
    return loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
