"""The losses of the fusion encoder on a batch: matching, and masked-LM on the texts that matching chose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ccr_lightning import distributed
from ccr_lightning.data.tokenizer import CaptionTokenizer
from ccr_lightning.functional.masking import IGNORED, mask_tokens, masked_lm_loss, most_masked
from ccr_lightning.functional.matching import MatchingDraw, matching_loss
from ccr_lightning.functional.places import true_places
from ccr_lightning.models.dual_encoder import Encoded
from ccr_lightning.models.retriever import Retriever
from ccr_lightning.training.chunks import in_chunks
from ccr_lightning.types import Batch

if TYPE_CHECKING:
    from ccr_lightning.types import Counts


def draw_sharpness(step: int, total_steps: int, warmup_fraction: float) -> float:
    """Factor on the logits from which matching draws its pairs: rises linearly from 0 (all alike) to 1 (the paper's).

    A fusion encoder that starts at random learns nothing from negatives that even the dual encoder mistakes.

    Args:
        step: Steps taken so far.
        total_steps: Steps of the whole training.
        warmup_fraction: Share of them after which the factor is 1, in [0, 1]; 0 for the paper's draw from the start.

    Example:
        >>> [draw_sharpness(step, 100, 0.5) for step in (0, 25, 50, 75)]
        [0.0, 0.5, 1.0, 1.0]
    """
    return min(1.0, step / (total_steps * warmup_fraction)) if warmup_fraction else 1.0


def batch_matching_loss(
    retriever: Retriever,
    batch: Batch,
    images: Encoded,
    texts: Encoded,
    draw: MatchingDraw,
    chunk_size: int | None = None,
) -> Tensor:
    """Fuses the drawn pairs, all three kinds in one pass, and computes this device's share of the matching loss.

    Args:
        retriever: The model, with fusion.
        batch: The B images and B x K texts of this device.
        images: The batch's images, encoded.
        texts: The batch's texts, encoded.
        draw: What to pair with each image of the batch.
        chunk_size: Triples of pairs that are fused at a time, see :func:`~ccr_lightning.training.chunks.in_chunks`.

    Returns:
        Scalar; its mean over devices is the mean over all pairs of all devices.
    """

    def logits_of(text_states: Tensor, attention_mask: Tensor, image_states: Tensor, most_tokens: Counts) -> Tensor:
        return retriever.match_logits(retriever.fuse(text_states, attention_mask, image_states, int(most_tokens.sum())))

    positive_text = _positive_text(draw, batch)
    rows = torch.cat([positive_text, positive_text, draw.negative_text])
    of_positive = batch.most_tokens.max(1)
    logits = in_chunks(
        logits_of,
        None if chunk_size is None else 3 * chunk_size,
        texts.states.flatten(0, 1)[rows],
        batch.attention_mask.flatten(0, 1)[rows],
        torch.cat([images.states, images.states[draw.negative_image], images.states]),
        np.concatenate([of_positive, of_positive, np.full_like(of_positive, batch.most_tokens.max())]),
    )
    return distributed.global_mean(*matching_loss(logits, draw.valid))


def batch_masked_lm_loss(
    retriever: Retriever,
    batch: Batch,
    images: Encoded,
    draw: MatchingDraw,
    tokenizer: CaptionTokenizer,
    rate: float,
    chunk_size: int | None = None,
) -> Tensor:
    """Hides tokens of the drawn positive texts and computes this device's share of the masked-LM loss.

    Args:
        retriever: The model, with fusion.
        batch: The B images and B x K texts of this device.
        images: The batch's images, encoded.
        draw: Which text goes with each image of the batch.
        tokenizer: Knows the mask token, and the special tokens that stay.
        rate: Share of a text's tokens to hide, at most 12 of them.
        chunk_size: Texts that are encoded and fused at a time, see :func:`~ccr_lightning.training.chunks.in_chunks`.

    Returns:
        Scalar; its mean over devices is the mean over all hidden tokens of all devices.
    """
    positive_text = _positive_text(draw, batch)
    input_ids = batch.input_ids.flatten(0, 1)[positive_text]
    attention_mask = batch.attention_mask.flatten(0, 1)[positive_text]
    maskable = attention_mask.clone()
    for special in tokenizer.special_token_ids:
        maskable &= input_ids != special
    masked = mask_tokens(
        input_ids, maskable, mask_token_id=tokenizer.mask_token_id, vocab_size=tokenizer.vocab_size, rate=rate
    )

    def loss_of(
        input_ids: Tensor, targets: Tensor, attention_mask: Tensor, image_states: Tensor, most_tokens: Counts
    ) -> Tensor:
        most = int(most_tokens.sum())
        states = retriever.encode_text(input_ids, attention_mask, most).states
        fused = retriever.fuse(states, attention_mask, image_states, most).flatten(0, 1)
        hidden = true_places(targets != IGNORED, most_masked(len(input_ids), most, rate))
        logits = retriever.masked_lm_logits(fused[hidden.clamp(max=len(fused) - 1)])
        return masked_lm_loss(logits, F.pad(targets.flatten(), (0, 1), value=IGNORED)[hidden])[0][None]

    totals = in_chunks(
        loss_of, chunk_size, masked.input_ids, masked.targets, attention_mask, images.states, batch.most_tokens.max(1)
    )
    return distributed.global_mean(totals.sum(), (masked.targets != IGNORED).sum())


def _positive_text(draw: MatchingDraw, batch: Batch) -> Tensor:
    """Rows of the drawn positive texts among the B x K texts, (B,)."""
    return torch.arange(len(draw.language), device=draw.language.device) * len(batch.languages) + draw.language
