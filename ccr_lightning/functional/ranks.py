"""Exact retrieval ranks, in tiles: a matrix product and counting, no sorting, no matrix of all similarities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ccr_lightning.errors import CCRError
from ccr_lightning.functional.similarity import (
    check_ids,
    checked_embeds,
    error_bounds,
    full_precision,
    pair_similarity,
    round_down,
    slices,
)

_TILE = (512, 1024)  # queries and gallery items of one matrix product: it stays in the cache of a CPU
_GPU_TILE = (4096, 4096)
_UNDECIDED = 2**16  # pairs that are collected before they are decided in float64
_NOTES = 2**9  # tiles of which pairs are collected: a small tensor takes much more memory than its numbers


class RankCounts(NamedTuple):
    """What stands between each query and its best positive: gallery items of other ids, (Q,) int64 each."""

    ahead: Tensor  # more similar than the best positive
    tied: Tensor  # exactly as similar


@torch.no_grad()
def rank_counts(query_embeds: Tensor, gallery_embeds: Tensor, query_ids: Tensor, gallery_ids: Tensor) -> RankCounts:
    """Numbers of gallery items of another id that are more similar than each query's best positive, or as similar.

    Similarity is the dot product in float64, added up in one fixed order: equal embeddings tie exactly, and the result
    depends neither on the order of the gallery, nor on the device, nor on the number of threads. The matrix product in
    the dtype of the embeddings (at least float32, never TF32) decides all pairs but those within its own worst-case
    rounding error of the best positive; those are recomputed. It goes tile by tile: no (Q, G) matrix, no sorting.

    Args:
        query_embeds: (Q, D), floating point, L2-normalised if cosine similarity is meant.
        gallery_embeds: (G, D), of the same dtype.
        query_ids: (Q,) integers, the image that each query shows or describes.
        gallery_ids: (G,) integers; items with the id of the query are its positives.

    Returns:
        ``ahead`` and ``tied``, (Q,) int64 each; together from 0 to G - (number of the query's positives).

    Raises:
        CCRError: If shapes or dtypes do not fit, if a side is empty or not finite, or if a query has no positive.

    Example:
        >>> gallery_embeds = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, 0.6]])
        >>> gallery_ids = torch.tensor([7, 8, 9])
        >>> query_embeds = torch.tensor([[0.8, 0.6], [0.6, 0.8]])
        >>> rank_counts(query_embeds, gallery_embeds, torch.tensor([8, 7]), gallery_ids)
        RankCounts(ahead=tensor([0, 2]), tied=tensor([1, 0]))
    """
    return _counts(query_embeds, gallery_embeds, query_ids, gallery_ids, both=False)[0]


@torch.no_grad()
def mutual_rank_counts(
    image_embeds: Tensor,
    text_embeds: Tensor,
    image_ids: Tensor,
    text_ids: Tensor,
    *,
    images: slice | None = None,
) -> tuple[RankCounts, RankCounts]:
    """The ``rank_counts`` of images among captions, and of captions among images, from one matrix product.

    Arguments, exactness and errors are those of :func:`rank_counts`; every image has a caption, and every caption an
    image. With ``images``, a part of them, only pairs with these are looked at: the counts of other images are 0, and
    the sums of the counts over a partition of the images are those of all.

    Example:
        >>> image_embeds, text_embeds = torch.eye(3), torch.eye(3)[[0, 2, 2]]
        >>> ids = torch.arange(3)
        >>> to_text, to_image = mutual_rank_counts(image_embeds, text_embeds, ids, ids)
        >>> to_text.ahead + to_text.tied, to_image.ahead + to_image.tied
        (tensor([0, 2, 1]), tensor([0, 2, 0]))
    """
    to_text, to_image = _counts(image_embeds, text_embeds, image_ids, text_ids, both=True, part=images)
    return to_text, to_image


def retrieval_ranks(query_embeds: Tensor, gallery_embeds: Tensor, query_ids: Tensor, gallery_ids: Tensor) -> Tensor:
    """Rank of each query's best positive among the gallery items that are not positives; ties count against the model.

    The rank is 1 plus the number of gallery items of another id that are at least as similar as the best positive. So
    collapsed embeddings rank last, and further positives of the query push nothing back. With it recall@k is the share
    of queries with some positive among the first k (Nie et al., KDD 2024, section on evaluation). Arguments, exactness
    and errors are those of :func:`rank_counts`.

    Returns:
        (Q,) int64, from 1 to 1 + G - (number of the query's positives).

    Example:
        >>> gallery_embeds = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, 0.6]])
        >>> gallery_ids = torch.tensor([7, 8, 9])
        >>> query_embeds = torch.tensor([[0.8, 0.6], [0.6, 0.8]])
        >>> retrieval_ranks(query_embeds, gallery_embeds, torch.tensor([8, 7]), gallery_ids)
        tensor([2, 3])
    """
    counts = rank_counts(query_embeds, gallery_embeds, query_ids, gallery_ids)
    return 1 + counts.ahead + counts.tied


def _counts(
    query_embeds: Tensor,
    gallery_embeds: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    *,
    both: bool,
    part: slice | None = None,
) -> list[RankCounts]:
    """The counts of the queries and, with ``both``, those of the gallery's items as queries of the others."""
    queries, gallery, query_norms, gallery_norms = checked_embeds(query_embeds, gallery_embeds)
    check_ids("query", query_ids, queries)
    check_ids("gallery", gallery_ids, gallery)
    query_ids, gallery_ids = query_ids.long(), gallery_ids.long()
    positives = _Positives(query_ids, gallery_ids, both)
    best, best_of_gallery = positives.best(queries, gallery)

    def bounds(asked: Tensor, searched: Tensor) -> Tensor:
        return error_bounds(asked, searched, queries.shape[1], queries.dtype)

    directions = [_Direction(1, best, bounds(query_norms, gallery_norms), queries.dtype)]
    if both:
        directions.append(_Direction(0, best_of_gallery, bounds(gallery_norms, query_norms), queries.dtype))

    tile = _GPU_TILE if queries.is_cuda else _TILE
    tiles = slices(len(gallery), tile[1])
    space = queries.new_empty(2, min(tile[0], len(queries)) * min(tile[1], len(gallery)))
    with full_precision(queries.device):
        for rows in slices(len(queries), tile[0], part):
            for direction in directions:
                direction.is_dense = False
            for columns, blank in zip(tiles, positives.cells(rows, tiles), strict=True):
                shape = (rows.stop - rows.start, columns.stop - columns.start)
                cells, scratch = (part[: shape[0] * shape[1]].view(shape) for part in space)
                torch.mm(queries[rows], gallery[columns].T, out=cells)
                if len(blank[0]):
                    cells[blank] = -torch.inf
                for direction in directions:
                    direction.count(cells, scratch, rows, columns)
                    if direction.is_full:
                        direction.decide(queries, gallery, query_ids, gallery_ids)
    for direction in directions:
        direction.decide(queries, gallery, query_ids, gallery_ids)
    return [RankCounts(direction.ahead.long(), direction.tied) for direction in directions]


