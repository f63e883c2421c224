"""An index: embeddings of pictures and their captions in a folder, and which model made them."""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ccr_lightning.data.images import decode_image, open_image
from ccr_lightning.errors import CCRError
from ccr_lightning.files import atomic_write, load_json, settings_sha256
from ccr_lightning.functional.nearest import nearest, ranks_of
from ccr_lightning.models.dual_encoder import DualEncoder
from ccr_lightning.search.identity import model_identity
from ccr_lightning.search.part import SUFFIXES, Content, Part, joined
from ccr_lightning.search.picture import Picture, file_state

MANIFEST, LEFT_OUT, LOCK = "index.json", "left_out.jsonl", ".lock"
_FORMAT = 2
_MERGED_BYTES = 2**29  # parts are not merged into larger ones


class Hit(NamedTuple):
    """A picture that was found, or a caption of it."""

    number: int  # of the picture in the index
    picture: Picture
    similarity: float  # cosine, in [-1, 1]
    language: str = ""  # of the caption that was found; empty where pictures were searched
    caption: str = ""


class Index:
    """The folder of an index: ``index.json``, and parts of embeddings, names and pictures.

    Pictures that are files stay where they are; of others the index keeps the bytes. What a search reads is compared
    with its sha256 once, when the index is opened. Embeddings stay on the disk and are read as they are used.

    Args:
        folder: The folder; it need not exist.

    Attributes:
        folder: As given.
        model: How the model was ``named``, and hashes of its ``weights`` and ``inputs``; empty in a new index.

    Raises:
        CCRError: What is there is no index, or is damaged.

    Example:
        >>> import tempfile
        >>> len(Index(Path(tempfile.mkdtemp()) / "pictures.index"))
        0
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.model: dict[str, Any] = {}
        self._parts: list[Part] = []
        self._files: dict[str, dict[str, Any]] = {}  # by the name of a part
        self._sources: dict[str, str] = {}  # what the names of records begin with, to a hash of the source's settings
        self._made_by: tuple[Any, list[int]] | None = None  # the model that was checked, and the state of its weights
        path = self.folder / MANIFEST
        if not path.exists():
            refuse_other_folder(self.folder)
            return
        manifest = self._read_manifest()
        while True:
            try:
                self._open(manifest)
                break
            except CCRError:
                if (now := self._read_manifest()) == manifest:
                    raise
                manifest = now  # another process has just replaced parts

    def _read_manifest(self) -> Mapping[str, Any]:
        path = self.folder / MANIFEST
        manifest = _read_json(path)
        if manifest.get("format") != _FORMAT:
            raise CCRError(f"{path}: this is no index of this version; embed the pictures again into a new folder.")
        if not _is_whole(manifest):
            raise CCRError(f"{path}: this is no index; embed the pictures again into a new folder.")
        return manifest

    def _open(self, manifest: Mapping[str, Any]) -> None:
        self.model, self._sources, self._files = manifest["model"], manifest["sources"], dict(manifest["parts"])
        self._parts = [Part(self.folder, name) for name in self._files]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda part: part.open(self._files[part.name]), self._parts))
        if (len(self), self.captions) != (manifest.get("pictures"), manifest.get("captions")):
            path = self.folder / MANIFEST
            raise CCRError(f"{path}: this is no index as it was written; embed the pictures again into a new folder.")

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    @property
    def captions(self) -> int:
        """Number of captions that can be found."""
        return sum(len(part.text_embeds) for part in self._parts)

    def pictures(self) -> Iterator[Picture]:
        """Yield all pictures, in the order of their numbers."""
        for part in self._parts:
            yield from part.pictures()

    def picture(self, number: int) -> Picture:
        """Return a picture.

        Raises:
            CCRError: There is none of this number.
        """
        part, row = self._place(number)
        return part.picture(row)

    def open(self, number: int) -> Image.Image:
        """Read and decode a picture.

        Raises:
            CCRError: There is none of this number, its file is gone or has changed since, or it is damaged.
        """
        part, row = self._place(number)
        picture = part.picture(row)
        if (data := part.kept(picture)) is not None:
            return decode_image(data, picture.name)
        path = Path(picture.path or "")
        try:
            same = picture.state.split("; ")[0] == file_state(path)
        except OSError:
            same = False
        if not same:
            raise CCRError(f"{picture.name}: the picture is gone or has changed since it was embedded; embed it again.")
        return open_image(path, picture.name)

    def image_embeds(self) -> list[Tensor]:
        """Return the embeddings of all pictures in parts (n, D), which stay on the disk until they are used."""
        return [part.image_embeds for part in self._parts]

    def text_embeds(self) -> list[Tensor]:
        """Return the embeddings of all captions in parts (m, D), which stay on the disk until they are used."""
        return [part.text_embeds for part in self._parts]

    @property
    def content_sha256(self) -> str:
        """What changes when a picture or a caption does, or the model."""
        hashes = {name: self.model.get(name) for name in ("weights", "inputs")}
        return settings_sha256({"model": hashes, "parts": [self._files[part.name] for part in self._parts]})

    def search(self, queries: Tensor, k: int = 10) -> list[list[Hit]]:
        """Finds the k pictures that are most similar to each query, best first: see ``nearest``.

        Args:
            queries: (Q, D) float32, L2-normalised, of the model that made the index.
            k: How many of each query; fewer if there are fewer pictures.

        Raises:
            CCRError: There is no query, k is below 1, or the queries are of another width.
        """
        self._check(queries, k)
        found = nearest(queries, self.image_embeds(), k)
        return [self.hits(*of) for of in zip(found.places.tolist(), found.similarity.tolist(), strict=True)]

    def hits(self, numbers: Sequence[int], similarities: Sequence[float]) -> list[Hit]:
        """Return the pictures of these numbers as hits."""
        found = zip(numbers, similarities, strict=True)
        return [Hit(number, self.picture(number), _cosine(similarity)) for number, similarity in found]

    def search_captions(self, queries: Tensor, k: int = 10) -> list[list[Hit]]:
        """Finds the k captions that are most similar to each query, best first, of all pictures that have some.

        Args:
            queries: (Q, D) float32, L2-normalised, of the model that made the index.
            k: How many of each query; fewer if there are fewer captions.

        Raises:
            CCRError: As :meth:`search`, or no picture has a caption.
        """
        self._check(queries, k)
        if not self.captions:
            raise CCRError(f"{self.folder}: its pictures have no captions; embed captioned data to search captions.")
        found = nearest(queries, self.text_embeds(), k)
        return [
            [self._caption(place, similarity) for place, similarity in zip(places, similarities, strict=True)]
            for places, similarities in zip(found.places.tolist(), found.similarity.tolist(), strict=True)
        ]

    def _check(self, queries: Tensor, k: int = 1) -> None:
        if queries.ndim != 2 or not len(queries) or k < 1:
            raise CCRError(
                f"queries of shape {tuple(queries.shape)} and k {k}: pass (Q, D) with a query, and k from 1."
            )
        for part in self._parts[:1]:
            if queries.shape[1] != part.image_embeds.shape[1]:
                raise CCRError(
                    f"{self.folder} has embeddings of width {part.image_embeds.shape[1]}, and the queries are of width "
                    f"{queries.shape[1]}: use the model that made it."
                )

    def ranks(self, queries: Tensor, numbers: Sequence[int]) -> list[list[int]]:
        """Rank chosen pictures among all for each query, from 1, in the order of :meth:`search`.

        Args:
            queries: (Q, D) float32, L2-normalised.
            numbers: Those of P pictures.

        Returns:
            Q lists of P ranks.

        Raises:
            CCRError: As :meth:`search`, or there is no picture of a number.
        """
        self._check(queries)
        for number in numbers:
            self._place(number)
        if not numbers:
            return [[] for _ in queries]
        chosen = torch.tensor(numbers, dtype=torch.int64)
        ranks: list[list[int]] = ranks_of(queries, self.image_embeds(), chosen).tolist()
        return ranks

    def check_model(self, model: DualEncoder, named: str = "this model") -> None:
        """Check that a model is the one that made the index; it is hashed once, and again when a weight has changed.

        Args:
            model: The model.
            named: What to call it in the message.

        Raises:
            CCRError: It is another one.
        """
        state = _state(model)
        if self._made_by is None or self._made_by[0]() is not model or self._made_by[1] != state:
            self._compare(model_identity(model), named)
            self._made_by = weakref.ref(model), state

    def _compare(self, identity: Mapping[str, str], named: str) -> None:
        if len(self) and any(self.model.get(key) != identity[key] for key in ("weights", "inputs")):
            raise CCRError(
                f"{self.folder} was made by another model, {self.model['named'] or 'without a name'}, and {named} has "
                "other weights, or another tokeniser or preprocessing: name that one, or embed the pictures into a new "
                "index."
            )

    def take_model(self, model: DualEncoder, named: str) -> None:
        """Check that a model is the one that made the index, and note how it is named now.

        Args:
            model: The model.
            named: What finds it again, for ``ccr search``; may be empty.

        Raises:
            CCRError: It is another one, or ``index.json`` cannot be written.
        """
        identity = model_identity(model)
        self._compare(identity, named or "this model")
        self._made_by = weakref.ref(model), _state(model)
        if self.model != (new := {"named": named or self.model.get("named", ""), **identity}):
            self.model = new
            self._write_manifest()

    def add(self, content: Content) -> None:
        """Write pictures as a part, merged with others that are as small; from then on they stay.

        Raises:
            CCRError: Embeddings are not finite, or a file cannot be written.
        """
        if not all(embeds.isfinite().all() for embeds in (content.image_embeds, content.text_embeds)):
            raise CCRError("the model makes embeddings that are not finite: train it again, or name another one.")
        self._commit([*self._parts, self._write(content)])
        while len(self._parts) > 1 and self._are_alike(*self._parts[-2:]):
            *others, first, second = self._parts
            self._commit([*others, self._write(joined([first.content(), second.content()]))])

    def _are_alike(self, first: Part, second: Part) -> bool:
        return len(first) <= 2 * len(second) and first.size + second.size <= _MERGED_BYTES

    def remove(self, numbers: set[int]) -> None:
        """Drop pictures: parts that had them are replaced by new ones, and deleted once the index has these.

        Raises:
            CCRError: A file cannot be written.
        """
        parts, start = [], 0
        for part in self._parts:
            kept = [row for row in range(len(part)) if start + row not in numbers]
            start += len(part)
            if len(kept) == len(part):
                parts.append(part)
            elif kept:
                parts.append(self._write(part.content(kept)))
        self._commit(parts)

    def take_source(self, prefix: str, settings_sha256: str) -> None:
        """Note where the records come from whose names have a prefix, and check that it is where they came from before.

        Raises:
            CCRError: It is other data of the same name, or ``index.json`` cannot be written.
        """
        known = self._sources.setdefault(prefix, settings_sha256)
        if known != settings_sha256 and any(picture.name.startswith(prefix) for picture in self.pictures()):
            raise CCRError(
                f"{self.folder} has pictures of {prefix.rstrip('/')} from other data, or from the same with other "
                "settings: give the source another name (data.source.init_args.name), or embed it into a new index."
            )
        self._sources[prefix] = settings_sha256
        self._write_manifest()

    def delete_remains(self) -> None:
        """Delete the files of parts that are in no index: what an interruption has left."""
        own = {f"{part.name}{suffix}" for part in self._parts for suffix in SUFFIXES}
        for path in self.folder.iterdir():
            if re.fullmatch(r"\.?part-\d{6,}(\.\w+){1,2}", path.name) and path.name not in own:
                path.unlink(missing_ok=True)

    def _write(self, content: Content) -> Part:
        """Writes a part that is in the index only once it is committed."""
        number = 1 + max((int(name.rpartition("-")[2]) for name in self._files), default=-1)
        part = Part.write(self.folder, f"part-{number:06}", content)
        self._files[part.name] = part.files()
        return part

    def _commit(self, parts: list[Part]) -> None:
        """Makes these the parts of the index, then deletes the others; whatever interrupts it, nothing is lost."""
        old, self._parts = self._parts, parts
        self._write_manifest()
        for part in old:
            if part not in parts:
                del self._files[part.name]
                part.delete()

    def _write_manifest(self) -> None:
        parts = {part.name: self._files[part.name] for part in self._parts}
        counts = {"pictures": len(self), "captions": self.captions}
        manifest = {"format": _FORMAT, "model": self.model, "sources": self._sources, **counts, "parts": parts}
        with atomic_write(self.folder / MANIFEST, "the index") as file:
            file.write((json.dumps(manifest, indent=1) + "\n").encode())

    def _place(self, number: int) -> tuple[Part, int]:
        row = number
        for part in self._parts:
            if 0 <= row < len(part):
                return part, row
            row -= len(part)
        raise CCRError(f"{self.folder}: there is no picture {number}; there are {len(self)}, from 0 on.")

    def _caption(self, place: int, similarity: float) -> Hit:
        start = 0
        for part in self._parts:
            if place < len(part.text_embeds):
                break
            place -= len(part.text_embeds)
            start += len(part)
        row = int(part.text_rows[place])
        first = int(torch.searchsorted(part.text_rows, row))
        picture = part.picture(row)
        language, text = picture.all_captions()[place - first]
        return Hit(start + row, picture, _cosine(similarity), language, text)


def _cosine(product: float) -> float:
    """A product of two vectors of length 1, which rounding may leave a little beyond it."""
    return min(1.0, max(-1.0, product))


def _state(model: DualEncoder) -> list[int]:
    """What changes when a weight is changed in place."""
    return [tensor._version for tensor in model.state_dict().values()]


def refuse_other_folder(folder: Path) -> None:
    """Check that a folder is an index, or may become one; a list of what could not be read may be there.

    Raises:
        CCRError: It is something else.
    """
    if not folder.exists() or (folder / MANIFEST).exists():
        return
    if not folder.is_dir() or {of.name for of in folder.iterdir()} - {LEFT_OUT, LOCK}:
        raise CCRError(f"{folder}: this is no index, and there is something in it; name another folder.")


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = load_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CCRError(f"{path}: cannot be read ({error}); embed the pictures again into a new folder.") from error
    if not isinstance(content, dict):
        raise CCRError(f"{path}: this is no index; embed the pictures again into a new folder.")
    return content


def _is_whole(manifest: Mapping[str, Any]) -> bool:
    """Whether it names a model, and parts with the files of a part: no others are read, nor removed."""
    model, sources, parts = (manifest.get(name) for name in ("model", "sources", "parts"))
    return (
        isinstance(model, dict)
        and isinstance(sources, dict)
        and isinstance(parts, dict)
        and all(isinstance(model.get(key), str) for key in ("named", "weights", "inputs"))
        and all(
            re.fullmatch(r"part-\d{6,}", name)
            and isinstance(files, dict)
            and files.keys() == set(SUFFIXES)
            and all(isinstance(of, dict) and of.keys() == {"bytes", "sha256"} for of in files.values())
            for name, files in parts.items()
        )
    )
