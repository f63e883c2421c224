"""How alike an image ranks in all languages: MRV and MRSD, and how often the first result is the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ccr_lightning.errors import CCRError

Statistic = Literal["variance", "std"]


def align_ranks(image_ids: Sequence[Tensor], ranks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Lays the ranks of K languages side by side, aligned by image.

    Only images that have a rank in every language are kept. The rank of an image with several ranks in a language
    (one for each of its captions there) is their mean.

    Args:
        image_ids: For each of the K languages (Q_k,) integers, the image of each query.
        ranks: For each of the K languages (Q_k,), the rank of each query.

    Returns:
        The ids (N,) of the images that are kept, ascending, and their ranks (N, K) in float64; N may be 0.

    Raises:
        CCRError: If there is no language, or if ids and ranks do not fit.

    Example:
        >>> en, de = torch.tensor([5, 3, 5]), torch.tensor([3, 9, 5])
        >>> align_ranks([en, de], [torch.tensor([1, 4, 2]), torch.tensor([6, 1, 8])])
        (tensor([3, 5]), tensor([[4.0000, 6.0000],
                [1.5000, 8.0000]], dtype=torch.float64))
    """
    common = _common_images(image_ids, ranks)
    columns = []
    for ids, language in zip(image_ids, ranks, strict=True):
        kept = torch.isin(ids, common)
        place = torch.searchsorted(common, ids[kept])
        zeros = torch.zeros(len(common), dtype=torch.float64, device=common.device)
        total = zeros.index_add(0, place, language[kept].double())
        columns.append(total / zeros.index_add(0, place, torch.ones_like(place, dtype=torch.float64)))
    return common, torch.stack(columns, 1)


def rank_spread(ranks: Tensor, statistic: Statistic = "variance") -> Tensor:
    """Population variance, or standard deviation, of the rank of each instance over languages.

    Args:
        ranks: (N, K), the ranks of N instances in K languages.
        statistic: ``variance`` or ``std``.

    Returns:
        (N,), not negative, float64.

    Raises:
        CCRError: If ``ranks`` is not (N, K) with N and K at least 1, or if the statistic is unknown.

    Example:
        >>> rank_spread(torch.tensor([[1, 1, 1], [1, 4, 4]]))
        tensor([0., 2.], dtype=torch.float64)
    """
    if statistic not in get_args(Statistic):
        raise CCRError(f"the statistic {statistic!r} is unknown: choose one of {', '.join(get_args(Statistic))}.")
    _check_ranks(ranks)
    ranks = ranks.double()
    variance = (ranks - ranks[:, :1]).var(1, correction=0)  # exact differences: where ranks start changes no bit
    return variance.sqrt() if statistic == "std" else variance


def mean_rank_variance(ranks: Tensor, statistic: Statistic = "variance") -> Tensor:
    """Mean over instances of the variance of the rank over languages: MRV, the lower the more consistent.

    With rank r of instance n in language k, MRV is the mean over n of the population variance over k of r(n, k) (Nie et
    al., KDD 2024). It does not depend on whether ranks start at 0 or 1. The authors' published code averages the
    standard deviation instead; that is MRSD here, ``statistic="std"``.

    Args:
        ranks: (N, K), the ranks of N instances in K languages. With K = 1 nothing can vary and the result is 0.
        statistic: ``variance`` for MRV, ``std`` for MRSD.

    Returns:
        Scalar, not negative, float64.

    Raises:
        CCRError: If ``ranks`` is not (N, K) with N and K at least 1, or if the statistic is unknown.

    Example:
        >>> ranks = torch.tensor([[1, 1, 1], [1, 4, 4]])
        >>> mean_rank_variance(ranks), mean_rank_variance(ranks, statistic="std")
        (tensor(1., dtype=torch.float64), tensor(0.7071, dtype=torch.float64))
    """
    return rank_spread(ranks, statistic).mean()


