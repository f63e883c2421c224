"""Exact retrieval ranks, first results and candidates, and recall@k."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from ccr_lightning.errors import CCRError

_TILE = (256, 1024)  # queries and gallery items of one matrix product
_CELLS = 2**22  # of one matrix product that spans the whole gallery
_TERMS = 2**18  # float64 products held at once: more of them fall out of the cache


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Runs float32 matrix products in float32, whatever TF32, bfloat16 or autocast was asked for."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, start + step) for start in range(0, length, step)]


def _round_down(bound: Tensor, dtype: torch.dtype) -> Tensor:
    """A number of the dtype that is not above the float64 bound."""
    rounded = bound.to(dtype)
    return rounded.nextafter(torch.full_like(rounded, -torch.inf))


def _checked_embeds(query_embeds: Tensor, gallery_embeds: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides in float32 or float64, finite and of one width."""
    queries, gallery = tuple(query_embeds.shape), tuple(gallery_embeds.shape)
    if len(queries) != 2 or len(gallery) != 2 or queries[1] != gallery[1] or 0 in queries + gallery:
        raise CCRError(
            f"query_embeds {queries} and gallery_embeds {gallery} do not fit: "
            "pass (Q, D) and (G, D), with Q, G and D at least 1."
        )
    if query_embeds.dtype != gallery_embeds.dtype or not query_embeds.is_floating_point():
        raise CCRError(
            f"query_embeds ({query_embeds.dtype}) and gallery_embeds ({gallery_embeds.dtype}) must have one "
            "floating-point dtype: convert one of them."
        )
    for side, embeds in (("query", query_embeds), ("gallery", gallery_embeds)):
        finite = embeds.isfinite().all(1)
        if not finite.all():
            raise CCRError(
                f"{side}_embeds has NaN or infinite values in {int((~finite).sum())} of {len(finite)} rows, first in "
                f"row {int(finite.int().argmin())}: find out what the encoder did there before anything is ranked."
            )
    dtype = torch.promote_types(query_embeds.dtype, torch.float32)
    return query_embeds.to(dtype), gallery_embeds.to(dtype)


def _check_ids(side: str, ids: Tensor, embeds: Tensor) -> None:
    if ids.shape != embeds.shape[:1] or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise CCRError(
            f"{side}_ids is {ids.dtype} of shape {tuple(ids.shape)}: pass {len(embeds)} integers, one id per row "
            f"of {side}_embeds."
        )


