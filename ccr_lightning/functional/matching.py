"""Image-text matching with hard negatives: which pairs the fusion encoder sees, and their loss."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ccr_lightning.errors import CCRError
from ccr_lightning.functional.contrastive import embedded_batch

PositiveLanguage = Literal["least_likely", "uniform", "least_similar"]

_FLOOR = 1e-5  # keeps every candidate possible, however unlikely the model finds it


class MatchingDraw(NamedTuple):
    """The pairs of one batch: each image with a text of its own, and both with a hard negative."""

    language: Tensor  # (B,) int64, language of the positive text of each image
    negative_image: Tensor  # (B,) int64, row of the negative image for that text
    negative_text: Tensor  # (B,) int64, row * K + language of the negative text for the image
    valid: Tensor  # (B,) bool, False where a pair is impossible; the indices of such a row are in range all the same


def _draw_index(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws one column of each row of weights (B, N) by inverting the cumulative sum at a uniform point.

    Sums of integers are exact in any order, so an item of weight 0 spans nothing and is never drawn, whatever the
    device does to add up. A row of zeros gives column 0.
    """
    cumulative = (weights.double() * 2**40).ceil().long().cumsum(1)
    total = cumulative[:, -1:]
    uniform = torch.rand(total.shape, generator=generator, dtype=torch.float64, device=weights.device)
    point = torch.minimum((uniform * total).long(), total - 1)
    index = torch.searchsorted(cumulative, point, right=True).squeeze(1)
    return index.clamp(max=weights.shape[1] - 1)  # NaN weights must surface as a NaN loss, not as a crash here


def draw_matching(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor | float,
    *,
    caption_mask: Tensor | None = None,
    image_ids: Tensor | None = None,
    positive_language: PositiveLanguage = "least_likely",
    generator: torch.Generator | None = None,
) -> MatchingDraw:
    """Draws the pairs of image-text matching from the device's own batch (Nie et al., KDD 2024).

    The positive text of an image is one of its captions, in a language drawn with a probability proportional to

    - ``least_likely``: the largest weight in the batch minus the weight of the caption, where the weights of an image
      are the softmax of its logits over all texts;
    - ``uniform``: 1;
    - ``least_similar``: the largest logit in the batch minus the logit of the caption.

    The negative image for that text follows the softmax of the text's logits over the images; the negative text for the
    image follows its weights over the texts of all languages. Images and texts with the same image id are no negatives,
    missing captions are never drawn. To every probability 1e-5 is added before scaling, so that none vanishes.

    Args:
        image_embeds: (B, D), L2-normalised; no gradient flows.
        text_embeds: (B, K, D), L2-normalised; those of missing captions may hold anything.
        logit_scale: One number, the inverse of the temperature.
        caption_mask: (B, K) bool, False where an image has no caption in a language; by default all are there.
        image_ids: (B,), equal for rows that show the same image; by default every row shows another one.
        positive_language: How to draw the language of the positive text.
        generator: Source of the draws, on the device of the embeddings.

    Returns:
        The draw; a row is valid if its image has a caption and if another image of the batch has one too. In a batch of
        one image no row is valid.

    Raises:
        CCRError: If shapes or dtypes do not fit together, if the batch is empty or if ``positive_language`` is unknown.

    Example:
        >>> draw = draw_matching(torch.eye(2), torch.eye(2)[:, None], 10.0)  # two images with one caption each
        >>> draw.language, draw.negative_image, draw.negative_text
        (tensor([0, 0]), tensor([1, 0]), tensor([1, 0]))
    """
    with torch.no_grad(), torch.autocast(image_embeds.device.type, enabled=False):
        batch = embedded_batch(image_embeds, text_embeds, logit_scale, caption_mask, image_ids)
        mask, different = batch.caption_mask, ~batch.same_image
        shape = (len(mask), *mask.shape)  # each image, with the captions of each
        rows = torch.arange(len(mask), device=mask.device)
        scaled = batch.logit_scale * batch.images
        logits = scaled @ batch.texts.flatten(0, 1).T
        if caption_mask is not None:
            logits.masked_fill_(~mask.flatten(), torch.finfo(logits.dtype).min)
        weights = logits.softmax(1).view(shape)

        if positive_language == "least_likely":
            preference = weights.max() - weights[rows, rows]
        elif positive_language == "least_similar":
            preference = logits.max() - logits.view(shape)[rows, rows]
        elif positive_language == "uniform":
            preference = torch.ones(mask.shape, device=mask.device)
        else:
            raise CCRError(
                f"positive_language is {positive_language!r}: pass 'least_likely', 'uniform' or 'least_similar'."
            )
        language = _draw_index((preference + _FLOOR).masked_fill(~mask, 0), generator)

        image_weights = (batch.texts[rows, language] @ scaled.T).softmax(1)
        negative_image = _draw_index((image_weights + _FLOOR).masked_fill(~different, 0), generator)

        # First the image that the text is of, then which of its texts: the same probabilities from fewer numbers.
        weights += _FLOOR
        if caption_mask is not None:
            weights *= mask
        of_image = _draw_index(weights.sum(2).masked_fill(~different, 0), generator)
        negative_text = of_image * mask.shape[1] + _draw_index(weights[rows, of_image], generator)

        has_text = mask.any(1)
        return MatchingDraw(language, negative_image, negative_text, has_text & (different & has_text).any(1))


def matching_loss(logits: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of image-text matching, as a sum and a count: their ratio is the mean over the pairs.

    Args:
        logits: (3 * B, 2), of the B positive pairs, then B texts with a negative image, then B images with a negative
            text; column 1 is "match".
        valid: (B,) bool, the rows of ``draw_matching`` that count, each with its three pairs.

    Returns:
        The summed loss, at least in float32, and the number of pairs (int64), both scalar. The sum is 0, with a graph,
        if no row is valid; the logits of invalid rows do not matter, NaN included.

    Raises:
        CCRError: If the shapes do not fit together.

    Example:
        >>> total, count = matching_loss(torch.zeros(6, 2), torch.tensor([True, False]))
        >>> torch.testing.assert_close(total / count, torch.tensor(2.0).log())
    """
    if valid.ndim != 1 or logits.shape != (3 * valid.shape[0], 2):
        raise CCRError(
            f"matching logits {tuple(logits.shape)} and valid {tuple(valid.shape)} do not fit: "
            "pass (3 * B, 2) and (B,)."
        )
    counted = valid.repeat(3)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).masked_fill(~counted[:, None], 0)
    is_match = torch.arange(logits.shape[0], device=logits.device) < valid.shape[0]
    terms = F.cross_entropy(logits, is_match.long(), reduction="none")
    return terms.masked_fill(~counted, 0).sum(), counted.sum()
