"""The nearest items of a gallery, and their ranks, against sums that are exact."""

import math

import numpy as np
import pytest
import torch

from ccr_lightning.errors import CCRError
from ccr_lightning.functional import nearest as nearest_module
from ccr_lightning.functional.nearest import nearest, ranks_of


def normalised(*shape, generator):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def gallery(seed, items, width, queries):
    """Queries and items of which half have equals, so that ties are everywhere."""
    generator = torch.Generator().manual_seed(seed)
    of = normalised(items, width, generator=generator)
    copies, copied = torch.randint(items, (2, items // 2), generator=generator)
    of[copies] = of[copied]
    return normalised(queries, width, generator=generator), of


def by_rank(queries, items):
    """All items of each query in order: similarities summed without rounding, equal ones by their number."""
    similarity = np.array([[math.fsum((q.double() * i.double()).tolist()) for i in items] for q in queries])
    return np.argsort(-np.round(similarity, 12), axis=1, kind="stable"), similarity


CASES = [(1, 1, 1, 1), (2, 60, 3, 4), (3, 127, 16, 1), (4, 129, 16, 5), (5, 700, 8, 3), (6, 300, 20, 1)]


@pytest.mark.parametrize("tile", [(2**20, 2**18), (1, 1)], ids=["few tiles", "many tiles"])
@pytest.mark.parametrize(("seed", "count", "width", "queries"), CASES)
def test_the_nearest_are_those_of_a_stable_sort(monkeypatch, tile, seed, count, width, queries):
    monkeypatch.setattr(nearest_module, "_CELLS", tile[0] * 2**7)
    monkeypatch.setattr(nearest_module, "_ROWS", tile[1] * 2**7)
    asked, items = gallery(seed, count, width, queries)
    order, similarity = by_rank(asked, items)
    for cut in (0, count // 3):
        parts = [items[:cut], items[cut : cut + 1], items[cut + 1 :]]
        for k in (1, 7, 200, count, count + 5):
            found = nearest(asked, parts, k)
            assert found.places.tolist() == order[:, :k].tolist()
            np.testing.assert_allclose(found.similarity, np.take_along_axis(similarity, order[:, :k], 1), atol=1e-15)


@pytest.mark.parametrize(("seed", "count", "width", "queries"), CASES)
def test_ranks_are_places_in_the_whole_order(monkeypatch, seed, count, width, queries):
    monkeypatch.setattr(nearest_module, "_CELLS", 2**9)
    asked, items = gallery(seed, count, width, queries)
    order, _ = by_rank(asked, items)
    places = torch.randint(count, (9,), generator=torch.Generator().manual_seed(seed))
    expected = [[1 + row.tolist().index(place) for place in places.tolist()] for row in order]
    assert ranks_of(asked, [items[:2], items[2:]], places).tolist() == expected


def test_items_that_are_all_alike_come_in_their_order():
    items = torch.full((5000, 4), 0.5)
    asked = normalised(3, 4, generator=torch.Generator().manual_seed(0))
    assert nearest(asked, [items[:1300], items[1300:]], 6).places.tolist() == [list(range(6))] * 3
    assert ranks_of(asked, [items], torch.tensor([4999, 0, 17])).tolist() == [[5000, 1, 18]] * 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_embeddings_that_are_not_finite_are_refused(value):
    items = torch.eye(4).repeat(100, 1)
    items[250, 2] = value
    with pytest.raises(CCRError, match="not finite"):
        nearest(torch.eye(4)[:2], [items], 3)
