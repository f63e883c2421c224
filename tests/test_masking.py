"""Masked tokens against the sequential algorithm, enumerated, and the masked-LM loss against a loop."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch

from ccr_lightning.errors import CCRError
from ccr_lightning.functional.masking import mask_tokens, masked_lm_loss

VOCABULARY = {"mask_token_id": 5, "vocab_size": 50}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def assert_shares_fit(counts, probabilities):
    """4.5 standard deviations for what is possible, and nothing that is not."""
    n = sum(counts.values())
    assert set(counts) <= set(probabilities)
    for item, p in probabilities.items():
        assert abs(counts[item] - n * p) <= 1 + 4.5 * math.sqrt(n * p * (1 - p)), (item, counts[item], n * p)


@pytest.mark.parametrize(("rate", "max_masked"), [(0.4, 12), (0.15, 12), (1.0, 40), (0.5, 3)])
def test_number_of_masked_tokens(rate, max_masked):
    lengths = range(41)
    maskable = torch.arange(42) < torch.tensor(lengths)[:, None]
    maskable = maskable[:, torch.randperm(42, generator=seeded())]  # gaps too
    targets = mask_tokens(
        torch.full((41, 42), 9), maskable, rate=rate, max_masked=max_masked, generator=seeded(), **VOCABULARY
    ).targets
    expected = [min(max_masked, max(1, round(rate * n))) if n else 0 for n in lengths]
    assert (targets != -100).sum(1).tolist() == expected


def test_only_maskable_tokens_change_and_targets_are_the_originals():
    input_ids = torch.randint(6, 50, (64, 30), generator=seeded(1))
    maskable = torch.rand(64, 30, generator=seeded(2)) < 0.7
    before = input_ids.clone()
    masked = mask_tokens(input_ids, maskable, generator=seeded(), **VOCABULARY)
    chosen = masked.targets != -100
    assert not (chosen & ~maskable).any()
    assert torch.equal(masked.targets[chosen], input_ids[chosen])
    assert torch.equal(masked.input_ids[~chosen], input_ids[~chosen])
    assert torch.equal(input_ids, before)
    assert masked.input_ids.dtype == masked.targets.dtype == torch.int64


def exact_distribution(maskable, count, span_probability):
    """Probability of every set of masked positions, by going through all orders of picks and all span lengths."""
    positions = [p for p, ok in enumerate(maskable) if ok]
    length_probability = {1: 1 - span_probability, 2: span_probability / 2, 3: span_probability / 2}
    probabilities = Counter()
    for order in itertools.permutations(positions):
        for lengths in itertools.product((1, 2, 3), repeat=len(positions)):
            chosen = []
            for pick, length in zip(order, lengths, strict=True):
                for p in range(pick, pick + length):
                    if p >= len(maskable) or not maskable[p]:
                        break
                    if p not in chosen:
                        chosen.append(p)
            probability = math.prod(length_probability[length] for length in lengths) / math.factorial(len(positions))
            probabilities[tuple(sorted(chosen[:count]))] += probability
    return {chosen: p for chosen, p in probabilities.items() if p > 0}


@pytest.mark.parametrize("span_probability", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(
    ("maskable", "count"),
    [((0, 1, 1, 1, 1, 1, 0), 2), ((1, 1, 1, 1, 1), 3), ((1, 1, 0, 1, 1), 3), ((1, 1), 1)],
    ids=["caption", "to the edges", "gap", "two tokens"],
)
def test_masked_positions_follow_the_distribution(maskable, count, span_probability):
    rows = 20_000
    mask = torch.tensor(maskable, dtype=torch.bool).expand(rows, -1)
    targets = mask_tokens(
        torch.full(mask.shape, 9),
        mask,
        rate=1.0,
        max_masked=count,
        span_probability=span_probability,
        generator=seeded(),
        **VOCABULARY,
    ).targets
    counts = Counter(tuple(p for p, target in enumerate(row) if target != -100) for row in targets.tolist())
    assert_shares_fit(counts, exact_distribution(maskable, count, span_probability))


def test_a_masked_token_is_hidden_replaced_or_kept():
    input_ids = torch.full((20_000, 10), 7)
    masked = mask_tokens(
        input_ids, torch.ones_like(input_ids, dtype=torch.bool), mask_token_id=99, vocab_size=10, generator=seeded()
    )
    counts = Counter(masked.input_ids[masked.targets != -100].tolist())
    assert sum(counts.values()) == 80_000
    assert_shares_fit(counts, {99: 0.8, 7: 0.11} | {token: 0.01 for token in range(10) if token != 7})


def test_same_seed_same_tokens():
    input_ids = torch.randint(6, 50, (8, 30), generator=seeded(1))
    everywhere = torch.ones(8, 30, dtype=torch.bool)
    first, same, other = (
        mask_tokens(input_ids, everywhere, generator=seeded(seed), **VOCABULARY) for seed in (3, 3, 4)
    )
    assert torch.equal(first.input_ids, same.input_ids)
    assert torch.equal(first.targets, same.targets)
    assert not torch.equal(first.targets, other.targets)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"maskable": torch.ones(2, 4, dtype=torch.bool)}, r"shape \(2, 4\) for input_ids \(2, 5\)"),
        ({"maskable": torch.ones(2, 5)}, "torch.float32"),
        ({"rate": 0.0}, "rate=0.0"),
        ({"max_masked": 0}, "max_masked=0"),
        ({"span_probability": 1.5}, "span_probability=1.5"),
    ],
)
def test_masking_refuses_bad_input(changed, message):
    arguments = {"input_ids": torch.full((2, 5), 9), "maskable": torch.ones(2, 5, dtype=torch.bool), **VOCABULARY}
    with pytest.raises(CCRError, match=message):
        mask_tokens(**(arguments | changed))


def test_masked_lm_loss_is_the_cross_entropy_of_the_targets():
    logits = torch.randn(6, 8, generator=seeded(), dtype=torch.float64)
    targets = torch.tensor([3, -100, 0, 7, -100, 3])
    total, count = masked_lm_loss(logits, targets)
    terms = [
        math.log(sum(math.exp(x) for x in logits[p].tolist())) - logits[p, target].item()
        for p, target in enumerate(targets.tolist())
        if target != -100
    ]
    assert count.item() == len(terms) == 4
    assert total.item() == pytest.approx(sum(terms), rel=1e-12)
    assert masked_lm_loss(logits.bfloat16(), targets)[0].dtype == torch.float32


@pytest.mark.parametrize("n_positions", [4, 0])
def test_nothing_to_predict_is_zero_with_a_graph(n_positions):
    logits = torch.randn(n_positions, 8, generator=seeded(), requires_grad=True)
    total, count = masked_lm_loss(logits, torch.full((n_positions,), -100))
    (gradient,) = torch.autograd.grad(total, logits)
    assert (total.item(), count.item(), gradient.abs().sum().item()) == (0, 0, 0)


def test_masked_lm_loss_refuses_wrong_shapes():
    with pytest.raises(CCRError, match=r"logits \(2, 3, 8\) and targets \(2, 3\)"):
        masked_lm_loss(torch.zeros(2, 3, 8), torch.zeros(2, 3, dtype=torch.int64))
