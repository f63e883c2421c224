"""Out of memory: a sentence that says which setting to lower, and what would fit."""

from __future__ import annotations

import gc
import math
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ccr_lightning.errors import OutOfMemory
from ccr_lightning.memory import available_memory, explain_memory, in_words, is_out_of_memory
from ccr_lightning.types import Batch

_FEW, _MORE = 2, 4  # images of the two trials that an estimate is made of
_TEMPORARY = 2.0  # a step's peak over what it keeps for the backward pass: 1.02, and room for holes in the heap
_HARDLY = 8  # images; an estimate of less is within what the process itself needs now and then


def explain_step(
    error: BaseException, module: nn.Module, batch: Batch, losses: Callable[[Batch], Any], may_be_cut: bool
) -> OutOfMemory:
    """Return what to say of a training step that ran out of memory.

    A few images of the batch are tried again, without a backward pass: the bytes that two sizes keep for it give the
    cost of an image, and what an optimiser will keep is added. What is named is an estimate, made to be too low rather
    than too high; of a few images it says nothing, nor if it would be of no fewer images than the step had.

    Args:
        error: Its frames are cleared, and with them the memory that they hold.
        module: The model that is trained; its gradients are dropped.
        batch: That of the step.
        losses: Computes what the step computes, of any batch.
        may_be_cut: Whether ``model.chunk_size`` is a way out.
    """
    images = len(batch.images)
    cut = ", or set --model.chunk_size 16, say" if may_be_cut else ""
    again = "then go on with --resume auto --resume-changed"
    smaller = "make images or model smaller, or lower --data.languages_per_step"
    fits, free = _what_fits(error, module, batch, losses)
    says = f"out of memory in a training step of {images} images ({in_words(free)} are free beside it)"
    if images <= _FEW:
        return OutOfMemory(f"{says}: {smaller}.")
    if fits is None or fits >= images:  # an estimate that the step has proved wrong is none
        half = f"try --data.batch_size {images // 2}"
        return OutOfMemory(f"{says}: what fits could not be estimated; {half}{cut}, {again}.")
    if fits <= _HARDLY:
        most = f", for a batch of {fits} at most" if fits >= _FEW else ""
        return OutOfMemory(
            f"{says}: by estimate there is hardly room for training at all{most}: give it more memory or a far smaller "
            f"--data.batch_size, {smaller}."
        )
    return OutOfMemory(f"{says}: by estimate a batch of {fits} fits; lower --data.batch_size{cut}, {again}.")


def explain_elsewhere(stage: str, error: BaseException) -> OutOfMemory:
    """Return what to say where memory ran out while the trainer worked, but not in a training step.

    Args:
        stage: Of the trainer: ``train``, ``validate``, ``test`` or ``predict``.
        error: What ended it.
    """
    if stage == "train":
        advice = "lower --data.batch_size or --data.num_workers"
    else:
        advice = "lower --data.eval_batch_size, and --data.num_workers if it is above 0"
    where = {"train": "training", "validate": "validation", "test": "the test", "predict": "prediction"}
    return OutOfMemory(explain_memory(error, f"in {where[stage]}", advice))


def _what_fits(
    error: BaseException, module: nn.Module, batch: Batch, losses: Callable[[Batch], Any]
) -> tuple[int | None, float]:
    """The number of images that fit, by estimate, None if that cannot be told, and the bytes that are free."""
    traceback.clear_frames(error.__traceback__)
    for parameter in module.parameters():
        parameter.grad = None
    gc.collect()
    device = next(module.parameters()).device
    free = _free(device)
    images = len(batch.images)
    if images <= _MORE:
        return None, free
    try:
        few, more = (_kept(_part(batch, count), module, losses) for count in (_FEW, _MORE))
    except Exception as again:
        return (0 if is_out_of_memory(again) else None), free
    of_image = max(1.0, (more - few) / (_MORE - _FEW))
    beside = max(0.0, few - _FEW * of_image)
    trained = [of for of in module.parameters() if of.requires_grad]
    beside += 3 * sum(of.numel() * of.element_size() for of in trained)  # a gradient and two averages
    of_pair = 12.0 * batch.caption_mask.shape[1]  # bytes: three numbers in single precision for each image and text
    left = free / _TEMPORARY - beside
    if left <= 0:
        return 0, free
    return int((math.sqrt(of_image**2 + 4 * of_pair * left) - of_image) / (2 * of_pair)), free


def _free(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return float(torch.cuda.mem_get_info(device)[0])
    return available_memory()[1]


def _part(batch: Batch, count: int) -> Batch:
    cut: dict[str, Any] = {
        name: value[:count] for name, value in batch._asdict().items() if isinstance(value, Tensor | np.ndarray)
    }
    return batch._replace(**cut)


def _kept(batch: Batch, module: nn.Module, losses: Callable[[Batch], Any]) -> float:
    """Bytes that the losses of a batch keep for the backward pass, those of parameters not counted."""
    own = {of.untyped_storage().data_ptr() for of in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}
    with _noting(own, kept):
        losses(batch)
    return float(sum(kept.values()))


@contextmanager
def _noting(own: set[int], kept: dict[int, int]) -> Iterator[None]:
    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield
