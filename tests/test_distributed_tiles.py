"""The contrastive loss in tiles on real gloo ranks, against the formula over the whole batch in float64."""

from __future__ import annotations

import pytest
import torch
from gloo_ranks import results_of_ranks
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ccr_lightning.functional.logsumexp import DENSE_CELLS
from ccr_lightning.losses import ContrastiveLoss

B, K, WIDTH = 200, 4, 6  # images per rank, captions of each, width of the inputs
SETTINGS = ({}, {"text_to_image_weight": 1 / K}, {"text_to_text_weight": 0.5})


class Towers(nn.Module):
    """Two linear maps, with the temperature."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = (nn.Linear(WIDTH, 5, dtype=torch.float64) for _ in range(2))
        self.log_logit_scale = nn.Parameter(torch.tensor(2.5, dtype=torch.float64))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        images, texts = F.normalize(self.image(images), dim=-1), F.normalize(self.text(texts), dim=-1)
        return images, texts, self.log_logit_scale.exp()


def whole_batch(world_size):
    """Images repeated across ranks and within them; a third of the captions is missing, of some images all."""
    generator, rows = torch.Generator().manual_seed(world_size), world_size * B
    images = torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64)
    texts = torch.randn(rows, K, WIDTH, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, K, generator=generator) < 0.67
    mask[::31] = False
    ids = 1000 + torch.randint(rows * 3 // 4, (rows,), generator=generator)
    return images, texts, mask, ids


def formula(images, texts, scale, mask, ids, text_to_image_weight=1.0, text_to_text_weight=0.0, is_there=None):
    """A mean over its positives for each anchor that has some, then a mean over these anchors, in each direction.

    Images may be missing where they are texts of another language.
    """
    is_there = torch.ones(len(images), dtype=torch.bool) if is_there is None else is_there
    logits = scale * torch.einsum("id,jkd->ijk", images, texts)
    positive = (ids[:, None] == ids)[:, :, None] & mask & is_there[:, None, None]

    def mean_over_anchors(log_probs, is_positive):
        counts = is_positive.sum(1)
        terms = -torch.where(is_positive, log_probs, 0.0).sum(1)
        return (terms[counts > 0] / counts[counts > 0]).mean()

    of_images = logits.masked_fill(~mask, -torch.inf).flatten(1).log_softmax(1)
    of_texts = logits.masked_fill(~is_there[:, None, None], -torch.inf).flatten(1).T.log_softmax(1)
    to_text = mean_over_anchors(of_images, positive.flatten(1))
    loss = 0.5 * (to_text + text_to_image_weight * mean_over_anchors(of_texts, positive.flatten(1).T))
    if text_to_text_weight:
        among_texts = [
            formula(texts[:, k], texts[:, others], scale, mask[:, others], ids, is_there=mask[:, k])
            for k in range(K)
            for others in [[other for other in range(K) if other != k]]
        ]
        loss = loss + text_to_text_weight * sum(among_texts) / K
    return loss


def of_rank(rank, world_size):
    images, texts, mask, ids = (of[rank * B : (rank + 1) * B] for of in whole_batch(world_size))
    found = []
    for settings in SETTINGS:
        towers = DistributedDataParallel(Towers())
        loss = ContrastiveLoss(**settings)(*towers(images, texts), caption_mask=mask, image_ids=ids)
        loss.backward()
        found.append((loss.detach(), [parameter.grad for parameter in towers.parameters()]))
    return found


@pytest.mark.ddp
@pytest.mark.parametrize("world_size", [2, 4])
def test_tiles_over_gathered_candidates(world_size, tmp_path):
    assert B * world_size * B * K > DENSE_CELLS  # large enough that the loss takes tiles, in both directions
    ranks = results_of_ranks(of_rank, world_size, tmp_path)
    images, texts, mask, ids = whole_batch(world_size)
    assert len(ids.unique()) < 0.8 * len(ids)
    for number, settings in enumerate(SETTINGS):
        towers = Towers()
        loss = formula(*towers(images, texts), mask, ids, **settings)
        loss.backward()
        gradients = [parameter.grad for parameter in towers.parameters()]
        assert all(gradient.abs().max() > 1e-3 for gradient in gradients)
        torch.testing.assert_close(
            sum(found[number][0] for found in ranks) / world_size, loss.detach(), rtol=1e-12, atol=0
        )
        for found in ranks:
            torch.testing.assert_close(found[number][1], gradients, rtol=0, atol=1e-12)