class _Direction:
    """Counts what is ahead of the queries along one axis of the tiles.

    Args:
        axis: The axis of the gallery: 1 where each row of a tile is a query, 0 where each column is.
        best: (Q,) similarity to each query's best positive.
        bounds: (Q,) error of the cells of a tile.
        dtype: That of the cells.
    """

    def __init__(self, axis: int, best: Tensor, bounds: Tensor, dtype: torch.dtype) -> None:
        self.axis, self.best = axis, best
        self.low = round_down(best - bounds, dtype).unsqueeze(axis)
        self.high = -round_down(-best - bounds, dtype).unsqueeze(axis)
        self.ahead = torch.zeros(len(best), dtype=torch.float64, device=best.device)  # to add sums of floats to
        self.tied = torch.zeros(len(best), dtype=torch.int64, device=best.device)
        self.is_dense = False  # whether most queries had something ahead in the tile before
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._undecided = 0

    def count(self, cells: Tensor, scratch: Tensor, rows: slice, columns: slice) -> None:
        """Adds the cells that are certainly above the best positive, and notes those that are not certainly below.

        Cells of positives are minus infinity. Queries without a cell that reaches their best positive, which in the
        tiles of a trained model are most of them, are passed over.
        """
        axis, part = self.axis, rows if self.axis == 1 else columns
        low, high = (bound[part] if axis == 1 else bound[:, part] for bound in (self.low, self.high))
        if not self.is_dense:
            reaching = (~(cells.amax(axis) < low.squeeze(axis))).nonzero().squeeze(1)  # NaN is certain of nothing
            if not len(reaching):
                return
            self.is_dense = 2 * len(reaching) > part.stop - part.start
        if self.is_dense:
            reaching = torch.arange(part.stop - part.start, device=cells.device)
        else:
            cells, low, high = (of.index_select(1 - axis, reaching) for of in (cells, low, high))
        # Comparisons that yield floats, and their sums, take a fraction of the time that booleans take on a CPU.
        scratch = scratch.view(-1)[: cells.numel()].view(cells.shape)
        above = torch.gt(cells, high, out=scratch).sum(axis)
        below = torch.lt(cells, low, out=scratch).sum(axis)
        self.ahead[part].index_add_(0, reaching, above.double())
        uncertain = (above + below != cells.shape[axis]).nonzero().squeeze(1)
        if not len(uncertain):
            return
        cells, low, high = (of.index_select(1 - axis, uncertain) for of in (cells, low, high))
        found = (~((cells < low) | (cells > high))).nonzero().T
        own = uncertain[found[1 - axis]]
        places = [found[0] + rows.start, found[1] + columns.start]
        places[1 - axis] = reaching[own] + part.start
        self._pairs.append((places[0], places[1]))
        self._undecided += len(own)

    @property
    def is_full(self) -> bool:
        """Whether it is time to decide."""
        return self._undecided >= _UNDECIDED or len(self._pairs) >= _NOTES

    def decide(self, queries: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor) -> None:
        """Counts the noted pairs by their similarity in float64."""
        if not self._pairs:
            return
        rows, columns = (torch.cat(places) for places in zip(*self._pairs, strict=True))
        self._pairs, self._undecided = [], 0
        rival = query_ids[rows] != gallery_ids[columns]  # where products may overflow, minus infinity is no verdict
        rows, columns = rows[rival], columns[rival]
        similarity = pair_similarity(queries, gallery, rows, columns)
        own = rows if self.axis == 1 else columns
        self.ahead.index_add_(0, own, (similarity > self.best[own]).double())
        self.tied.index_add_(0, own, (similarity == self.best[own]).long())


