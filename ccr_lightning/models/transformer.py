"""Post-norm transformer layers as in XLM-R: bidirectional, with cross-attention whose keys and values can be kept."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccr_lightning.errors import CCRError
from ccr_lightning.functional.places import is_awaited, true_places

_MOST_LAYERS = 1000


class KeysValues(NamedTuple):
    """What an attention layer looks at: S tokens, split into H heads of width C / H."""

    keys: Tensor  # (N, H, S, C / H)
    values: Tensor  # (N, H, S, C / H)


def init_parameters(module: nn.Module, hidden_size: int) -> None:
    """Gives a module, and all in it, the initial parameters of XLM-R-large, scaled to another width than its 1024.

    Embeddings are N(0, 0.02) and biases 0. Weights of linear layers are N(0, 0.02) at width 1024 and wider at smaller
    widths, so that a layer adds to its input as much as there: with 0.02 at a width of 128 so little of what
    cross-attention reads in an image reaches the matching head that it stays at chance for most of a short training.

    Args:
        module: Changed in place.
        hidden_size: Its width C.
    """
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.02)
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.02 * math.sqrt(1024 / hidden_size))
            nn.init.zeros_(part.bias)


def check_sizes(**sizes: int) -> None:
    """Checks settings that count something.

    Raises:
        CCRError: If one is below 1; it names the setting.

    Example:
        >>> check_sizes(hidden_size=128, heads=0)
        Traceback (most recent call last):
        ...
        ccr_lightning.errors.CCRError: heads=0 is out of range: choose 1 or more.
    """
    for name, size in sizes.items():
        if size < 1:
            raise CCRError(f"{name}={size} is out of range: choose 1 or more.")


def check_layers(layers: int, least: int) -> None:
    """Checks a number of layers; damaged settings may ask for more than can ever be made.

    Raises:
        CCRError: If it is out of range.
    """
    if not least <= layers <= _MOST_LAYERS:
        raise CCRError(f"layers={layers} is out of range: choose {least} to {_MOST_LAYERS:,}.")


def check_dropout(dropout: float) -> None:
    """Checks a dropout probability.

    Raises:
        CCRError: If it is not in [0, 1].
    """
    if not 0 <= dropout <= 1:
        raise CCRError(f"dropout={dropout} is out of range: choose a probability from 0 to 1.")


class Packing:
    """Where the tokens of N padded captions of length L lie: layers compute on the T tokens alone, without padding.

    Captions differ in length so much that padding would be most of the work; only attention needs the padded form.
    The first position always counts as a token. It is part of every caption, so this changes nothing but rows of
    padding only (a caption that is missing), which would otherwise have nothing to look at and become NaN.

    Args:
        attention_mask: (N, L) bool, True for tokens.
        most_tokens: At least as many as there are tokens, the first position of each caption among them. With it
            nothing waits for a GPU to count them: what is more than there are is computed in vain. A CPU counts, and
            computes the tokens alone.

    Attributes:
        attendable: (N, 1, 1, L) bool, True where attention may look.

    Raises:
        CCRError: If the mask is not boolean or not (N, L), or, on a CPU, if there are more than ``most_tokens``.

    Example:
        >>> packing = Packing(torch.tensor([[True, True, False], [True, False, False]]))
        >>> packed = packing.pack(torch.arange(6.0).view(2, 3, 1))
        >>> packed.tolist(), packing.pad(packed).squeeze(2).tolist()
        ([[0.0], [1.0], [3.0]], [[0.0, 1.0, 0.0], [3.0, 0.0, 0.0]])
    """

    def __init__(self, attention_mask: Tensor, most_tokens: int | None = None) -> None:
        if attention_mask.dtype != torch.bool or attention_mask.ndim != 2:
            raise CCRError(
                f"attention_mask is {attention_mask.dtype} of shape {tuple(attention_mask.shape)}: "
                "pass torch.bool of shape (N, L), True for tokens."
            )
        mask = attention_mask.clone()
        mask[:, 0] = True
        self._shape = mask.shape
        self._cells = true_places(mask, most_tokens)
        # What is computed in vain is read from any cell, and written to one beyond the last.
        self._is_bound = most_tokens is not None and is_awaited(mask.device)
        self._read = self._cells.clamp(max=mask.numel() - 1) if self._is_bound else self._cells
        self.attendable = mask[:, None, None, :]

    @property
    def starts(self) -> Tensor:
        """Where among the T tokens each caption begins, (N,)."""
        lengths = self.attendable.flatten(1).sum(1)
        return lengths.cumsum(0) - lengths

    @property
    def of_first(self) -> Packing:
        """The packing of the first tokens alone, one of each caption."""
        return Packing(torch.ones(self._shape[0], 1, dtype=torch.bool, device=self._cells.device))

    def pack(self, padded: Tensor) -> Tensor:
        """Takes the tokens (T, ...) out of (N, L, ...)."""
        return padded.flatten(0, 1)[self._read]

    def pad(self, packed: Tensor) -> Tensor:
        """Puts tokens (T, C) back to their places in (N, L, C), with zeros between them."""
        n_cells = math.prod(self._shape)
        padded = packed.new_zeros(n_cells + self._is_bound, packed.shape[1]).index_copy(0, self._cells, packed)
        return (padded[:n_cells] if self._is_bound else padded).view(*self._shape, -1)


class Attention(nn.Module):
    """Multi-head attention, then dropout, residual connection and layer normalisation.

    It is bidirectional. The keys and values come from the token states themselves (:meth:`attend_self`) or from other
    tokens, which may have another width and whose :meth:`keys_values` can be kept.

    Args:
        hidden_size: Width C of the token states.
        heads: Number of heads H, a divisor of C.
        context_size: Width of the tokens that are looked at; C if absent.
        dropout: Probability, for the attention weights and for the output.

    Raises:
        CCRError: If C is not a multiple of H, or a setting is out of range.

    Example:
        >>> attention = Attention(8, heads=2, context_size=6)
        >>> images = attention.keys_values(torch.randn(3, 5, 6))
        >>> packing = Packing(torch.ones(3, 4, dtype=torch.bool))
        >>> attention(torch.randn(12, 8), packing, images).shape  # the 12 tokens of three captions, each at its image
        torch.Size([12, 8])
    """

    def __init__(self, hidden_size: int, heads: int, context_size: int | None = None, dropout: float = 0.1) -> None:
        super().__init__()
        check_sizes(hidden_size=hidden_size, heads=heads)
        check_dropout(dropout)
        if hidden_size % heads:
            raise CCRError(f"hidden_size={hidden_size} cannot be split into {heads} heads: choose a divisor of it.")
        self.heads = heads
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(context_size or hidden_size, hidden_size)
        self.value = nn.Linear(context_size or hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(hidden_size)

    def _split_heads(self, states: Tensor) -> Tensor:
        return states.view(*states.shape[:2], self.heads, -1).transpose(1, 2)

    def keys_values(self, context: Tensor) -> KeysValues:
        """Computes keys and values of the tokens that are looked at, (N, S, context_size)."""
        return KeysValues(self._split_heads(self.key(context)), self._split_heads(self.value(context)))

    def attend_self(self, states: Tensor, packing: Packing) -> Tensor:
        """Lets each caption's tokens look at one another, (T, C) to (T, C)."""
        attended: Tensor = self(states, packing, self._own_keys_values(states, packing), packing.attendable)
        return attended

    def attend_self_first(self, states: Tensor, packing: Packing) -> Tensor:
        """The first token of each caption only, (T, C) to (N, C): what :meth:`attend_self` makes of it."""
        attended: Tensor = self(
            states[packing.starts], packing.of_first, self._own_keys_values(states, packing), packing.attendable
        )
        return attended

    def _own_keys_values(self, states: Tensor, packing: Packing) -> KeysValues:
        keys, values = packing.pad(self.key(states)), packing.pad(self.value(states))
        return KeysValues(self._split_heads(keys), self._split_heads(values))

    def forward(self, states: Tensor, packing: Packing, keys_values: KeysValues, mask: Tensor | None = None) -> Tensor:
        """Attends, and adds the result to the token states.

        Args:
            states: (T, C), the tokens of N captions.
            packing: Where they lie.
            keys_values: Of N rows.
            mask: Bool, broadcastable to (N, H, L, S), True where to look; absent: everywhere.

        Returns:
            (T, C).
        """
        queries = self._split_heads(packing.pad(self.query(states)))
        attended = F.scaled_dot_product_attention(
            queries,
            keys_values.keys,
            keys_values.values,
            mask,
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        attended = packing.pack(attended.transpose(1, 2).flatten(2))
        output: Tensor = self.norm(states + self.dropout(self.output(attended)))
        return output


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, then dropout, residual connection and layer normalisation.

    Args:
        hidden_size: Width C of the token states.
        feed_forward_size: Width between the two linear layers.
        dropout: Probability, for the output.

    Raises:
        CCRError: If a setting is out of range.

    Example:
        >>> FeedForward(8, feed_forward_size=32)(torch.randn(3, 8)).shape
        torch.Size([3, 8])
    """

    def __init__(self, hidden_size: int, feed_forward_size: int, dropout: float = 0.1) -> None:
        super().__init__()
        check_sizes(feed_forward_size=feed_forward_size)
        check_dropout(dropout)
        self.intermediate = nn.Linear(hidden_size, feed_forward_size)
        self.output = nn.Linear(feed_forward_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, states: Tensor) -> Tensor:
        """Transforms each token, (..., C) to (..., C)."""
        output: Tensor = self.norm(states + self.dropout(self.output(F.gelu(self.intermediate(states)))))
        return output


class TransformerLayer(nn.Module):
    """Self-attention, then feed-forward.

    Example:
        >>> layer = TransformerLayer(8, heads=2, feed_forward_size=32)
        >>> layer(torch.randn(12, 8), Packing(torch.ones(3, 4, dtype=torch.bool))).shape
        torch.Size([12, 8])
    """

    def __init__(self, hidden_size: int, heads: int, feed_forward_size: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.attention = Attention(hidden_size, heads, dropout=dropout)
        self.feed_forward = FeedForward(hidden_size, feed_forward_size, dropout)

    def forward(self, states: Tensor, packing: Packing) -> Tensor:
        """Transforms the packed tokens of captions, (T, C) to (T, C)."""
        output: Tensor = self.feed_forward(self.attention.attend_self(states, packing))
        return output


class CrossTransformerLayer(nn.Module):
    """Self-attention, cross-attention to a context, then feed-forward.

    Example:
        >>> layer = CrossTransformerLayer(8, heads=2, feed_forward_size=32, context_size=6)
        >>> states, packing = torch.randn(12, 8), Packing(torch.ones(3, 4, dtype=torch.bool))
        >>> context = torch.randn(3, 5, 6)
        >>> kept = layer.eval().cross_attention.keys_values(context)
        >>> torch.testing.assert_close(layer(states, packing, context), layer(states, packing, kept))
    """

    def __init__(
        self, hidden_size: int, heads: int, feed_forward_size: int, context_size: int, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.attention = Attention(hidden_size, heads, dropout=dropout)
        self.cross_attention = Attention(hidden_size, heads, context_size, dropout)
        self.feed_forward = FeedForward(hidden_size, feed_forward_size, dropout)

    def forward(self, states: Tensor, packing: Packing, context: Tensor | KeysValues) -> Tensor:
        """Transforms the packed tokens of N captions, (T, C) to (T, C).

        Args:
            states: (T, C).
            packing: Where they lie.
            context: (N, S, context_size), or its keys and values where they have been kept.
        """
        if not isinstance(context, KeysValues):
            context = self.cross_attention.keys_values(context)
        return self.look(self.attention.attend_self(states, packing), packing, context)

    def look(self, attended: Tensor, packing: Packing, context: KeysValues) -> Tensor:
        """The part of the layer that comes after self-attention."""
        output: Tensor = self.feed_forward(self.cross_attention(attended, packing, context))
        return output
