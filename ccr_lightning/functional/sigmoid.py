"""The 1-to-K form of the sigmoid loss: every pair of an image and a caption is a question of its own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ccr_lightning.errors import CCRError
from ccr_lightning.functional.contrastive import embedded_batch
from ccr_lightning.functional.similarity import slices

_CELLS = 2**22  # pairs at a time: what the backward pass needs of them is computed again


def one_to_k_sigmoid_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    *,
    caption_mask: Tensor | None = None,
    image_ids: Tensor | None = None,
    anchors: slice | None = None,
) -> Tensor:
    """Computes the sigmoid loss of images and their captions in K languages at once.

    The mean over all captions of ``-sum_i log sigmoid(y_i * (logit_scale * v_i . t + logit_bias))`` over all images i,
    with y_i = 1 if the caption describes image i, else -1. With K = 1 it is equation 1 of Zhai et al., "Sigmoid Loss
    for Language Image Pre-Training", ICCV 2023; with all captions there, the mean of that over languages.

    Args:
        image_embeds: (B, D), L2-normalised.
        text_embeds: (B, K, D), L2-normalised.
        logit_scale: One number, the inverse of the temperature.
        logit_bias: One number, below 0 as long as most pairs do not belong together.
        caption_mask: (B, K) bool, False where a caption is missing; by default all are there.
        image_ids: (B,), equal for rows that show the same image; by default all differ.
        anchors: The rows whose images count, of a process of several that has gathered the rows of all: the loss is the
            sum of their shares.

    Returns:
        Scalar, at least in float32; 0 if there is no caption.

    Raises:
        CCRError: If the shapes do not fit together.

    Example:
        >>> image_embeds = torch.eye(2)
        >>> text_embeds = image_embeds[:, None].expand(2, 3, 2)  # each caption fits in all three languages
        >>> loss = one_to_k_sigmoid_loss(image_embeds, text_embeds, 20.0, -10.0)  # two pairs of each caption
        >>> torch.testing.assert_close(loss, 2 * torch.tensor(-10.0).exp().log1p())
    """
    batch = embedded_batch(image_embeds, text_embeds, logit_scale, caption_mask, image_ids)
    bias = torch.as_tensor(logit_bias, dtype=batch.images.dtype, device=batch.images.device)
    if bias.numel() != 1:
        raise CCRError(f"logit_bias has shape {tuple(bias.shape)}: pass one number.")
    own = slice(None) if anchors is None else anchors
    n_languages = batch.texts.shape[1]
    images, is_own = batch.images[own], batch.same_image[own]
    texts, present = batch.texts.flatten(0, 1), batch.caption_mask.flatten()

    def total(texts: Tensor, present: Tensor, is_positive: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            logits = batch.logit_scale * images @ texts.T + bias.reshape(())
            terms = F.softplus(torch.where(is_positive.repeat_interleave(n_languages, 1), -logits, logits))
            return terms.masked_fill(~present, 0).sum()

    rows = max(1, _CELLS // (max(1, len(images)) * n_languages))
    if rows >= len(batch.images):
        loss = total(texts, present, is_own)
    else:
        parts = [
            checkpoint(
                total,
                texts[part.start * n_languages : part.stop * n_languages],
                present[part.start * n_languages : part.stop * n_languages],
                is_own[:, part],
                use_reentrant=False,
            )
            for part in slices(len(batch.images), rows)
        ]
        loss = torch.stack(parts).sum()
    return loss / present.sum().clamp(min=1)
