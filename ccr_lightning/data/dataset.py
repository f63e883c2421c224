"""Rows of a store as samples: pixels and texts, not yet tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from ccr_lightning.data.images import decode_image
from ccr_lightning.data.pixels import EncodedPicture, Pixels
from ccr_lightning.data.sampler import SampleKey, draw_languages
from ccr_lightning.data.seeding import derived_seed
from ccr_lightning.data.store import Store
from ccr_lightning.data.transforms import ImageTransform

_KEPT_BYTES = 64 * 2**20  # of pictures, in each process that loads batches


class TrainSample(NamedTuple):
    """An augmented image and one caption in each language of the step."""

    pixels: Pixels  # (H, W, 3)
    row: int
    captions: list[str | None]  # K, None where the image has none
    languages: tuple[str, ...]  # K


class ImageSample(NamedTuple):
    """An image for evaluation."""

    pixels: Pixels  # (H, W, 3)
    row: int


class CaptionSample(NamedTuple):
    """A caption for evaluation."""

    text: str
    row: int
    language: int
    caption_index: int  # among the captions of its image and language


class TrainSamples(Dataset[TrainSample]):
    """Training samples by :class:`SampleKey`: the images with a caption in any of the languages.

    The augmentation and, of several captions, the chosen one are functions of the seed, the epoch and the image; the
    languages are a function of the seed, the epoch and the step.

    Args:
        store: The training split.
        transform: Its ``train`` is applied.
        languages: All K languages.
        languages_per_step: How many of them a step has; None takes all.
        required_languages: Languages that every step has.
        seed: Seed of all draws.
    """

    def __init__(
        self,
        store: Store,
        transform: ImageTransform,
        languages: Sequence[str],
        languages_per_step: int | None,
        required_languages: Sequence[str],
        seed: int,
    ) -> None:
        self.store = store
        self.rows = store.rows_with_caption(languages)
        self.transform = transform
        self.languages = tuple(languages)
        self.languages_per_step = languages_per_step
        self.required_languages = tuple(required_languages)
        self.seed = seed
        self._kept: dict[int, Pixels] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: SampleKey) -> TrainSample:
        row, epoch, step = int(self.rows[key.position]), key.epoch, key.step
        languages = draw_languages(
            self.languages, self.languages_per_step, self.required_languages, self.seed, epoch, step
        )
        captions = choose_captions(self.store.captions(row), languages, self.seed, epoch, row)
        return TrainSample(self._pixels(row, epoch), row, captions, languages)

    def text_lengths(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Return how long the captions of each sample are on average, in bytes."""
        lengths: np.ndarray[Any, np.dtype[np.int32]] = self.store.text_lengths()[self.rows]
        return lengths

    def _pixels(self, row: int, epoch: int) -> Pixels:
        if row in self._kept:
            return self._kept[row]
        picture = EncodedPicture(self.store.image(row), self.store.where(row))
        pixels = self.transform.train(picture, augmentation_seed(self.seed, epoch, row))
        if self.transform.is_fixed and len(self._kept) * pixels.nbytes < _KEPT_BYTES:
            self._kept[row] = pixels  # decoding small pictures anew takes longer than all the rest
        return pixels


def augmentation_seed(seed: int, epoch: int, row: int) -> int:
    """Return the seed of an image's augmentation in an epoch."""
    return derived_seed("image", seed, epoch, row)


def choose_captions(
    available: Mapping[str, Sequence[str]], languages: Sequence[str], seed: int, epoch: int, row: int
) -> list[str | None]:
    """Return one caption in each language, None where there is none; of several, one of each epoch's choice.

    Example:
        >>> choose_captions({"en": ["a dog", "a puppy"], "de": ["ein Hund"]}, ["de", "en", "ja"], 0, epoch=0, row=3)
        ['ein Hund', 'a puppy', None]
    """

    def choose(language: str) -> str | None:
        texts = available.get(language)
        if not texts:
            return None
        if len(texts) == 1:
            return texts[0]
        return texts[derived_seed("caption", seed, epoch, row, language) % len(texts)]

    return [choose(language) for language in languages]


class ImageSamples(Dataset[ImageSample]):
    """The images of a store, each once, without augmentation."""

    def __init__(self, store: Store, transform: ImageTransform) -> None:
        self.store = store
        self.transform = transform

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, row: int) -> ImageSample:
        image = decode_image(self.store.image(row), self.store.where(row))
        return ImageSample(self.transform.evaluate(image), row)


class CaptionSamples(Dataset[CaptionSample]):
    """All captions of a store in the given languages, sorted by language, then by image."""

    def __init__(self, store: Store, languages: Sequence[str]) -> None:
        self.store = store
        self.languages = tuple(languages)
        by_language: list[list[CaptionSample]] = [[] for _ in languages]
        for row in range(len(store)):
            captions = store.captions(row)
            for index, language in enumerate(languages):
                for number, text in enumerate(captions.get(language, ())):
                    by_language[index].append(CaptionSample(text, row, index, number))
        self.samples = [sample for samples in by_language for sample in samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> CaptionSample:
        return self.samples[index]
