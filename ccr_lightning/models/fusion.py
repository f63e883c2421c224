"""The fusion encoder, which reads a caption while looking at an image, and the heads on top of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccr_lightning.models.transformer import (
    CrossTransformerLayer,
    KeysValues,
    Packing,
    check_layers,
    check_sizes,
    init_parameters,
)


class FusionEncoder(nn.Module):
    """Transformer layers over a caption's token states, with cross-attention to an image's.

    "1-to-K contrastive learning" (Nie et al., KDD 2024) takes six layers of width 1024 with 16 heads and a
    feed-forward width of 4096, over images of width 1024.

    Args:
        hidden_size: Width C of the text states.
        layers: Number of layers.
        heads: Attention heads per layer, a divisor of ``hidden_size``.
        feed_forward_size: Width inside the feed-forward part.
        image_width: Width of the image states.
        dropout: Probability, for attention weights and the output of each part of a layer.

    Attributes:
        width: ``hidden_size``.
        image_width: Width of the image states.
        settings: Arguments that make such an encoder anew.

    Raises:
        CCRError: If ``heads`` does not divide ``hidden_size``, or a setting is out of range.

    Example:
        >>> fusion = FusionEncoder(8, layers=1, heads=2, feed_forward_size=32, image_width=6).eval()
        >>> text_states, mask = torch.randn(3, 4, 8), torch.ones(3, 4, dtype=torch.bool)
        >>> image_states, rows = torch.randn(2, 5, 6), [0, 0, 1]
        >>> fused = fusion(text_states, mask, image_states[rows])
        >>> kept = fusion.keys_values(image_states)  # once per image, whatever the number of captions
        >>> kept = [KeysValues(of.keys[rows], of.values[rows]) for of in kept]
        >>> torch.testing.assert_close(fusion.attend(text_states, mask, kept), fused)
    """

    def __init__(
        self,
        hidden_size: int,
        layers: int,
        heads: int,
        feed_forward_size: int,
        image_width: int,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_layers(layers, least=1)
        check_sizes(image_width=image_width)
        self.settings: dict[str, int | float] = {
            "hidden_size": hidden_size,
            "layers": layers,
            "heads": heads,
            "feed_forward_size": feed_forward_size,
            "image_width": image_width,
            "dropout": dropout,
        }
        self.width = hidden_size
        self.image_width = image_width
        self.layers = nn.ModuleList(
            CrossTransformerLayer(hidden_size, heads, feed_forward_size, image_width, dropout) for _ in range(layers)
        )
        init_parameters(self, hidden_size)

    def keys_values(self, image_states: Tensor) -> list[KeysValues]:
        """Computes what each layer looks at in images, (N, 1 + P, image_width): all that fusion needs of them."""
        layers = cast("list[CrossTransformerLayer]", self.layers)
        return [layer.cross_attention.keys_values(image_states) for layer in layers]

    def attend(
        self,
        text_states: Tensor,
        attention_mask: Tensor,
        image: Sequence[Tensor | KeysValues],
        most_tokens: int | None = None,
    ) -> Tensor:
        """Fuses captions with the :meth:`keys_values` of N images, pair by pair; else as the call."""
        packing = Packing(attention_mask, most_tokens)
        fused = packing.pack(text_states)
        for layer, context in zip(self.layers, image, strict=True):
            fused = layer(fused, packing, context)
        return packing.pad(fused)

    def first_states(
        self,
        text_states: Tensor,
        attention_mask: Tensor,
        caption: Tensor,
        images: Sequence[KeysValues],
        image: Tensor,
    ) -> Tensor:
        """The first fused state of N pairs, all that matching needs of them, in about four fifths of the work.

        What the first layer does before it looks at an image is done once for all pairs of a caption, and the last
        layer computes the first state only.

        Args:
            text_states: (M, L, C), of M captions.
            attention_mask: (M, L) bool, True for tokens.
            caption: (N,) integers, which of them each pair has.
            images: The :meth:`keys_values` of I images.
            image: (N,) integers, which of them each pair has; only in the layer at work they are copied pair by pair.

        Returns:
            (N, C), up to rounding the first states of :meth:`attend`.

        Example:
            >>> fusion = FusionEncoder(8, layers=2, heads=2, feed_forward_size=32, image_width=6).eval()
            >>> text_states, mask = torch.randn(2, 4, 8), torch.ones(2, 4, dtype=torch.bool)
            >>> caption, image, image_states = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), torch.randn(2, 5, 6)
            >>> first = fusion.first_states(text_states, mask, caption, fusion.keys_values(image_states), image)
            >>> fused = fusion(text_states[caption], mask[caption], image_states[image])
            >>> torch.testing.assert_close(first, fused[:, 0])
        """
        layers = cast("list[CrossTransformerLayer]", list(self.layers))

        def of_pairs(number: int) -> KeysValues:
            return KeysValues(images[number].keys[image], images[number].values[image])

        of_captions = Packing(attention_mask)
        attended = layers[0].attention.attend_self(of_captions.pack(text_states), of_captions)
        packing = Packing(attention_mask[caption])
        if len(layers) == 1:
            return layers[0].look(attended[of_captions.starts[caption]], packing.of_first, of_pairs(0))
        states = layers[0].look(packing.pack(of_captions.pad(attended)[caption]), packing, of_pairs(0))
        for number, layer in enumerate(layers[1:-1], 1):
            states = layer(states, packing, of_pairs(number))
        last = layers[-1]
        return last.look(last.attention.attend_self_first(states, packing), packing.of_first, of_pairs(len(layers) - 1))

    def forward(
        self, text_states: Tensor, attention_mask: Tensor, image_states: Tensor, most_tokens: int | None = None
    ) -> Tensor:
        """Fuses N captions with N images, pair by pair.

        Args:
            text_states: (N, L, C).
            attention_mask: (N, L) bool, True for tokens.
            image_states: (N, 1 + P, image_width).
            most_tokens: A bound on the number of tokens, as for :class:`~ccr_lightning.models.transformer.Packing`.

        Returns:
            Fused states (N, L, C), zero at padding.
        """
        return self.attend(text_states, attention_mask, [image_states] * len(self.layers), most_tokens)


class MatchingHead(nn.Module):
    """Scores whether caption and image belong together, from the first fused state.

    Example:
        >>> MatchingHead(8)(torch.randn(3, 4, 8)).shape
        torch.Size([3, 2])
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, 2 * hidden_size)
        self.norm = nn.LayerNorm(2 * hidden_size)
        self.output = nn.Linear(2 * hidden_size, 2)
        init_parameters(self, hidden_size)

    def forward(self, fused_states: Tensor) -> Tensor:
        """Computes logits (N, 2) of fused states (N, L, C); class 1 is a match."""
        logits: Tensor = self.output(F.gelu(self.norm(self.dense(fused_states[:, 0]))))
        return logits


class MaskedLMHead(nn.Module):
    """Predicts tokens from fused states, as XLM-R does: with the word embeddings as output layer.

    Example:
        >>> MaskedLMHead(8, vocab_size=50)(torch.randn(3, 4, 8), torch.randn(50, 8)).shape
        torch.Size([3, 4, 50])
    """

    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        init_parameters(self, hidden_size)

    def forward(self, fused_states: Tensor, word_embeddings: Tensor) -> Tensor:
        """Computes logits (..., V) of states (..., C), with the word embeddings (V, C)."""
        return F.linear(self.norm(F.gelu(self.dense(fused_states))), word_embeddings, self.bias)
