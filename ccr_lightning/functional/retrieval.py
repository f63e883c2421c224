"""First results and candidates, ranks after re-ranking, and recall@k."""

from __future__ import annotations

import torch
from torch import Tensor

from ccr_lightning.errors import CCRError
from ccr_lightning.functional.ranks import RankCounts
from ccr_lightning.functional.similarity import (
    Sides,
    check_ids,
    checked_embeds,
    error_bounds,
    full_precision,
    pair_similarity,
    round_down,
    slices,
)

_CELLS = 2**22  # of one matrix product that spans the whole gallery


def _band(sides: Sides) -> Tensor:
    """(Q, 1) bound on the error of a row of cells."""
    bounds = error_bounds(sides.query_norms, sides.gallery_norms, sides.queries.shape[1], sides.queries.dtype)
    return bounds[:, None]


@torch.no_grad()
def first_results(query_embeds: Tensor, gallery_embeds: Tensor, gallery_ids: Tensor) -> Tensor:
    """The id of the gallery item that is most similar to each query; -1 where items of several ids share that place.

    Similarity is that of :func:`rank_counts`, so that a tie is a tie and nothing else. Memory is bounded: some millions
    of similarities are held at once.

    Args:
        query_embeds: (Q, D), floating point.
        gallery_embeds: (G, D), of the same dtype.
        gallery_ids: (G,) integers, not negative.

    Returns:
        (Q,) int64.

    Raises:
        CCRError: If shapes or dtypes do not fit, if a side is empty or not finite, or if an id is negative.

    Example:
        >>> gallery_embeds = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, 0.6]])
        >>> first_results(torch.tensor([[0.9, 0.1], [0.6, 0.8]]), gallery_embeds, torch.tensor([7, 8, 9]))
        tensor([ 7, -1])
    """
    sides = checked_embeds(query_embeds, gallery_embeds)
    queries, gallery = sides.queries, sides.gallery
    check_ids("gallery", gallery_ids, gallery)
    if (gallery_ids < 0).any():
        raise CCRError(f"gallery_ids has {int(gallery_ids.min())}: number images from 0, since -1 stands for a tie.")
    ids, band = gallery_ids.long(), _band(sides)
    found = []
    with full_precision(queries.device):
        for rows in slices(len(queries), max(1, _CELLS // len(gallery))):
            cells = queries[rows] @ gallery.T
            # The most similar item reaches the largest cell less one band, so its own cell is within two of it.
            least = round_down(cells.amax(1, keepdim=True).double() - 2 * band[rows], cells.dtype)
            query, item = (~(cells < least)).nonzero(as_tuple=True)
            similarity = pair_similarity(queries[rows], gallery, query, item)
            best = torch.full((len(cells),), -torch.inf, dtype=torch.float64, device=cells.device)
            best.scatter_reduce_(0, query, similarity, "amax")
            shared = similarity == best[query]
            query, winners = query[shared], ids[item[shared]]
            lowest = torch.full((len(cells),), torch.iinfo(torch.int64).max, device=cells.device)
            lowest.scatter_reduce_(0, query, winners, "amin")
            highest = torch.full_like(lowest, -1).scatter_reduce_(0, query, winners, "amax")
            found.append(torch.where(lowest == highest, lowest, -1))
    return torch.cat(found)


@torch.no_grad()
def top_candidates(query_embeds: Tensor, gallery_embeds: Tensor, n: int) -> Tensor:
    """The n gallery items most similar to each query, best first; of equally similar ones the lower index first.

    Similarity is that of ``rank_counts``, so a query whose positives are all missing here ranks behind n.

    Args:
        query_embeds: (Q, D), floating point.
        gallery_embeds: (G, D), of the same dtype.
        n: Number of candidates, from 1 to G.

    Returns:
        (Q, n) int64, indices into the gallery.

    Raises:
        CCRError: If shapes or dtypes do not fit, if a side is empty or not finite, or if n is not in 1 to G.

    Example:
        >>> gallery_embeds = torch.tensor([[0.8, 0.6], [1.0, 0.0], [0.8, 0.6]])
        >>> top_candidates(torch.tensor([[0.6, 0.8], [1.0, 0.0]]), gallery_embeds, 2)
        tensor([[0, 2],
                [1, 0]])
    """
    sides = checked_embeds(query_embeds, gallery_embeds)
    queries, gallery = sides.queries, sides.gallery
    if not 1 <= n <= len(gallery):
        raise CCRError(f"n is {n}, but the gallery has {len(gallery)} items: pass 1 to {len(gallery)}.")
    band = _band(sides)
    chosen = []
    with full_precision(queries.device):
        for rows in slices(len(queries), max(1, _CELLS // len(gallery))):
            cells = queries[rows] @ gallery.T
            # n items reach the nth cell less one band, so whatever belongs to the best n has a cell within two of it.
            nth = cells.topk(n).values[:, -1:].double()
            enough = int((~(cells < round_down(nth - 2 * band[rows], cells.dtype))).sum(1).max())
            columns = cells.topk(enough).indices.sort().values
            query = torch.arange(len(queries), device=queries.device)[rows].repeat_interleave(enough)
            similarity = pair_similarity(queries, gallery, query, columns.flatten()).view(columns.shape)
            best_first = similarity.sort(dim=1, descending=True, stable=True).indices
            chosen.append(columns.gather(1, best_first[:, :n]))
    return torch.cat(chosen)


def reranked_counts(counts: RankCounts, match_scores: Tensor, is_positive: Tensor) -> RankCounts:
    """What stands ahead of each query's best positive once its first n candidates are in the order of a matching score.

    Among the n these are the non-positives of a higher score than the best positive, or of the same. The items beyond n
    stay behind them in the order of the dual encoder; therefore a query without a positive among its n candidates keeps
    its counts: whatever the order of the n, all of them are ahead of its best positive, as before.

    Args:
        counts: (Q,) each, from ``rank_counts``.
        match_scores: (Q, n), floating point; of the candidates that ``top_candidates`` names.
        is_positive: (Q, n) bool, True where a candidate has the id of the query.

    Returns:
        ``ahead`` and ``tied``, (Q,) each, of the dtype of ``counts``.

    Raises:
        CCRError: If shapes or dtypes do not fit, or if a score is not finite.

    Example:
        >>> match_scores = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.3, 0.2], [0.7, 0.8, 0.9]])
        >>> is_positive = torch.tensor([[True, False, False], [False, True, False], [False, False, False]])
        >>> reranked_counts(RankCounts(torch.tensor([0, 1, 7]), torch.tensor([0, 0, 2])), match_scores, is_positive)
        RankCounts(ahead=tensor([2, 0, 7]), tied=tensor([0, 1, 2]))
    """
    shapes = tuple(counts.ahead.shape), tuple(match_scores.shape), tuple(is_positive.shape)
    if len(shapes[0]) != 1 or len(shapes[1]) != 2 or shapes[1] != shapes[2] or shapes[0] != shapes[1][:1]:
        raise CCRError(
            f"counts {shapes[0]}, match_scores {shapes[1]} and is_positive {shapes[2]} do not fit: "
            "pass (Q,), (Q, n) and (Q, n)."
        )
    if not match_scores.is_floating_point() or is_positive.dtype != torch.bool:
        raise CCRError(
            f"match_scores ({match_scores.dtype}) must be floating point and is_positive ({is_positive.dtype}) bool."
        )
    finite = match_scores.isfinite().all(1)
    if not finite.all():
        raise CCRError(
            f"match_scores has NaN or infinite values in {int((~finite).sum())} of {len(finite)} rows, first in row "
            f"{int(finite.int().argmin())}: find out what the matching head did there before anything is ranked."
        )
    best = match_scores.masked_fill(~is_positive, -torch.inf).amax(1, keepdim=True)
    is_known = is_positive.any(1)

    def among(chosen: Tensor, before: Tensor) -> Tensor:
        return torch.where(is_known, (chosen & ~is_positive).sum(1).to(before.dtype), before)

    return RankCounts(among(match_scores > best, counts.ahead), among(match_scores == best, counts.tied))


def recall_at_k(ranks: Tensor, k: int) -> Tensor:
    """Recall@k: share of queries with some positive among the first k, a hit rate.

    Args:
        ranks: (Q,), from 1, as ``retrieval_ranks`` returns them.
        k: The cut-off, at least 1.

    Returns:
        Scalar in [0, 1], float64.

    Raises:
        CCRError: If there are no ranks, if one of them is below 1, or if k is below 1 or not whole.

    Example:
        >>> recall_at_k(torch.tensor([1, 7, 3, 2]), k=3)
        tensor(0.7500, dtype=torch.float64)
    """
    if k < 1 or k != int(k):
        raise CCRError(f"k is {k}: recall@k needs a whole k of at least 1.")
    if ranks.ndim != 1 or not len(ranks):
        raise CCRError(f"ranks has shape {tuple(ranks.shape)}: pass (Q,), with at least one query.")
    if not (ranks >= 1).all():
        raise CCRError(f"ranks start at 1, but {ranks.min().item()} is among them: pass what retrieval_ranks returns.")
    return (ranks <= k).sum().double() / len(ranks)
