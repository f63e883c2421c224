"""Ranks against loops in exact arithmetic, on ties, near ties and degenerate models."""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.functional.retrieval import retrieval_hit_rate

from ccr_lightning.errors import CCRError
from ccr_lightning.functional import ranks as tiles
from ccr_lightning.functional import retrieval, similarity
from ccr_lightning.functional.ranks import RankCounts, rank_counts, retrieval_ranks
from ccr_lightning.functional.retrieval import first_results, recall_at_k, reranked_counts, top_candidates


def loop_ranks(similarity, query_ids, gallery_ids):
    """The definition, on an exact (Q, G) matrix of anything that can be compared."""
    ranks = []
    for query, query_id in enumerate(query_ids):
        positives, rivals = [], []
        for item, item_id in enumerate(gallery_ids):
            (positives if item_id == query_id else rivals).append(similarity[query][item])
        best = max(positives)
        ranks.append(1 + sum(rival >= best for rival in rivals))
    return ranks


def grid(generator, rows, width):
    """Embeddings on a coarse grid: dot products are exact in any dtype from bfloat16 up, and ties are everywhere."""
    return generator.integers(-2, 3, (rows, width)) / 4


def captions_of(generator, images):
    """Image ids in random order, and 1 to 5 captions of each."""
    ids = generator.permutation(images) - images // 2 + 2**40
    return ids, generator.permutation(np.repeat(ids, generator.integers(1, 6, images)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("images", "width"), [(1, 1), (2, 3), (17, 5), (30, 8), (400, 6)])
def test_ranks_are_those_of_the_loop(images, width, dtype):
    generator = np.random.default_rng(images)
    image_ids, text_ids = captions_of(generator, images)
    image_embeds, text_embeds = grid(generator, images, width), grid(generator, len(text_ids), width)
    text_embeds[0] = image_embeds[0]
    similarity = np.array([[sum(v * t) for t in text_embeds] for v in image_embeds[:30]])
    if images > 30:
        similarity = image_embeds @ text_embeds.T
    tensors = [torch.tensor(array, dtype=dtype) for array in (image_embeds, text_embeds)]
    ids = [torch.tensor(array) for array in (image_ids, text_ids)]

    to_text = retrieval_ranks(tensors[0], tensors[1], ids[0], ids[1])
    to_image = retrieval_ranks(tensors[1], tensors[0], ids[1], ids[0])
    assert to_text.dtype == to_image.dtype == torch.int64
    assert to_text.tolist() == loop_ranks(similarity, image_ids, text_ids)
    assert to_image.tolist() == loop_ranks(similarity.T, text_ids, image_ids)
    if images == 400:
        assert len(text_ids) > tiles._TILE[1]
        assert max(images, len(text_ids)) > tiles._TILE[0]
        assert to_text.float().var() > 0


def near_ties(seed, queries=32, items=96, width=48):
    """Gallery rows that differ from the query's positive by an ulp here and there; some not at all."""
    generator = np.random.default_rng(seed)
    base = generator.standard_normal(width).astype(np.float32)
    gallery = np.repeat(base[None], items, 0)
    direction = generator.integers(-1, 2, gallery.shape) * (generator.random(gallery.shape) < 0.1)
    gallery = np.where(
        direction == 0, gallery, np.nextafter(gallery, np.where(direction < 0, -np.inf, np.inf).astype(np.float32))
    )
    gallery[::7] = gallery[0]
    query_embeds = generator.standard_normal((queries, width)).astype(np.float32)
    return query_embeds, gallery.astype(np.float32), generator.integers(0, items, queries)


def test_nearly_tied_cells_are_decided_as_in_exact_arithmetic(monkeypatch):
    queries, gallery, query_ids = near_ties(seed=0)
    assert queries.shape[0] * gallery.shape[0] >= 2000
    rational = [[Fraction(float(x)) for x in row] for row in gallery]
    exact = []
    for row in queries:
        query = [Fraction(float(x)) for x in row]
        exact.append([sum(a * b for a, b in zip(query, item, strict=True)) for item in rational])
    expected = loop_ranks(exact, query_ids, range(len(gallery)))

    in_float32 = torch.tensor(queries) @ torch.tensor(gallery).T
    assert loop_ranks(in_float32.tolist(), query_ids, range(len(gallery))) != expected

    ranks = retrieval_ranks(
        torch.tensor(queries), torch.tensor(gallery), torch.tensor(query_ids), torch.arange(len(gallery))
    )
    assert ranks.tolist() == expected
    counts = rank_counts(
        torch.tensor(queries), torch.tensor(gallery), torch.tensor(query_ids), torch.arange(len(gallery))
    )
    ties = [
        sum(value == row[own] for item, value in enumerate(row) if item != own)
        for row, own in zip(exact, query_ids, strict=True)
    ]
    assert counts.tied.tolist() == ties
    assert 0 < sum(tied > 0 for tied in ties) < len(ties)
    assert (1 + counts.ahead + counts.tied).equal(ranks)

    best = [[item for item, value in enumerate(row) if value == max(row)] for row in exact]
    assert {len(items) > 1 for items in best} == {True, False}
    for ids in (torch.arange(len(gallery)), torch.arange(len(gallery)) // 7, torch.zeros(len(gallery)).long()):
        found = first_results(torch.tensor(queries), torch.tensor(gallery), ids)
        of_best = [{int(ids[item]) for item in items} for items in best]
        assert found.tolist() == [of.pop() if len(of) == 1 else -1 for of in of_best]

    order = [sorted(range(len(gallery)), key=lambda item: (-row[item], item)) for row in exact]
    monkeypatch.setattr(retrieval, "_CELLS", 1)  # one query at a time, so that none profits from another's slack
    for n in (1, 5, 20, 50):
        candidates = top_candidates(torch.tensor(queries), torch.tensor(gallery), n)
        assert candidates.tolist() == [row[:n] for row in order]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", [1, 7, 64, 255])
def test_equal_embeddings_tie_whatever_their_place(width, dtype):
    generator = torch.Generator().manual_seed(width)
    queries = torch.randn(40, width, dtype=dtype, generator=generator)
    gallery = torch.randn(40, width, dtype=dtype, generator=generator)
    gallery[20:] = gallery[:20]
    ids = torch.arange(40)
    both_halves = retrieval_ranks(queries, gallery, ids, ids)
    first_half = retrieval_ranks(queries[:20], gallery[:20], ids[:20], ids[:20])
    assert both_halves[:20].tolist() == (2 * first_half).tolist()  # each rival twice, and the positive's double

    order = torch.randperm(40, generator=generator)
    assert retrieval_ranks(queries, gallery[order], ids, ids[order]).equal(both_halves)


class Recorder(TorchDispatchMode):
    """The largest tensor that an operation made, and the precision that every matrix product was allowed."""

    def __init__(self):
        super().__init__()
        self.largest, self.precisions, self.dtypes = 0, set(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten.mm.default, torch.ops.aten.mm.out):
            self.precisions |= {torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision}
            self.dtypes.add(result.dtype)
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, torch.Tensor) and not tensor._is_view():
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("width", [3, 256])
def test_collapsed_model_ranks_last_in_bounded_memory(width):
    n = 1200 if width == 3 else 300
    embeds = torch.nn.functional.normalize(torch.rand(1, width), dim=1).repeat(n, 1)
    ids = torch.arange(n)
    with Recorder() as recorder:
        ranks = retrieval_ranks(embeds, embeds, ids, ids)
    assert (ranks == n).all()
    assert recall_at_k(ranks, 10) == 0
    tile = tiles._TILE[0] * tiles._TILE[1]
    assert recorder.largest <= max(2 * tile, embeds.numel())
    if width == 3:
        assert 2 * tile < n * n

    assert (rank_counts(embeds, embeds, ids, ids).tied == n - 1).all()
    assert (first_results(embeds[:5], embeds, ids) == -1).all()
    assert (first_results(embeds[:5], embeds, ids * 0 + 4) == 4).all()

    several = retrieval_ranks(embeds, embeds, ids // 3, ids // 3)
    assert (several == 1 + n - 3).all()
    assert (top_candidates(embeds[:5], embeds, 4) == torch.arange(4)).all()


@pytest.mark.parametrize("power", [-100, -70, -65, 60, 70, 120])
def test_scale_changes_no_rank(power):
    """Products that underflow or overflow in float32 are decided in float64."""
    queries, gallery = torch.randn(2, 100, 24, generator=torch.Generator().manual_seed(0)).unbind()
    similarity, ids = (queries.double() @ gallery.double().T).tolist(), torch.arange(100)
    scale = 2.0**power
    ranks = retrieval_ranks(queries * scale, gallery * scale, ids, ids)
    assert ranks.tolist() == loop_ranks(similarity, ids.tolist(), ids.tolist())
    candidates = top_candidates(queries * scale, gallery * scale, 7)
    assert candidates.tolist() == [sorted(range(100), key=lambda item: -row[item])[:7] for row in similarity]


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_full_precision_inside_and_the_users_choice_outside(precision):
    generator = torch.Generator().manual_seed(0)
    queries, gallery = torch.randn(2, 300, 64, generator=generator).unbind()
    ids = torch.arange(300)
    expected = retrieval_ranks(queries, gallery, ids, ids)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with Recorder() as recorder, torch.autocast("cpu", dtype=torch.bfloat16):
            assert (queries @ gallery.T).dtype == torch.bfloat16
            recorder.precisions.clear()
            recorder.dtypes.clear()
            assert retrieval_ranks(queries, gallery, ids, ids).equal(expected)
            top_candidates(queries, gallery, 5)
            assert (queries @ gallery.T).dtype == torch.bfloat16
        assert "ieee" in recorder.precisions
        assert torch.get_float32_matmul_precision() == precision
        assert torch.backends.cuda.matmul.allow_tf32 == (precision != "highest")
        with pytest.raises(RuntimeError, match="inside"), similarity.full_precision(torch.device("cpu")):
            raise RuntimeError("inside")
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", ["query", "gallery"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_not_finite(side, value, dtype):
    embeds = {"query": torch.randn(5, 4, dtype=dtype), "gallery": torch.randn(5, 4, dtype=dtype)}
    embeds[side][3, 1] = value
    embeds[side][4, 0] = value
    ids = torch.arange(5)
    message = f"{side}_embeds has NaN or infinite values in 2 of 5 rows, first in row 3"
    with pytest.raises(CCRError, match=message):
        retrieval_ranks(embeds["query"], embeds["gallery"], ids, ids)
    with pytest.raises(CCRError, match=message):
        top_candidates(embeds["query"], embeds["gallery"], 2)


def test_queries_without_a_positive():
    embeds, ids = torch.randn(4, 3), torch.tensor([5, 8, 7, 9])
    with pytest.raises(CCRError, match="2 of 4 queries have no positive in the gallery, first id 8"):
        retrieval_ranks(embeds, embeds[:2], ids, torch.tensor([5, 7]))


@pytest.mark.parametrize(
    ("queries", "gallery", "query_ids", "gallery_ids", "message"),
    [
        ((0, 4), (3, 4), 0, 3, "query_embeds (0, 4) and gallery_embeds (3, 4) do not fit"),
        ((2, 4), (0, 4), 2, 0, "do not fit"),
        ((2, 0), (2, 0), 2, 2, "do not fit"),
        ((2, 4), (2, 5), 2, 2, "do not fit"),
        ((4,), (2, 4), 4, 2, "do not fit"),
        ((2, 1, 4), (2, 4), 2, 2, "do not fit"),
        ((2, 4), (3, 4), 3, 3, "query_ids is torch.int64 of shape (3,): pass 2 integers"),
        ((2, 4), (3, 4), 2, 2, "gallery_ids is torch.int64 of shape (2,): pass 3 integers"),
    ],
)
def test_shapes_that_do_not_fit(queries, gallery, query_ids, gallery_ids, message):
    with pytest.raises(CCRError, match=re.escape(message)):
        retrieval_ranks(torch.ones(queries), torch.ones(gallery), torch.arange(query_ids), torch.arange(gallery_ids))


def test_dtypes_that_do_not_fit():
    embeds, ids = torch.ones(2, 4), torch.arange(2)
    with pytest.raises(CCRError, match="floating-point dtype"):
        retrieval_ranks(embeds, embeds.double(), ids, ids)
    with pytest.raises(CCRError, match="floating-point dtype"):
        retrieval_ranks(embeds.long(), embeds.long(), ids, ids)
    for wrong in (ids.float(), ids.bool()):
        with pytest.raises(CCRError, match="query_ids"):
            retrieval_ranks(embeds, embeds, wrong, ids)
    assert retrieval_ranks(torch.eye(2), torch.eye(2), ids.int(), ids.to(torch.uint8)).tolist() == [1, 1]


@pytest.mark.parametrize("k", [1, 3, 10])
def test_recall_agrees_with_torchmetrics_on_data_without_ties(k):
    generator = torch.Generator().manual_seed(k)
    queries = torch.randn(60, 8, generator=generator)
    gallery = queries.repeat(3, 1)[:150] + torch.randn(150, 8, generator=generator)
    query_ids, gallery_ids = torch.arange(60), torch.arange(150) % 60
    similarity = queries.double() @ gallery.double().T
    hits = [
        retrieval_hit_rate(row, gallery_ids == query_id, top_k=k)
        for row, query_id in zip(similarity, query_ids, strict=True)
    ]
    recall = recall_at_k(retrieval_ranks(queries, gallery, query_ids, gallery_ids), k)
    assert recall.ndim == 0
    assert 0 < recall < 1
    assert recall.item() == sum(hit.item() for hit in hits) / 60


def test_recall_of_given_ranks():
    ranks = torch.tensor([1, 5, 2, 6, 1, 100])
    assert [recall_at_k(ranks, k).item() for k in (1, 2, 5, 6, 1000)] == [2 / 6, 3 / 6, 4 / 6, 5 / 6, 1]


@pytest.mark.parametrize(
    ("ranks", "k", "message"),
    [
        (torch.tensor([1]), 0, "k is 0"),
        (torch.tensor([1]), 1.5, "k is 1.5: recall@k needs a whole k"),
        (torch.tensor([], dtype=torch.int64), 1, "at least one query"),
        (torch.tensor([[1]]), 1, "at least one query"),
        (torch.tensor([3, 0]), 1, "ranks start at 1, but 0"),
    ],
)
def test_recall_of_nonsense(ranks, k, message):
    with pytest.raises(CCRError, match=message):
        recall_at_k(ranks, k)


@pytest.mark.parametrize("n", [1, 3, 40])
def test_top_candidates_are_those_of_the_loop(n, monkeypatch):
    monkeypatch.setattr(retrieval, "_CELLS", 7 * 40)  # several tiles of queries, the last one not full
    generator = np.random.default_rng(n)
    queries, gallery = grid(generator, 30, 4), grid(generator, 40, 4)
    similarity = [[sum(q * g) for g in gallery] for q in queries]
    order = [sorted(range(40), key=lambda item: (-row[item], item)) for row in similarity]
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        candidates = top_candidates(torch.tensor(queries, dtype=dtype), torch.tensor(gallery, dtype=dtype), n)
        assert candidates.dtype == torch.int64
        assert candidates.tolist() == [row[:n] for row in order]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_first_results_are_those_of_the_loop(dtype, monkeypatch):
    monkeypatch.setattr(retrieval, "_CELLS", 7 * 40)
    generator = np.random.default_rng(1)
    queries, gallery, ids = grid(generator, 30, 4), grid(generator, 40, 4), generator.integers(0, 25, 40)
    expected = []
    for query in queries:
        similarity = [sum(query * item) for item in gallery]
        of_best = {int(own) for own, value in zip(ids, similarity, strict=True) if value == max(similarity)}
        expected.append(of_best.pop() if len(of_best) == 1 else -1)
    assert -1 in expected
    assert len(set(expected)) > 5
    found = first_results(torch.tensor(queries, dtype=dtype), torch.tensor(gallery, dtype=dtype), torch.tensor(ids))
    assert found.tolist() == expected


def test_first_results_of_nonsense():
    with pytest.raises(CCRError, match="gallery_ids has -3: number images from 0"):
        first_results(torch.ones(2, 3), torch.ones(2, 3), torch.tensor([-3, 1]))
    with pytest.raises(CCRError, match="pass 2 integers"):
        first_results(torch.ones(2, 3), torch.ones(2, 3), torch.tensor([1]))


@pytest.mark.parametrize("n", [0, 5])
def test_too_many_candidates(n):
    with pytest.raises(CCRError, match=f"n is {n}, but the gallery has 4 items"):
        top_candidates(torch.ones(2, 3), torch.ones(4, 3), n)


@pytest.mark.parametrize("n", [1, 4, 25])
def test_reranked_counts_are_those_of_the_loop(n):
    """The whole gallery in its new order: candidates by score, then the rest by the dual encoder, positives last."""
    generator = np.random.default_rng(n)
    queries, gallery = torch.tensor(grid(generator, 20, 3)), torch.tensor(grid(generator, 25, 3))
    query_ids, gallery_ids = torch.arange(20) % 6, torch.arange(25) % 6
    scores = torch.tensor(generator.integers(0, 4, (20, n)) / 2)
    counts = rank_counts(queries, gallery, query_ids, gallery_ids)
    candidates = top_candidates(queries, gallery, n)
    found = reranked_counts(counts, scores, gallery_ids[candidates] == query_ids[:, None])

    expected, ties = [], []
    for query in range(20):
        first = candidates[query].tolist()
        keys = {}
        for item in range(25):
            positive = bool(gallery_ids[item] == query_ids[query])
            if item in first:
                keys[item] = (0, -scores[query, first.index(item)].item(), positive)
            else:
                keys[item] = (1, -float(queries[query] @ gallery[item]), positive)
        order = sorted(keys, key=keys.get)
        place = next(i for i, item in enumerate(order) if keys[item][2])
        expected.append(place)
        best, similarity = keys[order[place]], (gallery @ queries[query]).tolist()
        if best[0] == 0:
            ties.append(sum(key[:2] == best[:2] and not key[2] for key in keys.values()))
        else:  # as the dual encoder counts
            ties.append(sum(value == -best[1] and not keys[item][2] for item, value in enumerate(similarity)))
    assert (found.ahead + found.tied).tolist() == expected
    assert found.tied.tolist() == ties
    assert sum(ties) > 0
    if n < 25:
        assert any(not (gallery_ids[row] == query).any() for row, query in zip(candidates, query_ids, strict=True))


@pytest.mark.parametrize(
    ("counts", "scores", "is_positive", "message"),
    [
        (torch.ones(2), torch.ones(3, 4), torch.ones(3, 4).bool(), "do not fit"),
        (torch.ones(3), torch.ones(3, 4), torch.ones(3, 5).bool(), "do not fit"),
        (torch.ones(3), torch.ones(3, 4), torch.ones(3, 4), "must be floating point and is_positive"),
        (torch.ones(3), torch.ones(3, 4).long(), torch.ones(3, 4).bool(), "must be floating point"),
        (torch.ones(3), torch.tensor([[1.0], [float("nan")], [1.0]]), torch.ones(3, 1).bool(), "first in row 1"),
    ],
)
def test_scores_that_do_not_fit(counts, scores, is_positive, message):
    with pytest.raises(CCRError, match=message):
        reranked_counts(RankCounts(counts, counts), scores, is_positive)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_gpu_ranks_are_those_of_the_cpu(precision):
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(2000, 256, generator=generator), dim=1)
    texts = torch.nn.functional.normalize(
        images.repeat(3, 1) + 0.3 * torch.randn(6000, 256, generator=generator), dim=1
    )
    texts[1::2] = texts[::2]
    image_ids, text_ids = torch.arange(2000), torch.arange(6000) % 2000
    expected = retrieval_ranks(texts, images, text_ids, image_ids)
    candidates = top_candidates(images, texts, 50)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        on_gpu = [tensor.cuda() for tensor in (texts, images, text_ids, image_ids)]
        assert retrieval_ranks(*on_gpu).cpu().equal(expected)
        assert top_candidates(on_gpu[1], on_gpu[0], 50).cpu().equal(candidates)
    finally:
        torch.set_float32_matmul_precision(before)
