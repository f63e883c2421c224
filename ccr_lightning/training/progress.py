"""One line per validation: how the training goes, also where no progress bar can be drawn."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from ccr_lightning.training.module import RetrievalModule


class TrainingBar(RichProgressBar):
    """A progress bar with the loss, read as seldom as it is logged: to read a value is to wait for the GPU."""

    _loss: Mapping[str, str] = MappingProxyType({})

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Returns what is shown beside the bar."""
        loss = trainer.callback_metrics.get("train/loss")
        seldom = max(1, getattr(trainer, "log_every_n_steps", 1))  # Lightning sets it from outside the class
        if loss is not None and (trainer.global_step % seldom == 0 or not self._loss):
            self._loss = {"loss": f"{float(loss):.2f}"}
        return dict(self._loss)


class EpochSummary(Callback):
    """Prints loss, recall, MRV and time left after each validation during training."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, and says what is about to happen."""
        self._start, self._first_step = time.monotonic(), trainer.global_step
        if trainer.is_global_zero:
            parameters = sum(parameter.numel() for parameter in pl_module.parameters())
            print(
                f"training {parameters / 1e6:.1f} M parameters for {trainer.estimated_stepping_batches:.0f} steps "
                f"on {trainer.world_size} x {trainer.strategy.root_device.type}"
                f"{'; compiling makes the first ones slow' if getattr(pl_module, 'is_compiled', False) else ''}",
                flush=True,
            )
            if isinstance(pl_module, RetrievalModule) and (new := pl_module.retriever.new_parameters()):
                print(f"new, and learning faster: {', '.join(_parts(new))}", flush=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the line."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or not trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        done = trainer.global_step - self._first_step
        total = int(trainer.estimated_stepping_batches)
        left = (time.monotonic() - self._start) / max(1, done) * (total - trainer.global_step)
        parts = [f"step {trainer.global_step}/{total}"]
        for label, name, scale in (
            ("loss", "train/loss", 1.0),
            ("val R@1 text→image", "val/t2i/recall@1", 100.0),
            ("image→text", "val/i2t/recall@1", 100.0),
            ("MRV", "val/mrv", 1.0),
        ):
            if name in metrics:
                parts.append(f"{label} {metrics[name] * scale:.{1 if scale > 1 else 2}f}{' %' if scale > 1 else ''}")
        print(" · ".join([*parts, f"{left / 60:.1f} min left"]), flush=True)


def _parts(names: Iterable[str]) -> list[str]:
    """The parts of a model that parameters belong to, without the numbers of layers."""
    parts = (re.sub(r"\.(layers|blocks)\.\d+", r".\1", name.rpartition(".")[0] or name) for name in names)
    return sorted({".".join(part.split(".")[:3]) for part in parts})