def pair_similarity(queries: Tensor, gallery: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Dot products of the pairs (queries[rows[i]], gallery[columns[i]]), (N,) float64: what every rank is decided by.

    Adds up halves element by element: one order that depends on the width alone, on every device and for any N, which
    ``sum`` does not promise. So equal embeddings get equal values, to the last bit.
    """
    similarity = torch.empty(len(rows), dtype=torch.float64, device=queries.device)
    for part in _slices(len(rows), max(1, _TERMS // queries.shape[1])):
        terms = queries[rows[part]].double() * gallery[columns[part]].double()
        width = terms.shape[1]
        while width > 1:
            half = (width + 1) // 2
            terms[:, : width - half] += terms[:, half:width]
            width = half
        similarity[part] = terms[:, 0]
    return similarity


def _band(queries: Tensor, gallery: Tensor) -> Tensor:
    """Bound of |cell of queries @ gallery.T - ``pair_similarity``| for any order of summation, (Q,) float64.

    A dot product of width D with unit roundoff u errs by at most gamma = D u / (1 - D u) times the product of the
    norms (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1); 1 % more covers the rounding of the
    bound itself, and the last term what underflow takes. Where the product may overflow, nothing is certain.
    """
    width, info = queries.shape[1], torch.finfo(queries.dtype)
    gamma = 0.0
    for unit_roundoff in (info.eps / 2, torch.finfo(torch.float64).eps / 2):
        gamma += width * unit_roundoff / (1 - width * unit_roundoff)
    norms = torch.linalg.vector_norm(gallery, dim=1, dtype=torch.float64)
    reach = torch.linalg.vector_norm(queries, dim=1, dtype=torch.float64) * norms.max()
    return torch.where(reach < info.max / 2, 1.01 * gamma * reach + 2 * width * info.tiny, torch.inf)


def _best_positive(queries: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor) -> Tensor:
    """``pair_similarity`` of each query and the best gallery item of its id, (Q,) float64."""
    by_id = gallery_ids.argsort(stable=True)
    sorted_ids = gallery_ids[by_id]
    first = torch.searchsorted(sorted_ids, query_ids)
    count = torch.searchsorted(sorted_ids, query_ids, right=True) - first
    alone = count == 0
    if alone.any():
        raise CCRError(
            f"{int(alone.sum())} of {len(alone)} queries have no positive in the gallery, first id "
            f"{int(query_ids[alone][0])}: leave them out, or add what they should find."
        )
    best = torch.full_like(count, -torch.inf, dtype=torch.float64)
    for nth in range(int(count.max())):
        rows = (count > nth).nonzero().squeeze(1)
        best[rows] = best[rows].maximum(pair_similarity(queries, gallery, rows, by_id[first[rows] + nth]))
    return best


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
    queries, gallery = _checked_embeds(query_embeds, gallery_embeds)
    _check_ids("query", query_ids, queries)
    _check_ids("gallery", gallery_ids, gallery)
    query_ids, gallery_ids = query_ids.long(), gallery_ids.long()

    best = _best_positive(queries, gallery, query_ids, gallery_ids)
    band = _band(queries, gallery)
    low = _round_down(best - band, queries.dtype)[:, None]
    high = -_round_down(-best - band, queries.dtype)[:, None]
    ahead, tied = torch.zeros_like(query_ids), torch.zeros_like(query_ids)
    with _full_precision(queries.device):
        for rows, columns in product(_slices(len(queries), _TILE[0]), _slices(len(gallery), _TILE[1])):
            cells = queries[rows] @ gallery[columns].T
            above = cells > high[rows]  # certainly no positive, for the best of them is not above itself
            ahead[rows] += above.sum(1)
            query, item = (~(above | (cells < low[rows]))).nonzero(as_tuple=True)
            query, item = query + rows.start, item + columns.start
            rival = query_ids[query] != gallery_ids[item]
            query, item = query[rival], item[rival]
            similarity = pair_similarity(queries, gallery, query, item)
            ahead.index_add_(0, query, (similarity > best[query]).long())
            tied.index_add_(0, query, (similarity == best[query]).long())
    return RankCounts(ahead, tied)


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
    queries, gallery = _checked_embeds(query_embeds, gallery_embeds)
    _check_ids("gallery", gallery_ids, gallery)
    if (gallery_ids < 0).any():
        raise CCRError(f"gallery_ids has {int(gallery_ids.min())}: number images from 0, since -1 stands for a tie.")
    ids, band = gallery_ids.long(), _band(queries, gallery)[:, None]
    found = []
    with _full_precision(queries.device):
        for rows in _slices(len(queries), max(1, _CELLS // len(gallery))):
            cells = queries[rows] @ gallery.T
            # The most similar item reaches the largest cell less one band, so its own cell is within two of it.
            least = _round_down(cells.amax(1, keepdim=True).double() - 2 * band[rows], cells.dtype)
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
    queries, gallery = _checked_embeds(query_embeds, gallery_embeds)
    if not 1 <= n <= len(gallery):
        raise CCRError(f"n is {n}, but the gallery has {len(gallery)} items: pass 1 to {len(gallery)}.")
    band = _band(queries, gallery)[:, None]
    chosen = []
    with _full_precision(queries.device):
        for rows in _slices(len(queries), max(1, _CELLS // len(gallery))):
            cells = queries[rows] @ gallery.T
            # n items reach the nth cell less one band, so whatever belongs to the best n has a cell within two of it.
            nth = cells.topk(n).values[:, -1:].double()
            enough = int((~(cells < _round_down(nth - 2 * band[rows], cells.dtype))).sum(1).max())
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
        CCRError: If there are no ranks, if one of them is below 1, or if k is.

    Example:
        >>> recall_at_k(torch.tensor([1, 7, 3, 2]), k=3)
        tensor(0.7500, dtype=torch.float64)
    """
    if k < 1:
        raise CCRError(f"k is {k}: recall@k needs a k of at least 1.")
    if ranks.ndim != 1 or not len(ranks):
        raise CCRError(f"ranks has shape {tuple(ranks.shape)}: pass (Q,), with at least one query.")
    if not (ranks >= 1).all():
        raise CCRError(f"ranks start at 1, but {ranks.min().item()} is among them: pass what retrieval_ranks returns.")
    return (ranks <= k).sum().double() / len(ranks)
