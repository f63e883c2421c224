"""Exact search of a large index against the bare matrix product and faiss, and what ``ccr search`` takes in all.

python -m benchmarks.search [--pictures 1000000] [--folder DIR]

Makes an index on the disk, as ``ccr embed`` writes it, of random embeddings with 256 components that lie around as many
concepts as a hundredth of them, and a small retriever with random weights that fits it. Compares ways to the ten best
pictures of 1 and of 64 queries on one thread, in CPU seconds; then times the whole command on the ready index, with its
peak memory, beside ``import torch`` alone; then makes the approximate index and searches that.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import arguments, compare, in_process, one_or_more, product_of_tiles, show, write
from ccr_lightning.data.tokenizer import CaptionTokenizer
from ccr_lightning.data.transforms import ImageTransform
from ccr_lightning.functional.nearest import nearest
from ccr_lightning.functional.similarity import slices
from ccr_lightning.models.retriever import Retriever
from ccr_lightning.models.text import TextEncoder
from ccr_lightning.models.vision import ImageEncoder
from ccr_lightning.search.approximate import FILE, LEAST, SETTINGS, ApproximateSearch
from ccr_lightning.search.index import Index
from ccr_lightning.search.part import Content
from ccr_lightning.search.picture import Picture

WIDTH, K = 256, 10
TILE = 2**14
FLOOR = "product"
OURS = "exact search"
QUERY = "ein roter Apfel"


def save_retriever(folder: Path) -> Retriever:
    """Save a small retriever with random weights, and return it."""
    torch.manual_seed(0)
    tokenizer = CaptionTokenizer(vocab_size=100)
    tokenizer.train([QUERY, "a red apple", "赤いりんご"])
    text = TextEncoder(tokenizer.vocab_size, hidden_size=16, heads=2, feed_forward_size=32)
    retriever = Retriever(ImageEncoder("test_convnext", image_size=64), text, embed_dim=WIDTH).eval()
    retriever.tokenizer, retriever.transform = tokenizer, ImageTransform(64)
    retriever.save_pretrained(folder)
    return retriever


def make_index(folder: Path, pictures: int, retriever: Retriever, model: Path) -> None:
    """Write an index of pictures that nobody has drawn."""
    generator = torch.Generator().manual_seed(0)
    concepts = torch.randn(max(1, pictures // 100), WIDTH, generator=generator)
    index = Index(folder)
    index.take_model(retriever, str(model))
    for of in slices(pictures, 4096):
        names = [f"/pictures/{number:09}.jpg" for number in range(of.start, of.stop)]
        concept = concepts[torch.randint(len(concepts), (len(names),), generator=generator)]
        embeds = F.normalize(concept + torch.randn(len(names), WIDTH, generator=generator), dim=1)
        content = [Picture(name, "54321 bytes, 1700000000000000000", name) for name in names]
        index.add(Content(content, [None] * len(names), embeds, torch.empty(0, WIDTH)))


def queries_of(parts: Sequence[Tensor], count: int) -> Tensor:
    """Return queries, each near some picture."""
    generator = torch.Generator().manual_seed(1)
    pictures = torch.cat([part[torch.randint(len(part), (count,), generator=generator)] for part in parts])
    chosen = pictures[torch.randperm(len(pictures), generator=generator)[:count]]
    return F.normalize(chosen + torch.randn(count, WIDTH, generator=generator) / WIDTH**0.5, dim=1)


def ways(parts: Sequence[Tensor], queries: Tensor) -> dict[str, Callable[[], Any]]:
    """Return the floor, ours, and other ways by their names; the last two keep a copy of their own."""
    import faiss

    faiss.omp_set_num_threads(1)
    flat = faiss.IndexFlatIP(WIDTH)
    for part in parts:
        flat.add(part.numpy())

    def product() -> None:
        for part in parts:
            product_of_tiles(part, queries, (TILE, len(queries)))

    def topk() -> None:
        torch.cat([queries @ part.T for part in parts], 1).topk(K)

    return {
        FLOOR: product,
        OURS: lambda: nearest(queries, parts, K),
        "torch.topk of all products": topk,
        "faiss flat": lambda: flat.search(queries.numpy(), K),
    }


def compared(folder: Path, count: int, rounds: int) -> dict[str, Any]:
    """What each way costs for so many queries, embeddings being in memory."""
    parts = [part.clone() for part in Index(folder).image_embeds()]
    queries = queries_of(parts, count)
    tried = ways(parts, queries)
    found = nearest(queries, parts, K)
    assert found.places.tolist() == tried["faiss flat"]()[1].tolist()
    measured = compare(tried, FLOOR, rounds=rounds)
    show(f"{count} queries, {sum(map(len, parts)):,} pictures", measured, FLOOR)
    return {name: of._asdict() for name, of in measured.items()}


def run(command: Sequence[str]) -> tuple[float, float]:
    """Wall seconds of a command, and its peak memory in MiB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise RuntimeError(f"{command} failed")
    return seconds, usage.ru_maxrss / 1024


def whole_command(folder: Path, rounds: int) -> dict[str, Any]:
    """What the command takes from start to end, with any number of threads, in turns with importing torch."""
    search = [sys.executable, "-m", "ccr_lightning.cli.main", "search", str(folder), QUERY]
    commands = {"ccr search": search, "import torch": [sys.executable, "-c", "import torch"]}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            taken[name].append(run(command))
    costs = {}
    for name, of in taken.items():
        seconds, mebibytes = (statistics.median(values) for values in zip(*of, strict=True))
        print(f"whole command, {name}: {seconds:.2f} s, {mebibytes:,.0f} MiB at the peak", flush=True)
        costs[name] = {"seconds": seconds, "mebibytes": mebibytes}
    return costs


def approximate(folder: Path, rounds: int) -> dict[str, Any]:
    """What making the approximate index takes, and searching it with one query, in wall seconds."""
    index = Index(folder)
    for name in (FILE, SETTINGS):
        (folder / name).unlink(missing_ok=True)
    start = time.perf_counter()
    made = ApproximateSearch(index)
    seconds = time.perf_counter() - start
    taken = []
    for query in queries_of(index.image_embeds(), rounds):
        begin = time.perf_counter()
        made.search(query[None], K)
        taken.append(time.perf_counter() - begin)
    of = made.approximation
    print(
        f"approximate: made in {seconds:.1f} s; recall@{of.best} {of.recall:.3f} with {of.probes} of {of.cells} cells"
    )
    print(f"a query takes {statistics.median(taken):.4f} s")
    return {"made in": seconds, "query": statistics.median(taken), **of._asdict()}


def main() -> None:
    """Make the index, compare, print, write JSON."""
    parser = arguments(__doc__, "search", rounds=9)
    parser.add_argument("--pictures", type=one_or_more, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="of the index and its model, which are kept (default: temporary)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        index, model = folder / "pictures.index", folder / "model"
        if not index.exists():
            in_process(lambda: make_index(index, args.pictures, save_retriever(model), model))
        for queries in (1, 64):
            results[f"{queries} queries"] = in_process(partial(compared, index, queries, args.rounds))
        results["whole command"] = whole_command(index, min(args.rounds, 5))
        if args.pictures >= LEAST:
            results["approximate"] = in_process(partial(approximate, index, args.rounds))
    write(args.output, results)


if __name__ == "__main__":
    main()
