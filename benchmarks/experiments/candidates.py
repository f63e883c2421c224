"""Terms that may make ranks more alike over languages.

Each takes image_embeds (B, D), text_embeds (B, K, D) and logit_scale, and returns a scalar. They are tried on batches
in which all captions are there and all images differ.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ccr_lightning.functional.contrastive import one_to_k_contrastive_loss, text_to_text_contrastive_loss

Term = Callable[[Tensor, Tensor, Tensor], Tensor]


def mean_text(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
    """CLIP's loss between images and the normalised means of their texts over the languages."""
    means = F.normalize(text_embeds.mean(1), dim=-1)
    return one_to_k_contrastive_loss(image_embeds, means[:, None], logit_scale)


def agreement(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
    """KL divergence of each language's distribution over images from their mean over the languages (no gradient)."""
    logits = logit_scale * torch.einsum("bkd,id->bki", text_embeds, image_embeds)
    log_probabilities = logits.log_softmax(-1)
    mean = log_probabilities.exp().mean(1, keepdim=True).detach()
    return (mean * (mean.clamp(min=1e-12).log() - log_probabilities)).sum(-1).mean()


def spread_of_positives(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
    """Population variance over languages of an image's logits with its own texts."""
    logits = logit_scale * torch.einsum("bkd,bd->bk", text_embeds, image_embeds)
    return logits.var(1, correction=0).mean()


def hardest_language(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
    """Text-to-image loss of the language of each image in which it is largest."""
    logits = logit_scale * torch.einsum("bkd,id->bki", text_embeds, image_embeds)
    own = torch.arange(len(image_embeds), device=logits.device)
    losses = -logits.log_softmax(-1)[own, :, own]
    return losses.max(1).values.mean()


def text_to_text(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
    """The 1-to-K loss of each text against the texts of the other languages, averaged over languages."""
    return text_to_text_contrastive_loss(text_embeds, logit_scale)


TERMS: dict[str, Term] = {
    function.__name__: function
    for function in (mean_text, agreement, spread_of_positives, hardest_language, text_to_text)
}