def pairwise_rank_variance(ranks: Tensor) -> Tensor:
    """Mean over instances of the variance of the rank over each two of the languages: MRV, pair by pair.

    MRV over all K languages is 4 / K² times the sum over the K (K - 1) / 2 pairs, so that these say which languages
    disagree.

    Args:
        ranks: (N, K), the ranks of N instances in K languages.

    Returns:
        (K, K), symmetric, with zeros on the diagonal, float64.

    Raises:
        CCRError: If ``ranks`` is not (N, K) with N and K at least 1.

    Example:
        >>> ranks = torch.tensor([[1, 1, 1], [1, 4, 5]])
        >>> pairs = pairwise_rank_variance(ranks)
        >>> pairs
        tensor([[0.0000, 1.1250, 2.0000],
                [1.1250, 0.0000, 0.1250],
                [2.0000, 0.1250, 0.0000]], dtype=torch.float64)
        >>> 4 / 9 * pairs.triu().sum() - mean_rank_variance(ranks)
        tensor(0., dtype=torch.float64)
    """
    _check_ranks(ranks)
    ranks = ranks.double()
    return torch.stack([((ranks - ranks[:, [language]]) / 2).square().mean(0) for language in range(ranks.shape[1])])


def first_agreement(image_ids: Sequence[Tensor], first: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """For each image, how likely its queries in K languages, one of each drawn at random, have the same first result.

    Where an image has one query in each language, that is 1 if the first result is the same everywhere, right or wrong,
    and 0 otherwise. A tie for the first place has no first result and agrees with nothing. Only images with a query in
    every language are kept.

    Args:
        image_ids: For each of the K languages (Q_k,) integers, the image of each query.
        first: For each of the K languages (Q_k,) integers, the first result of each query; -1 for a tie.

    Returns:
        The ids (N,) of the images that are kept, ascending, and their probabilities (N,) in float64; N may be 0.

    Raises:
        CCRError: If there is no language, or if ids and results do not fit.

    Example:
        >>> en, de = torch.tensor([3, 5, 5]), torch.tensor([3, 5])
        >>> first_agreement([en, de], [torch.tensor([3, 8, 5]), torch.tensor([3, 5])])
        (tensor([3, 5]), tensor([1.0000, 0.5000], dtype=torch.float64))
    """
    common = _common_images(image_ids, first)
    same: dict[tuple[int, int], float] = {}
    for language, (ids, results) in enumerate(zip(image_ids, first, strict=True)):
        kept = torch.isin(ids, common)
        place = torch.searchsorted(common, ids[kept])
        queries = torch.bincount(place, minlength=len(common)).tolist()
        pairs, counts = torch.unique(torch.stack([place, results[kept]], 1), dim=0, return_counts=True)
        shares = {
            (image, result): count / queries[image]
            for (image, result), count in zip(pairs.tolist(), counts.tolist(), strict=True)
            if result >= 0
        }
        same = {key: share * same.get(key, 0.0) for key, share in shares.items()} if language else shares
    agreement = [0.0] * len(common)
    for (image, _), share in same.items():
        agreement[image] += share
    return common, torch.tensor(agreement, dtype=torch.float64, device=common.device)


def _check_ranks(ranks: Tensor) -> None:
    if ranks.ndim != 2 or 0 in ranks.shape:
        raise CCRError(
            f"ranks has shape {tuple(ranks.shape)}: pass (N, K), with at least one instance that has a rank in each of "
            "the languages."
        )


def _common_images(image_ids: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """Ids (N,) of the images that have a query in every language, ascending."""
    shapes = [tuple(ids.shape) for ids in image_ids], [tuple(language.shape) for language in values]
    if not image_ids or shapes[0] != shapes[1]:
        raise CCRError(
            f"image_ids {shapes[0]} and their values {shapes[1]} do not fit: pass one (Q,) of each for every language."
        )
    common: Tensor = torch.unique(image_ids[0])
    for ids in image_ids[1:]:
        common = common[torch.isin(common, ids)]
    return common
