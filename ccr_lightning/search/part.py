"""Some of the pictures of an index: three files that are written once and read where they lie."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ccr_lightning.errors import CCRError
from ccr_lightning.files import atomic_write, sha256_of
from ccr_lightning.memory import refuse_out_of_memory
from ccr_lightning.search.picture import Picture

EMBEDS, LINES, PICTURES = SUFFIXES = (".safetensors", ".jsonl", ".pictures")


class Content(NamedTuple):
    """What a part is made of."""

    pictures: Sequence[Picture]
    bytes: Sequence[bytes | None]  # of each picture that no file holds
    image_embeds: Tensor  # (n, D)
    text_embeds: Tensor  # (m, D), of all captions of the first picture, then of the second, ...


def joined(contents: Sequence[Content]) -> Content:
    """Return what several parts would be as one."""
    return Content(
        [picture for content in contents for picture in content.pictures],
        [data for content in contents for data in content.bytes],
        torch.cat([content.image_embeds for content in contents]),
        torch.cat([content.text_embeds for content in contents]),
    )


class Part:
    """A part of an index on a disk.

    Args:
        folder: That of the index.
        name: The files' name, without an ending.

    Attributes:
        name: As given.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._base = folder / name

    @classmethod
    def write(cls, folder: Path, name: str, content: Content) -> Part:
        """Writes a part.

        Raises:
            CCRError: A file cannot be written.
        """
        from safetensors.torch import save

        part = cls(folder, name)
        pictures, start = [], 0
        for picture, data in zip(content.pictures, content.bytes, strict=True):
            if data is not None:
                picture = picture._replace(kept=(start, start + len(data)))
                start += len(data)
            pictures.append(picture)
        rows = torch.tensor([row for row, of in enumerate(pictures) for _ in of.all_captions()], dtype=torch.int64)
        embeds = {
            "image_embeds": content.image_embeds.contiguous(),
            "text_embeds": content.text_embeds.contiguous(),
            "text_rows": rows,
        }
        with part._writing(EMBEDS) as file:
            file.write(save(embeds))
        with part._writing(LINES) as file:
            file.writelines(picture.to_json() + b"\n" for picture in pictures)
        with part._writing(PICTURES) as file:
            file.writelines(data for data in content.bytes if data is not None)
        return part

    def _writing(self, suffix: str) -> Any:
        return atomic_write(self._path(suffix), "the index")

    def _path(self, suffix: str) -> Path:
        return self._base.with_name(self.name + suffix)

    def files(self) -> dict[str, dict[str, Any]]:
        """Return size and sha256 of each file, by the ending of its name."""
        paths = {suffix: self._path(suffix) for suffix in SUFFIXES}
        return {suffix: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for suffix, path in paths.items()}

    def open(self, files: dict[str, dict[str, Any]]) -> None:
        """Compares the files with what :meth:`files` said, of pictures the size alone, and maps them into memory.

        From then on the part can be read even if it is deleted from the folder.

        Raises:
            CCRError: One is missing or damaged.
        """
        for suffix, of in files.items():
            path = self._path(suffix)
            same = path.is_file() and path.stat().st_size == of["bytes"]
            if not same or (suffix != PICTURES and sha256_of(path) != of["sha256"]):
                raise CCRError(f"{path}: the file is missing or damaged: embed the pictures into a new index.")
        _ = self._tensors, self._lines, self._kept

    @property
    def size(self) -> int:
        """Size of all files in bytes."""
        return sum(self._path(suffix).stat().st_size for suffix in SUFFIXES)

    def __len__(self) -> int:
        return len(self.image_embeds)

    @property
    def image_embeds(self) -> Tensor:
        """(n, D), which stay on the disk until they are used."""
        return self._tensors["image_embeds"]

    @property
    def text_embeds(self) -> Tensor:
        """(m, D), of the captions."""
        return self._tensors["text_embeds"]

    @property
    def text_rows(self) -> Tensor:
        """(m,) int64, the picture of each caption, in this part."""
        return self._tensors["text_rows"]

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        from safetensors import safe_open

        path = self._path(EMBEDS)
        try:
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in ("image_embeds", "text_embeds", "text_rows")}
        except Exception as error:
            refuse_out_of_memory(error, path)
            raise CCRError(f"{path}: cannot be read ({error}); embed the pictures into a new index.") from error

    @cached_property
    def _lines(self) -> tuple[mmap.mmap | bytes, np.ndarray[Any, np.dtype[np.int64]]]:
        """The lines of pictures, and where each of them ends."""
        content = _mapped(self._path(LINES))
        return content, np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n"))

    @cached_property
    def _kept(self) -> mmap.mmap | bytes:
        return _mapped(self._path(PICTURES))

    def picture(self, row: int) -> Picture:
        """Return a picture.

        Raises:
            CCRError: The line of it is damaged.
        """
        content, ends = self._lines
        try:
            return Picture.from_json(content[ends[row - 1] + 1 if row else 0 : ends[row]])
        except (IndexError, ValueError) as error:
            path = self._path(LINES)
            raise CCRError(f"{path}: cannot be read ({error}); embed the pictures into a new index.") from error

    def pictures(self) -> Iterator[Picture]:
        """Yield all pictures."""
        return map(self.picture, range(len(self)))

    def kept(self, picture: Picture) -> bytes | None:
        """Return the bytes of a picture that the index keeps; None for one that is a file."""
        return None if picture.kept is None else self._kept[picture.kept[0] : picture.kept[1]]

    def content(self, rows: Sequence[int] | None = None) -> Content:
        """Return what the part holds, or some rows of it."""
        chosen = torch.arange(len(self)) if rows is None else torch.tensor(rows, dtype=torch.int64)
        pictures = [self.picture(row) for row in chosen.tolist()]
        texts = torch.isin(self.text_rows, chosen)
        kept = [self.kept(picture) for picture in pictures]
        return Content(pictures, kept, self.image_embeds[chosen], self.text_embeds[texts])

    def delete(self) -> None:
        """Deletes the files."""
        for suffix in SUFFIXES:
            self._path(suffix).unlink(missing_ok=True)


def _mapped(path: Path) -> mmap.mmap | bytes:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
