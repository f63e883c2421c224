"""How far the gradient of an objective's step points from that of the 1-to-K loss over all languages."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.experiments.plan import LANGUAGES_PER_STEP, PIVOT
from ccr_lightning.data.datamodule import CaptionDataModule
from ccr_lightning.data.sampler import draw_languages
from ccr_lightning.functional.contrastive import one_to_k_contrastive_loss
from ccr_lightning.losses import ContrastiveLoss, Objective
from ccr_lightning.training.module import RetrievalModule
from ccr_lightning.types import Batch


class Step(NamedTuple):
    """What a step of an objective draws: how many languages, None for all, and those that are always there."""

    objective: Objective
    languages: int | None
    required: tuple[str, ...] = ()


STEPS = (
    Step("one_to_k", LANGUAGES_PER_STEP),
    Step("one_to_one", None),  # of which the module keeps one for each image
    Step("english_pivot", LANGUAGES_PER_STEP, (PIVOT,)),
)
PARTS = {"image encoder": ("image_encoder", "image_projection"), "text encoder": ("text_encoder", "text_projection")}
_LEFT_OUT = "word_embeddings"  # most of its rows get no gradient where few languages are drawn
_SEED = 20_000  # of batches that no training draws in this order


def angles(
    module: RetrievalModule, data: CaptionDataModule, batches: int, draws: int, steps: tuple[Step, ...] = STEPS
) -> dict[str, Any]:
    """Measure the angles, in degrees, of each objective and part of the model, on the weights as they are.

    The reference is the gradient of the 1-to-K loss over all languages of the same images. ``of a step`` is the angle
    between it and the gradient of a step, with languages drawn as in training; ``of the expectation`` is that of the
    gradient which the objective has on average over draws of languages, for fixed images, without the chance of the
    draws: see :func:`mean_cosines`. It is not resolved below about 10 degrees: there its cosine is often estimated to
    be above 1, which counts as 0 degrees.

    Args:
        module: Whose weights and temperature are taken.
        data: Of which training batches are drawn.
        batches: How many.
        draws: Steps that are drawn for each batch, at least 2.
        steps: What is measured.
    """
    cosines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with _unchanged(module):
        for number, batch in enumerate(_batches(data, batches)):
            prepared = data.normalize(data.transfer_batch_to_device(batch, module.device, 0))
            reference = _gradient(module, _loss_of_all(module, prepared))
            for step in steps:
                module.contrastive = ContrastiveLoss(step.objective)
                drawn = [_drawn(prepared, data, step, number, draw) for draw in range(draws)]
                gradients = [_gradient(module, module.losses(of, data.tokenizer)["contrastive"]) for of in drawn]
                for part in PARTS:
                    of = mean_cosines(torch.stack([gradient[part] for gradient in gradients]), reference[part])
                    cosines.setdefault((step.objective, part), []).append(of)
    found: dict[str, Any] = {step.objective: {} for step in steps}
    for (objective, part), of_batches in cosines.items():
        of_a_step, of_expectation = (statistics.mean(of) for of in zip(*of_batches, strict=True))
        found[objective][part] = {"of a step": _degrees(of_a_step), "of the expectation": _degrees(of_expectation)}
    return found


def mean_cosines(gradients: Tensor, reference: Tensor) -> tuple[float, float]:
    """The mean cosine of gradients with a reference, and that of the gradient they are draws of.

    The squared length of the expected gradient is estimated by the mean product of two different draws, in which the
    noise, which makes each of them longer, drops out: so the second cosine is that of the bias alone.

    Args:
        gradients: (n, D), independent draws, n at least 2.
        reference: (D,).

    Returns:
        Both; the second may exceed 1 by chance, and is 0 if the draws have nothing in common.

    Example:
        >>> mean_cosines(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([2.0, 0.0]))  # (1, 0) and noise
        (0.7071..., 0.0)
        >>> mean_cosines(torch.tensor([[1.0, 0.5], [1.0, -0.5]]), torch.tensor([2.0, 0.0]))
        (0.8944..., 1.154...)
    """
    gradients, reference = gradients.double(), reference.double()
    products, with_reference = gradients @ gradients.T, gradients @ reference
    n = len(gradients)
    of_a_step = (with_reference / products.diagonal().sqrt()).mean() / reference.norm()
    squared = (products.sum() - products.trace()) / (n * (n - 1))
    if squared <= 0:
        return float(of_a_step), 0.0
    return float(of_a_step), float(with_reference.mean() / squared.sqrt() / reference.norm())


def _batches(data: CaptionDataModule, count: int) -> Iterator[Batch]:
    """Training batches with captions in all languages."""
    whole = copy(data)
    whole.trainer, whole.seed, whole.languages_per_step, whole.required_languages = None, _SEED, None, ()
    return islice(iter(whole.train_dataloader()), count)


def _drawn(batch: Batch, data: CaptionDataModule, step: Step, number: int, draw: int) -> Batch:
    """The batch with the languages of a step."""
    drawn = draw_languages(tuple(data.languages), step.languages, step.required, _SEED, number, draw)
    which = torch.tensor([batch.languages.index(language) for language in drawn])
    return batch._replace(
        input_ids=batch.input_ids[:, which],
        attention_mask=batch.attention_mask[:, which],
        caption_mask=batch.caption_mask[:, which],
        languages=drawn,
        most_tokens=batch.most_tokens[:, which.numpy()],
    )


def _loss_of_all(module: RetrievalModule, batch: Batch) -> Tensor:
    images = module.retriever.encode_image(batch.images).embeds
    texts = module.retriever.encode_text(batch.input_ids, batch.attention_mask).embeds
    return one_to_k_contrastive_loss(images, texts, module.retriever.logit_scale, caption_mask=batch.caption_mask)


def _gradient(module: RetrievalModule, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of a loss, flattened, of each part."""
    module.zero_grad()
    loss.backward()
    return {
        name: torch.cat(
            [
                torch.zeros_like(parameter).flatten() if parameter.grad is None else parameter.grad.flatten().clone()
                for attribute in attributes
                for parameter_name, parameter in getattr(module.retriever, attribute).named_parameters()
                if _LEFT_OUT not in parameter_name
            ]
        )
        for name, attributes in PARTS.items()
    }


def _degrees(cosine: float) -> float:
    return round(math.degrees(math.acos(max(-1.0, min(1.0, cosine)))), 3)


@contextmanager
def _unchanged(module: RetrievalModule) -> Iterator[None]:
    """Leaves the loss, statistics of BatchNorm, gradients and torch's random state as they were."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    loss = module.contrastive
    try:
        with torch.random.fork_rng():
            yield
    finally:
        module.contrastive = loss
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name])
        module.zero_grad()
