"""The retriever: image encoder, text encoder, what projects both into one space, and fusion."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccr_lightning.errors import CCRError
from ccr_lightning.models.fusion import FusionEncoder, MaskedLMHead, MatchingHead
from ccr_lightning.models.text import TextEncoder
from ccr_lightning.models.transformer import check_sizes, init_parameters
from ccr_lightning.models.vision import ImageEncoder

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.001, 0.5


class Encoded(NamedTuple):
    """Images or captions, as embeddings and as token states."""

    embeds: Tensor  # (..., D), L2-normalised, at least float32
    states: Tensor  # (..., tokens, width of the encoder)


def _normalised(projected: Tensor) -> Tensor:
    return F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=-1)


class Retriever(nn.Module):
    """Embeds images and captions in one space and, with fusion, scores how well a caption matches an image.

    The model of "1-to-K contrastive learning" (Nie et al., KDD 2024): at its sizes 522 million parameters, not counting
    the 1.3 million of the masked-LM head.

    Args:
        image_encoder: Images to states of its width.
        text_encoder: Captions to states of its width.
        fusion: Reads captions while looking at images, for matching, masked language modelling and re-ranking;
            None for a plain dual encoder.
        embed_dim: Width D of the embeddings.
        temperature: The contrastive loss' at the start, in [0.001, 0.5]; it is learned.

    Attributes:
        log_logit_scale: The stored parameter, (1,), the logarithm of 1 / temperature; nothing shards a scalar.

    Raises:
        CCRError: If the encoders' widths are not those that ``fusion`` expects, or a setting is out of range.

    Example:
        >>> retriever = Retriever(
        ...     ImageEncoder("test_convnext", image_size=64),
        ...     TextEncoder(vocab_size=50, hidden_size=8, heads=2, feed_forward_size=32),
        ...     FusionEncoder(8, layers=1, heads=2, feed_forward_size=32, image_width=64),
        ...     embed_dim=16,
        ... )
        >>> images, input_ids = torch.randn(2, 3, 64, 64), torch.randint(3, 50, (2, 3, 7))  # 3 languages, 7 tokens
        >>> attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
        >>> image, text = retriever.encode_image(images), retriever.encode_text(input_ids, attention_mask)
        >>> image.embeds.shape, text.embeds.shape
        (torch.Size([2, 16]), torch.Size([2, 3, 16]))
        >>> fused_states = retriever.fuse(text.states[:, 0], attention_mask[:, 0], image.states)
        >>> retriever.match_logits(fused_states).shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        image_encoder: ImageEncoder,
        text_encoder: TextEncoder,
        fusion: FusionEncoder | None = None,
        embed_dim: int = 256,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        if not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
            raise CCRError(
                f"temperature={temperature} is out of range: choose from {MIN_TEMPERATURE} to {MAX_TEMPERATURE}."
            )
        check_sizes(embed_dim=embed_dim)
        width = text_encoder.width
        if fusion is not None and (fusion.width, fusion.image_width) != (width, image_encoder.width):
            raise CCRError(
                f"fusion expects texts of width {fusion.width} and images of width {fusion.image_width} and gets "
                f"{width} and {image_encoder.width}: set its hidden_size={width} and image_width={image_encoder.width}."
            )
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.image_projection = nn.Linear(image_encoder.width, embed_dim)
        self.text_projection = nn.Linear(width, embed_dim)
        for projection in (self.image_projection, self.text_projection):
            init_parameters(projection, projection.in_features)
        self.log_logit_scale = nn.Parameter(torch.tensor([-math.log(temperature)]))
        self.fusion = fusion
        if fusion is not None:
            self.matching_head = MatchingHead(width)
            self.masked_lm_head = MaskedLMHead(width, text_encoder.vocab_size)

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

    def encode_image(self, images: Tensor) -> Encoded:
        """Encodes normalised images (B, 3, H, W) to embeddings (B, D) and states (B, 1 + P, width)."""
        states = self.image_encoder(images)
        return Encoded(_normalised(self.image_projection(states[:, 0])), states)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor, most_tokens: int | None = None) -> Encoded:
        """Encodes captions, (N, L) or one per language, (B, K, L).

        Args:
            input_ids: (..., L) int64.
            attention_mask: (..., L) bool, True for tokens. A row without any (no such caption) gets an embedding that
                means nothing, but is finite.
            most_tokens: A bound on the number of tokens, which spares a GPU the wait for their count.

        Returns:
            Embeddings (..., D) and states (..., L, width).

        Raises:
            CCRError: If the captions are longer than the text encoder's ``max_positions``, or the mask does not fit.
        """
        states = self.text_encoder(input_ids.flatten(0, -2), attention_mask.flatten(0, -2), most_tokens)
        embeds = _normalised(self.text_projection(states[:, 0]))
        return Encoded(
            embeds.view(*input_ids.shape[:-1], embeds.shape[-1]), states.view(*input_ids.shape, states.shape[-1])
        )

    def fuse(
        self, text_states: Tensor, attention_mask: Tensor, image_states: Tensor, most_tokens: int | None = None
    ) -> Tensor:
        """Reads N captions while looking at N images.

        Args:
            text_states: (N, L, C), from :meth:`encode_text`.
            attention_mask: (N, L) bool.
            image_states: (N, 1 + P, image width), from :meth:`encode_image`.
            most_tokens: As for :meth:`encode_text`.

        Returns:
            Fused states (N, L, C).

        Raises:
            CCRError: If the retriever has no fusion encoder.
        """
        fused: Tensor = self._need_fusion()(text_states, attention_mask, image_states, most_tokens)
        return fused

    def match_logits(self, fused_states: Tensor) -> Tensor:
        """Scores fused states (N, L, C): logits (N, 2), class 1 is a match.

        Raises:
            CCRError: If the retriever has no fusion encoder.
        """
        self._need_fusion()
        logits: Tensor = self.matching_head(fused_states)
        return logits

    def masked_lm_logits(self, fused_states: Tensor) -> Tensor:
        """Predicts tokens from fused states (..., C): logits (..., V). Choose the masked positions first.

        Raises:
            CCRError: If the retriever has no fusion encoder.
        """
        self._need_fusion()
        logits: Tensor = self.masked_lm_head(fused_states, self.text_encoder.word_embeddings.weight)
        return logits

    def new_parameters(self) -> set[str]:
        """Names of the parameters that start at random while others are pretrained: they learn at a doubled rate.

        All but the backbone's if the image encoder is pretrained; none if nothing is.
        """
        if not self.image_encoder.pretrained:
            return set()
        return {name for name, _ in self.named_parameters() if not name.startswith("image_encoder.backbone.")}

    def layers(self) -> list[nn.Module]:
        """The layers of all encoders, each of which is only used by calling it in training."""
        fusion = () if self.fusion is None else self.fusion.layers
        return [*self.image_encoder.blocks, *self.text_encoder.layers, *fusion]

    def _need_fusion(self) -> FusionEncoder:
        if self.fusion is None:
            raise CCRError("this retriever has no fusion encoder, which matching and masked-LM need: give it a fusion.")
        return self.fusion
