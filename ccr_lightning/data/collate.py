"""Samples to batches of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ccr_lightning.data.dataset import CaptionSample, ImageSample, TrainSample
from ccr_lightning.data.tokenizer import CaptionTokenizer
from ccr_lightning.types import Batch, CaptionBatch, ImageBatch


def collate_training(samples: Sequence[TrainSample], tokenizer: CaptionTokenizer) -> Batch:
    """Return B training samples, all with the same K languages, as tensors.

    A missing caption is encoded as the empty text, so that its row has tokens to attend to, and is False in
    ``caption_mask``.
    """
    languages = samples[0].languages
    captions = [caption for sample in samples for caption in sample.captions]
    shape = (len(samples), len(languages))
    input_ids, attention_mask = tokenizer.encode(
        [caption or "" for caption in captions], [language for _ in samples for language in languages]
    )
    return Batch(
        images=_stacked(samples),
        image_ids=torch.tensor([sample.row for sample in samples]),
        input_ids=input_ids.view(*shape, -1),
        attention_mask=attention_mask.view(*shape, -1),
        caption_mask=torch.tensor([caption is not None for caption in captions]).view(shape),
        languages=languages,
        most_tokens=attention_mask.sum(1).clamp(min=1).view(shape).numpy(),
    )


def collate_images(samples: Sequence[ImageSample]) -> ImageBatch:
    """Return images for evaluation as tensors."""
    return ImageBatch(
        images=_stacked(samples),
        image_ids=torch.tensor([sample.row for sample in samples]),
    )


def _stacked(samples: Sequence[TrainSample] | Sequence[ImageSample]) -> Tensor:
    """``(B, 3, H, W)`` uint8; floats would be four times as large on their way to the device."""
    return torch.from_numpy(np.stack([sample.pixels for sample in samples])).permute(0, 3, 1, 2)


def collate_captions(
    samples: Sequence[CaptionSample], tokenizer: CaptionTokenizer, languages: Sequence[str]
) -> CaptionBatch:
    """Return captions for evaluation, in some of these languages, as tensors."""
    input_ids, attention_mask = tokenizer.encode(
        [sample.text for sample in samples], [languages[sample.language] for sample in samples]
    )
    return CaptionBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        image_ids=torch.tensor([sample.row for sample in samples]),
        languages=torch.tensor([sample.language for sample in samples]),
        caption_index=torch.tensor([sample.caption_index for sample in samples]),
    )
