"""The retriever: image encoder, text encoder, what projects both into one space, and fusion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ccr_lightning.errors import CCRError
from ccr_lightning.libraries import reason
from ccr_lightning.memory import refuse_out_of_memory
from ccr_lightning.models.dual_encoder import MAX_TEMPERATURE, MIN_TEMPERATURE, DualEncoder, Encoded, normalised
from ccr_lightning.models.fusion import FusionEncoder, MaskedLMHead, MatchingHead
from ccr_lightning.models.mismatch import mismatch
from ccr_lightning.models.pretrained import (
    check_retriever_config,
    read_config,
    read_weights,
    retriever_folder,
    write_pretrained,
)
from ccr_lightning.models.text import TextEncoder
from ccr_lightning.models.transformer import check_sizes, init_parameters
from ccr_lightning.models.vision import ImageEncoder
from ccr_lightning.models.xlm_r import start_from_xlm_r

_BACKBONE = "image_encoder.backbone."


class Retriever(DualEncoder):
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
        text_weights: Folder or hub name of an XLM-R-like model whose layers the text and fusion encoders start from,
            see :func:`~ccr_lightning.models.xlm_r.start_from_xlm_r`; None for random ones.

    Raises:
        CCRError: If the encoders' widths are not those that ``fusion`` expects, or a setting is out of range.

    Example:
        >>> import torch
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
        text_weights: str | None = None,
    ) -> None:
        super().__init__(log_logit_scale=-math.log(temperature) if temperature > 0 else math.nan)
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
        self.fusion = fusion
        if fusion is not None:
            self.matching_head = MatchingHead(width)
            self.masked_lm_head = MaskedLMHead(width, text_encoder.vocab_size)
        self._from_xlm_r = set() if text_weights is None else start_from_xlm_r(self, text_weights)

    @property
    def settings(self) -> dict[str, Any]:
        """What :meth:`from_settings` makes such a retriever of: plain types, and nothing of its weights."""
        return {
            "image_encoder": self.image_encoder.settings,
            "text_encoder": self.text_encoder.settings,
            "fusion": None if self.fusion is None else self.fusion.settings,
            "embed_dim": self.image_projection.out_features,
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Retriever:
        """Makes a retriever with random weights.

        Args:
            settings: The arguments of ``image_encoder``, ``text_encoder`` and ``fusion`` (or None); ``embed_dim``.

        Raises:
            CCRError: They do not fit together, or one is out of range.
        """
        fusion = settings["fusion"]
        return cls(
            ImageEncoder(**settings["image_encoder"]),
            TextEncoder(**settings["text_encoder"]),
            None if fusion is None else FusionEncoder(**fusion),
            settings["embed_dim"],
        )

    def save_pretrained(self, folder: str | Path, results: Mapping[str, Any] | None = None) -> None:
        """Saves the retriever with its tokeniser and transform, for :meth:`from_pretrained`, and with a card.

        Args:
            folder: Made if need be; a retriever that is there is replaced. It holds ``model.safetensors``,
                ``config.json`` with a sha256 of each file, the files of the tokeniser and ``README.md``.
            results: The document of a test of it, as in ``results.json``, for the card.

        Raises:
            CCRError: If the tokeniser or the transform is not known, or a file cannot be written.
        """
        if self.tokenizer is None or self.transform is None:
            raise CCRError(
                "this retriever does not know what prepares its inputs: set its tokenizer and transform, then save it."
            )
        write_pretrained(Path(folder), self.settings, self.state_dict(), self.tokenizer, self.transform, results)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> Retriever:
        """Loads what :meth:`save_pretrained` saved: the same numbers, in evaluation mode.

        Args:
            name_or_path: The folder, or a name on the Hugging Face hub.

        Raises:
            CCRError: If there is none, a file is not as it was saved, or weights are missing, too many or of another
                size.
        """
        from ccr_lightning.data.tokenizer import CaptionTokenizer
        from ccr_lightning.data.transforms import ImageTransform

        folder = retriever_folder(name_or_path)
        config = read_config(folder)
        check_retriever_config(folder, config)
        try:
            retriever = cls.from_settings(config["retriever"])
            retriever.tokenizer = CaptionTokenizer(str(folder), **config["tokenizer"])
            retriever.transform = ImageTransform(**config["transform"])
        except CCRError:
            raise
        except Exception as error:  # settings of any kind and size, which any part of the model may refuse
            refuse_out_of_memory(error, folder)
            raise CCRError(
                f"{folder}: config.json has settings that no retriever has ({reason(error)}); save it again."
            ) from error
        weights = read_weights(folder)
        if differs := mismatch(retriever.state_dict(), weights):
            raise CCRError(f"{folder}: the weights are not those of config.json: {differs}.")
        retriever.load_state_dict(weights)
        return retriever.eval()

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.text_encoder.vocab_size

    @property
    def max_positions(self) -> int:
        """Most tokens of a caption."""
        return self.text_encoder.max_positions

    def encode_image(self, images: Tensor) -> Encoded:
        """Encodes normalised images (B, 3, H, W) to embeddings (B, D) and states (B, 1 + P, width)."""
        states = self.image_encoder(images)
        return Encoded(normalised(self.image_projection(states[:, 0])), states)

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
        embeds = normalised(self.text_projection(states[:, 0]))
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

        Empty if nothing is pretrained.
        """
        names = {name for name, _ in self.named_parameters()}
        has_backbone = self.image_encoder.pretrained
        pretrained = self._from_xlm_r | {name for name in names if has_backbone and name.startswith(_BACKBONE)}
        return names - pretrained if pretrained else set()

    def towers(self) -> list[list[nn.Module]]:
        """The layers of each encoder, each of which is only used by calling it in training."""
        fusion = () if self.fusion is None else self.fusion.layers
        return [self.image_encoder.blocks, list(self.text_encoder.layers), list(fusion)]

    def projections(self) -> list[nn.Module]:
        """What makes embeddings of the encoders' first states."""
        return [self.image_projection, self.text_projection]

    def _need_fusion(self) -> FusionEncoder:
        if self.fusion is None:
            raise CCRError("this retriever has no fusion encoder, which matching and masked-LM need: give it a fusion.")
        return self.fusion
