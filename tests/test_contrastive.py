"""The contrastive losses against loops over i, j, k in float64, and against identities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ccr_lightning.errors import CCRError
from ccr_lightning.functional import logsumexp
from ccr_lightning.functional.contrastive import (
    draw_one_caption,
    english_pivot_contrastive_loss,
    one_to_k_contrastive_loss,
    text_to_text_contrastive_loss,
)
from ccr_lightning.losses import ContrastiveLoss

B, K, D = 7, 3, 5
SCALE = 3.7


@pytest.fixture(autouse=True, params=["dense", "tiled"])
def form(request, monkeypatch):
    """Each test is of both forms of the loss, the tiled one with several tiles that are not full."""
    monkeypatch.setattr(logsumexp, "DENSE_CELLS", -1 if request.param == "tiled" else math.inf)
    monkeypatch.setattr(logsumexp, "_TILE", (4, 5))
    return request.param


def unit(*shape, seed=0, dtype=torch.float64):
    return F.normalize(
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1
    ).to(dtype)


def holes():
    """Captions missing here and there: row 2 has none, row 5 none but a twin (row 1) with some."""
    mask = torch.ones(B, K, dtype=torch.bool)
    mask[2], mask[5] = False, False
    mask[0, 1] = mask[1, 0] = mask[4, 2] = mask[4, 0] = False
    return mask


def no_french():
    mask = torch.ones(B, K, dtype=torch.bool)
    mask[:, 2] = False
    return mask


TWINS = torch.tensor([30, 11, 12, 30, 14, 11, 30])  # rows 0, 3, 6 and rows 1, 5 show one image each
CASES = {
    "plain": (None, None),
    "holes": (holes(), None),
    "twins": (None, TWINS),
    "holes and twins": (holes(), TWINS),
    "a language without captions": (no_french(), TWINS),
    "one image only": (holes(), torch.full((B,), 4)),
}
cases = pytest.mark.parametrize(("mask", "ids"), CASES.values(), ids=CASES.keys())


def text_to_text(image_embeds, text_embeds, *arguments, **options):
    """With the arguments of the other losses."""
    return text_to_text_contrastive_loss(text_embeds, *arguments, **options) + 0 * image_embeds.sum()


losses = pytest.mark.parametrize("objective", [one_to_k_contrastive_loss, english_pivot_contrastive_loss, text_to_text])


def filled_in(mask, ids):
    mask = torch.ones(B, K, dtype=torch.bool) if mask is None else mask
    ids = torch.arange(B) if ids is None else ids
    return mask.numpy(), ids.numpy()


def mean_over_positives(logits, positives):
    """Mean of -log softmax over the entries of ``positives``; ``logits`` maps each candidate to its logit."""
    denominator = math.log(sum(math.exp(value) for value in logits.values()))
    return sum(denominator - logits[positive] for positive in positives) / len(positives)


def mean(terms):
    return sum(terms) / len(terms) if terms else 0.0


def one_to_k_by_loops(image_embeds, text_embeds, mask, ids, weight):
    v, t = image_embeds.numpy(), text_embeds.numpy()
    image_terms, text_terms = [], []
    for i in range(B):
        logits = {(j, k): SCALE * float(v[i] @ t[j, k]) for j in range(B) for k in range(K) if mask[j, k]}
        positives = [(j, k) for (j, k) in logits if ids[j] == ids[i]]
        if positives:
            image_terms.append(mean_over_positives(logits, positives))
    for i in range(B):
        for k in range(K):
            if mask[i, k]:
                logits = {j: SCALE * float(v[j] @ t[i, k]) for j in range(B)}
                text_terms.append(mean_over_positives(logits, [j for j in logits if ids[j] == ids[i]]))
    return 0.5 * (mean(image_terms) + weight * mean(text_terms))


def clip_by_loops(queries, texts, ids):
    """CLIP's loss between two dicts, row → embedding, of those that are there."""

    def direction(anchors, candidates):
        terms = []
        for i in anchors:
            logits = {j: SCALE * float(anchors[i] @ candidates[j]) for j in candidates}
            positives = [j for j in candidates if ids[j] == ids[i]]
            if positives:
                terms.append(mean_over_positives(logits, positives))
        return mean(terms)

    return 0.5 * (direction(queries, texts) + direction(texts, queries))


