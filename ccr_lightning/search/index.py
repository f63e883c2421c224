"""An index: embeddings of pictures in a folder, and which model made them of which files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ccr_lightning.errors import CCRError
from ccr_lightning.files import atomic_write, sha256_of

MANIFEST, LEFT_OUT = "index.json", "left_out.jsonl"
_FORMAT = 1
_SUFFIXES = (".safetensors", ".jsonl")  # of a part: embeddings, and pictures in the same order


class Picture(NamedTuple):
    """A file, in the state in which it was embedded."""

    path: str
    bytes: int
    changed_ns: int  # time of its last change

    @classmethod
    def of(cls, path: Path) -> Picture:
        """Return what a file is now.

        Raises:
            OSError: It cannot be looked at.
        """
        state = path.stat()
        return cls(str(path), state.st_size, state.st_mtime_ns)


class Part(NamedTuple):
    """Some of the pictures of an index."""

    name: str
    pictures: list[Picture]


class Index:
    """The folder of an index: ``index.json``, and parts of embeddings and names.

    Args:
        folder: The folder; it need not exist.

    Attributes:
        model: How the model was named, and hashes of it; empty as long as there is no part.
        parts: In the order in which they were made.

    Raises:
        CCRError: What is there is no index, or is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model: dict[str, Any] = {}
        self.parts: list[Part] = []
        self._sha256: dict[str, str] = {}
        path = folder / MANIFEST
        if not path.exists():
            if folder.exists() and (not folder.is_dir() or {of.name for of in folder.iterdir()} - {LEFT_OUT}):
                raise CCRError(f"{folder}: this is no index, and there is something in it; name another folder.")
            return
        manifest = _read_json(path)
        if manifest.get("format") != _FORMAT:
            raise CCRError(f"{path}: this is no index of this version; embed the pictures again into a new folder.")
        if not _is_whole(manifest):
            raise CCRError(f"{path}: this is no index; embed the pictures again into a new folder.")
        self.model = manifest["model"]
        for name, digests in manifest["parts"].items():
            for file, digest in digests.items():
                if not (folder / file).is_file() or sha256_of(folder / file) != digest:
                    raise CCRError(
                        f"{folder / file}: the file is missing or damaged: embed the pictures into a new index."
                    )
                self._sha256[file] = digest
            lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
            self.parts.append(Part(name, [Picture(*json.loads(line)) for line in lines]))

    def take_model(self, model: dict[str, str]) -> None:
        """Check that a model is the one that made the index, and note how it is named now.

        Args:
            model: How it is ``named``, and hashes of its ``weights`` and ``inputs``.

        Raises:
            CCRError: It is another one.
        """
        if self.model and any(self.model.get(key) != model[key] for key in ("weights", "inputs")):
            raise CCRError(
                f"{self.folder} was made by another model, {self.model.get('named')}, and {model['named']} has other "
                "weights, or another tokeniser or preprocessing: name that one, or embed the pictures into a new index."
            )
        is_new = not self.model
        self.model = dict(model)
        if is_new:
            self._write_manifest()

    @property
    def pictures(self) -> list[Picture]:
        """All pictures, in the order of the embeddings."""
        return [picture for part in self.parts for picture in part.pictures]

    def embeds(self) -> Iterator[Tensor]:
        """Yield the embeddings (n, D) of each part, read from the disk as they are used.

        Raises:
            CCRError: A file is damaged.
        """
        from safetensors import safe_open

        for part in self.parts:
            path = self.folder / f"{part.name}.safetensors"
            try:
                with safe_open(path, "pt") as file:
                    embeds = file.get_tensor("image_embeds")
            except Exception as error:
                raise CCRError(f"{path}: cannot be read ({error}); embed the pictures into a new index.") from error
            yield embeds

    def add(self, pictures: Sequence[Picture], embeds: Tensor) -> None:
        """Write pictures and their embeddings (n, D) as a part; from then on it stays.

        Raises:
            CCRError: A file cannot be written.
        """
        self._write_part(pictures, embeds)
        self._write_manifest()

    def remove(self, paths: set[str]) -> None:
        """Drop pictures: parts that had them are replaced by new ones, and deleted once the index has these.

        Raises:
            CCRError: A file cannot be written.
        """
        old = []
        for part, embeds in list(zip(self.parts, self.embeds(), strict=True)):
            kept = [place for place, picture in enumerate(part.pictures) if picture.path not in paths]
            if len(kept) == len(part.pictures):
                continue
            old.append(part)
            if kept:
                self._write_part([part.pictures[place] for place in kept], embeds[kept])
        self.parts = [part for part in self.parts if part not in old]
        self._write_manifest()
        for part in old:
            for suffix in _SUFFIXES:
                (self.folder / f"{part.name}{suffix}").unlink(missing_ok=True)

    def _write_part(self, pictures: Sequence[Picture], embeds: Tensor) -> None:
        from safetensors.torch import save

        number = 1 + max((int(part.name.rpartition("-")[2]) for part in self.parts), default=-1)
        part = Part(f"part-{number:06}", list(pictures))
        lines = "".join(json.dumps(picture, ensure_ascii=False) + "\n" for picture in part.pictures)
        content = (save({"image_embeds": embeds.contiguous()}), lines.encode())
        for suffix, data in zip(_SUFFIXES, content, strict=True):
            path = self.folder / f"{part.name}{suffix}"
            with atomic_write(path, "the index") as file:
                file.write(data)
            self._sha256[path.name] = sha256_of(path)
        self.parts.append(part)

    def _write_manifest(self) -> None:
        parts = {
            part.name: {f"{part.name}{suffix}": self._sha256[f"{part.name}{suffix}"] for suffix in _SUFFIXES}
            for part in self.parts
        }
        manifest = {"format": _FORMAT, "model": self.model, "images": len(self.pictures), "parts": parts}
        with atomic_write(self.folder / MANIFEST, "the index") as file:
            file.write((json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CCRError(f"{path}: cannot be read ({error}); embed the pictures again into a new folder.") from error
    if not isinstance(content, dict):
        raise CCRError(f"{path}: this is no index; embed the pictures again into a new folder.")
    return content


def _is_whole(manifest: Mapping[str, Any]) -> bool:
    """Whether it names a model, and parts with the files of a part: no others are read, nor removed."""
    model, parts = manifest.get("model"), manifest.get("parts")
    return (
        isinstance(model, dict)
        and isinstance(parts, dict)
        and all(isinstance(model.get(key), str) for key in ("named", "weights", "inputs"))
        and all(
            re.fullmatch(r"part-\d{6}", name)
            and isinstance(files, dict)
            and files.keys() == {f"{name}{suffix}" for suffix in _SUFFIXES}
            for name, files in parts.items()
        )
    )
