"""The contrastive loss of a training step: candidates of all devices for the anchors of this one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from ccr_lightning import distributed
from ccr_lightning.errors import CCRError
from ccr_lightning.functional.contrastive import (
    english_pivot_contrastive_loss,
    one_to_k_contrastive_loss,
    text_to_text_contrastive_loss,
)
from ccr_lightning.functional.sigmoid import one_to_k_sigmoid_loss

Objective = Literal["one_to_k", "one_to_k_sigmoid", "one_to_one", "english_pivot"]


class ContrastiveLoss(nn.Module):
    """Contrastive loss over the batch of all devices (Nie et al., KDD 2024).

    Every device contrasts its own images and texts with those of all devices. The result is scaled such that the mean
    over devices, which ``DistributedDataParallel`` takes of gradients, is the loss, and its gradient, of one process
    with the whole batch, but for BatchNorm, whose statistics are each device's. On a single device it is the loss
    itself.

    Args:
        objective: ``one_to_k``, the paper's 1-to-K loss; ``one_to_k_sigmoid``, SigLIP's loss in that form; or one that
            the paper compares with: ``one_to_one``, CLIP's loss between images and one text each (draw it with
            ``draw_one_caption`` before encoding), or ``english_pivot``, CLIP's loss between images and texts of a pivot
            language and between these and the texts of the others.
        text_to_image_weight: Weight of the direction text→image in ``one_to_k``; 1/K is that of the authors' code.
        text_to_text_weight: Weight of ``text_to_text_contrastive_loss``, which is added to ``one_to_k``; 0 leaves it
            out, as the paper does.
        pivot_language: Language of the pivot in ``english_pivot``.

    Raises:
        CCRError: If the objective is unknown, does not know a ``text_to_image_weight`` or a ``text_to_text_weight``, or
            if the ``text_to_text_weight`` is not at least 0.

    Example:
        >>> import torch
        >>> loss = ContrastiveLoss("english_pivot", pivot_language="de")
        >>> image_embeds = torch.eye(2)
        >>> loss(image_embeds, image_embeds[:, None].expand(2, 2, 2), 100.0, languages=("en", "de"))
        tensor(0.)
    """

    def __init__(
        self,
        objective: Objective = "one_to_k",
        *,
        text_to_image_weight: float = 1.0,
        text_to_text_weight: float = 0.0,
        pivot_language: str = "en",
    ) -> None:
        super().__init__()
        if objective not in get_args(Objective):
            raise CCRError(
                f"the contrastive objective {objective!r} is unknown: choose one of {', '.join(get_args(Objective))}."
            )
        for name, weight, default in (
            ("text_to_image_weight", text_to_image_weight, 1.0),
            ("text_to_text_weight", text_to_text_weight, 0.0),
        ):
            if objective != "one_to_k" and weight != default:
                raise CCRError(
                    f"{name}={weight} has no meaning for the contrastive objective {objective!r}: "
                    "leave it out or choose 'one_to_k'."
                )
        if not text_to_text_weight >= 0:
            raise CCRError(f"text_to_text_weight={text_to_text_weight} is out of range: give 0, which is off, or more.")
        self.objective = objective
        self.text_to_image_weight = text_to_image_weight
        self.text_to_text_weight = text_to_text_weight
        self.pivot_language = pivot_language

    def forward(
        self,
        image_embeds: Tensor,
        text_embeds: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        *,
        caption_mask: Tensor | None = None,
        image_ids: Tensor | None = None,
        languages: Sequence[str] | None = None,
    ) -> Tensor:
        """Computes this device's share of the loss.

        All devices have to pass the same shapes, and either all or none of them a mask and ids.

        Args:
            image_embeds: (B, D), L2-normalised.
            text_embeds: (B, K, D), L2-normalised; K = 1 for ``one_to_one``.
            logit_scale: One number, the inverse of the temperature.
            logit_bias: One number, which only ``one_to_k_sigmoid`` needs.
            caption_mask: (B, K) bool, False where an image has no caption in a language; by default all are there.
            image_ids: (B,), equal for rows that show the same image, on whatever device; by default all differ.
            languages: The K languages, in the order of the K axis; needed by ``english_pivot``.

        Returns:
            Scalar; its mean over devices is the loss of the whole batch.

        Raises:
            CCRError: If shapes do not fit together, or do not suit the objective.
        """
        n_languages = text_embeds.shape[1]
        if self.objective == "one_to_one" and n_languages != 1:
            raise CCRError(
                f"the contrastive objective 'one_to_one' takes one text per image, but text_embeds has {n_languages}: "
                "draw one caption of each image before encoding."
            )
        pivot = self._pivot(languages, n_languages) if self.objective == "english_pivot" else None

        batch_size = image_embeds.shape[0]
        anchors = slice(distributed.rank() * batch_size, (distributed.rank() + 1) * batch_size)
        image_embeds = distributed.gather_with_grad(image_embeds)
        text_embeds = distributed.gather_with_grad(text_embeds)
        caption_mask = None if caption_mask is None else distributed.gather(caption_mask)
        image_ids = None if image_ids is None else distributed.gather(image_ids)
        if self.objective == "one_to_k_sigmoid":
            if logit_bias is None:
                raise CCRError("the contrastive objective 'one_to_k_sigmoid' needs a logit_bias: pass one.")
            share = one_to_k_sigmoid_loss(
                image_embeds,
                text_embeds,
                logit_scale,
                logit_bias,
                caption_mask=caption_mask,
                image_ids=image_ids,
                anchors=anchors,
            )
        elif pivot is None:
            share = one_to_k_contrastive_loss(
                image_embeds,
                text_embeds,
                logit_scale,
                caption_mask=caption_mask,
                image_ids=image_ids,
                text_to_image_weight=self.text_to_image_weight,
                anchors=anchors,
            )
            if self.text_to_text_weight:
                share = share + self.text_to_text_weight * text_to_text_contrastive_loss(
                    text_embeds, logit_scale, caption_mask=caption_mask, image_ids=image_ids, anchors=anchors
                )
        else:
            share = english_pivot_contrastive_loss(
                image_embeds,
                text_embeds,
                logit_scale,
                pivot=pivot,
                caption_mask=caption_mask,
                image_ids=image_ids,
                anchors=anchors,
            )
        return share * distributed.world_size()

    def _pivot(self, languages: Sequence[str] | None, n_languages: int) -> int:
        if languages is None or len(languages) != n_languages or self.pivot_language not in languages:
            raise CCRError(
                f"the contrastive objective 'english_pivot' needs {n_languages} languages, among them the pivot "
                f"{self.pivot_language!r}, but got {languages}: add the pivot to the data or change pivot_language."
            )
        return list(languages).index(self.pivot_language)
