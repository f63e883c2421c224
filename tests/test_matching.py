"""The draws of image-text matching against probabilities computed by loops, and the matching loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ccr_lightning.errors import CCRError
from ccr_lightning.functional.matching import _draw_index, draw_matching, matching_loss

B, K, D = 5, 3, 4
SCALE = 4.0
DRAWS = 3_000
MASK = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]], dtype=torch.bool)
IDS = torch.tensor([8, 9, 10, 9, 11])


def unit(*shape, seed):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def assert_counts_fit(counts, probabilities):
    """4.5 standard deviations for what is possible, and nothing that is not."""
    n = counts.sum()
    slack = np.where(probabilities > 0, 1 + 4.5 * np.sqrt(n * probabilities * (1 - probabilities)), 0)
    assert (np.abs(counts - n * probabilities) <= slack).all(), (counts, n * probabilities)


def probabilities(v, t, positive_language):
    """P(language), P(negative image | language) and P(negative text) of every image."""
    logits = {
        (i, j, k): SCALE * float(v[i] @ t[j, k]) for i in range(B) for j in range(B) for k in range(K) if MASK[j, k]
    }
    weights = {}
    for i, j, k in logits:
        total = sum(math.exp(value) for (row, _, _), value in logits.items() if row == i)
        weights[i, j, k] = math.exp(logits[i, j, k]) / total
    language, image, text = np.zeros((B, K)), np.zeros((B, K, B)), np.zeros((B, B, K))
    for i in range(B):
        for k in range(K):
            if not MASK[i, k]:
                continue
            language[i, k] = {
                "uniform": 1.0,
                "least_likely": max(weights.values()) - weights[i, i, k] + 1e-5,
                "least_similar": max(logits.values()) - logits[i, i, k] + 1e-5,
            }[positive_language]
            total = sum(math.exp(logits[row, i, k]) for row in range(B))
            for j in range(B):
                if IDS[j] != IDS[i]:
                    image[i, k, j] = math.exp(logits[j, i, k]) / total + 1e-5
            image[i, k] /= image[i, k].sum()
        for j in range(B):
            for k in range(K):
                if IDS[j] != IDS[i] and MASK[j, k]:
                    text[i, j, k] = weights[i, j, k] + 1e-5
        text[i] /= text[i].sum()
        if MASK[i].any():
            language[i] /= language[i].sum()
    return language, image, text


@pytest.mark.parametrize("positive_language", ["least_likely", "uniform", "least_similar"])
def test_draws_follow_the_distribution(positive_language):
    v, t = unit(B, D, seed=1), unit(B, K, D, seed=2)
    language, image, text = probabilities(v.numpy(), t.numpy(), positive_language)
    generator = torch.Generator().manual_seed(0)
    options = {"caption_mask": MASK, "image_ids": IDS, "positive_language": positive_language, "generator": generator}
    draws = [draw_matching(v, t, SCALE, **options) for _ in range(DRAWS)]
    assert all(draw.valid.tolist() == [True, True, False, True, True] for draw in draws)
    pairs, texts = np.zeros((B, K, B)), np.zeros((B, B, K))
    for draw in draws:
        pairs[np.arange(B), draw.language.numpy(), draw.negative_image.numpy()] += 1
        texts[np.arange(B), draw.negative_text.numpy() // K, draw.negative_text.numpy() % K] += 1
    for i in (0, 1, 3, 4):
        assert_counts_fit(pairs[i], language[i, :, None] * image[i])
        assert_counts_fit(texts[i], text[i])


@pytest.mark.parametrize(
    ("positive_language", "share_of_known"), [("least_likely", 0), ("uniform", 0.5), ("least_similar", 0)]
)
def test_positive_is_what_the_model_misses(positive_language, share_of_known):
    n_images = 1000
    v = torch.eye(n_images + 1)[:-1]
    unknown = torch.eye(n_images + 1)[-1:].expand(n_images, -1)  # unlike every image
    draw = draw_matching(
        v,
        torch.stack([v, unknown], dim=1),
        50.0,
        positive_language=positive_language,
        generator=torch.Generator().manual_seed(0),
    )
    assert draw.language.eq(0).double().mean().item() == pytest.approx(share_of_known, abs=4.5 * 0.5 / n_images**0.5)


def test_an_impossible_item_is_never_drawn():
    weights = torch.zeros(200_000, 9)
    weights[:, 2], weights[:, 5], weights[:, 6] = 1e-3, 1.0, 1e-3
    counts = torch.bincount(_draw_index(weights, torch.Generator().manual_seed(0)), minlength=9)
    assert_counts_fit(counts.numpy(), (weights[0] / weights[0].sum()).numpy())
    assert _draw_index(torch.zeros(2, 3), None).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("uniform", "weights", "expected"),
    [(0.0, [0.0, 0.3, 0.7], 1), (1.0, [0.3, 0.7, 0.0], 1), (1.0, [1.0, 0.0, 0.0], 0)],
)
def test_the_ends_of_the_unit_interval_hit_possible_items(monkeypatch, uniform, weights, expected):
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, uniform, dtype=torch.float64))
    assert _draw_index(torch.tensor([weights]), None).tolist() == [expected]


@pytest.mark.parametrize(
    ("n_images", "options"),
    [
        (1, {}),
        (3, {"image_ids": torch.tensor([6, 6, 6])}),
        (2, {"caption_mask": torch.tensor([[True, True], [False, False]])}),
        (2, {"caption_mask": torch.zeros(2, 2, dtype=torch.bool)}),
    ],
    ids=["one row", "one image", "one image with captions", "no captions"],
)
def test_without_negatives_no_row_is_valid(n_images, options):
    draw = draw_matching(unit(n_images, D, seed=1), unit(n_images, 2, D, seed=2), SCALE, **options)
    assert not draw.valid.any()
    assert_in_range(draw, n_images, 2)


def assert_in_range(draw, n_images, n_languages):
    for index, end in zip(draw[:3], (n_languages, n_images, n_images * n_languages), strict=True):
        assert index.dtype == torch.int64
        assert index.shape == (n_images,)
        assert index.min() >= 0
        assert index.max() < end


@pytest.mark.parametrize("positive_language", ["least_likely", "uniform", "least_similar"])
def test_nan_embeddings_do_not_crash_the_draw(positive_language):
    v, t = unit(B, D, seed=1), torch.full((B, K, D), math.nan)
    assert_in_range(draw_matching(v, t, SCALE, positive_language=positive_language), B, K)


def test_same_seed_same_draw_without_gradient():
    v, t = unit(B, D, seed=1).requires_grad_(), unit(B, K, D, seed=2).requires_grad_()
    draws = [draw_matching(v, t, SCALE, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert all(torch.equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(draws[0], draws[2], strict=True))
    assert not any(tensor.requires_grad for tensor in draws[0])


def test_autocast_does_not_touch_the_draw():
    v, t = unit(200, D, seed=1).float(), unit(200, K, D, seed=2).float()
    expected = draw_matching(v, t, 100.0, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        draw = draw_matching(v, t, 100.0, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(draw, expected, strict=True))


def test_draw_refuses_bad_input():
    with pytest.raises(CCRError, match="positive_language is 'hardest'"):
        draw_matching(unit(B, D, seed=1), unit(B, K, D, seed=2), SCALE, positive_language="hardest")
    with pytest.raises(CCRError, match=r"image_embeds \(4, 4\)"):
        draw_matching(unit(B - 1, D, seed=1), unit(B, K, D, seed=2), SCALE)


def test_matching_loss_is_the_mean_cross_entropy_of_valid_pairs():
    logits, valid = unit(3 * B, 2, seed=3) * 4, torch.tensor([True, False, True, True, False])
    total, count = matching_loss(logits, valid)
    terms = []
    for pair in range(3 * B):
        if valid[pair % B]:
            target = 1 if pair < B else 0
            terms.append(math.log(sum(math.exp(x) for x in logits[pair].tolist())) - logits[pair, target].item())
    assert count.item() == len(terms) == 9
    assert total.item() == pytest.approx(sum(terms), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: matching_loss(x, valid)[0], logits.requires_grad_())


def test_invalid_pairs_do_not_matter():
    valid = torch.tensor([True, False])
    logits = torch.full((6, 2), math.nan).masked_fill(valid.repeat(3)[:, None], 0.5).requires_grad_()
    total, count = matching_loss(logits, valid)
    (gradient,) = torch.autograd.grad(total, logits)
    assert total.item() == pytest.approx(3 * math.log(2))
    assert count.item() == 3
    assert gradient.isfinite().all()
    total, count = matching_loss(logits, torch.zeros(2, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(total, logits)
    assert (total.item(), count.item(), gradient.abs().sum().item()) == (0, 0, 0)


def test_matching_loss_in_half_precision_and_of_wrong_shapes():
    logits = (unit(6, 2, seed=3) * 4).bfloat16()
    total, _ = matching_loss(logits, torch.ones(2, dtype=torch.bool))
    assert total.dtype == torch.float32
    assert total == matching_loss(logits.float(), torch.ones(2, dtype=torch.bool))[0]
    with pytest.raises(CCRError, match=r"logits \(6, 2\) and valid \(3,\)"):
        matching_loss(logits, torch.ones(3, dtype=torch.bool))
