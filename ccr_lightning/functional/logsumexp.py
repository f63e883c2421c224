"""Log-sum-exp over the rows and columns of a matrix product, also without ever holding the product."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ccr_lightning.functional.places import is_awaited
from ccr_lightning.functional.similarity import slices

DENSE_CELLS = 2**18  # of a product that is held whole: a tile
_TILE = (256, 1024)  # it stays in the cache of a CPU
_GPU_TILE = (2048, 8192)
_HIGHEST = 70.0  # exponent of the largest cell: a million of its exponentials do not overflow float32
_LEAST_SUM = 1e-24  # below it float32 may have lost some of the exponentials
_LOWEST = -57.0  # exponent below which a share of a sum is 0: denormal numbers would take a hundred times as long


class LogSumExp(NamedTuple):
    """Logarithms of sums of exponentials; minus infinity where there is nothing to sum."""

    rows: Tensor  # (A,) over the columns
    columns: Tensor | None  # (N,) over the rows


def product_logsumexp(
    rows: Tensor,
    columns: Tensor,
    row_mask: Tensor | None = None,
    column_mask: Tensor | None = None,
    *,
    both: bool,
    is_tiled: bool | None = None,
) -> LogSumExp:
    """Log-sum-exp of the cells of ``rows @ columns.T`` along each row and, with ``both``, along each column.

    The tiled form computes the product tile by tile, both sums from each, and once more in the backward pass: four
    matrix products instead of three, and memory for one tile instead of the whole product and its gradient. The dense
    form is plain operations, for small products and for ``torch.compile``. Both give the same, up to rounding.

    Args:
        rows: (A, D), floating point.
        columns: (N, D), of the same dtype.
        row_mask: (A,) bool, False for rows that no column sums over.
        column_mask: (N,) bool, False for columns that no row sums over.
        both: Whether the columns are summed too.
        is_tiled: Which form to use; by default the tiled one where the product has more than ``DENSE_CELLS`` cells,
            unless ``torch.compile`` is at work.

    Returns:
        ``rows`` (A,) and ``columns`` (N,), or None without ``both``.

    Example:
        >>> sums = product_logsumexp(torch.eye(2), torch.zeros(3, 2), both=True)
        >>> sums.rows.exp(), sums.columns.exp()
        (tensor([3., 3.]), tensor([2., 2., 2.]))
    """
    if is_tiled is None:
        is_tiled = len(rows) * len(columns) > DENSE_CELLS and not torch.compiler.is_compiling()
    row_bias, column_bias = (
        None if mask is None else torch.zeros_like(mask, dtype=rows.dtype).masked_fill(~mask, -torch.inf)
        for mask in (row_mask, column_mask)
    )
    if is_tiled:
        of_rows, of_columns = _TiledLogSumExp.apply(rows, columns, row_bias, column_bias, both)
        return LogSumExp(of_rows, of_columns if both else None)
    cells = rows @ columns.T
    of_rows = _logsumexp(cells, column_bias, 1)
    return LogSumExp(of_rows, _logsumexp(cells, None if row_bias is None else row_bias[:, None], 0) if both else None)


def _logsumexp(cells: Tensor, bias: Tensor | None, axis: int) -> Tensor:
    if bias is None:
        return cells.logsumexp(axis)
    # Where everything is masked, the gradient of torch's own is NaN.
    empty = (bias == -torch.inf).all()
    masked = torch.where(empty, cells, cells + bias)
    return masked.logsumexp(axis).masked_fill(empty, -torch.inf)


class _Sums:
    """Sums of the exponentials of cells less a shift: one shift for all sums, or of each the largest cell so far."""

    def __init__(self, length: int, like: Tensor, shift: float | None) -> None:
        self.total = like.new_zeros(length)
        self.shift = like.new_full((length,), -torch.inf if shift is None else shift)

    def add(self, cells: Tensor, axis: int, part: slice) -> None:
        """Adds the cells of some sums, whose shifts may grow."""
        before = self.shift[part]
        now = before.maximum(cells.amax(axis))
        finite = now.masked_fill(now == -torch.inf, 0)  # nothing to sum yet
        exponentials = _exp_(cells - finite.unsqueeze(axis))
        self.total[part] = self.total[part] * (before - finite).exp() + exponentials.sum(axis)
        self.shift[part] = now

    def log(self) -> Tensor:
        return self.total.log() + self.shift


class _TiledLogSumExp(torch.autograd.Function):
    """``product_logsumexp`` in tiles.

    Where one shift serves all cells, as it does at the temperatures of training, each cell has one exponential, which
    is a term of its row's sum and of its column's. Otherwise each sum has a shift of its own that follows its largest
    cell (online softmax), and each cell an exponential for both.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, row_bias: Tensor | None, column_bias: Tensor | None, both: bool
    ) -> tuple[Tensor, Tensor]:
        rows, columns = rows.contiguous(), columns.contiguous()
        product = _Product(rows, columns, row_bias, column_bias)
        shift = _common_shift(rows, columns)
        of_rows, of_columns = (_Sums(len(side), side, shift) for side in (rows, columns))
        if shift is not None:
            for place, cells in product.tiles():
                _shifted_exp_(cells, shift)
                of_rows.total[place[0]] += cells.sum(1)
                if both:
                    of_columns.total[place[1]] += cells.sum(0)
            if not _all_held(of_rows.total, row_bias, column_bias) or (
                both and not _all_held(of_columns.total, column_bias, row_bias)
            ):
                shift = None
                of_rows, of_columns = (_Sums(len(side), side, None) for side in (rows, columns))
        if shift is None:
            for place, cells in product.tiles():
                of_rows.add(cells, 1, place[0])
                if both:
                    of_columns.add(cells, 0, place[1])
        ctx.both, ctx.shift = both, shift
        log_rows, log_columns = of_rows.log(), of_columns.log()
        ctx.save_for_backward(
            rows, columns, row_bias, column_bias, log_rows, log_columns, of_rows.total, of_columns.total
        )
        return log_rows, log_columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        rows, columns, row_bias, column_bias, log_rows, log_columns, row_totals, column_totals = ctx.saved_tensors
        product = _Product(rows, columns, row_bias, column_bias)
        grad_rows, grad_columns = torch.zeros_like(rows), torch.zeros_like(columns)
        if ctx.shift is not None:
            by_row, by_column = _quotient(grads[0], row_totals), _quotient(grads[1], column_totals)
        else:  # a sum of nothing has no gradient
            log_rows, log_columns = (of.masked_fill(of == -torch.inf, torch.inf) for of in (log_rows, log_columns))
        for (own, others), cells in product.tiles():
            scratch = product.scratch(cells)
            if ctx.shift is not None:
                _shifted_exp_(cells, ctx.shift)
                if ctx.both:
                    cells.mul_(torch.add(by_row[own, None], by_column[others], out=scratch))
                else:
                    cells.mul_(by_row[own, None])
            else:
                if ctx.both:
                    _exp_(torch.sub(cells, log_columns[others], out=scratch)).mul_(grads[1][others])
                _exp_(cells.sub_(log_rows[own, None])).mul_(grads[0][own, None])
                if ctx.both:
                    cells.add_(scratch)
            grad_rows[own].addmm_(cells, columns[others])
            grad_columns[others].addmm_(cells.T, rows[own])
        return grad_rows, grad_columns, None, None, None


