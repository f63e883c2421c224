"""Log-sum-exp of a product in tiles against its definition in float64: values, gradients, masks, extreme cells."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ccr_lightning.functional import logsumexp
from ccr_lightning.functional.logsumexp import product_logsumexp

A, N, D = 13, 29, 6
MASKS = {
    "none": (None, None),
    "columns": (None, torch.arange(N) % 3 != 0),
    "rows and columns": (torch.arange(A) % 4 != 1, torch.arange(N) % 3 != 0),
    "no column": (None, torch.zeros(N, dtype=torch.bool)),
    "no row": (torch.zeros(A, dtype=torch.bool), None),
}
masks = pytest.mark.parametrize(("row_mask", "column_mask"), MASKS.values(), ids=MASKS.keys())
# The largest cells: of a usual temperature; beyond what one shift serves; beyond what float32 holds the exponential of.
scales = pytest.mark.parametrize("scale", [1.0, 60.0, 90.0, 300.0])


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(logsumexp, "_TILE", (5, 7))


def sides(scale, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(A, D, generator=generator, dtype=torch.float64), dim=1)
    columns = torch.nn.functional.normalize(torch.randn(N, D, generator=generator, dtype=torch.float64), dim=1)
    return (scale * rows).to(dtype).requires_grad_(), columns.to(dtype).requires_grad_()


def definition(rows, columns, row_mask, column_mask):
    """Loops over the sums, with Python's own exponentials relative to the largest cell."""
    cells = rows @ columns.T
    kept_columns = [j for j in range(N) if column_mask is None or column_mask[j]]
    kept_rows = [i for i in range(A) if row_mask is None or row_mask[i]]
    nothing = cells.new_tensor(-torch.inf)

    def log_of_sum(terms):
        if not len(terms):
            return nothing
        top = terms.max().detach()
        return top + (terms - top).exp().sum().log()

    of_rows = [log_of_sum(cells[i, kept_columns]) for i in range(A)]
    of_columns = [log_of_sum(cells[kept_rows, j]) for j in range(N)]
    return torch.stack(of_rows), torch.stack(of_columns)


def weighted(sums):
    """A scalar that gives each finite sum another gradient."""
    total = 0.0
    for of in sums:
        weights = torch.linspace(0.5, 1.5, len(of), dtype=of.dtype)
        total = total + torch.where(of > -torch.inf, weights * of, 0.0).sum()
    return total


def alone(of, mask):
    """Of a masked item the own sum is nobody's business."""
    return of if mask is None else of.masked_fill(~mask, 0.0)


@masks
@scales
@pytest.mark.parametrize("is_tiled", [True, False])
def test_sums_and_gradients_are_those_of_the_definition(scale, row_mask, column_mask, is_tiled):
    expected_sides, found_sides = sides(scale), sides(scale)
    expected = definition(*expected_sides, row_mask, column_mask)
    found = product_logsumexp(*found_sides, row_mask, column_mask, both=True, is_tiled=is_tiled)
    expected, found = (
        (alone(of_rows, row_mask), alone(of_columns, column_mask)) for of_rows, of_columns in (expected, found)
    )
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)
    weighted(expected).backward()
    weighted(found).backward()
    for one, other in zip(expected_sides, found_sides, strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-9, atol=1e-12)


@scales
def test_rows_alone(scale):
    one, other = sides(scale), sides(scale)
    both = product_logsumexp(*one, both=True, is_tiled=True)
    rows = product_logsumexp(*other, both=False, is_tiled=True)
    assert rows.columns is None
    assert rows.rows.equal(both.rows)
    weighted([both.rows]).backward()
    weighted([rows.rows]).backward()
    for of_both, of_rows in zip(one, other, strict=True):
        torch.testing.assert_close(of_rows.grad, of_both.grad, rtol=1e-12, atol=1e-14)


def test_gradient_in_both_directions():
    rows, columns = sides(3.0)
    mask = torch.arange(N) % 2 == 0
    assert torch.autograd.gradcheck(
        lambda *of: product_logsumexp(*of, None, mask, both=True, is_tiled=True)[0], (rows, columns)
    )


@scales
def test_float32_errs_no_more_than_the_dense_form(scale):
    exact = sides(scale)
    weighted(definition(*exact, None, None)).backward()
    errors = {}
    for is_tiled in (True, False):
        found = sides(scale, torch.float32)
        weighted(product_logsumexp(*found, both=True, is_tiled=is_tiled)).backward()
        errors[is_tiled] = max((of.grad - one.grad).abs().max().item() for of, one in zip(found, exact, strict=True))
    size = max(of.grad.abs().max().item() for of in exact)
    assert errors[True] <= max(2 * errors[False], 2e-7 * size)


def test_sums_that_one_shift_loses():
    """The second column lies far below the largest cell, where its exponentials vanish unless it has its own shift."""
    rows = torch.tensor([[100.0], [99.0]])
    columns = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    found = product_logsumexp(rows, columns, both=True, is_tiled=True).columns
    assert found.tolist() == pytest.approx(
        [100 + math.log1p(math.exp(-1)), -99 + math.log1p(math.exp(-1)), math.log(2)]
    )
    found.sum().backward()
    shares = [1 / (1 + math.exp(-1)), 1 / (1 + math.e), 0.5]  # of the first row in each column
    assert columns.grad[:, 0].tolist() == pytest.approx([100 * share + 99 * (1 - share) for share in shares], rel=1e-5)


@pytest.mark.parametrize("is_tiled", [True, False])
def test_nan_shows(is_tiled):
    rows, columns = sides(1.0)
    with torch.no_grad():
        columns[3, 0] = torch.nan
    found = product_logsumexp(rows, columns, both=True, is_tiled=is_tiled)
    assert found.rows.isnan().all()
    assert found.columns.isnan().nonzero().flatten().tolist() == [3]


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation made."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_no_tensor_is_as_large_as_the_product():
    rows, columns = torch.randn(200, 4, requires_grad=True), torch.randn(300, 4, requires_grad=True)
    with Largest() as largest:
        weighted(product_logsumexp(rows, columns, both=True, is_tiled=True)).backward()
    assert largest.elements <= 300 * 4
