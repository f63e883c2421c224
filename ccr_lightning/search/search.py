"""The pictures of an index that are most similar to queries: exact, part by part."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ccr_lightning.functional.similarity import full_precision, slices

_ROWS = 2**16  # embeddings that are compared at a time


class Hits(NamedTuple):
    """The k best items of each of Q queries, best first; of equal ones the first."""

    places: Tensor  # (Q, k) int64
    similarity: Tensor  # (Q, k) float32


def search(queries: Tensor, parts: Iterable[Tensor], k: int) -> Hits:
    """Finds the k items most similar to each query, in one pass over parts that need not fit in memory together.

    Args:
        queries: (Q, D) float32, L2-normalised.
        parts: (n, D) float32 each, L2-normalised; items are numbered through.
        k: How many of each query; fewer if there are fewer items.

    Example:
        >>> parts = [torch.eye(3)[:2], torch.eye(3)[2:]]
        >>> search(torch.tensor([[0.0, 0.6, 0.8]]), parts, 2).places
        tensor([[2, 1]])
    """
    places, similarity = torch.empty(len(queries), 0, dtype=torch.long), torch.empty(len(queries), 0)
    start = 0
    with full_precision(queries.device):
        for part in parts:
            for of in slices(len(part), _ROWS):
                rows = part[of]
                found = queries @ rows.T
                numbers = torch.arange(start, start + len(rows)).expand_as(found)
                start += len(rows)
                best = _best(found, min(k, len(rows))).sort(dim=1).values
                places = torch.cat([places, numbers.gather(1, best)], 1)
                similarity = torch.cat([similarity, found.gather(1, best)], 1)
                order = similarity.sort(dim=1, descending=True, stable=True).indices[:, :k]
                places, similarity = places.gather(1, order), similarity.gather(1, order)
    return Hits(places, similarity)


def _best(similarity: Tensor, k: int) -> Tensor:
    """The columns of the k largest numbers of each row; where equal ones compete for the last places, the first."""
    values, best = similarity.topk(k, dim=1)
    last = values[:, -1:]
    is_open = (similarity == last).sum(1) > (values == last).sum(1)
    if is_open.any():
        best[is_open] = similarity[is_open].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return best
