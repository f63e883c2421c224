"""Exact ranks of both directions against other ways to the same numbers, and against the matrix product alone.

python -m benchmarks.ranks [--images 5000 30000]

Embeddings have 256 components; captions are their images with noise, such that about four of five images find theirs
first ("trained"), or know nothing of them ("untrained"). All ways give R@1, R@5 and R@10 of both directions; only the
first gives ranks that are exact where cells nearly tie, and its ties. One thread, CPU seconds, medians of ratios.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import Measured, arguments, compare, in_process, one_or_more, product_of_tiles, show, write
from ccr_lightning.functional.consistency import mean_rank_variance
from ccr_lightning.functional.ranks import mutual_rank_counts
from ccr_lightning.functional.retrieval import recall_at_k

WIDTH = 256
TILE = (512, 1024)
CUTS = (1, 5, 10)
FLOOR = "product of the tiles"
OURS = "ranks, recalls and MRV"


def embeddings(images: int, *, trained: bool, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return images and captions, (N, D) each."""
    generator = torch.Generator().manual_seed(seed)
    image_embeds, noise = (F.normalize(torch.randn(images, WIDTH, generator=generator), dim=1) for _ in range(2))
    return image_embeds, F.normalize(image_embeds + 3.4 * noise, dim=1) if trained else noise


def ours(images: Tensor, texts: Tensor) -> list[float]:
    """Recalls of both directions by exact ranks, and MRV over the two, which stand for two languages here."""
    ids = torch.arange(len(images))
    ranks = [1 + counts.ahead + counts.tied for counts in mutual_rank_counts(images, texts, ids, ids)]
    mean_rank_variance(torch.stack(ranks, dim=1))
    return [recall_at_k(of, k).item() for of in ranks for k in CUTS]


def numpy_argsort(images: Tensor, texts: Tensor) -> list[float]:
    """Sort the similarities of each query, and look for its own."""
    recalls = []
    for queries, gallery in ((images.numpy(), texts.numpy()), (texts.numpy(), images.numpy())):
        place = [int(np.where(np.argsort(-(gallery @ query)) == own)[0][0]) for own, query in enumerate(queries)]
        recalls += [float((np.array(place) < k).mean()) for k in CUTS]
    return recalls


def torch_argsort(images: Tensor, texts: Tensor) -> list[float]:
    """Sort the whole matrix."""
    recalls = []
    for similarity in (images @ texts.T, texts @ images.T):
        order = similarity.argsort(1, descending=True)
        place = (order == torch.arange(len(order))[:, None]).int().argmax(1)
        recalls += [(place < k).double().mean().item() for k in CUTS]
    return recalls


def clip_benchmark(images: Tensor, texts: Tensor) -> list[float]:
    """The functions of that package as its evaluation calls them."""
    from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k

    scores, pairs = texts @ images.T, torch.eye(len(images), dtype=torch.bool)
    return [
        (batchify(recall_at_k, of, own, 64, "cpu", k=k) > 0).double().mean().item()
        for of, own in ((scores.T, pairs.T), (scores, pairs))
        for k in CUTS
    ]


def torchmetrics_hit_rate(images: Tensor, texts: Tensor) -> list[float]:
    """A hit rate for each query."""
    from torchmetrics.functional.retrieval import retrieval_hit_rate

    recalls = []
    for similarity in (images @ texts.T, texts @ images.T):
        own = torch.eye(len(similarity), dtype=torch.bool)
        for k in CUTS:
            hits = [retrieval_hit_rate(row + 2, target, top_k=k) for row, target in zip(similarity, own, strict=True)]
            recalls.append(torch.stack(hits).double().mean().item())
    return recalls


OTHERS: dict[str, Callable[[Tensor, Tensor], list[float]]] = {
    "numpy argsort of each row": numpy_argsort,
    "torch argsort": torch_argsort,
    "clip_benchmark": clip_benchmark,
    "torchmetrics hit rate": torchmetrics_hit_rate,
}


def ways(images: int, *, trained: bool, others: Sequence[str]) -> dict[str, Callable[[], Any]]:
    """Return the floor, ours, and other ways by their names."""
    sides = embeddings(images, trained=trained)
    functions = {FLOOR: partial(product_of_tiles, tile=TILE), OURS: ours} | {name: OTHERS[name] for name in others}
    return {name: partial(function, *sides) for name, function in functions.items()}


def compared(images: int, *, trained: bool, others: Sequence[str], rounds: int) -> tuple[dict[str, Measured], float]:
    """Return what each way costs, and R@1 of images."""
    tried = ways(images, trained=trained, others=others)
    measured = compare(tried, FLOOR, rounds=rounds, slow=["torchmetrics hit rate"])
    recalls = tried[OURS]()
    for name in others:
        assert np.allclose(tried[name](), recalls, atol=1e-3), name
    return measured, recalls[0]


def main() -> None:
    """Compare, print a table for each size, write JSON."""
    parser = arguments(__doc__, "ranks")
    parser.add_argument("--images", type=one_or_more, nargs="+", default=[5000])
    parser.add_argument("--largest", type=one_or_more, default=5000, help="up to how many other ways are tried")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for images in args.images:
        for trained in (True, False):
            others = list(OTHERS) if trained and images <= args.largest else []
            measured, recall = in_process(partial(compared, images, trained=trained, others=others, rounds=args.rounds))
            title = f"{images} images, {'trained' if trained else 'untrained'}, R@1 {100 * recall:.1f} %"
            show(title, measured, FLOOR)
            results[title] = {name: of._asdict() for name, of in measured.items()}
    write(args.output, results)


if __name__ == "__main__":
    main()
