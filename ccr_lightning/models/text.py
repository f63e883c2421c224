"""The text encoder: captions to token states."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ccr_lightning.errors import CCRError
from ccr_lightning.models.transformer import (
    Packing,
    TransformerLayer,
    check_dropout,
    check_layers,
    check_sizes,
    init_parameters,
)


class TextEncoder(nn.Module):
    """A post-norm transformer encoder, XLM-R without its token types, whose positions start at 0.

    "1-to-K contrastive learning" (Nie et al., KDD 2024) takes six layers of width 1024 with 16 heads and a
    feed-forward width of 4096, a vocabulary of 250,002 and 514 positions. The defaults are a small model.

    Args:
        vocab_size: Number of token ids.
        hidden_size: Width C of the token states.
        layers: Number of layers.
        heads: Attention heads per layer, a divisor of ``hidden_size``.
        feed_forward_size: Width inside the feed-forward part.
        max_positions: Most tokens of a caption.
        dropout: Probability, for embeddings, attention weights and the output of each part of a layer.

    Attributes:
        width: ``hidden_size``.
        vocab_size: Number of token ids.
        max_positions: Most tokens of a caption.
        settings: Arguments that make such an encoder anew.

    Raises:
        CCRError: If ``heads`` does not divide ``hidden_size``, or a setting is out of range.

    Example:
        >>> import torch
        >>> encoder = TextEncoder(vocab_size=50, hidden_size=8, heads=2, feed_forward_size=32)
        >>> encoder(torch.tensor([[0, 11, 2], [0, 2, 1]]), torch.tensor([[True] * 3, [True, True, False]])).shape
        torch.Size([2, 3, 8])
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 128,
        layers: int = 2,
        heads: int = 4,
        feed_forward_size: int = 512,
        max_positions: int = 64,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_sizes(vocab_size=vocab_size, hidden_size=hidden_size, max_positions=max_positions)
        check_dropout(dropout)
        check_layers(layers, least=0)
        self.settings: dict[str, int | float] = {
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "layers": layers,
            "heads": heads,
            "feed_forward_size": feed_forward_size,
            "max_positions": max_positions,
            "dropout": dropout,
        }
        self.width = hidden_size
        self.vocab_size = vocab_size
        self.max_positions = max_positions
        self.word_embeddings = nn.Embedding(vocab_size, hidden_size)
        self.position_embeddings = nn.Embedding(max_positions, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(hidden_size, heads, feed_forward_size, dropout) for _ in range(layers)
        )
        init_parameters(self, hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, most_tokens: int | None = None) -> Tensor:
        """Encodes captions, each with its first token at position 0 and its padding at the end.

        Args:
            input_ids: (N, L) int64.
            attention_mask: (N, L) bool, True for tokens. Rows without any are allowed.
            most_tokens: A bound on their number, as for :class:`~ccr_lightning.models.transformer.Packing`.

        Returns:
            Token states (N, L, C), zero at padding.

        Raises:
            CCRError: If the captions are longer than ``max_positions``, or the mask does not fit.
        """
        if input_ids.ndim != 2 or attention_mask.shape != input_ids.shape:
            raise CCRError(
                f"input_ids {tuple(input_ids.shape)} and attention_mask {tuple(attention_mask.shape)} do not fit: "
                "pass both as (N, L)."
            )
        length = input_ids.shape[1]
        if length > self.max_positions:
            raise CCRError(
                f"a caption has {length} tokens and the text encoder {self.max_positions} positions: "
                "truncate the captions or raise max_positions."
            )
        packing = Packing(attention_mask, most_tokens)
        positions = torch.arange(length, device=input_ids.device).expand_as(input_ids)
        words, places = packing.pack(input_ids), packing.pack(positions)
        states: Tensor = self.dropout(self.norm(self.word_embeddings(words) + self.position_embeddings(places)))
        for layer in self.layers:
            states = layer(states, packing)
        return packing.pad(states)
