"""The 1-to-K sigmoid loss against loops in float64, SigLIP's own loss, and one process with the whole batch."""

import math

import pytest
import torch

from ccr_lightning.errors import CCRError
from ccr_lightning.functional import sigmoid
from ccr_lightning.functional.sigmoid import one_to_k_sigmoid_loss
from ccr_lightning.losses import ContrastiveLoss


def embeddings(n_images=5, n_languages=3, width=8):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n_images, width, generator=generator)
    texts = torch.randn(n_images, n_languages, width, generator=generator)
    return images / images.norm(dim=-1, keepdim=True), texts / texts.norm(dim=-1, keepdim=True)


def expected_loss(images, texts, scale, bias, mask, ids):
    total, captions = 0.0, 0
    for j in range(len(texts)):
        for k in range(texts.shape[1]):
            if not mask[j][k]:
                continue
            captions += 1
            for i in range(len(images)):
                logit = scale * float(images[i].double() @ texts[j, k].double()) + bias
                total += math.log1p(math.exp(-logit if ids[i] == ids[j] else logit))
    return total / captions


@pytest.mark.parametrize("cells", [2**22, 1, 7])
@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4], [0, 1, 0, 3, 1]])
def test_it_is_what_the_formula_says(monkeypatch, ids, cells):
    monkeypatch.setattr(sigmoid, "_CELLS", cells)
    images, texts = embeddings()
    mask = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)) < 0.7
    texts = texts.masked_fill(~mask[..., None], torch.nan)  # whatever a missing caption became
    loss = one_to_k_sigmoid_loss(images, texts, 10.0, -4.0, caption_mask=mask, image_ids=torch.tensor(ids))
    assert loss.item() == pytest.approx(expected_loss(images, texts, 10.0, -4.0, mask.tolist(), ids), rel=1e-6)


def test_with_one_language_it_is_siglips():
    """As transformers computes it in SiglipModel: the sum over all pairs, over the number of texts."""
    images, texts = embeddings(n_languages=1)
    logits = 10.0 * texts[:, 0] @ images.T - 4.0
    signs = 2 * torch.eye(5) - 1
    theirs = -torch.nn.functional.logsigmoid(signs * logits).sum(-1).mean()
    torch.testing.assert_close(one_to_k_sigmoid_loss(images, texts, 10.0, -4.0), theirs)


def test_it_is_the_mean_over_languages():
    images, texts = embeddings()
    of_each = [one_to_k_sigmoid_loss(images, texts[:, k : k + 1], 10.0, -4.0) for k in range(3)]
    torch.testing.assert_close(one_to_k_sigmoid_loss(images, texts, 10.0, -4.0), torch.stack(of_each).mean())


@pytest.mark.parametrize("cells", [2**22, 7])
def test_gradients_of_everything(monkeypatch, cells):
    monkeypatch.setattr(sigmoid, "_CELLS", cells)
    images, texts = (of.double().requires_grad_() for of in embeddings())
    scale, bias = (torch.tensor(of, dtype=torch.double, requires_grad=True) for of in (3.0, -1.0))
    mask = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)) < 0.7

    def loss(*of):
        return one_to_k_sigmoid_loss(*of, caption_mask=mask)

    assert torch.autograd.gradcheck(loss, (images, texts, scale, bias))


def test_mixed_precision_does_not_round_it():
    images, texts = embeddings()
    expected = one_to_k_sigmoid_loss(images, texts, 112.0, -16.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert one_to_k_sigmoid_loss(images, texts, 112.0, -16.0) == expected


def test_shares_of_several_processes_add_up():
    images, texts = embeddings(n_images=6)
    whole = one_to_k_sigmoid_loss(images, texts, 10.0, -4.0)
    parts = [one_to_k_sigmoid_loss(images, texts, 10.0, -4.0, anchors=slice(i, i + 2)) for i in (0, 2, 4)]
    torch.testing.assert_close(sum(parts), whole)


def test_no_caption_at_all_and_what_does_not_fit():
    images, texts = embeddings()
    nothing = torch.zeros(5, 3, dtype=torch.bool)
    assert one_to_k_sigmoid_loss(images, texts, 10.0, -4.0, caption_mask=nothing).item() == 0
    with pytest.raises(CCRError, match=r"logit_bias has shape \(2,\): pass one number"):
        one_to_k_sigmoid_loss(images, texts, 10.0, torch.zeros(2))
    with pytest.raises(CCRError, match="image_embeds"):
        one_to_k_sigmoid_loss(images[:3], texts, 10.0, 0.0)
    with pytest.raises(CCRError, match="needs a logit_bias"):
        ContrastiveLoss("one_to_k_sigmoid")(images, texts, 10.0)
    found = ContrastiveLoss("one_to_k_sigmoid")(images, texts, 10.0, -4.0)
    assert found == one_to_k_sigmoid_loss(images, texts, 10.0, -4.0)
