"""Multi30K: Flickr30k's pictures with captions in English, German, French and Czech."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from ccr_lightning.data.faults import RecordFault, Report, stop, usable
from ccr_lightning.data.sources.reading import (
    Line,
    check_languages,
    check_split,
    files_fingerprint,
    find_file,
    image_below,
    read_lines,
    without_blank,
)
from ccr_lightning.errors import CCRError
from ccr_lightning.types import ImageCaptions

_OBTAIN = "get the folder data/ of the Multi30K repository (github.com/multi30k/dataset)"
_SPLITS = {1: {"train": "train", "val": "val", "test": "test_2016_flickr"}}
_SPLITS[2] = _SPLITS[1] | {"test": "test_2016"}
_NUMBERS = range(1, 6)


class Multi30K:
    """The captions of Multi30K (Elliott et al., 2016), as published, plain or gzip.

    Task 1 is one English caption per image and its translations into German, French and Czech, hence parallel: 29,000
    images in ``train``, 1,014 in ``val``, 1,000 in ``test_2016_flickr`` and ``test_2017_flickr``, 461 in
    ``test_2017_mscoco``, 1,071 in ``test_2018_flickr``; the two of 2017 have no Czech. Task 2 is five captions per
    image in English and in German, written independently: 29,000 in ``train``, 1,014 in ``val``, 1,000 in
    ``test_2016``; there is no German for an English caption, so it is not parallel and MRV undefined.

    Captions are taken as they are, white space at their ends included; a blank one counts as missing. The image id is
    the name of the image file.

    Licence: the captions have Flickr30k's terms (the repository's README says so since July 2026, and stated none
    before). The images of ``train``, ``val`` and ``test_2016_flickr`` are Flickr30k's, for non-commercial research and
    education; those of ``test_2017_flickr`` and ``test_2018_flickr`` are other pictures of Flickr, whose terms are not
    stated; those of ``test_2017_mscoco`` are COCO's.

    Args:
        root: The folder that holds ``task1`` and ``task2``.
        image_root: The folder of the images; those of the test sets of 2017 and 2018 are further downloads.
        task: 1 or 2.
        languages: Languages to yield, in the order of the K axis.
        splits: Which published split stands for ``train``, ``val`` and ``test``; by default the test is that of 2016.

    Raises:
        CCRError: A file, line or image is not as described, or a split has no captions in a language.

    Example:
        >>> source = Multi30K("data", image_root="flickr30k-images", languages=["en", "cs"])
        >>> source.name, source.languages, source.parallel
        ('multi30k-task1', ('en', 'cs'), True)
    """

    def __init__(
        self,
        root: str,
        image_root: str,
        task: Literal[1, 2] = 1,
        languages: Sequence[str] = ("en", "de", "fr", "cs"),
        splits: Mapping[str, str] | None = None,
    ) -> None:
        known = ("en", "de", "fr", "cs") if task == 1 else ("en", "de")
        self.name = f"multi30k-task{task}"
        self.languages = check_languages(f"Multi30K task {task}", languages, known)
        self.parallel = task == 1
        self.task = task
        self._published = dict(_SPLITS[task] if splits is None else splits)
        self._folder = Path(root) / f"task{task}"
        self._image_root = Path(image_root)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that a published one stands for."""
        return tuple(self._published)

    def fingerprint(self, split: str) -> str:
        """Return a short hash of the settings and of the files' paths, sizes and times of change."""
        files = [self._image_list(split), *(file for files in self._caption_files(split).values() for file in files)]
        return files_fingerprint([self.languages, self._image_root.absolute()], files)

    def records(self, split: str, report: Report = stop) -> Iterator[ImageCaptions]:
        """Yield each image of the split once, in the order of the published list."""
        files = self._caption_files(split)
        images = [line for line in read_lines(self._image_list(split)) if line.raw.strip()]
        captions = {language: [self._as_long_as(images, file, split) for file in of] for language, of in files.items()}
        root = self._image_root.resolve()
        rows: dict[bytes, list[int]] = {}
        for row, line in enumerate(images):
            rows.setdefault(line.raw.strip().partition(b"#")[0], []).append(row)

        def record(own: list[int]) -> ImageCaptions:
            name, where = images[own[0]].text.strip().partition("#")[0], images[own[0]].where
            if len({images[row].raw for row in own}) < len(own):
                raise RecordFault(
                    f"{images[own[-1]].where}: the image {name!r} is in the list twice; fetch the list again.",
                    "repeated image",
                )
            of_image, blank = without_blank(
                {
                    language: [(file[row].text, file[row].where) for row in own for file in of]
                    for language, of in captions.items()
                }
            )
            return ImageCaptions(name, image_below(root, name, where), of_image, where, blank)

        yield from usable(record, rows.values(), report)

    def _as_long_as(self, images: list[Line], file: Path, split: str) -> list[Line]:
        lines = list(read_lines(file))
        if len(lines) != len(images):
            raise CCRError(
                f"{file}: {len(lines)} captions for the {len(images)} images of {self._image_list(split)}; fetch both "
                "again, from one release."
            )
        return lines

    def _published_split(self, split: str) -> str:
        check_split(self.name, split, self.splits, "name it in splits")
        return self._published[split]

    def _image_list(self, split: str) -> Path:
        published = self._published_split(split)
        ending = ".txt" if self.task == 1 else "_images.txt"
        return find_file(self._folder / "image_splits" / f"{published}{ending}", _OBTAIN)

    def _caption_files(self, split: str) -> dict[str, list[Path]]:
        published, raw = self._published_split(split), self._folder / "raw"
        files = {}
        for language in self.languages:
            names = [f"{published}.{language}"]
            if self.task == 2:
                names = [f"{published}.{number}.{language}" for number in _NUMBERS]
            there = {path.name.removesuffix(".gz") for path in raw.glob(f"{published}.*")}
            if there and names[0] not in there:
                others = sorted({name.rpartition(".")[2] for name in there})
                raise CCRError(
                    f"{raw}: the split {published!r} of {self.name} has captions in {', '.join(others)}, not in "
                    f"{language!r}; leave it out of languages or choose another split."
                )
            files[language] = [find_file(raw / name, _OBTAIN) for name in names]
        return files
