"""Exact retrieval ranks, and what is measured from them: recall@k, and the variance of the rank over languages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Literal, get_args

import torch
from torch import Tensor

from ccr_lightning.errors import CCRError

Statistic = Literal["variance", "std"]

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


def _similarity(queries: Tensor, gallery: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Dot products of the pairs (rows[i], columns[i]), (N,) float64.

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
    """Bound of |cell of queries @ gallery.T - ``_similarity``| for any order of summation, (Q,) float64.

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
    """``_similarity`` of each query and the best gallery item of its id, (Q,) float64."""
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
        best[rows] = best[rows].maximum(_similarity(queries, gallery, rows, by_id[first[rows] + nth]))
    return best


@torch.no_grad()
def retrieval_ranks(query_embeds: Tensor, gallery_embeds: Tensor, query_ids: Tensor, gallery_ids: Tensor) -> Tensor:
    """Rank of each query's best positive among the gallery items that are not positives; ties count against the model.

    The rank is 1 plus the number of gallery items of another id that are at least as similar as the best positive. So
    collapsed embeddings rank last, and further positives of the query push nothing back. With it recall@k is the share
    of queries with some positive among the first k (Nie et al., KDD 2024, section on evaluation).

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
        (Q,) int64, from 1 to 1 + G - (number of the query's positives).

    Raises:
        CCRError: If shapes or dtypes do not fit, if a side is empty or not finite, or if a query has no positive.

    Example:
        >>> gallery_embeds = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, 0.6]])
        >>> gallery_ids = torch.tensor([7, 8, 9])
        >>> query_embeds = torch.tensor([[0.8, 0.6], [0.6, 0.8]])
        >>> retrieval_ranks(query_embeds, gallery_embeds, torch.tensor([8, 7]), gallery_ids)
        tensor([2, 3])
    """
    queries, gallery = _checked_embeds(query_embeds, gallery_embeds)
    for side, ids, embeds in (("query", query_ids, queries), ("gallery", gallery_ids, gallery)):
        if ids.shape != embeds.shape[:1] or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise CCRError(
                f"{side}_ids is {ids.dtype} of shape {tuple(ids.shape)}: pass {len(embeds)} integers, one id per row "
                f"of {side}_embeds."
            )
    query_ids, gallery_ids = query_ids.long(), gallery_ids.long()

    best = _best_positive(queries, gallery, query_ids, gallery_ids)
    band = _band(queries, gallery)
    low = _round_down(best - band, queries.dtype)[:, None]
    high = -_round_down(-best - band, queries.dtype)[:, None]
    ahead = torch.zeros_like(query_ids)
    with _full_precision(queries.device):
        for rows, columns in product(_slices(len(queries), _TILE[0]), _slices(len(gallery), _TILE[1])):
            cells = queries[rows] @ gallery[columns].T
            above = cells > high[rows]  # certainly no positive, for the best of them is not above itself
            ahead[rows] += above.sum(1)
            query, item = (~(above | (cells < low[rows]))).nonzero(as_tuple=True)
            query, item = query + rows.start, item + columns.start
            rival = query_ids[query] != gallery_ids[item]
            query, item = query[rival], item[rival]
            ties_or_beats = _similarity(queries, gallery, query, item) >= best[query]
            ahead.index_add_(0, query, ties_or_beats.long())
    return ahead + 1


@torch.no_grad()
def top_candidates(query_embeds: Tensor, gallery_embeds: Tensor, n: int) -> Tensor:
    """The n gallery items most similar to each query, best first; of equally similar ones the lower index first.

    Similarity is that of ``retrieval_ranks``, so a query whose positives are all missing here ranks behind n.

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
            similarity = _similarity(queries, gallery, query, columns.flatten()).view(columns.shape)
            best_first = similarity.sort(dim=1, descending=True, stable=True).indices
            chosen.append(columns.gather(1, best_first[:, :n]))
    return torch.cat(chosen)


def reranked_ranks(ranks: Tensor, match_scores: Tensor, is_positive: Tensor) -> Tensor:
    """Ranks after the first n candidates of each query have been put in the order of their matching score.

    Among the n, the rank is 1 plus the number of non-positives whose score is at least that of the best positive. The
    items beyond n stay behind them in the order of the dual encoder; therefore a query without a positive among its n
    candidates keeps its rank: whatever the order of the n, all of them are ahead of its best positive, as before.

    Args:
        ranks: (Q,), from ``retrieval_ranks``.
        match_scores: (Q, n), floating point; of the candidates that ``top_candidates`` names.
        is_positive: (Q, n) bool, True where a candidate has the id of the query.

    Returns:
        (Q,), of the dtype of ``ranks``.

    Raises:
        CCRError: If shapes or dtypes do not fit, or if a score is not finite.

    Example:
        >>> match_scores = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.3, 0.2], [0.7, 0.8, 0.9]])
        >>> is_positive = torch.tensor([[True, False, False], [False, True, False], [False, False, False]])
        >>> reranked_ranks(torch.tensor([1, 2, 8]), match_scores, is_positive)
        tensor([3, 2, 8])
    """
    shapes = tuple(ranks.shape), tuple(match_scores.shape), tuple(is_positive.shape)
    if len(shapes[0]) != 1 or len(shapes[1]) != 2 or shapes[1] != shapes[2] or shapes[0] != shapes[1][:1]:
        raise CCRError(
            f"ranks {shapes[0]}, match_scores {shapes[1]} and is_positive {shapes[2]} do not fit: "
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
    ahead = ((match_scores >= best) & ~is_positive).sum(1)
    return torch.where(is_positive.any(1), (ahead + 1).to(ranks.dtype), ranks)


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
    if not image_ids or [ids.shape for ids in image_ids] != [language.shape for language in ranks]:
        raise CCRError(
            f"image_ids {[tuple(ids.shape) for ids in image_ids]} and ranks "
            f"{[tuple(language.shape) for language in ranks]} do not fit: pass one (Q,) of each for every language."
        )
    common = torch.unique(image_ids[0])
    for ids in image_ids[1:]:
        common = common[torch.isin(common, ids)]
    columns = []
    for ids, language in zip(image_ids, ranks, strict=True):
        kept = torch.isin(ids, common)
        place = torch.searchsorted(common, ids[kept])
        zeros = torch.zeros(len(common), dtype=torch.float64, device=common.device)
        total = zeros.index_add(0, place, language[kept].double())
        columns.append(total / zeros.index_add(0, place, torch.ones_like(place, dtype=torch.float64)))
    return common, torch.stack(columns, 1)


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
    if statistic not in get_args(Statistic):
        raise CCRError(f"the statistic {statistic!r} is unknown: choose one of {', '.join(get_args(Statistic))}.")
    if ranks.ndim != 2 or 0 in ranks.shape:
        raise CCRError(
            f"ranks has shape {tuple(ranks.shape)}: pass (N, K), with at least one instance that has a rank in each of "
            "the languages."
        )
    ranks = ranks.double()
    variance = (ranks - ranks[:, :1]).var(1, correction=0)  # exact differences: where ranks start changes no bit
    return (variance.sqrt() if statistic == "std" else variance).mean()
