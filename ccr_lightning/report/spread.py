"""How the rank of each image spreads over the languages: what MRV is the mean of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ccr_lightning.evaluation.query_ranks import RanksFile
from ccr_lightning.evaluation.scores import DIRECTIONS
from ccr_lightning.functional.consistency import align_ranks, rank_spread

_MOST_BINS = 9  # of half a power of ten each; else of a whole one


class Spread(NamedTuple):
    """The images that have a rank in each of K languages, in both directions."""

    languages: list[str]
    images: NDArray[np.int64]  # (N,), places in the names of the file
    ranks: NDArray[np.float64]  # (directions, N, K); of several captions the mean
    variance: NDArray[np.float64]  # (N,), of the rank over the languages, mean of the directions


class Bin(NamedTuple):
    """Images whose rank variance is above one bound and not above another."""

    above: float | None  # None: the variance is 0
    up_to: float
    images: int


class Pair(NamedTuple):
    """How often a query ranks alike in two languages, better in the first, or worse."""

    language: str
    same: int
    better: int
    worse: int


def spread_of(ranks: RanksFile, languages: Sequence[str]) -> Spread:
    """Lay the ranks of the languages side by side, as MRV does.

    Args:
        ranks: Of all queries.
        languages: Those that MRV is over, which have ranks in both directions and images in common.
    """
    found = {(of.direction, of.language): of for of in ranks.queries}
    aligned, images = [], torch.zeros(0)
    for direction in DIRECTIONS:
        chosen = [found[direction, language] for language in languages]
        ids = [torch.from_numpy(of.images) for of in chosen]
        images, of_direction = align_ranks(ids, [torch.from_numpy(of.ranks) for of in chosen])
        aligned.append(of_direction)
    variance = torch.stack([rank_spread(of_direction) for of_direction in aligned]).mean(0)
    return Spread(list(languages), images.numpy(), torch.stack(aligned).numpy(), variance.numpy())


def histogram(variance: NDArray[np.float64]) -> list[Bin]:
    """Count images by their rank variance: none, then half a power of ten at a time, or a whole one.

    Example:
        >>> [tuple(of) for of in histogram(np.array([0, 0, 0.2, 0.3, 2.0]))]
        [(None, 0.0, 2), (0.1, 0.3, 2), (0.3, 1.0, 0), (1.0, 3.0, 1)]
    """
    none = Bin(None, 0.0, int((variance == 0).sum()))
    above_zero = variance[variance > 0]
    if not len(above_zero):
        return [none]
    halves = _bins(above_zero, (1, 3))
    return [none, *(halves if len(halves) <= _MOST_BINS else _bins(above_zero, (1,)))]


def _bins(above_zero: NDArray[np.float64], mantissas: Sequence[int]) -> list[Bin]:
    exponents = range(int(np.floor(np.log10(above_zero.min()))) - 1, int(np.ceil(np.log10(above_zero.max()))) + 2)
    edges = [float(f"{mantissa}e{exponent}") for exponent in exponents for mantissa in mantissas]
    counts = np.histogram(-above_zero, -np.array(edges[::-1]))[0][::-1].tolist()  # bins that hold their upper edge
    filled = [place for place, count in enumerate(counts) if count]
    return [Bin(edges[place], edges[place + 1], counts[place]) for place in range(filled[0], filled[-1] + 1)]


def images_of_half(variance: NDArray[np.float64]) -> int:
    """Return how many images, those of the largest variance, have half of the sum together.

    Example:
        >>> images_of_half(np.array([1.0, 5.0, 3.0, 0.0]))
        1
    """
    total = np.cumsum(np.sort(variance)[::-1])
    return int(np.searchsorted(total, total[-1] / 2)) + 1 if total[-1] else 0


def pairs_with(spread: Spread, first: str) -> list[Pair]:
    """Compare each other language with the first one, query by query of both directions."""
    of_first = spread.ranks[:, :, spread.languages.index(first)]
    pairs = []
    for place, language in enumerate(spread.languages):
        if language != first:
            of = spread.ranks[:, :, place]
            counts = ((of == of_first).sum(), (of_first < of).sum(), (of_first > of).sum())
            pairs.append(Pair(language, *map(int, counts)))
    return pairs
