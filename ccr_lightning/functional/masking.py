"""Masked language modelling: which tokens are hidden, and the loss of predicting them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ccr_lightning.errors import CCRError

MAX_MASKED = 12  # tokens of a text, as in the paper
IGNORED = -100  # target of a token that is not to be predicted


class MaskedTokens(NamedTuple):
    """Texts with some of their tokens hidden, and what the model has to find there."""

    input_ids: Tensor  # (N, L) int64
    targets: Tensor  # (N, L) int64, the original token where it is to be predicted, -100 elsewhere


def _shifted(tensor: Tensor, offset: int) -> Tensor:
    """Moves the columns of (N, L) to the right, filling up with zeros."""
    return F.pad(tensor, (offset, 0))[:, : tensor.shape[1]]


def mask_tokens(
    input_ids: Tensor,
    maskable: Tensor,
    *,
    mask_token_id: int,
    vocab_size: int,
    rate: float = 0.4,
    max_masked: int = MAX_MASKED,
    span_probability: float = 0.2,
    generator: torch.Generator | None = None,
) -> MaskedTokens:
    """Chooses the tokens of each text that the model has to predict, and hides them.

    Of n maskable tokens ``min(max_masked, max(1, round(rate * n)))`` are chosen, none if n is 0. Tokens are picked in
    random order until there are enough; with ``span_probability`` a pick takes the next one or two tokens along, as far
    as they follow it without a gap. A chosen token becomes the mask token (80 %), a random token (10 %) or stays as it
    is (10 %); in all three cases it is to be predicted.

    Args:
        input_ids: (N, L) int64.
        maskable: (N, L) bool, False for padding and special tokens.
        mask_token_id: The tokenizer's mask token.
        vocab_size: Random tokens come from ``[0, vocab_size)``.
        rate: Share of the maskable tokens to choose, in (0, 1].
        max_masked: Most tokens to choose per text, at least 1.
        span_probability: Probability that a pick takes a span of two or three tokens (half of it each), in [0, 1].
        generator: Source of the draws, on the device of ``input_ids``.

    Returns:
        New token ids and targets; the inputs stay as they are.

    Raises:
        CCRError: If the shapes differ or if a number is out of its range.

    Example:
        >>> input_ids = torch.tensor([[0, 11, 12, 13, 14, 15, 2]])
        >>> masked = mask_tokens(input_ids, input_ids > 2, mask_token_id=99, vocab_size=100)
        >>> int((masked.targets != -100).sum())  # 40 % of five
        2
    """
    if input_ids.ndim != 2 or maskable.shape != input_ids.shape or maskable.dtype != torch.bool:
        raise CCRError(
            f"maskable is {maskable.dtype} of shape {tuple(maskable.shape)} for input_ids {tuple(input_ids.shape)}: "
            "pass torch.bool of the same shape (N, L)."
        )
    if not (0 < rate <= 1 and 0 <= span_probability <= 1 and max_masked >= 1):
        raise CCRError(
            f"cannot mask with rate={rate}, span_probability={span_probability} and max_masked={max_masked}: "
            "choose 0 < rate <= 1, 0 <= span_probability <= 1 and max_masked >= 1."
        )

    def uniform() -> Tensor:
        return torch.rand(input_ids.shape, generator=generator, device=input_ids.device)

    n_maskable = maskable.sum(1, keepdim=True)
    n_masked = (n_maskable.double() * rate).round().long().clamp(1, max_masked).minimum(n_maskable)

    # Each token gets the time at which it is chosen: that of its own pick, or that of an earlier pick just before it.
    # Three time units per pick keep the tokens of a span in order, so that a count reached within a span cuts its end.
    pick_time = 3 * uniform().argsort(1).argsort(1)
    lot = uniform()
    extra = (lot < span_probability).long() + (lot < span_probability / 2).long()
    time, unbroken = pick_time, maskable
    for offset in (1, 2):
        unbroken = unbroken & _shifted(maskable, offset)
        taken_along = unbroken & (_shifted(extra, offset) >= offset)
        time = torch.where(taken_along, time.minimum(_shifted(pick_time, offset) + offset), time)
    never = 3 * input_ids.shape[1]
    masked = time.masked_fill(~maskable, never).argsort(1).argsort(1) < n_masked

    lot = uniform()
    random_ids = torch.randint(vocab_size, input_ids.shape, generator=generator, device=input_ids.device)
    hidden = torch.where(lot < 0.9, random_ids, input_ids).masked_fill(lot < 0.8, mask_token_id)
    return MaskedTokens(torch.where(masked, hidden, input_ids), input_ids.masked_fill(~masked, IGNORED))


def most_masked(n_texts: int, n_tokens: int, rate: float = 0.4, max_masked: int = MAX_MASKED) -> int:
    """The most tokens that :func:`mask_tokens` chooses of texts with so many maskable tokens together.

    Example:
        >>> most_masked(2, 15, rate=0.4), most_masked(2, 1000)
        (8, 24)
    """
    return min(n_texts * max_masked, int(rate * n_tokens) + n_texts)


def masked_lm_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the masked tokens, as a sum and a count: their ratio is the mean over masked tokens.

    Args:
        logits: (P, V), of any selection of P positions.
        targets: (P,) int64, -100 at positions that do not count.

    Returns:
        The summed loss, at least in float32, and the number of targets (int64), both scalar. If no position counts the
        sum is 0, with a graph, where the mean that PyTorch computes would be NaN.

    Raises:
        CCRError: If the shapes do not fit together.

    Example:
        >>> total, count = masked_lm_loss(torch.zeros(3, 8), torch.tensor([5, -100, 2]))
        >>> torch.testing.assert_close(total / count, torch.tensor(8.0).log())
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise CCRError(
            f"masked-LM logits {tuple(logits.shape)} and targets {tuple(targets.shape)} do not fit: "
            "pass (P, V) and (P,)."
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    return total, (targets != IGNORED).sum()
