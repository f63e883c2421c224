"""Files of pictures to embeddings, in batches, around those that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ccr_lightning.data.faults import RecordFault
from ccr_lightning.data.images import open_image
from ccr_lightning.errors import CCRError
from ccr_lightning.evaluation.results import weights_sha256
from ccr_lightning.files import settings_sha256
from ccr_lightning.models.dual_encoder import DualEncoder
from ccr_lightning.search.index import LEFT_OUT, Picture

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".jp2", ".avif")


class Embedded(NamedTuple):
    """A batch of pictures that could be read, their embeddings, and those that could not, with the reason."""

    pictures: list[Picture]
    embeds: Tensor  # (n, D)
    left_out: dict[str, str]


def find_pictures(named: Iterable[str]) -> list[Path]:
    """Return the files that paths, folders and patterns stand for, each once, as absolute paths, sorted.

    Args:
        named: Files; folders, whose pictures are taken with those of the folders in them; or patterns such as
            ``photos/**/*.jpg``.

    Raises:
        CCRError: One stands for nothing.
    """
    found: set[Path] = set()
    for name in named:
        path = Path(name)
        if path.is_dir():
            own = {file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()}
        elif path.is_file():
            own = {path}
        else:
            try:
                own = {file for file in Path(path.anchor or ".").glob(_pattern(path)) if file.is_file()}
            except ValueError as error:
                raise CCRError(f"{name}: this is no pattern ({error}); give one such as 'photos/**/*.jpg'.") from error
        if not own:
            raise CCRError(f"{name}: there is no picture there; check the path.")
        found |= own
    return sorted({path.absolute() for path in found})


def _pattern(path: Path) -> str:
    return str(path.relative_to(path.anchor)) if path.anchor else str(path)


def model_identity(model: DualEncoder) -> dict[str, str]:
    """Return hashes of what decides an embedding: weights, tokeniser and preprocessing.

    Raises:
        CCRError: The model does not know what prepares its inputs.
    """
    if model.tokenizer is None or model.transform is None:
        raise CCRError("this model does not know what prepares its inputs: set its tokenizer and transform.")
    inputs: dict[str, Any] = {"tokenizer": model.tokenizer.identity, "transform": model.transform.evaluation_settings}
    return {"weights": weights_sha256(model.state_dict()), "inputs": settings_sha256(inputs)}


def embed_pictures(
    model: DualEncoder, paths: Sequence[Path], batch_size: int = 64, threads: int = 4
) -> Iterator[Embedded]:
    """Yield the embeddings of pictures batch by batch, while the next ones are being decoded.

    Args:
        model: In evaluation mode, on its device, with its transform.
        paths: Files.
        batch_size: Pictures of a batch.
        threads: Files that are decoded at a time.
    """
    transform = model.transform
    assert transform is not None
    device = next(model.parameters()).device

    def read(path: Path) -> tuple[Picture, Any] | str:
        try:
            pixels = transform.evaluate(open_image(path, "embed"))
            return Picture.of(path), pixels
        except (RecordFault, OSError) as error:
            return str(error).removeprefix("embed: ")

    with ThreadPoolExecutor(threads) as pool:
        for batch, results in _ahead(pool, read, paths, batch_size):
            left_out = {str(path): of for path, of in zip(batch, results, strict=True) if isinstance(of, str)}
            read_ones = [of for of in results if not isinstance(of, str)]
            embeds = torch.empty(0)
            if read_ones:
                pixels = torch.from_numpy(np.stack([of for _, of in read_ones])).permute(0, 3, 1, 2).to(device)
                with torch.inference_mode():
                    embeds = model.encode_image(transform.normalize(pixels)).embeds.float().cpu()
            yield Embedded([picture for picture, _ in read_ones], embeds, left_out)


def _ahead(
    pool: ThreadPoolExecutor, read: Callable[[Path], Any], paths: Sequence[Path], batch_size: int
) -> Iterator[tuple[Sequence[Path], list[Any]]]:
    """Batches of files with what was read of them; the next batch is read while one is used."""
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    waiting = [[pool.submit(read, path) for path in batch] for batch in batches[:1]]
    for number, batch in enumerate(batches):
        if number + 1 < len(batches):
            waiting.append([pool.submit(read, path) for path in batches[number + 1]])
        yield batch, [future.result() for future in waiting.pop(0)]


def write_left_out(folder: Path, left_out: dict[str, str]) -> None:
    """Write ``left_out.jsonl``: the files that could not be read, and why."""
    from ccr_lightning.files import atomic_write

    lines = [json.dumps({"path": path, "reason": reason}, ensure_ascii=False) for path, reason in left_out.items()]
    with atomic_write(folder / LEFT_OUT, "the list of pictures that were left out") as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
