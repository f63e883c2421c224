"""The items of a gallery that are most similar to queries: exact, in one pass over parts that may lie on a disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ccr_lightning.errors import CCRError
from ccr_lightning.functional.similarity import error_bounds, full_precision, norms, pair_similarity, round_down, slices

_CELLS, _ROWS = 2**20, 2**18  # similarities, and items, that are looked at at a time
_BATCH = 512  # items of a product with one query
_BLOCK = 128  # items whose largest similarity stands for all of them


class Nearest(NamedTuple):
    """The k items most similar to each of Q queries, best first; of equal ones the first of the gallery."""

    places: Tensor  # (Q, k) int64
    similarity: Tensor  # (Q, k) float64, of the order that decides: ``pair_similarity``


class _Found(NamedTuple):
    """Pairs of query and item, by query, then from the best on."""

    queries: Tensor  # (N,) int64
    places: Tensor  # (N,) int64
    similarity: Tensor  # (N,) float64


def nearest(queries: Tensor, parts: Iterable[Tensor], k: int) -> Nearest:
    """Finds the k items most similar to each query, by cosines that are compared in float64.

    One float32 product leaves the few items that can be among the best; these are compared by
    :func:`~ccr_lightning.functional.similarity.pair_similarity`, so that equal items are equal wherever they stand.

    Args:
        queries: (Q, D) float32, L2-normalised.
        parts: (n, D) float32 each, L2-normalised; items are numbered through.
        k: How many of each query; fewer if there are fewer items.

    Raises:
        CCRError: Embeddings are not finite.

    Example:
        >>> parts = [torch.eye(3)[:2], torch.eye(3)[2:]]
        >>> nearest(torch.tensor([[0.0, 0.6, 0.8]]), parts, 2).places
        tensor([[2, 1]])
    """
    count, total, device = len(queries), 0, queries.device
    dtypes = (torch.int64, torch.int64, torch.float64)
    found = _Found(*(torch.empty(0, dtype=dtype, device=device) for dtype in dtypes))
    floor = torch.full((count,), -torch.inf, dtype=torch.float64, device=device)  # what the worst of k items is worth
    bounds = _bounds(queries)
    with full_precision(queries.device):
        for start, items in _tiles(parts, count):
            total = start + len(items)
            new = _candidates(queries, items, k, floor, bounds)
            if not len(new.queries):
                continue
            new = new._replace(places=new.places + start)
            found = _best(_Found(*map(torch.cat, zip(found, new, strict=True))), count, k)
            held = torch.bincount(found.queries, minlength=count)
            last = found.similarity[held.cumsum(0).clamp(min=1) - 1]
            floor = torch.where(held < k, floor, last)
    shape = count, min(k, total)
    return Nearest(found.places.view(shape), found.similarity.view(shape))


def _candidates(queries: Tensor, items: Tensor, k: int, floor: Tensor, bounds: Tensor) -> _Found:
    """The items of a tile that can be among the k best of a query, if those must reach the floor."""
    cells = _products(items, queries)
    if rest := -len(cells) % _BLOCK:
        cells = torch.nn.functional.pad(cells, (0, 0, 0, rest), value=-torch.inf)
    blocks = cells.view(-1, _BLOCK, len(queries))
    largest = blocks.amax(1)  # (blocks, Q)
    if not largest.isfinite().all():
        raise CCRError("embeddings are not finite: find out what the model did there before anything is searched.")
    of_tile = largest if k <= len(largest) else cells  # k items are not below the kth largest of either
    if k <= len(of_tile):
        floor = torch.maximum(floor, of_tile.topk(k, dim=0).values[-1].double() - bounds)
    least = round_down(floor - bounds, cells.dtype).clamp(min=torch.finfo(cells.dtype).min)
    block, query = (largest >= least).nonzero(as_tuple=True)
    row, column = (blocks[block, :, query] >= least[query, None]).nonzero(as_tuple=True)
    query, places = query[row], block[row] * _BLOCK + column
    return _Found(query, places, pair_similarity(queries, items, query, places))


def _products(items: Tensor, queries: Tensor) -> Tensor:
    """All cosines, (n, Q); for one query in batches, since BLAS may take a slow way to the product with a vector."""
    if len(queries) > 1:
        return items @ queries.T
    whole = len(items) // _BATCH
    batches = items[: whole * _BATCH].view(whole, _BATCH, items.shape[1])
    return torch.cat([(batches @ queries.T.expand(whole, -1, 1)).flatten(0, 1), items[whole * _BATCH :] @ queries.T])


def _best(found: _Found, queries: int, k: int) -> _Found:
    """The k best of each query; of equal ones those that come first."""
    order = found.similarity.sort(descending=True, stable=True).indices
    order = order[found.queries[order].sort(stable=True).indices]
    held = torch.bincount(found.queries, minlength=queries)
    place_of_query = torch.arange(len(order), device=order.device) - (held.cumsum(0) - held)[found.queries[order]]
    kept = order[place_of_query < k]
    return _Found(*(values[kept] for values in found))


def ranks_of(queries: Tensor, parts: Iterable[Tensor], places: Tensor) -> Tensor:
    """Ranks chosen items among all, for each query, in the order of :func:`nearest`.

    Args:
        queries: (Q, D) float32, L2-normalised.
        parts: (n, D) float32 each, L2-normalised; they are gone through twice.
        places: (P,) int64, numbers of items.

    Returns:
        (Q, P) int64, from 1.

    Example:
        >>> parts = [torch.eye(3)[:2], torch.eye(3)[2:]]
        >>> ranks_of(torch.tensor([[0.0, 0.6, 0.8]]), parts, torch.tensor([0, 1, 2]))
        tensor([[3, 2, 1]])
    """
    parts = list(parts)
    count, chosen = len(queries), len(places)
    numbers = torch.arange(chosen, device=queries.device)
    rows = torch.arange(count, device=queries.device).repeat_interleave(chosen)
    worth = pair_similarity(queries, rows_of(parts, places), rows, numbers.repeat(count)).view(count, chosen)
    worth, order = worth.sort(1)
    rivals = places[order]
    bounds = _bounds(queries)[:, None]
    low, high = round_down(worth - bounds, queries.dtype), -round_down(-worth - bounds, queries.dtype)
    ahead = torch.zeros(count, chosen, dtype=torch.int64, device=queries.device)
    with full_precision(queries.device):
        for start, items in _tiles(parts, count):
            cells = _products(items, queries).T.contiguous()
            beaten, open_until = torch.searchsorted(high, cells), torch.searchsorted(low, cells, right=True)
            for row, of_items in zip(ahead, beaten, strict=True):  # an item is certainly ahead of so many rivals
                histogram = torch.bincount(of_items, minlength=chosen + 1)
                row += histogram.flip(0).cumsum(0).flip(0)[1:]
            undecided = (open_until > beaten).nonzero()
            for part in slices(len(undecided), _CELLS // chosen):
                query, item = undecided[part].unbind(1)
                similarity = pair_similarity(queries, items, query, item)[:, None]
                is_open = (numbers >= beaten[query, item, None]) & (numbers < open_until[query, item, None])
                is_equal_before = (similarity == worth[query]) & (start + item[:, None] < rivals[query])
                ahead.index_add_(0, query, (is_open & ((similarity > worth[query]) | is_equal_before)).long())
    return 1 + ahead.gather(1, order.argsort(1))


def rows_of(parts: Iterable[Tensor], places: Tensor) -> Tensor:
    """Return the items (P, D) with these numbers (P,), which go through all parts (n, D).

    Example:
        >>> rows_of([torch.eye(3)[:1], torch.eye(3)[1:]], torch.tensor([2, 0]))
        tensor([[0., 0., 1.],
                [1., 0., 0.]])
    """
    rows, order, start = [], [], 0
    for part in parts:
        inside = ((places >= start) & (places < start + len(part))).nonzero().squeeze(1)
        rows.append(part[places[inside] - start])
        order.append(inside)
        start += len(part)
    return torch.cat(rows)[torch.cat(order).argsort()]


def _bounds(queries: Tensor) -> Tensor:
    """How far a cell of the product with L2-normalised items may be from ``pair_similarity``, (Q,) float64."""
    longest = torch.full((1,), 1.0001, dtype=torch.float64, device=queries.device)
    return error_bounds(norms(queries), longest, queries.shape[1], queries.dtype)


def _tiles(parts: Iterable[Tensor], queries: int) -> Iterator[tuple[int, Tensor]]:
    """Yield items that are looked at together, and the number of the first."""
    start = 0
    for part in parts:
        for of in slices(len(part), min(_ROWS, max(_BLOCK, _CELLS // max(1, queries)))):
            yield start + of.start, part[of]
        start += len(part)
