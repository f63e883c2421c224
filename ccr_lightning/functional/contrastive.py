"""The 1-to-K contrastive loss, and the two objectives that the paper compares it with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ccr_lightning.errors import CCRError
from ccr_lightning.functional.logsumexp import product_logsumexp


class EmbeddedBatch(NamedTuple):
    """Embeddings that passed the checks, in float32 or wider, with a mask whether or not one was given."""

    images: Tensor  # (B, D)
    texts: Tensor  # (B, K, D), zero where the caption is missing
    logit_scale: Tensor  # scalar
    caption_mask: Tensor  # (B, K) bool
    image_ids: Tensor | None  # (B,), None where every row shows another image

    @property
    def same_image(self) -> Tensor:
        """(B, B) bool, True where two rows show the same image."""
        if self.image_ids is None:
            return torch.eye(len(self.images), dtype=torch.bool, device=self.images.device)
        return self.image_ids[:, None] == self.image_ids


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
    return EmbeddedBatch(image_embeds.to(dtype), text_embeds, scale.reshape(()), caption_mask, image_ids)


def _groups(image_ids: Tensor) -> Tensor:
    """(B,) int64, a number below B of the image that each row shows, found without the size of anything being known."""
    ids, order = image_ids.sort()
    is_new = torch.ones_like(ids, dtype=torch.bool)
    is_new[1:] = ids[1:] != ids[:-1]
    return torch.empty_like(order).scatter_(0, order, is_new.cumsum(0) - 1)


def _of_same_image(values: Tensor, groups: Tensor | None) -> Tensor:
    """The sum over the rows (B, ...) that show the image of each row."""
    if groups is None:
        return values
    return torch.zeros_like(values).index_add(0, groups, values)[groups]


def _symmetric_loss(
    queries: Tensor,
    query_mask: Tensor | None,
    texts: Tensor,
    text_mask: Tensor | None,
    groups: Tensor | None,
    logit_scale: Tensor,
    text_to_query_weight: float,
    anchors: slice | None,
    is_tiled: bool | None,
) -> Tensor:
    """The 1-to-K loss of queries (B, D) and texts (B, K, D), either of which may be missing, and are 0 then.

    The mean over an anchor's positives of its negative log probabilities is the log-sum-exp over all candidates less
    the anchor's product with the mean of its positives: no matrix of labels, and no probabilities.
    """
    own = slice(None) if anchors is None else anchors
    present_queries = queries.new_ones(len(queries)) if query_mask is None else query_mask.to(queries.dtype)
    present_texts = queries.new_ones(texts.shape[:2]) if text_mask is None else text_mask.to(queries.dtype)
    texts_of_query = _of_same_image(present_texts.sum(1), groups) * present_queries
    queries_of_text = _of_same_image(present_queries, groups)[:, None] * present_texts
    sum_of_texts, sum_of_queries = _of_same_image(texts.sum(1), groups), _of_same_image(queries, groups)

    scaled, flat = logit_scale * queries, texts.flatten(0, 1)
    flat_mask = None if text_mask is None else text_mask.flatten()
    if anchors is None or anchors == slice(0, len(queries)):
        to_text, to_query = product_logsumexp(scaled, flat, query_mask, flat_mask, both=True, is_tiled=is_tiled)
        assert to_query is not None
    else:
        to_text = product_logsumexp(scaled[own], flat, None, flat_mask, both=False, is_tiled=is_tiled).rows
        own_flat = texts[own].flatten(0, 1)
        to_query = product_logsumexp(own_flat, scaled, None, query_mask, both=False, is_tiled=is_tiled).rows

    query_positives = (scaled * sum_of_texts)[own].sum(-1) / texts_of_query[own].clamp(min=1)
    text_positives = torch.einsum("bkd,bd->bk", texts[own], logit_scale * sum_of_queries[own])
    query_terms = to_text - query_positives
    text_terms = to_query.view(-1, texts.shape[1]) - text_positives / queries_of_text[own].clamp(min=1)
    # NaN of an anchor that counts must show; what counts for nothing may be anything.
    query_sum = query_terms.masked_fill(texts_of_query[own] == 0, 0).sum()
    text_sum = text_terms.masked_fill(queries_of_text[own] == 0, 0).sum()
    query_count, text_count = (texts_of_query > 0).sum(), (queries_of_text > 0).sum()
    return 0.5 * (query_sum / query_count.clamp(min=1) + text_to_query_weight * text_sum / text_count.clamp(min=1))


def one_to_k_contrastive_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor | float,
    *,
    caption_mask: Tensor | None = None,
    image_ids: Tensor | None = None,
    text_to_image_weight: float = 1.0,
    anchors: slice | None = None,
    is_tiled: bool | None = None,
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

    The loss has two forms, dense and tiled, with one result: see
    :func:`~ccr_lightning.functional.logsumexp.product_logsumexp`. The tiled one needs no memory for the (B, B K)
    logits.

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
        is_tiled: Which form to compute; by default the tiled one where it is large.

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
    with torch.autocast(batch.images.device.type, enabled=False):
        return _symmetric_loss(
            batch.images,
            None,
            batch.texts,
            caption_mask,
            None if image_ids is None else _groups(image_ids),
            batch.logit_scale,
            text_to_image_weight,
            anchors,
            is_tiled,
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
    is_tiled: bool | None = None,
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
        is_tiled: Which form to compute, as for ``one_to_k_contrastive_loss``.

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

    def of_language(language: int) -> Tensor | None:
        return None if caption_mask is None else caption_mask[:, language]

    groups = None if image_ids is None else _groups(image_ids)

    def clip_loss(queries: Tensor, query_mask: Tensor | None, language: int) -> Tensor:
        texts, text_mask = batch.texts[:, language : language + 1], of_language(language)
        text_mask = None if text_mask is None else text_mask[:, None]
        return _symmetric_loss(queries, query_mask, texts, text_mask, groups, batch.logit_scale, 1.0, anchors, is_tiled)

    with torch.autocast(batch.images.device.type, enabled=False):
        loss = clip_loss(batch.images, None, pivot)
        others = [
            clip_loss(batch.texts[:, pivot], of_language(pivot), language)
            for language in range(n_languages)
            if language != pivot
        ]
        return loss + torch.stack(others).mean() if others else loss


def text_to_text_contrastive_loss(
    text_embeds: Tensor,
    logit_scale: Tensor | float,
    *,
    caption_mask: Tensor | None = None,
    image_ids: Tensor | None = None,
    anchors: slice | None = None,
    is_tiled: bool | None = None,
) -> Tensor:
    r"""The 1-to-K loss between texts: each text against those of the other languages, every language alike.

    With :math:`s(ia, jk) = t_{ia} \cdot t_{jk} / \tau`, the mean over the K languages :math:`a` of

    .. math::
        L_a = \frac{1}{2} \Big[
            -\frac{1}{B} \sum_i \frac{1}{K - 1} \sum_{k \ne a}
            \log \frac{e^{s(ia, ik)}}{\sum_j \sum_{l \ne a} e^{s(ia, jl)}}
            - \frac{1}{B (K - 1)} \sum_i \sum_{k \ne a} \log \frac{e^{s(ia, ik)}}{\sum_j e^{s(ja, ik)}} \Big],

    which is ``one_to_k_contrastive_loss`` with the texts of language :math:`a` in the place of the images. Added to the
    loss of the images, it is no part of the paper's method: docs/models.md has what it does to recall and MRV.

    Texts of equal image ids are positives. A missing caption is neither anchor nor candidate; texts left without a
    positive are left out of their mean, and a language without captions counts as 0.

    Args:
        text_embeds: (B, K, D), L2-normalised; those of missing captions may hold anything.
        logit_scale: One number, the inverse of the temperature.
        caption_mask: (B, K) bool, False where an image has no caption in a language; by default all are there.
        image_ids: (B,), equal for rows that show the same image; by default every row shows another one.
        anchors: Rows whose terms are summed, as for ``one_to_k_contrastive_loss``.
        is_tiled: Which form to compute, as for ``one_to_k_contrastive_loss``.

    Returns:
        Scalar, not negative, at least in float32; 0 (with a graph) for one language, or without any caption. NaN if an
        embedding that takes part is NaN.

    Raises:
        CCRError: If shapes or dtypes do not fit together, or if the batch is empty.

    Example:
        >>> text_embeds = torch.eye(2)[:, None].expand(2, 3, 2)  # three perfect translations of two captions
        >>> loss = text_to_text_contrastive_loss(text_embeds, 100.0)
        >>> torch.testing.assert_close(2 * loss, torch.tensor(2.0).log())
    """
    if text_embeds.dim() != 3:
        raise CCRError(f"text_embeds has shape {tuple(text_embeds.shape)}: pass (B, K, D).")
    batch = embedded_batch(text_embeds.sum(1), text_embeds, logit_scale, caption_mask, image_ids)
    groups = None if image_ids is None else _groups(image_ids)
    n_languages = text_embeds.shape[1]
    if n_languages == 1:
        return 0 * batch.texts.sum()

    def others(values: Tensor, language: int) -> Tensor:
        return torch.cat([values[:, :language], values[:, language + 1 :]], dim=1)

    with torch.autocast(batch.texts.device.type, enabled=False):
        losses = [
            _symmetric_loss(
                batch.texts[:, language],
                None if caption_mask is None else caption_mask[:, language],
                others(batch.texts, language),
                None if caption_mask is None else others(caption_mask, language),
                groups,
                batch.logit_scale,
                1.0,
                anchors,
                is_tiled,
            )
            for language in range(n_languages)
        ]
        return torch.stack(losses).mean()


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
