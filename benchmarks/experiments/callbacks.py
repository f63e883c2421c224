"""What is measured in training, as callbacks that a trial's configuration names."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from benchmarks.experiments.candidates import TERMS
from benchmarks.experiments.gradients import angles
from ccr_lightning.training.module import RetrievalModule
from ccr_lightning.types import Batch


class Meter(Callback):
    """Counts what training costs, across interruptions, and writes ``cost.json`` into the run's folder.

    CPU seconds of this process, and wall seconds, are those of training steps and of loading their batches, without
    validations and what other callbacks measure; tokens are those that the text encoder read in steps, those of
    masked-LM included, and the two of the empty text that stands for a missing caption. It has to be the last of the
    callbacks.
    """

    def __init__(self) -> None:
        self.cost = {"steps": 0, "images": 0, "tokens": 0, "cpu_seconds": 0.0, "wall_seconds": 0.0}
        self._clocks = (0.0, 0.0)
        self._tokens: list[Tensor] = []

    def on_fit_start(self, trainer: Trainer, pl_module: RetrievalModule) -> None:
        """Listens to the text encoder."""

        def count(_: nn.Module, inputs: tuple[Tensor, Tensor, Any]) -> None:
            if pl_module.training:
                self._tokens.append(inputs[1].sum())

        pl_module.retriever.text_encoder.register_forward_pre_hook(count)

    def on_train_start(self, trainer: Trainer, pl_module: RetrievalModule) -> None:
        """Starts the clocks, where training may go on within an epoch."""
        self._clocks = (time.process_time(), time.perf_counter())

    on_train_epoch_start = on_train_start

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """Forgets what was read for measurements."""
        self._tokens.clear()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Counts the step."""
        self.cost["tokens"] += int(torch.stack(self._tokens).sum())
        cpu, wall = self._clocks
        self._clocks = (time.process_time(), time.perf_counter())
        self.cost["cpu_seconds"] += self._clocks[0] - cpu
        self.cost["wall_seconds"] += self._clocks[1] - wall
        self.cost["steps"] += 1
        self.cost["images"] += len(batch.images)

    def on_fit_end(self, trainer: Trainer, pl_module: RetrievalModule) -> None:
        """Writes what it counted."""
        write(trainer, "cost.json", self.cost)

    def state_dict(self) -> dict[str, Any]:
        """What it has counted so far."""
        return dict(self.cost)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        self.cost = dict(state_dict)


class _Rows(Callback):
    """Rows that are noted in the course of training, also across interruptions, in a file of the run's folder."""

    file: str

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, trainer: Trainer, found: dict[str, Any]) -> None:
        """Adds a row, with the step, and writes all of them."""
        self.rows.append({"step": trainer.global_step, **found})
        write(trainer, self.file, self.rows)

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on."""
        self.rows = list(state_dict["rows"])


class ByLanguage(_Rows):
    """Notes recall@1 of each language on the validation split during training, in ``by_language.json``."""

    file = "by_language.json"

    def on_validation_end(self, trainer: Trainer, pl_module: RetrievalModule) -> None:
        """Adds a row."""
        if pl_module.evaluation is None or trainer.state.fn != "fit":
            return
        recalls = {
            language: round(sum(of[direction]["recall@1"] for direction in ("image_to_text", "text_to_image")) / 2, 6)
            for language, of in pl_module.evaluation.results["languages"].items()
        }
        self.add(trainer, {"recall@1": recalls})


class GradientAngles(_Rows):
    """Notes in ``angles.json``, every few epochs, how far the gradient of a step points from that of all languages.

    Args:
        every_n_epochs: How often.
        batches: Batches of images, each with captions in all languages.
        draws: Steps that are drawn for each batch.
    """

    file = "angles.json"

    def __init__(self, every_n_epochs: int = 3, batches: int = 4, draws: int = 8) -> None:
        super().__init__()
        self.every_n_epochs, self.batches, self.draws = every_n_epochs, batches, draws

    def on_train_epoch_start(self, trainer: Trainer, pl_module: RetrievalModule) -> None:
        """Adds a row before the first step of an epoch."""
        if trainer.current_epoch % self.every_n_epochs:
            return
        self.add(trainer, angles(pl_module, trainer.datamodule, self.batches, self.draws))


class AddTerms(Callback):
    """Adds terms to the contrastive loss.

    Args:
        weights: Name of a term of :mod:`benchmarks.experiments.candidates` to what it is multiplied with.
    """

    def __init__(self, weights: dict[str, float]) -> None:
        self.terms = [(TERMS[name], weight) for name, weight in weights.items()]

    def on_fit_start(self, trainer: Trainer, pl_module: RetrievalModule) -> None:
        """Puts the sum in the place of the loss."""
        loss = pl_module.contrastive.forward

        def forward(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, *_: Any, **others: Any) -> Tensor:
            total = loss(image_embeds, text_embeds, logit_scale, *_, **others)
            for term, weight in self.terms:
                total = total + weight * term(image_embeds, text_embeds, logit_scale)
            return total

        pl_module.contrastive.forward = forward


def write(trainer: Trainer, name: str, content: Any) -> None:
    """Write JSON into the run's folder."""
    path = Path(trainer.logger.save_dir) / name
    path.write_text(json.dumps(content), encoding="utf-8")
