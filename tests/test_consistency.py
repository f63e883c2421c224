"""Consistency over languages against loops: MRV and MRSD, alignment by image, and agreement in the first result."""

from __future__ import annotations

import itertools
import statistics

import numpy as np
import pytest
import torch

from ccr_lightning.errors import CCRError
from ccr_lightning.functional.consistency import (
    align_ranks,
    first_agreement,
    mean_rank_variance,
    pairwise_rank_variance,
    rank_spread,
)
from ccr_lightning.functional.ranks import retrieval_ranks


def test_mean_rank_variance_is_that_of_the_loop():
    rows = np.random.default_rng(0).integers(1, 500, (50, 4)).tolist()
    ranks = torch.tensor(rows)
    variance = sum(statistics.pvariance(row) for row in rows) / len(rows)
    deviation = sum(statistics.pstdev(row) for row in rows) / len(rows)
    assert mean_rank_variance(ranks).item() == pytest.approx(variance, rel=1e-14)
    assert mean_rank_variance(ranks, statistic="std").item() == pytest.approx(deviation, rel=1e-14)
    assert rank_spread(ranks).tolist() == pytest.approx([statistics.pvariance(row) for row in rows], rel=1e-14)
    assert mean_rank_variance(ranks) != mean_rank_variance(ranks, "std") ** 2


@pytest.mark.parametrize("statistic", ["variance", "std"])
def test_mean_rank_variance_identities(statistic):
    ranks = torch.randint(1, 1000, (40, 3), generator=torch.Generator().manual_seed(0))
    found = mean_rank_variance(ranks, statistic)
    assert found > 0
    assert found.dtype == torch.float64
    for offset in (-1, 7, 10**9):
        assert mean_rank_variance(ranks + offset, statistic) == found
    assert mean_rank_variance(ranks[:, [2, 0, 1]], statistic).item() == pytest.approx(found.item(), rel=1e-14)
    assert mean_rank_variance(ranks[:, :1].expand(40, 5), statistic) == 0
    assert mean_rank_variance(ranks[:, :1], statistic) == 0
    factor = 3 if statistic == "std" else 9
    assert mean_rank_variance(3 * ranks, statistic).item() == pytest.approx(factor * found.item(), rel=1e-14)


def test_pairs_of_languages_are_those_of_loops_and_make_up_the_whole():
    rows = np.random.default_rng(1).integers(1, 500, (40, 5)).tolist()
    found = pairwise_rank_variance(torch.tensor(rows))
    assert found.dtype == torch.float64
    for one, other in itertools.product(range(5), repeat=2):
        expected = sum(statistics.pvariance([row[one], row[other]]) for row in rows) / len(rows)
        assert found[one, other].item() == pytest.approx(expected, rel=1e-14)
    whole = statistics.mean(statistics.pvariance(row) for row in rows)
    assert 4 / 5**2 * sum(found[i, j].item() for i in range(5) for j in range(i)) == pytest.approx(whole, rel=1e-13)
    with pytest.raises(CCRError, match="at least one instance"):
        pairwise_rank_variance(torch.ones(3))


def test_identical_texts_have_no_rank_variance():
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, 50, 8, generator=generator).unbind()
    ids = torch.arange(50)
    ranks = [retrieval_ranks(texts.clone(), images, ids, ids) for _ in range(4)]
    assert ranks[0].float().var() > 0
    assert mean_rank_variance(torch.stack(ranks, 1)) == 0


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,)])
def test_mean_rank_variance_of_nothing(shape):
    with pytest.raises(CCRError, match="at least one instance"):
        mean_rank_variance(torch.ones(shape))


def test_unknown_statistic():
    with pytest.raises(CCRError, match="'median' is unknown: choose one of variance, std"):
        mean_rank_variance(torch.ones(2, 2), "median")


def test_align_ranks_is_that_of_the_loop():
    generator = np.random.default_rng(0)
    ids = [generator.integers(0, 30, 60) + 2**50 for _ in range(3)]
    ranks = [generator.integers(1, 100, 60) for _ in range(3)]
    of = [
        {key: [r for i, r in zip(ids[k], ranks[k], strict=True) if i == key] for key in set(ids[k].tolist())}
        for k in range(3)
    ]
    common = sorted(set(of[0]) & set(of[1]) & set(of[2]))
    assert 0 < len(common) < len(set(of[0]) | set(of[1]) | set(of[2]))
    found_ids, found = align_ranks([torch.tensor(i) for i in ids], [torch.tensor(r) for r in ranks])
    assert found_ids.tolist() == common
    assert found.tolist() == [[sum(of[k][key]) / len(of[k][key]) for k in range(3)] for key in common]


def test_align_ranks_of_nothing():
    found_ids, found = align_ranks([torch.tensor([1, 2]), torch.tensor([3])], [torch.tensor([1, 1]), torch.tensor([1])])
    assert found_ids.shape == (0,)
    assert found.shape == (0, 2)
    for ids, ranks in (([], []), ([torch.tensor([1])], [torch.tensor([1, 2])])):
        with pytest.raises(CCRError, match="do not fit"):
            align_ranks(ids, ranks)


@pytest.mark.parametrize("captions", [1, 3])
def test_first_agreement_is_that_of_all_draws(captions):
    generator = np.random.default_rng(captions)
    ids = [np.repeat(generator.permutation(40)[:30], captions) + 2**50 for _ in range(3)]
    ids = [generator.permutation(of)[: len(of) - captions * 2] for of in ids]
    first = [generator.integers(-1, 3, len(of)) for of in ids]
    expected = {}
    for image in sorted(set.intersection(*(set(of.tolist()) for of in ids))):
        results = [one[of == image].tolist() for of, one in zip(ids, first, strict=True)]
        draws = list(itertools.product(*results))
        expected[image] = sum(draw[0] >= 0 and len(set(draw)) == 1 for draw in draws) / len(draws)
    assert len(expected) > 5
    assert 0 < sum(expected.values()) < len(expected)
    found_ids, found = first_agreement([torch.tensor(of) for of in ids], [torch.tensor(of) for of in first])
    assert found_ids.tolist() == list(expected)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(list(expected.values()), rel=1e-14)


def test_first_agreement_identities():
    ids, results = torch.arange(5), torch.tensor([3, 1, 0, 4, 2])
    assert first_agreement([ids] * 4, [results] * 4)[1].tolist() == [1.0] * 5  # wrong, but everywhere alike
    assert first_agreement([ids], [results])[1].tolist() == [1.0] * 5
    assert first_agreement([ids] * 2, [torch.full((5,), -1)] * 2)[1].tolist() == [0.0] * 5  # collapsed: ties only
    found_ids, found = first_agreement([ids[:2], ids[3:]], [results[:2], results[3:]])
    assert found_ids.shape == found.shape == (0,)
    with pytest.raises(CCRError, match="do not fit"):
        first_agreement([ids], [results[:2]])