def pivot_by_loops(image_embeds, text_embeds, mask, ids, pivot):
    images = {i: image_embeds[i].numpy() for i in range(B)}
    texts = [{i: text_embeds[i, k].numpy() for i in range(B) if mask[i, k]} for k in range(K)]
    others = [clip_by_loops(texts[pivot], texts[k], ids) for k in range(K) if k != pivot]
    return clip_by_loops(images, texts[pivot], ids) + sum(others) / len(others)


def text_to_text_by_loops(text_embeds, mask, ids):
    t, of_language = text_embeds.numpy(), []
    for a in range(K):
        forth, back = [], []
        for i in range(B):
            if not mask[i, a]:
                continue
            logits = {
                (j, k): SCALE * float(t[i, a] @ t[j, k]) for j in range(B) for k in range(K) if k != a and mask[j, k]
            }
            positives = [(j, k) for (j, k) in logits if ids[j] == ids[i]]
            if positives:
                forth.append(mean_over_positives(logits, positives))
        for i in range(B):
            for k in range(K):
                if k == a or not mask[i, k]:
                    continue
                logits = {j: SCALE * float(t[j, a] @ t[i, k]) for j in range(B) if mask[j, a]}
                positives = [j for j in logits if ids[j] == ids[i]]
                if positives:
                    back.append(mean_over_positives(logits, positives))
        of_language.append(0.5 * (mean(forth) + mean(back)))
    return mean(of_language)


@cases
def test_text_to_text_is_the_formula(mask, ids):
    text_embeds = unit(B, K, D, seed=2)
    loss = text_to_text_contrastive_loss(text_embeds, SCALE, caption_mask=mask, image_ids=ids)
    expected = text_to_text_by_loops(text_embeds, *filled_in(mask, ids))
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_text_to_text_of_one_or_two_languages():
    text_embeds = unit(B, 2, D, seed=2).requires_grad_()
    logits, labels = SCALE * text_embeds[:, 0] @ text_embeds[:, 1].T, torch.arange(B)
    clip = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(text_to_text_contrastive_loss(text_embeds, SCALE), clip)
    alone = text_to_text_contrastive_loss(text_embeds[:, :1], SCALE)
    assert (alone.item(), alone.requires_grad) == (0, True)


@cases
@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_one_to_k_is_the_formula(mask, ids, weight):
    image_embeds, text_embeds = unit(B, D, seed=1), unit(B, K, D, seed=2)
    loss = one_to_k_contrastive_loss(
        image_embeds, text_embeds, SCALE, caption_mask=mask, image_ids=ids, text_to_image_weight=weight
    )
    expected = one_to_k_by_loops(image_embeds, text_embeds, *filled_in(mask, ids), weight)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert expected > 0


@cases
@pytest.mark.parametrize("pivot", [0, 1, 2])
def test_english_pivot_is_the_formula(mask, ids, pivot):
    image_embeds, text_embeds = unit(B, D, seed=1), unit(B, K, D, seed=2)
    loss = english_pivot_contrastive_loss(
        image_embeds, text_embeds, SCALE, pivot=pivot, caption_mask=mask, image_ids=ids
    )
    expected = pivot_by_loops(image_embeds, text_embeds, *filled_in(mask, ids), pivot)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_k_1_is_clip():
    image_embeds, text_embeds = unit(B, D, seed=1), unit(B, 1, D, seed=2)
    logits = SCALE * image_embeds @ text_embeds[:, 0].T
    labels = torch.arange(B)
    clip = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(one_to_k_contrastive_loss(image_embeds, text_embeds, SCALE), clip)
    torch.testing.assert_close(english_pivot_contrastive_loss(image_embeds, text_embeds, SCALE, pivot=0), clip)


