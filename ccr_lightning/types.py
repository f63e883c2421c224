"""The records and batches that travel through the package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Counts: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]


class MachineTranslation(str):
    """A caption that a machine translated: a text that remembers its origin.

    Args:
        text: The caption.
        translated_by: The model.
        translated_on: The day, as ``2026-11-25``.

    Example:
        >>> caption = MachineTranslation("Ein Hund.", "facebook/m2m100_418M", "2026-11-25")
        >>> caption == "Ein Hund.", caption.translated_by
        (True, 'facebook/m2m100_418M')
    """

    translated_by: str
    translated_on: str

    def __new__(cls, text: str, translated_by: str, translated_on: str) -> MachineTranslation:
        """Make the text, and note its origin."""
        caption = super().__new__(cls, text)
        caption.translated_by, caption.translated_on = translated_by, translated_on
        return caption

    def __reduce__(self) -> tuple[type[MachineTranslation], tuple[str, str, str]]:
        return MachineTranslation, (str(self), self.translated_by, self.translated_on)


@dataclass(frozen=True, slots=True)
class ImageCaptions:
    """One image and its captions by language: what every source yields.

    Attributes:
        image_id: Identity of the image; equal ids are the same image, in every split and language.
        image: Path of the encoded image file, or its bytes.
        captions: Language (ISO 639-1) to captions; a language without a caption is absent, never an empty tuple. One
            that is known to be written by a machine is a :class:`MachineTranslation`.
        where: Where the record comes from (``file:line``), for error messages.
        blank_captions: Places of captions that had nothing to read and were left out.
        image_damage: What is damaged in the image although it can be decoded, if somebody looked; else empty.
    """

    image_id: str
    image: Path | bytes
    captions: Mapping[str, tuple[str, ...]]
    where: str
    blank_captions: tuple[str, ...] = ()
    image_damage: str = ""


class Batch(NamedTuple):
    """A training batch: B images and one caption of each in K languages (L tokens, padded to the longest)."""

    images: Tensor  # (B, 3, H, W) float, normalised; uint8 on the way to the device
    image_ids: Tensor  # (B,) int64, equal ids are the same image
    input_ids: Tensor  # (B, K, L) int64
    attention_mask: Tensor  # (B, K, L) bool, True for tokens
    caption_mask: Tensor  # (B, K) bool, False where an image has no caption in the language
    languages: tuple[str, ...]  # K
    most_tokens: Counts  # (B, K) from 1, no caption has more tokens; known to the host, so that nothing waits for a GPU


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
