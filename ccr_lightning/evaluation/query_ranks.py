"""The rank of every query, in memory and as ``ranks.csv``."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ccr_lightning.errors import CCRError
from ccr_lightning.files import atomic_write
from ccr_lightning.functional.galleries import Direction, Embeddings, LanguageRanks

COLUMNS = ("direction", "language", "image", "caption", "rank")


class QueryRanks(NamedTuple):
    """The ranks of all queries of one direction in one language, in the order of the data."""

    direction: Direction
    language: str
    images: NDArray[np.int64]  # (Q,), the row in the split of the image that each query shows or describes
    captions: NDArray[np.int64] | None  # (Q,), their numbers within image and language; None from image to text
    ranks: NDArray[np.int64]  # (Q,), from 1


class RanksFile(NamedTuple):
    """What is in ``ranks.csv``."""

    image_names: list[str]  # those of the rows that have queries, in the order of the file
    queries: list[QueryRanks]  # whose images are places in ``image_names``


def query_ranks(
    ranks: Mapping[Direction, Mapping[int, LanguageRanks]], embeddings: Embeddings, languages: Sequence[str]
) -> list[QueryRanks]:
    """Return the ranks of all queries with what says which query each is.

    Args:
        ranks: By direction and language index, as ``ranks_by_direction`` or re-ranking returns them.
        embeddings: What was ranked.
        languages: The languages that the indices stand for.

    Example:
        >>> import torch
        >>> from ccr_lightning.functional.galleries import ranks_by_direction
        >>> ids, zeros = torch.arange(2), torch.zeros(2, dtype=torch.int64)
        >>> embeddings = Embeddings(torch.eye(2), ids, torch.eye(2), zeros, zeros, ids)
        >>> query_ranks(ranks_by_direction(embeddings), embeddings, ["en"])[1].captions
        array([0, 1])
    """
    found = []
    for direction, by_language in ranks.items():
        for index, of in sorted(by_language.items()):
            captions = None
            if direction == "text_to_image":
                captions = embeddings.caption_index[embeddings.text_languages == index].cpu().numpy()
            images, places = of.image_ids.cpu().numpy(), of.ranks.cpu().numpy()
            found.append(QueryRanks(direction, languages[index], images, captions, places))
    return found


def write_query_ranks(path: Path, queries: Sequence[QueryRanks], image_names: Sequence[str]) -> str:
    """Writes the ranks as CSV, a line for each query, and returns the sha256 of the file.

    Args:
        path: The file; its folder is made if need be.
        queries: What :func:`query_ranks` returns.
        image_names: The image id in the source of each row of the split.

    Raises:
        CCRError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> queries = QueryRanks("text_to_image", "en", np.array([1, 1]), np.array([0, 1]), np.array([3, 8]))
        >>> path = Path(tempfile.mkdtemp()) / "ranks.csv"
        >>> _ = write_query_ranks(path, [queries], ["a.jpg", "b.jpg"])
        >>> print(path.read_text(), end="")
        "direction","language","image","caption","rank"
        "text_to_image","en","b.jpg",0,3
        "text_to_image","en","b.jpg",1,8
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)  # a name may have any character
    writer.writerow(COLUMNS)
    for of in queries:
        images = [image_names[image] for image in of.images.tolist()]
        captions = [None] * len(images) if of.captions is None else of.captions.tolist()
        same = ([of.direction] * len(images), [of.language] * len(images))
        writer.writerows(zip(*same, images, captions, of.ranks.tolist(), strict=True))
    content = text.getvalue().encode()
    with atomic_write(path, "the ranks") as file:
        file.write(content)
    return hashlib.sha256(content).hexdigest()


def read_query_ranks(path: Path) -> RanksFile:
    """Read what :func:`write_query_ranks` has written.

    Raises:
        CCRError: It cannot be read, or is something else.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "ranks.csv"
        >>> queries = QueryRanks("text_to_image", "en", np.array([1, 1]), np.array([0, 1]), np.array([3, 8]))
        >>> _ = write_query_ranks(path, [queries], ["a.jpg", "b.jpg"])
        >>> names, (queries,) = read_query_ranks(path)
        >>> names, queries.images, queries.ranks
        (['b.jpg'], array([0, 0]), array([3, 8]))
    """
    places: dict[str, int] = {}
    found: dict[tuple[Direction, str], list[tuple[int, int, int]]] = {}
    directions: dict[str, Direction] = {direction: direction for direction in get_args(Direction)}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.reader(file)
            if tuple(next(lines, ())) != COLUMNS:
                raise ValueError(f"its first line is not {','.join(COLUMNS)}")
            for direction, language, image, caption, rank in lines:
                query = (places.setdefault(image, len(places)), int(caption or -1), int(rank))
                found.setdefault((directions[direction], language), []).append(query)
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise CCRError(f"{path}: cannot be read as ranks ({error}); run ccr test again.") from error
    queries = []
    for (of, language), rows in found.items():
        images, captions, ranks = np.array(rows, dtype=np.int64).T
        queries.append(QueryRanks(of, language, images, captions if of == "text_to_image" else None, ranks))
    return RanksFile(list(places), queries)
