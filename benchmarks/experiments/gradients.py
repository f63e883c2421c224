"""How far the gradient of a training step points from that of an objective over all languages."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ccr_lightning.data.datamodule import CaptionDataModule
from ccr_lightning.data.sampler import draw_languages
from ccr_lightning.functional.contrastive import one_to_k_contrastive_loss
from ccr_lightning.training.module import RetrievalModule
from ccr_lightning.types import Batch

PARTS = {"image encoder": ("image_encoder", "image_projection"), "text encoder": ("text_encoder", "text_projection")}
_SEED = 20_000  # of batches that no training draws in this order


def angles(module: RetrievalModule, data: CaptionDataModule, batches: int, draws: int) -> dict[str, Any]:
    """Measure the angles, in degrees, for each part of the model.

    The reference is the gradient of the 1-to-K loss over all languages of the same images. ``of a step`` is the mean
    angle between it and the gradient of a step of the module's own objective, with languages drawn as in training;
    ``of their mean`` is that of the mean gradient of the drawn steps, which keeps a bias and loses the noise.
    """
    found: dict[str, dict[str, list[float]]] = {name: {"of a step": [], "of their mean": []} for name in PARTS}
    with _unchanged(module):
        for number, batch in enumerate(_batches(data, batches)):
            prepared = data.normalize(batch)
            reference = _gradient(module, _loss_of_all(module, prepared))
            drawn = [_drawn(prepared, data, number, draw) for draw in range(draws)]
            steps = [_gradient(module, module.losses(of, data.tokenizer)["contrastive"]) for of in drawn]
            for name, of in found.items():
                of["of a step"] += [_degrees(step[name], reference[name]) for step in steps]
                mean = torch.stack([step[name] for step in steps]).mean(0)
                of["of their mean"].append(_degrees(mean, reference[name]))
    return {
        name: {which: round(statistics.mean(values), 3) for which, values in of.items()} for name, of in found.items()
    }


def _batches(data: CaptionDataModule, count: int) -> Iterator[Batch]:
    """Training batches with captions in all languages."""
    whole = copy(data)
    whole.trainer, whole.seed, whole.languages_per_step, whole.required_languages = None, _SEED, None, ()
    return islice(iter(whole.train_dataloader()), count)


def _drawn(batch: Batch, data: CaptionDataModule, number: int, draw: int) -> Batch:
    """The batch with the languages of a step."""
    drawn = draw_languages(tuple(data.languages), data.languages_per_step, data.required_languages, _SEED, number, draw)
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
                for parameter in getattr(module.retriever, attribute).parameters()
            ]
        )
        for name, attributes in PARTS.items()
    }


def _degrees(one: Tensor, other: Tensor) -> float:
    cosine = nn.functional.cosine_similarity(one.double(), other.double(), dim=0)
    return float(torch.rad2deg(torch.acos(cosine.clamp(-1, 1))))


@contextmanager
def _unchanged(module: RetrievalModule) -> Iterator[None]:
    """Leaves statistics of BatchNorm, gradients and torch's random state as they were."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with torch.random.fork_rng():
        yield
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[name])
    module.zero_grad()
