"""Steps whose gradient is not finite: passed over, counted, and the end of training after too many in a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from ccr_lightning import distributed
from ccr_lightning.errors import CCRError
from ccr_lightning.files import atomic_write
from ccr_lightning.types import Batch

MOST = 10  # in a row
_HALVINGS = 16  # that a gradient scaler needs at most, from 65,536, to find its scale
_NAMED = 8  # images of a batch that a message names


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the norm of all gradients together, a scalar; of sharded ones the same on all devices.

    Example:
        >>> parameter = nn.Parameter(torch.zeros(2))
        >>> parameter.grad = torch.tensor([3.0, 4.0])
        >>> gradient_norm([parameter])
        tensor(5.)
    """
    norm: Any = nn.utils.get_total_norm([of.grad for of in parameters if of.grad is not None])
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole


class PassOverBadSteps(Callback):
    """Leaves weights, averages of gradients and BatchNorm's statistics as they are where a gradient is not finite.

    Such a step is counted and said. Too many in a row end training: no later step would be another.

    Args:
        folder: Where the last batch of each device is then saved, as ``bad_batch-0.pt`` and so on.

    Attributes:
        passed_over: Number of such steps.

    Raises:
        CCRError: After too many in a row.
    """

    def __init__(self, folder: Path) -> None:
        self.passed_over = 0
        self._folder = folder
        self._in_a_row = 0
        self._batch: Batch | None = None
        self._statistics: dict[str, Tensor] = {}  # after the last good step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes what a step changes beside the weights."""
        self._statistics = {name: of.clone() for name, of in _statistics(pl_module).items()}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Notes the batch."""
        self._batch = batch

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Takes the gradients away if they are not finite, which makes the step one that changes nothing."""
        parameters = [of for group in optimizer.param_groups for of in group["params"]]
        norm = float(gradient_norm(parameters))
        statistics = _statistics(pl_module)
        if norm < float("inf"):
            self._in_a_row = 0
            for name, of in statistics.items():
                self._statistics[name].copy_(of)
            return
        for parameter in parameters:
            parameter.grad = None
        for name, of in statistics.items():
            of.copy_(self._statistics[name])
        self.passed_over += 1
        self._in_a_row += 1
        if trainer.is_global_zero:
            says = f"step {trainer.global_step} is passed over: the gradient is {norm}"
            print(f"{says} ({self.passed_over} so far, {self._in_a_row} in a row)", flush=True)
        if self._in_a_row >= MOST + _HALVINGS * (trainer.precision == "16-mixed"):
            raise CCRError(self._keep_batch(trainer))

    def _keep_batch(self, trainer: Trainer) -> str:
        assert self._batch is not None
        path = self._folder / f"bad_batch-{distributed.rank()}.pt"
        with atomic_write(path, "the batch") as file:
            torch.save({name: value for name, value in self._batch._asdict().items() if torch.is_tensor(value)}, file)
        images = _names(trainer, self._batch.image_ids[:_NAMED].tolist())
        more = len(self._batch.image_ids) - len(images)
        named = ", ".join(images) + (f" and {more} more" if more else "")
        return (
            f"the gradient was not finite in {self._in_a_row} steps in a row, the last of them with the images "
            f"{named}: {path} has that batch; lower model.lr, or look at these images."
        )


def _names(trainer: Trainer, image_ids: Sequence[int]) -> list[str]:
    """What the source calls images; for shards, which are read without a store, their numbers."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    names = None if data.train_shards else data.image_names("train")
    return [str(image if names is None else names[image]) for image in image_ids]


def _statistics(module: nn.Module) -> dict[str, Tensor]:
    """What BatchNorm keeps of the batches that it has seen."""
    kept = ("running_mean", "running_var", "num_batches_tracked")
    return {name: of for name, of in module.named_buffers() if name.rpartition(".")[2] in kept}