def test_text_to_image_weight_reaches_the_authors_weighting():
    image_embeds, text_embeds = unit(B, D, seed=1), unit(B, K, D, seed=2)
    logits = SCALE * image_embeds.numpy() @ text_embeds.numpy().reshape(B * K, D).T
    by_image = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    by_text = logits - np.log(np.exp(logits).sum(0, keepdims=True))
    # Summed over the K positives for the images, averaged over the texts, the half of both divided by K.
    image_to_text = np.mean([-sum(by_image[i, i * K + k] for k in range(K)) for i in range(B)])
    text_to_image = np.mean([-by_text[i, i * K + k] for i in range(B) for k in range(K)])
    loss = one_to_k_contrastive_loss(image_embeds, text_embeds, SCALE, text_to_image_weight=1 / K)
    assert loss.item() == pytest.approx((image_to_text + text_to_image) / 2 / K, rel=1e-12)


def test_floor_of_image_to_text_is_log_k():
    image_embeds = torch.eye(B, dtype=torch.float64)  # logits of 1000 have few digits after the point
    text_embeds = image_embeds[:, None].expand(B, K, B)
    half = one_to_k_contrastive_loss(image_embeds, text_embeds, 1000.0, text_to_image_weight=0.0)
    both = one_to_k_contrastive_loss(image_embeds, text_embeds, 1000.0)
    assert 2 * half.item() == pytest.approx(math.log(K), rel=1e-6)
    assert both.item() == half.item()  # text→image reaches 0


def test_collapsed_embeddings_are_a_uniform_guess():
    image_embeds, text_embeds = torch.ones(B, 1).double(), torch.ones(B, K, 1).double()
    loss = one_to_k_contrastive_loss(image_embeds, text_embeds, SCALE)
    assert loss.item() == pytest.approx((math.log(B * K) + math.log(B)) / 2)


@cases
@losses
def test_shares_of_a_partition_add_up(mask, ids, objective):
    image_embeds, text_embeds = unit(B, D, seed=1), unit(B, K, D, seed=2)
    options = {"caption_mask": mask, "image_ids": ids}
    options |= {"pivot": 1} if objective is english_pivot_contrastive_loss else {}
    options |= {"text_to_image_weight": 0.25} if objective is one_to_k_contrastive_loss else {}
    whole = objective(image_embeds, text_embeds, SCALE, **options)
    shares = [
        objective(image_embeds, text_embeds, SCALE, anchors=anchors, **options)
        for anchors in (slice(0, 3), slice(3, 4), slice(4, B))
    ]
    torch.testing.assert_close(sum(shares), whole)
    assert all(share < whole for share in shares)


@cases
@losses
def test_gradient(mask, ids, objective):
    options = {"caption_mask": mask, "image_ids": ids}
    options |= {"pivot": 0} if objective is english_pivot_contrastive_loss else {}
    inputs = (unit(B, D, seed=1), unit(B, K, D, seed=2), torch.tensor(SCALE, dtype=torch.float64))
    inputs = tuple(tensor.requires_grad_() for tensor in inputs)
    assert torch.autograd.gradcheck(lambda *tensors: objective(*tensors, **options), inputs)


@losses
def test_missing_captions_may_hold_anything(objective):
    options = {"pivot": 0} if objective is english_pivot_contrastive_loss else {}
    mask = holes()
    gradients = []
    for content in (0.3, math.nan, math.inf):
        image_embeds, scale = unit(B, D, seed=1).requires_grad_(), torch.tensor(SCALE).double().requires_grad_()
        text_embeds = unit(B, K, D, seed=2).masked_fill(~mask[..., None], content).requires_grad_()
        loss = objective(image_embeds, text_embeds, scale, caption_mask=mask, image_ids=TWINS, **options)
        gradients.append((loss, *torch.autograd.grad(loss, (image_embeds, text_embeds, scale))))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0])
    assert gradients[0][2][~mask].abs().max() == 0
    assert gradients[0][2][mask].abs().min() > 0


