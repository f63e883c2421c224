"""The records and batches that travel through the package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class ImageCaptions:
    """One image and its captions by language: what every source yields.

    Attributes:
        image_id: Identity of the image; equal ids are the same image, in every split and language.
        image: Path of the encoded image file, or its bytes.
        captions: Language (ISO 639-1) to captions; a language without a caption is absent, never an empty tuple.
        where: Where the record comes from (``file:line``), for error messages.
        blank_captions: Places of captions that had nothing to read and were left out.
    """

    image_id: str
    image: Path | bytes
    captions: Mapping[str, tuple[str, ...]]
    where: str
    blank_captions: tuple[str, ...] = ()


class Batch(NamedTuple):
    """A training batch: B images and one caption of each in K languages (L tokens, padded to the longest)."""

    images: Tensor  # (B, 3, H, W) float, normalised; uint8 on the way to the device
    image_ids: Tensor  # (B,) int64, equal ids are the same image
    input_ids: Tensor  # (B, K, L) int64
    attention_mask: Tensor  # (B, K, L) bool, True for tokens
    caption_mask: Tensor  # (B, K) bool, False where an image has no caption in the language
    languages: tuple[str, ...]  # K


class ImageBatch(NamedTuple):
    """An evaluation batch of images, each of them once."""

    images: Tensor  # (B, 3, H, W) float, normalised; uint8 on the way to the device
    image_ids: Tensor  # (B,) int64


class CaptionBatch(NamedTuple):
    """An evaluation batch of captions; any number per image and language."""

    input_ids: Tensor  # (N, L) int64
    attention_mask: Tensor  # (N, L) bool, True for tokens
    image_ids: Tensor  # (N,) int64, the image that each caption describes
    languages: Tensor  # (N,) int64, index into the data module's languages
    caption_index: Tensor  # (N,) int64, number of the caption within its image and language
