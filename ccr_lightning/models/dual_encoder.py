"""What every model here is: images and captions in one space, and the temperature that the loss divides by."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from ccr_lightning.data.tokenizer import CaptionTokenizer
    from ccr_lightning.data.transforms import ImageTransform
    from ccr_lightning.models.fusion import FusionEncoder

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.001, 0.5


class Encoded(NamedTuple):
    """Images or captions, as embeddings and as token states."""

    embeds: Tensor  # (..., D), L2-normalised, at least float32
    states: Tensor  # (..., tokens, width of the encoder)


def normalised(projected: Tensor) -> Tensor:
    """L2-normalises vectors (..., D), at least in float32."""
    return F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=-1)


class DualEncoder(nn.Module, ABC):
    """Embeds images and captions in one space.

    Attributes:
        log_logit_scale: The stored parameter, (1,), the logarithm of 1 / temperature; nothing shards a scalar.
        logit_bias: What a sigmoid loss adds to all logits, (1,); None for models without.
        fusion: What scores pairs of image and caption beyond their embeddings; None for a plain dual encoder.
        tokenizer: What makes token ids of captions for it, if known.
        transform: What makes pixels of pictures for it, if known.

    Args:
        log_logit_scale: The logarithm of 1 / temperature at the start.
        logit_bias: The bias at the start, for models that have one.
    """

    def __init__(self, log_logit_scale: float, logit_bias: float | None = None) -> None:
        super().__init__()
        self.log_logit_scale = nn.Parameter(torch.tensor([log_logit_scale]))
        self.logit_bias = None if logit_bias is None else nn.Parameter(torch.tensor([logit_bias]))
        self.fusion: FusionEncoder | None = None
        self.tokenizer: CaptionTokenizer | None = None
        self.transform: ImageTransform | None = None

    @property
    def logit_scale(self) -> Tensor:
        """1 / temperature, a scalar that the loss differentiates."""
        return self.log_logit_scale.exp().squeeze()

    @property
    def temperature(self) -> Tensor:
        """The current temperature, a scalar without gradient."""
        return self.log_logit_scale.detach().neg().exp().squeeze()

    @torch.no_grad()
    def clamp_temperature_(self) -> None:
        """Puts the temperature back into [0.001, 0.5], for use after each optimiser step."""
        self.log_logit_scale.clamp_(-math.log(MAX_TEMPERATURE), -math.log(MIN_TEMPERATURE))

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of token ids."""

    @property
    @abstractmethod
    def max_positions(self) -> int:
        """Most tokens of a caption."""

    @abstractmethod
    def encode_image(self, images: Tensor) -> Encoded:
        """Encodes what ``transform`` makes of B pictures: embeddings (B, D)."""

    @abstractmethod
    def encode_text(self, input_ids: Tensor, attention_mask: Tensor, most_tokens: int | None = None) -> Encoded:
        """Encodes what ``tokenizer`` makes of captions, (N, L) or one per language, (B, K, L): embeddings (..., D).

        Args:
            input_ids: (..., L) int64.
            attention_mask: (..., L) bool, True for tokens. A row without any (no such caption) gets an embedding that
                means nothing, but is finite.
            most_tokens: A bound on the number of tokens, which may spare a GPU the wait for their count.
        """

    @abstractmethod
    def save_pretrained(self, folder: str | Path, results: Mapping[str, Any] | None = None) -> None:
        """Saves the model with what prepares its inputs, for ``from_pretrained``, and with a card.

        Args:
            folder: Made if need be.
            results: The document of a test of it, as in ``results.json``, for the card.

        Raises:
            CCRError: If a file cannot be written.
        """

    def save_settings(self, folder: Path) -> None:
        """Saves what makes such a model anew but for its weights, where a configuration does not say all of it.

        Args:
            folder: Made if there is something to save; it is then a name for the model.

        Raises:
            CCRError: If a file cannot be written.
        """

    def new_parameters(self) -> set[str]:
        """Names of the parameters that start at random while others are pretrained: they learn at a doubled rate."""
        return set()

    @abstractmethod
    def towers(self) -> Sequence[Sequence[nn.Module]]:
        """The layers of each encoder, from its input on; each is only used by calling it in training."""

    @abstractmethod
    def projections(self) -> Sequence[nn.Module | nn.Parameter]:
        """What makes embeddings of the encoders' last states."""

    def layers(self) -> list[nn.Module]:
        """The layers of all encoders."""
        return [layer for tower in self.towers() for layer in tower]