class _Positives:
    """The pairs of a query and a gallery item of the same id.

    Raises:
        CCRError: If a query has none or, with ``both``, a gallery item.
    """

    def __init__(self, query_ids: Tensor, gallery_ids: Tensor, both: bool) -> None:
        self.items = gallery_ids.argsort(stable=True)  # of each id one after the other
        ids = gallery_ids[self.items]
        self.first = torch.searchsorted(ids, query_ids)
        self.count = torch.searchsorted(ids, query_ids, right=True) - self.first
        _refuse_alone(self.count == 0, query_ids, "queries have no positive in the gallery")
        if both:
            alone = ~torch.isin(gallery_ids, query_ids)
            _refuse_alone(alone, gallery_ids, "items of the gallery have no positive among the queries")

    def best(self, queries: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
        """``pair_similarity`` of each query and its best positive, and of each gallery item and its own."""
        of_queries, of_gallery = (
            torch.full((len(side),), -torch.inf, dtype=torch.float64, device=side.device) for side in (queries, gallery)
        )
        for nth in range(int(self.count.max())):
            rows = (self.count > nth).nonzero().squeeze(1)
            items = self.items[self.first[rows] + nth]
            similarity = pair_similarity(queries, gallery, rows, items)
            of_queries[rows] = of_queries[rows].maximum(similarity)
            of_gallery.scatter_reduce_(0, items, similarity, "amax")
        return of_queries, of_gallery

    def cells(self, rows: slice, tiles: Sequence[slice]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the rows and columns, from the start of the tile, of the positives in each tile of some queries."""
        count = self.count[rows]
        row = torch.arange(len(count), device=count.device).repeat_interleave(count)
        nth = torch.arange(len(row), device=count.device) - (count.cumsum(0) - count)[row]
        column, order = self.items[self.first[rows][row] + nth].sort()
        row = row[order]
        starts = torch.tensor([tile.start for tile in tiles], device=column.device)
        ends = [*torch.searchsorted(column, starts).tolist(), len(column)]
        for tile, begin, end in zip(tiles, ends, ends[1:], strict=False):
            yield row[begin:end], column[begin:end] - tile.start


def _refuse_alone(alone: Tensor, ids: Tensor, what: str) -> None:
    if alone.any():
        raise CCRError(
            f"{int(alone.sum())} of {len(alone)} {what}, first id {int(ids[alone][0])}: leave them out, or add what "
            "they should find."
        )
