"""Dot products that can be relied on: exact where they decide, with a bound on the error where they do not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ccr_lightning.errors import CCRError

_TERMS = 2**16  # float64 products held at once: they and what they are made of stay in the cache


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
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


def slices(length: int, step: int, part: slice | None = None) -> list[slice]:
    """Cut a length, or a part of it, into steps.

    Example:
        >>> slices(5, 2), slices(5, 2, slice(1, 3))
        ([slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)], [slice(1, 3, None)])
    """
    begin, end, _ = (part or slice(None)).indices(length)
    return [slice(start, min(start + step, end)) for start in range(begin, end, step)]


def round_down(bound: Tensor, dtype: torch.dtype) -> Tensor:
    """A number of the dtype that is not above the float64 bound."""
    rounded = bound.to(dtype)
    return rounded.nextafter(torch.full_like(rounded, -torch.inf))


class Sides(NamedTuple):
    """Queries and gallery, in float32 or float64, finite and of one width."""

    queries: Tensor  # (Q, D)
    gallery: Tensor  # (G, D)
    query_norms: Tensor  # (Q,) float64
    gallery_norms: Tensor  # (G,) float64


def checked_embeds(query_embeds: Tensor, gallery_embeds: Tensor) -> Sides:
    """Return both sides as products need them.

    Raises:
        CCRError: If they do not fit, or are not finite.
    """
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
    dtype = torch.promote_types(query_embeds.dtype, torch.float32)
    sides = query_embeds.to(dtype).contiguous(), gallery_embeds.to(dtype).contiguous()
    lengths = norms(sides[0]), norms(sides[1])
    for name, embeds, of in zip(("query", "gallery"), sides, lengths, strict=True):
        if not of.isfinite().all():  # a norm may overflow
            _check_finite(name, embeds)
    return Sides(*sides, *lengths)


def _check_finite(side: str, embeds: Tensor) -> None:
    finite = embeds.isfinite().all(1)
    if not finite.all():
        raise CCRError(
            f"{side}_embeds has NaN or infinite values in {int((~finite).sum())} of {len(finite)} rows, first in "
            f"row {int(finite.int().argmin())}: find out what the encoder did there before anything is ranked."
        )


def check_ids(side: str, ids: Tensor, embeds: Tensor) -> None:
    """Check that there is an integer for each embedding.

    Raises:
        CCRError: If not.
    """
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
    parts = slices(len(rows), max(1, _TERMS // queries.shape[1]))
    if not parts:
        return similarity
    # Memory of its own for each part would be given back to the system, and asked for anew, every time.
    shape = (parts[0].stop, queries.shape[1])
    gathered = queries.new_empty(shape)
    terms, factors = (queries.new_empty(shape, dtype=torch.float64) for _ in range(2))
    for part in parts:
        count = part.stop - part.start
        products, others, chosen = terms[:count], factors[:count], gathered[:count]
        products.copy_(torch.index_select(queries, 0, rows[part], out=chosen))
        products.mul_(others.copy_(torch.index_select(gallery, 0, columns[part], out=chosen)))
        width = products.shape[1]
        while width > 1:
            half = (width + 1) // 2
            products[:, : width - half] += products[:, half:width]
            width = half
        similarity[part] = products[:, 0]
    return similarity


@torch.no_grad()
def norms(embeds: Tensor) -> Tensor:
    """Euclidean norms of rows, (N,) float64, in bounded memory."""
    found = torch.empty(len(embeds), dtype=torch.float64, device=embeds.device)
    parts = slices(len(embeds), max(1, _TERMS // embeds.shape[1]))
    exact = embeds.new_empty((parts[0].stop, embeds.shape[1]), dtype=torch.float64)
    for part in parts:
        torch.linalg.vector_norm(exact[: part.stop - part.start].copy_(embeds[part]), dim=1, out=found[part])
    return found


def error_bounds(query_norms: Tensor, gallery_norms: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Bound of |cell of queries @ gallery.T - ``pair_similarity``| for any order of summation, (Q,) float64.

    A dot product of width D with unit roundoff u errs by at most gamma = D u / (1 - D u) times the product of the
    norms (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1); 1 % more covers the rounding of the
    bound itself, and the last term what underflow takes. Where the product may overflow, nothing is certain.
    """
    info, gamma = torch.finfo(dtype), 0.0
    for unit_roundoff in (info.eps / 2, torch.finfo(torch.float64).eps / 2):
        gamma += width * unit_roundoff / (1 - width * unit_roundoff)
    reach = query_norms * gallery_norms.max()
    return torch.where(reach < info.max / 2, 1.01 * gamma * reach + 2 * width * info.tiny, torch.inf)