@losses
def test_without_any_caption_the_loss_is_zero_with_a_graph(objective):
    options = {"pivot": 0} if objective is english_pivot_contrastive_loss else {}
    image_embeds, text_embeds = unit(B, D).requires_grad_(), torch.full((B, K, D), math.nan).requires_grad_()
    scale = torch.tensor(SCALE, requires_grad=True)
    nothing = torch.zeros(B, K, dtype=torch.bool)
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way either
        loss = objective(image_embeds, text_embeds, scale, caption_mask=nothing, **options)
        gradients = torch.autograd.grad(loss, (image_embeds, text_embeds, scale))
    assert loss.item() == 0
    assert all(gradient.abs().sum() == 0 for gradient in gradients)


@losses
def test_nan_embeddings_give_nan(objective):
    options = {"pivot": 0} if objective is english_pivot_contrastive_loss else {}
    image_embeds, text_embeds = unit(B, D), unit(B, K, D)
    image_embeds[2] = math.nan  # the image without captions, but a candidate
    assert objective(image_embeds, text_embeds, SCALE, caption_mask=holes(), **options).isnan()
    text_embeds[3, 1] = math.nan
    assert objective(unit(B, D), text_embeds, SCALE, **options).isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    image_embeds, text_embeds = unit(B, D, seed=1, dtype=dtype), unit(B, K, D, seed=2, dtype=dtype)
    expected = one_to_k_contrastive_loss(image_embeds.float(), text_embeds.float(), 50.0)
    loss = one_to_k_contrastive_loss(image_embeds, text_embeds, torch.tensor(50.0, dtype=dtype))
    assert loss.dtype == torch.float32
    assert loss == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert one_to_k_contrastive_loss(image_embeds, text_embeds, 50.0) == expected


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image_embeds": torch.ones(B, D + 1)}, r"image_embeds \(7, 6\) and text_embeds \(7, 3, 5\)"),
        ({"text_embeds": torch.ones(B, D)}, r"text_embeds \(7, 5\)"),
        ({"image_embeds": torch.ones(0, D), "text_embeds": torch.ones(0, K, D)}, "at least 1"),
        ({"image_embeds": torch.ones(B, D, dtype=torch.int64)}, "floating point"),
        ({"caption_mask": torch.ones(B, K)}, "caption_mask is torch.float32"),
        ({"caption_mask": torch.ones(B, dtype=torch.bool)}, r"shape \(7,\): pass torch.bool of shape \(7, 3\)"),
        ({"image_ids": torch.arange(B + 1)}, r"image_ids has shape \(8,\)"),
        ({"logit_scale": torch.ones(2)}, r"logit_scale has shape \(2,\)"),
    ],
)
def test_shapes_that_do_not_fit(changed, message):
    arguments = {"image_embeds": torch.ones(B, D), "text_embeds": torch.ones(B, K, D), "logit_scale": 1.0} | changed
    with pytest.raises(CCRError, match=message):
        one_to_k_contrastive_loss(**arguments)
    with pytest.raises(CCRError, match=message):
        english_pivot_contrastive_loss(**arguments, pivot=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"text_embeds": torch.ones(B, D)}, r"text_embeds has shape \(7, 5\): pass \(B, K, D\)"),
        ({"text_embeds": torch.ones(0, K, D)}, "at least 1"),
        ({"text_embeds": torch.ones(B, K, D, dtype=torch.int64)}, "floating point"),
        ({"caption_mask": torch.ones(B, K)}, "caption_mask is torch.float32"),
        ({"image_ids": torch.arange(B + 1)}, r"image_ids has shape \(8,\)"),
    ],
)
def test_texts_that_do_not_fit(changed, message):
    with pytest.raises(CCRError, match=message):
        text_to_text_contrastive_loss(**{"text_embeds": torch.ones(B, K, D), "logit_scale": 1.0} | changed)


