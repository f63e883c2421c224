"""Confidence intervals by the bootstrap over images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]

LEVEL = 0.95
SEED = 0

_AT_ONCE = 64  # bootstrap samples whose counts are held together


def resampled_sums(values: Array, resamples: int) -> Array:
    """Sums of the rows of images that are drawn with replacement, as many as there are, again and again.

    Every number of an evaluation is a ratio or a mean of such sums. The draws are numpy's default generator's with seed
    0: for each sample ``rng.integers(0, I, I)``. So numbers that are resampled together are paired, and an evaluation
    gives the same intervals whenever it is repeated.

    Args:
        values: (I, M), M quantities of I images.
        resamples: Number S of samples.

    Returns:
        (S, M).

    Example:
        >>> resampled_sums(np.array([[1.0, 10.0], [1.0, 20.0]]), resamples=2).tolist()
        [[2.0, 40.0], [2.0, 30.0]]
    """
    parts = [weights @ values for weights in _drawn(len(values), resamples)]
    return np.concatenate(parts) if parts else np.empty((0, values.shape[1]))


def interval(samples: Array) -> list[float] | None:
    """The 95 % percentile interval of a number's bootstrap samples (S,); samples without a value are NaN.

    Returns:
        The lower and the upper end; None without samples.

    Example:
        >>> [round(end, 9) for end in interval(np.arange(41.0))]
        [1.0, 39.0]
    """
    known = samples[~np.isnan(samples)]
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, 1 - (1 - LEVEL) / 2])
    return [float(low), float(high)]


def _drawn(images: int, resamples: int) -> Iterator[Array]:
    """How often each image is in each of some samples, (at most 64, I)."""
    rng = np.random.default_rng(SEED)
    for start in range(0, resamples, _AT_ONCE):
        count = min(_AT_ONCE, resamples - start)
        draws = rng.integers(0, images, (count, images))
        yield np.stack([np.bincount(draw, minlength=images) for draw in draws]).astype(np.float64)