class _Product:
    """The tiles of ``rows @ columns.T``, one after the other in the same memory."""

    def __init__(self, rows: Tensor, columns: Tensor, row_bias: Tensor | None, column_bias: Tensor | None) -> None:
        self.rows, self.columns, self.row_bias, self.column_bias = rows, columns, row_bias, column_bias
        self.size = _GPU_TILE if rows.is_cuda else _TILE
        cells = min(self.size[0], len(rows)) * min(self.size[1], len(columns))
        self._space = rows.new_empty(2, cells)

    def tiles(self) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
        """Yield (part of the rows, part of the columns) and the cells there, which may be changed in place."""
        for own in slices(len(self.rows), self.size[0]):
            for others in slices(len(self.columns), self.size[1]):
                shape = (own.stop - own.start, others.stop - others.start)
                cells = self._space[0, : shape[0] * shape[1]].view(shape)
                if self.column_bias is None:
                    torch.mm(self.rows[own], self.columns[others].T, out=cells)
                else:
                    torch.addmm(self.column_bias[others], self.rows[own], self.columns[others].T, out=cells)
                if self.row_bias is not None:
                    cells += self.row_bias[own, None]
                yield (own, others), cells

    def scratch(self, cells: Tensor) -> Tensor:
        """Memory of the shape of the cells."""
        return self._space[1, : cells.numel()].view(cells.shape)


def _common_shift(rows: Tensor, columns: Tensor) -> float | None:
    """A shift with which no exponential overflows; None but on a CPU: to see if it serves is to wait for the device."""
    if is_awaited(rows.device):
        return None
    longest_row, longest_column = (torch.linalg.vector_norm(side, dim=1).amax() for side in (rows, columns))
    return max(0.0, float(longest_row * longest_column) - _HIGHEST)


def _all_held(total: Tensor, own_bias: Tensor | None, others_bias: Tensor | None) -> bool:
    """Whether no sum that matters has overflowed or is so small that some of its terms were lost."""
    is_held = (total > _LEAST_SUM) & total.isfinite()
    if own_bias is not None:
        is_held |= own_bias == -torch.inf
    if others_bias is not None:
        is_held |= (others_bias == -torch.inf).all()
    return bool(is_held.all())


def _shifted_exp_(cells: Tensor, shift: float) -> None:
    if shift:
        cells.sub_(shift)
    cells.exp_()


def _exp_(shares: Tensor) -> Tensor:
    return torch.threshold_(shares, _LOWEST, -torch.inf).exp_()


def _quotient(grad: Tensor, total: Tensor) -> Tensor:
    return (grad / total).masked_fill(total == 0, 0)
