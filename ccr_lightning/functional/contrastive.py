"""The 1-to-K contrastive loss, and the two objectives that the paper compares it with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ccr_lightning.errors import CCRError


class EmbeddedBatch(NamedTuple):
    """Embeddings that passed the checks, in float32 or wider, with every default filled in."""

    images: Tensor  # (B, D)
    texts: Tensor  # (B, K, D), zero where the caption is missing
    logit_scale: Tensor  # scalar
    caption_mask: Tensor  # (B, K) bool
    same_image: Tensor  # (B, B) bool, True where two rows show the same image


def embedded_batch(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor | float,
    caption_mask: Tensor | None,
    image_ids: Tensor | None,
) -> EmbeddedBatch:
    """Checks a batch of embeddings and completes it; the arguments are those of ``one_to_k_contrastive_loss``.

    Raises:
        CCRError: If shapes or dtypes do not fit together, or if the batch is empty.

    Example:
        >>> embedded_batch(torch.ones(2, 4), torch.ones(2, 3, 4), 1.0, None, torch.tensor([7, 7])).same_image
        tensor([[True, True],
                [True, True]])
    """
    images, texts = tuple(image_embeds.shape), tuple(text_embeds.shape)
    if len(images) != 2 or len(texts) != 3 or images != (texts[0], texts[2]) or 0 in texts[:2]:
        raise CCRError(
            f"image_embeds {images} and text_embeds {texts} do not fit: "
            "pass (B, D) and (B, K, D), with B and K at least 1."
        )
    if not (image_embeds.is_floating_point() and text_embeds.is_floating_point()):
        raise CCRError(
            f"image_embeds ({image_embeds.dtype}) and text_embeds ({text_embeds.dtype}) must be floating point."
        )
    if caption_mask is not None and (caption_mask.shape != texts[:2] or caption_mask.dtype != torch.bool):
        raise CCRError(
            f"caption_mask is {caption_mask.dtype} of shape {tuple(caption_mask.shape)}: "
            f"pass torch.bool of shape {texts[:2]}, one entry per caption of text_embeds."
        )
    if image_ids is not None and image_ids.shape != images[:1]:
        raise CCRError(f"image_ids has shape {tuple(image_ids.shape)}: pass {images[:1]}, one id per image_embeds row.")

    dtype = torch.promote_types(torch.promote_types(image_embeds.dtype, text_embeds.dtype), torch.float32)
    scale = torch.as_tensor(logit_scale, dtype=dtype, device=image_embeds.device)
    if scale.numel() != 1:
        raise CCRError(f"logit_scale has shape {tuple(scale.shape)}: pass one number, the inverse of the temperature.")
    text_embeds = text_embeds.to(dtype)
    if caption_mask is None:
        caption_mask = torch.ones(texts[:2], dtype=torch.bool, device=text_embeds.device)
    else:
        # Whatever an encoder made of an empty caption, NaN included, must not reach the loss or its gradient.
        text_embeds = text_embeds.masked_fill(~caption_mask[..., None], 0)
    if image_ids is None:
        same_image = torch.eye(images[0], dtype=torch.bool, device=image_embeds.device)
    else:
        same_image = image_ids[:, None] == image_ids
    return EmbeddedBatch(image_embeds.to(dtype), text_embeds, scale.reshape(()), caption_mask, same_image)


def _summed_terms(
    anchors: Tensor, candidates: Tensor, candidate_mask: Tensor, positive: Tensor, logit_scale: Tensor
) -> Tensor:
    """Sum over anchors (..., D) of the mean over positives (..., N) of the negative log softmax over N candidates.

    An anchor without a positive adds 0.
    """
    logits = logit_scale * (anchors @ candidates.T)
    # Not -inf: a row without any candidate would be NaN, and so would its gradient.
    log_probs = logits.masked_fill(~candidate_mask, torch.finfo(logits.dtype).min).log_softmax(-1)
    return -(torch.where(positive, log_probs, 0.0).sum(-1) / positive.sum(-1).clamp(min=1)).sum()


def _symmetric_loss(
    queries: Tensor,
    query_mask: Tensor,
    texts: Tensor,
    text_mask: Tensor,
    same_image: Tensor,
    logit_scale: Tensor,
    text_to_query_weight: float,
    anchors: slice | None,
) -> Tensor:
    """The 1-to-K loss of queries (B, D), which may be missing themselves, and texts (B, K, D)."""
    rows = slice(None) if anchors is None else anchors
    query_positive = (same_image & query_mask[:, None])[rows, :, None] & text_mask  # (A, B, K)
    text_positive = (same_image & query_mask)[rows, None, :] & text_mask[rows, :, None]  # (A, K, B)
    query_to_text = _summed_terms(
        queries[rows], texts.flatten(0, 1), text_mask.flatten(), query_positive.flatten(1), logit_scale
    )
    text_to_query = _summed_terms(texts[rows], queries, query_mask, text_positive, logit_scale)
    query_count = (query_mask & (same_image & text_mask.any(1)).any(1)).sum()
    text_count = (text_mask & (same_image & query_mask).any(1, keepdim=True)).sum()
    return 0.5 * (
        query_to_text / query_count.clamp(min=1) + text_to_query_weight * text_to_query / text_count.clamp(min=1)
    )


def one_to_k_contrastive_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor | float,
    *,
    caption_mask: Tensor | None = None,
    image_ids: Tensor | None = None,
    text_to_image_weight: float = 1.0,
    anchors: slice | None = None,
) -> Tensor:
    r"""1-to-K contrastive loss: each image against its K translations at once, every language alike.

    "1-to-K contrastive learning", Nie et al., KDD 2024. With :math:`s(i, jk) = v_i \cdot t_{jk} / \tau`,

    .. math::
        L = \frac{1}{2} \Big[
            -\frac{1}{B} \sum_i \frac{1}{K} \sum_k \log \frac{e^{s(i, ik)}}{\sum_{jl} e^{s(i, jl)}}
            - \frac{w}{BK} \sum_{ik} \log \frac{e^{s(i, ik)}}{\sum_j e^{s(j, ik)}} \Big].

    The K positives of an image share one denominator, so image→text cannot fall below log K. With K = 1 and w = 1 this
    is CLIP's symmetric loss. Both directions are means; the authors' published code weights text→image by 1/K, which
    ``text_to_image_weight=1 / K`` reproduces.

    Rows with the same image id are positives of each other: an anchor's term is then the mean over its positives. A
    missing caption is neither anchor nor candidate; an image without any positive caption is left out of the mean of
    image→text, and stays a candidate of text→image.

    Args:
        image_embeds: (B, D), L2-normalised.
        text_embeds: (B, K, D), L2-normalised; those of missing captions may hold anything.
        logit_scale: One number, the inverse of the temperature.
        caption_mask: (B, K) bool, False where an image has no caption in a language; by default all are there.
        image_ids: (B,), equal for rows that show the same image; by default every row shows another one.
        text_to_image_weight: Weight w of the direction text→image.
        anchors: Rows whose terms are summed, for a process that owns only these rows of the gathered batch. The result
            is their share of the loss: the shares of a partition of the rows add up to the loss.

    Returns:
        Scalar, not negative, at least in float32. 0 (with a graph) if there is no caption at all; NaN if an embedding
        that takes part is NaN.

    Raises:
        CCRError: If shapes or dtypes do not fit together, or if the batch is empty.

    Example:
        >>> image_embeds = torch.eye(2)
        >>> text_embeds = image_embeds[:, None].expand(2, 3, 2)  # three perfect translations each
        >>> loss = one_to_k_contrastive_loss(image_embeds, text_embeds, 100.0)
        >>> torch.testing.assert_close(2 * loss, torch.tensor(3.0).log())
    """
    batch = embedded_batch(image_embeds, text_embeds, logit_scale, caption_mask, image_ids)
    every_image = batch.same_image.diagonal()
    with torch.autocast(batch.images.device.type, enabled=False):
        return _symmetric_loss(
            batch.images,
            every_image,
            batch.texts,
            batch.caption_mask,
            batch.same_image,
            batch.logit_scale,
            text_to_image_weight,
            anchors,
        )


def english_pivot_contrastive_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor | float,
    *,
    pivot: int,
    caption_mask: Tensor | None = None,
    image_ids: Tensor | None = None,
    anchors: slice | None = None,
) -> Tensor:
    """The cross-lingual objective that the 1-to-K loss is compared with: everything goes through one pivot language.

    CLIP's symmetric loss between images and pivot texts, plus the mean over the K - 1 other languages of CLIP's
    symmetric loss between pivot texts and texts of that language (Nie et al., KDD 2024, "cross-lingual style"). With
    K = 1 there is only the first term. Equal image ids are positives. A missing caption, the pivot's included, is
    neither anchor nor candidate; texts left without a positive are left out of their mean.

    Args:
        image_embeds: (B, D), L2-normalised.
        text_embeds: (B, K, D), L2-normalised; those of missing captions may hold anything.
        logit_scale: One number, the inverse of the temperature.
        pivot: Index of the pivot language on the K axis, from 0.
        caption_mask: (B, K) bool, False where an image has no caption in a language; by default all are there.
        image_ids: (B,), equal for rows that show the same image; by default every row shows another one.
        anchors: Rows whose terms are summed, as for ``one_to_k_contrastive_loss``.

    Returns:
        Scalar, not negative, at least in float32; NaN if an embedding that takes part is NaN.

    Raises:
        CCRError: If shapes or dtypes do not fit together, if the batch is empty or if ``pivot`` is not on the K axis.

    Example:
        >>> image_embeds = torch.eye(2)
        >>> text_embeds = image_embeds[:, None].expand(2, 3, 2)
        >>> english_pivot_contrastive_loss(image_embeds, text_embeds, 100.0, pivot=0).item()
        0.0
    """
    batch = embedded_batch(image_embeds, text_embeds, logit_scale, caption_mask, image_ids)
    n_languages = batch.caption_mask.shape[1]
    if not 0 <= pivot < n_languages:
        raise CCRError(f"pivot is {pivot}, but text_embeds has {n_languages} languages: pass 0 to {n_languages - 1}.")

    def clip_loss(queries: Tensor, query_mask: Tensor, language: int) -> Tensor:
        texts, text_mask = batch.texts[:, language : language + 1], batch.caption_mask[:, language : language + 1]
        return _symmetric_loss(queries, query_mask, texts, text_mask, batch.same_image, batch.logit_scale, 1.0, anchors)

    with torch.autocast(batch.images.device.type, enabled=False):
        loss = clip_loss(batch.images, batch.same_image.diagonal(), pivot)
        others = [
            clip_loss(batch.texts[:, pivot], batch.caption_mask[:, pivot], language)
            for language in range(n_languages)
            if language != pivot
        ]
        return loss + torch.stack(others).mean() if others else loss


def draw_one_caption(caption_mask: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draws one of the captions of each image, all of them with the same probability.

    This is the step of the cross-modal objective (``one_to_one``): each image meets its text in one random language.

    Args:
        caption_mask: (B, K) bool, True where the image has a caption in the language.
        generator: Source of the draw, on the device of ``caption_mask``.

    Returns:
        (B,) int64, the drawn language; 0 for an image without captions.

    Example:
        >>> draw_one_caption(torch.tensor([[False, False, True], [False, True, False], [False, False, False]]))
        tensor([2, 1, 0])
    """
    lots = torch.rand(caption_mask.shape, generator=generator, device=caption_mask.device)
    return lots.masked_fill(~caption_mask, -1.0).argmax(1)
