"""The losses of the fusion encoder on a batch: matching, and masked-LM on the texts that matching chose."""

from __future__ import annotations

import torch
from torch import Tensor

from ccr_lightning import distributed
from ccr_lightning.data.tokenizer import CaptionTokenizer
from ccr_lightning.functional.masking import mask_tokens, masked_lm_loss
from ccr_lightning.functional.matching import MatchingDraw, matching_loss
from ccr_lightning.models.retriever import Encoded, Retriever
from ccr_lightning.types import Batch


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
    retriever: Retriever, batch: Batch, images: Encoded, texts: Encoded, draw: MatchingDraw
) -> Tensor:
    """Fuses the drawn pairs and computes this device's share of the matching loss.

    Args:
        retriever: The model, with fusion.
        batch: The B images and B x K texts of this device.
        images: The batch's images, encoded.
        texts: The batch's texts, encoded.
        draw: What to pair with each image of the batch.

    Returns:
        Scalar; its mean over devices is the mean over all pairs of all devices.
    """
    positive_text = _positive_text(draw, batch)
    rows = torch.cat([positive_text, positive_text, draw.negative_text])
    image_states = torch.cat([images.states, images.states[draw.negative_image], images.states])
    fused = retriever.fuse(texts.states.flatten(0, 1)[rows], batch.attention_mask.flatten(0, 1)[rows], image_states)
    return distributed.global_mean(*matching_loss(retriever.match_logits(fused), draw.valid))


def batch_masked_lm_loss(
    retriever: Retriever, batch: Batch, images: Encoded, draw: MatchingDraw, tokenizer: CaptionTokenizer, rate: float
) -> Tensor:
    """Hides tokens of the drawn positive texts and computes this device's share of the masked-LM loss.

    Args:
        retriever: The model, with fusion.
        batch: The B images and B x K texts of this device.
        images: The batch's images, encoded.
        draw: Which text goes with each image of the batch.
        tokenizer: Knows the mask token, and the special tokens that stay.
        rate: Share of a text's tokens to hide, at most 12 of them.

    Returns:
        Scalar; its mean over devices is the mean over all hidden tokens of all devices.
    """
    positive_text = _positive_text(draw, batch)
    input_ids = batch.input_ids.flatten(0, 1)[positive_text]
    attention_mask = batch.attention_mask.flatten(0, 1)[positive_text]
    special = torch.tensor(tokenizer.special_token_ids, device=input_ids.device)
    masked = mask_tokens(
        input_ids,
        attention_mask & ~torch.isin(input_ids, special),
        mask_token_id=tokenizer.mask_token_id,
        vocab_size=tokenizer.vocab_size,
        rate=rate,
    )
    states = retriever.encode_text(masked.input_ids, attention_mask).states
    fused = retriever.fuse(states, attention_mask, images.states)
    hidden = masked.targets >= 0
    return distributed.global_mean(*masked_lm_loss(retriever.masked_lm_logits(fused[hidden]), masked.targets[hidden]))


def _positive_text(draw: MatchingDraw, batch: Batch) -> Tensor:
    """Rows of the drawn positive texts among the B x K texts, (B,)."""
    return torch.arange(len(draw.language), device=draw.language.device) * len(batch.languages) + draw.language