@pytest.mark.parametrize("pivot", [-1, K])
def test_pivot_outside_the_languages(pivot):
    with pytest.raises(CCRError, match=f"pivot is {pivot}"):
        english_pivot_contrastive_loss(unit(B, D), unit(B, K, D), SCALE, pivot=pivot)


def test_one_caption_is_drawn_uniformly_from_those_present():
    rows = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    repeats = 20_000
    drawn = draw_one_caption(rows.repeat(repeats, 1), generator=torch.Generator().manual_seed(0)).view(repeats, 4)
    assert drawn.dtype == torch.int64
    share = torch.stack([(drawn == k).double().mean(0) for k in range(4)], dim=1)
    expected = torch.tensor([[0.25] * 4, [0, 0.5, 0, 0.5], [0, 0, 1, 0], [1, 0, 0, 0]]).double()
    assert (share - expected).abs().max() < 4.5 * 0.5 / math.sqrt(repeats)
    assert bool((share[expected == 0] == 0).all())


def test_loss_module_is_the_function():
    image_embeds, text_embeds, mask = unit(B, D, seed=1), unit(B, K, D, seed=2), holes()
    given = {"caption_mask": mask, "image_ids": TWINS}
    assert ContrastiveLoss(text_to_image_weight=0.5)(
        image_embeds, text_embeds, SCALE, **given
    ) == one_to_k_contrastive_loss(image_embeds, text_embeds, SCALE, text_to_image_weight=0.5, **given)
    added = ContrastiveLoss(text_to_text_weight=0.7)(image_embeds, text_embeds, SCALE, **given)
    assert added == one_to_k_contrastive_loss(image_embeds, text_embeds, SCALE, **given) + 0.7 * (
        text_to_text_contrastive_loss(text_embeds, SCALE, **given)
    )
    assert ContrastiveLoss("english_pivot", pivot_language="fr")(
        image_embeds, text_embeds, SCALE, languages=("en", "de", "fr"), **given
    ) == english_pivot_contrastive_loss(image_embeds, text_embeds, SCALE, pivot=2, **given)
    assert ContrastiveLoss("one_to_one")(image_embeds, text_embeds[:, :1], SCALE) == one_to_k_contrastive_loss(
        image_embeds, text_embeds[:, :1], SCALE
    )


def test_loss_module_refuses_what_does_not_suit_the_objective():
    with pytest.raises(CCRError, match="one_to_k, one_to_k_sigmoid, one_to_one, english_pivot"):
        ContrastiveLoss("one_to_many")
    with pytest.raises(CCRError, match=r"text_to_image_weight=0\.5"):
        ContrastiveLoss("one_to_one", text_to_image_weight=0.5)
    with pytest.raises(CCRError, match=r"text_to_text_weight=0\.5 has no meaning"):
        ContrastiveLoss("english_pivot", text_to_text_weight=0.5)
    for weight in (-0.5, math.nan):
        with pytest.raises(CCRError, match=f"text_to_text_weight={weight} is out of range"):
            ContrastiveLoss(text_to_text_weight=weight)
    with pytest.raises(CCRError, match="one text per image, but text_embeds has 3"):
        ContrastiveLoss("one_to_one")(unit(B, D), unit(B, K, D), SCALE)
    for languages in (None, ("de", "fr", "cs"), ("en", "de")):
        with pytest.raises(CCRError, match="needs 3 languages, among them the pivot 'en'"):
            ContrastiveLoss("english_pivot")(unit(B, D), unit(B, K, D), SCALE, languages=languages)
