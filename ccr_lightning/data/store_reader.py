"""Chosen images and captions of a store once more, for what looks at a split after all of it is encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ccr_lightning.data.collate import collate_captions, collate_images
from ccr_lightning.data.dataset import CaptionSamples, ImageSamples
from ccr_lightning.data.tokenizer import CaptionTokenizer
from ccr_lightning.types import CaptionBatch, ImageBatch

_Batch = TypeVar("_Batch", ImageBatch, CaptionBatch)


class StoreReader:
    """Reads batches of chosen images and captions of a split.

    Args:
        images: The images of the split; an id is a row.
        captions: Its captions.
        tokenizer: Encodes them.
        prepare: Applied to each batch: moves it to a device, normalises images.
        settings: Of the loaders: ``num_workers`` and so on.
    """

    def __init__(
        self,
        images: ImageSamples,
        captions: CaptionSamples,
        tokenizer: CaptionTokenizer,
        prepare: Callable[[Any], Any],
        settings: Mapping[str, Any],
    ) -> None:
        self._images, self._captions = images, captions
        self._tokenizer = tokenizer
        self._prepare = prepare
        self._settings = dict(settings)

    def images(self, batches: Sequence[Sequence[int]]) -> Iterator[ImageBatch]:
        """Yield batches of the images with these ids."""
        yield from self._load(self._images, batches, collate_images)

    def captions(self, batches: Sequence[Sequence[int]]) -> Iterator[CaptionBatch]:
        """Yield batches of the captions in these rows of the split."""
        collate = partial(collate_captions, tokenizer=self._tokenizer, languages=self._captions.languages)
        yield from self._load(self._captions, batches, collate)

    def caption_rows(self, languages: Tensor, image_ids: Tensor, caption_index: Tensor) -> Tensor:
        """Return the row of each caption in the split, by its language, image, and number among its image's."""
        known = {(of.language, of.row, of.caption_index): row for row, of in enumerate(self._captions.samples)}
        keys = zip(languages.tolist(), image_ids.tolist(), caption_index.tolist(), strict=True)
        return torch.tensor([known[key] for key in keys])

    def caption_lengths(self) -> Tensor:
        """Return how long each caption of the split is, in bytes."""
        return torch.tensor([len(sample.text.encode()) for sample in self._captions.samples])

    def _load(
        self, samples: Any, batches: Sequence[Sequence[int]], collate: Callable[[Any], _Batch]
    ) -> Iterator[_Batch]:
        sampler: Any = batches  # any iterable of lists will do
        for batch in DataLoader(samples, batch_sampler=sampler, collate_fn=collate, **self._settings):
            yield self._prepare(batch)
