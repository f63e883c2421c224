"""Pictures and their captions to embeddings in an index: in batches, around those that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ccr_lightning.data.faults import RecordFault, Report
from ccr_lightning.data.images import open_image
from ccr_lightning.errors import CCRError
from ccr_lightning.files import atomic_write
from ccr_lightning.models.dual_encoder import DualEncoder
from ccr_lightning.search.found import Found, find_pictures, gone_from, of_files
from ccr_lightning.search.index import LEFT_OUT, Index
from ccr_lightning.search.part import Content, joined
from ccr_lightning.search.picture import Picture
from ccr_lightning.search.writing import open_to_write

_PART = 4096  # pictures: so many are lost at most if the process is killed
_THREADS = 4  # pictures that are decoded at a time


class LeftOut(NamedTuple):
    """A picture that cannot be read, and why; a record without a picture has no name."""

    name: str
    reason: str


class Embedded(NamedTuple):
    """What became of pictures."""

    new: int  # that were embedded
    dropped: int  # that are not in the index any more, in that state
    left_out: list[LeftOut]


def embed(
    index: Index,
    found: Callable[[Report], Iterable[Found]],
    model: DualEncoder,
    *,
    batch_size: int = 64,
    drop: Callable[[Picture], bool] = lambda picture: False,
    advance: Callable[[int], None] = lambda count: None,
) -> Embedded:
    """Embeds the pictures that are new or have changed, and drops those that are gone, from an index of the same model.

    What is finished stays if it is interrupted, and is not done again.

    Args:
        index: The index.
        found: Yields the pictures that are to be in it, and reports what is none.
        model: On its device, with its tokenizer and transform.
        batch_size: Pictures at a time.
        drop: Whether a picture of the index that is not among these is dropped; a file that has gone from its own
            folder always is.
        advance: Told of how many more pictures it is known what becomes of them.

    Returns:
        What became of them; ``left_out.jsonl`` in the index's folder has what was left out.

    Raises:
        CCRError: ``batch_size`` is below 1, the model makes numbers that are not finite, or a file cannot be written.
    """
    if batch_size < 1:
        raise CCRError(f"batch_size is {batch_size}: give 1 or more.")
    left_out: list[LeftOut] = []
    known = {picture.name: picture.state for picture in index.pictures()}
    seen: set[str] = set()
    has_earlier_states = len(known) < len(index)  # where a process was killed before it dropped them

    def new_ones() -> Iterator[Found]:
        for one in found(lambda fault: left_out.append(LeftOut("", str(fault)))):
            seen.add(one.picture.name)
            if known.get(one.picture.name) == one.picture.state:
                advance(1)
            else:
                yield one

    new, waiting = 0, _Collected()
    try:
        for batch in _ahead(new_ones(), model, batch_size):
            usable = [of for of in batch if not isinstance(of, LeftOut)]
            has_earlier_states |= any(of.found.picture.name in known for of in usable)
            left_out += [of for of in batch if isinstance(of, LeftOut)]
            if usable:
                waiting.add(_embedded(model, usable))
                new += len(usable)
            if waiting.pictures >= _PART:
                index.add(waiting.take())
            advance(len(batch))
    finally:
        if waiting.pictures:
            index.add(waiting.take())
        dropped = _drop_earlier_states(index) if has_earlier_states else 0
    unreadable = {of.name for of in left_out}
    gone = {
        number
        for number, picture in enumerate(index.pictures())
        if picture.name in unreadable or (picture.name not in seen and (drop(picture) or _is_gone(picture)))
    }
    if gone:
        index.remove(gone)
    _write_left_out(index.folder, left_out)
    return Embedded(new, dropped + len(gone), left_out)


def embed_pictures(
    folder: str | Path, named: Iterable[str | Path], model: DualEncoder, model_name: str = "", batch_size: int = 64
) -> Index:
    """Embeds pictures that are new or have changed into an index, which is made if need be, and returns it.

    Args:
        folder: That of the index.
        named: Files; folders, whose pictures are taken with those of the folders in them; or patterns.
        model: With its tokenizer and transform, on any device.
        model_name: What ``ccr search`` finds the model by: a run, a model's folder, or a name on the hub.
        batch_size: Pictures at a time.

    Raises:
        CCRError: There is no picture, or the index is one of another model or damaged.

    Example:
        >>> from ccr_lightning import from_pretrained
        >>> model = from_pretrained("models/mine")  # doctest: +SKIP
        >>> index = embed_pictures("pictures.index", ["photos"], model)  # doctest: +SKIP
    """
    names = list(map(str, named))
    found = partial(of_files, find_pictures(names))
    with open_to_write(folder) as index:
        index.take_model(model, model_name)
        embed(index, found, model, batch_size=batch_size, drop=gone_from(names))
    return index


class _Decoded(NamedTuple):
    """A picture that could be read."""

    found: Found
    pixels: Any  # as the model's transform makes them
    data: bytes | None  # for the index to keep


class _Collected:
    """Batches that become a part together."""

    def __init__(self) -> None:
        self._contents: list[Content] = []

    @property
    def pictures(self) -> int:
        """How many there are."""
        return sum(len(content.pictures) for content in self._contents)

    def add(self, content: Content) -> None:
        """Add a batch."""
        self._contents.append(content)

    def take(self) -> Content:
        """Return all of them, and forget them."""
        contents, self._contents = self._contents, []
        return joined(contents)


def _ahead(found: Iterable[Found], model: DualEncoder, batch_size: int) -> Iterator[list[_Decoded | LeftOut]]:
    """Yield batches of decoded pictures; the next one is decoded while one is used."""

    def decode(one: Found) -> _Decoded | LeftOut:
        name, image = one.picture.name, one.image
        try:
            assert model.transform is not None
            pixels = model.transform.evaluate(open_image(image, name))
        except (RecordFault, OSError) as error:
            return LeftOut(name, str(error).removeprefix(f"{name}: "))
        return _Decoded(one, pixels, image if isinstance(image, bytes) else None)

    rest = iter(found)
    batches = iter(lambda: list(islice(rest, batch_size)), [])
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: list[list[Any]] = []
        for batch in batches:
            waiting.append([pool.submit(decode, one) for one in batch])
            if len(waiting) > 1:
                yield [future.result() for future in waiting.pop(0)]
        for futures in waiting:
            yield [future.result() for future in futures]


def _embedded(model: DualEncoder, decoded: Sequence[_Decoded]) -> Content:
    pictures = [of.found.picture for of in decoded]
    image_embeds = model.embed_pixels([of.pixels for of in decoded])
    captions = [caption for picture in pictures for caption in picture.all_captions()]
    text_embeds = torch.empty(0, image_embeds.shape[1])
    if captions:
        languages, texts = zip(*captions, strict=True)
        text_embeds = model.embed_captions(texts, languages)
    return Content(pictures, [of.data for of in decoded], image_embeds, text_embeds)


def _drop_earlier_states(index: Index) -> int:
    """Drops pictures of which there is a later state, and returns how many that were."""
    last = {picture.name: number for number, picture in enumerate(index.pictures())}
    earlier = {number for number, picture in enumerate(index.pictures()) if last[picture.name] != number}
    if earlier:
        index.remove(earlier)
    return len(earlier)


def _is_gone(picture: Picture) -> bool:
    """Whether a file is not in its folder any more; one whose folder is not there may come back."""
    path = None if picture.path is None else Path(picture.path)
    return path is not None and not path.is_file() and path.parent.is_dir()


def _write_left_out(folder: Path, left_out: Iterable[LeftOut]) -> None:
    lines = [json.dumps(of._asdict()) + "\n" for of in left_out]
    with atomic_write(folder / LEFT_OUT, "the list of pictures that were left out") as file:
        file.write("".join(lines).encode())
