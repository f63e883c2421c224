"""Approximate search of large indexes with faiss, whose recall against exact search is measured."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ccr_lightning.errors import CCRError
from ccr_lightning.files import atomic_write, load_json
from ccr_lightning.functional.nearest import nearest, rows_of
from ccr_lightning.functional.similarity import pair_similarity
from ccr_lightning.search.index import Hit, Index
from ccr_lightning.search.picture import file_state

FILE, SETTINGS = "approximate.faiss", "approximate.json"
LEAST = 10_000  # pictures, below which exact search takes milliseconds
WANTED_RECALL = 0.95
_BEST, _QUERIES = 10, 200  # of how many queries how many results are compared
_PICTURES_PER_CELL = 40  # that its centre is learned from
_SEED = 0


class Approximation(NamedTuple):
    """How pictures are searched, and how well that was when it was made."""

    of: str  # the index's content
    file: str  # size and time of the file; what it finds is compared again, exactly
    cells: int  # into which the pictures are divided
    probes: int  # cells that are looked at for a query
    recall: float  # share of the ``best`` of exact search that are found
    best: int
    queries: int  # that this was measured with
    asked: str  # what they were: captions or pictures of the index


class ApproximateSearch:
    """Searches the cells of an index that are closest to a query: an inverted file of faiss (``IVFFlat``).

    It is made once for an index and kept in its folder. So many cells are looked at that 95 % of the ten best pictures
    of exact search are found, measured with captions of the index, or with its pictures if they have none.

    Args:
        index: The index.
        say: Told what is done, if it is made.

    Raises:
        CCRError: faiss is not installed, the index is small, or a file cannot be written.
    """

    def __init__(self, index: Index, say: Callable[[str], None] = lambda line: None) -> None:
        try:
            import faiss
        except ImportError as error:
            raise CCRError("approximate search needs faiss: pip install 'ccr-lightning[faiss]'.") from error
        if len(index) < LEAST:
            raise CCRError(
                f"{index.folder} has {len(index):,} pictures, of which exact search takes milliseconds: leave out "
                "--approximate."
            )
        self._index = index
        path = index.folder / FILE
        kept = _read(index)
        if kept is None:
            say(f"dividing {len(index):,} pictures into cells, once for this index ...")
            kept = _make(faiss, index)
        self.approximation = kept
        try:
            cells: Any = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
        except RuntimeError as error:
            raise CCRError(f"{path}: faiss cannot read it; delete it, and it is made again.") from error
        cells.nprobe = kept.probes
        self._cells = cells

    def search(self, queries: Tensor, k: int) -> list[list[Hit]]:
        """Finds pictures that are similar to each query, best first, by their exact cosines.

        Args:
            queries: (Q, D) float32, L2-normalised, of the model that made the index.
            k: How many of each query; fewer if the cells that are looked at have fewer.
        """
        found = torch.from_numpy(self._cells.search(queries.numpy(), min(k, len(self._index)))[1])
        return [self._hits(query, numbers[numbers >= 0]) for query, numbers in zip(queries, found, strict=True)]

    def _hits(self, query: Tensor, numbers: Tensor) -> list[Hit]:
        numbers = numbers.sort().values
        embeds, rows = rows_of(self._index.image_embeds(), numbers), torch.arange(len(numbers))
        cosines = pair_similarity(query[None], embeds, torch.zeros_like(rows), rows)
        similarity, order = cosines.sort(descending=True, stable=True)
        return self._index.hits(numbers[order].tolist(), similarity.tolist())


def _read(index: Index) -> Approximation | None:
    """What was made for this content of the index, if it is there and whole."""
    try:
        kept = Approximation(**load_json((index.folder / SETTINGS).read_text(encoding="utf-8")))
        is_same = kept.of == index.content_sha256 and file_state(index.folder / FILE) == kept.file
    except (OSError, ValueError, TypeError):
        return None
    return kept if is_same else None


def _make(faiss: Any, index: Index) -> Approximation:
    parts = index.image_embeds()
    width = parts[0].shape[1]
    cells = min(int(4 * math.sqrt(len(index))), len(index) // _PICTURES_PER_CELL)
    made = faiss.index_factory(width, f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
    generator = torch.Generator().manual_seed(_SEED)
    chosen = torch.randperm(len(index), generator=generator)[: _PICTURES_PER_CELL * cells].sort().values
    made.train(rows_of(parts, chosen).numpy())
    for part in parts:
        made.add(part.numpy())
    asked, queries = _queries(index, generator)
    exact = nearest(queries, parts, _BEST).places
    for probes in (min(2**power, cells) for power in range(cells.bit_length() + 1)):
        made.nprobe = probes
        found = torch.from_numpy(made.search(queries.numpy(), _BEST)[1])
        recall = (exact[:, :, None] == found[:, None]).any(2).double().mean().item()
        if recall >= WANTED_RECALL:
            break
    with atomic_write(index.folder / FILE, "the cells") as file:
        faiss.write_index(made, faiss.PyCallbackIOWriter(file.write))
    kept = Approximation(
        index.content_sha256,
        file_state(index.folder / FILE),
        cells,
        probes,
        recall,
        _BEST,
        len(queries),
        asked,
    )
    with atomic_write(index.folder / SETTINGS, "what is known of the cells") as file:
        file.write(json.dumps(kept._asdict(), indent=1).encode())
    return kept


def _queries(index: Index, generator: torch.Generator) -> tuple[str, Tensor]:
    asked, parts = ("captions", index.text_embeds()) if index.captions else ("pictures", index.image_embeds())
    chosen = torch.randperm(sum(map(len, parts)), generator=generator)[:_QUERIES].sort().values
    return asked, rows_of(parts, chosen)
