"""The reformulated caption files of CCLM and CCRK: a JSON list per split and language."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ccr_lightning.data.faults import RecordFault, Report, stop, usable
from ccr_lightning.data.sources.reading import (
    check_languages,
    check_split,
    files_fingerprint,
    find_file,
    image_below,
    read_json,
    storable,
    without_blank,
)
from ccr_lightning.errors import CCRError
from ccr_lightning.types import ImageCaptions

_SPLITS = {"train": "train", "val": "val", "test": "test"}


class CclmJson:
    """Captions of Multi30K, COCO and others in the files that CCLM and CCRK fine-tune and test on.

    A file is a list of ``{"caption": ..., "image": "coco/val2014/x.jpg"}``; ``caption`` is one caption (training files,
    where an image has several rows) or a list (the others). Languages are aligned by image. The image id is the image's
    path. Blank captions count as missing, others are taken as they are.

    Parallel are the files whose languages translate one caption, as those made of Multi30K's task 1 do. Not parallel,
    and to be read with ``parallel=False``, are COCO's in en, ja and zh, and CCLM's of Multi30K, which hold five
    independent captions in en and de beside one in fr and cs. Of CCRK's Multi30K it is not confirmed: count its
    captions with ``ccr data check``.

    Splits are those of the data sets. Licence: that of the data sets for captions and images; for the files as such
    none is confirmed.

    Args:
        folder: The folder of the files.
        image_root: The folder that the images' paths start from.
        languages: Languages to yield, in the order of the K axis.
        files: Names of the files: ``{language}.{split}.json`` (COCO) or ``{split}.{language}.json`` (Multi30K).
        splits: What ``split`` is in the names for ``train``, ``val`` and ``test``, for example ``{test:
            test_2016_flickr}``; where that differs by language, language to name: ``{test: {en: 1k_test, zh: test}}``.
        parallel: Whether MRV is defined; see above.
        name: Name for folders, logs and tables.

    Raises:
        CCRError: A file, record or image is not as described.

    Example:
        >>> CclmJson("coco", image_root="images", languages=["en", "ja", "zh"], parallel=False).languages
        ('en', 'ja', 'zh')
    """

    def __init__(
        self,
        folder: str,
        image_root: str,
        languages: Sequence[str],
        files: str = "{language}.{split}.json",
        splits: Mapping[str, str | Mapping[str, str]] = _SPLITS,
        parallel: bool = True,
        name: str = "cclm",
    ) -> None:
        if "{language}" not in files or "{split}" not in files:
            raise CCRError(f"CclmJson got files {files!r}; give a name with {{language}} and {{split}} in it.")
        self.name = name
        self.languages = check_languages("CclmJson", languages)
        self.parallel = parallel
        self.files = files
        self._names = dict(splits)
        self._folder, self._image_root = Path(folder), Path(image_root)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have a name in the files' names."""
        return tuple(self._names)

    def fingerprint(self, split: str) -> str:
        """Return a short hash of the settings and of the files' paths, sizes and times of change."""
        return files_fingerprint([self.languages, self._image_root.absolute()], list(self._paths(split).values()))

    def records(self, split: str, report: Report = stop) -> Iterator[ImageCaptions]:
        """Yield each image of the split once, in the order of the first language's file."""
        images: dict[str, _Image] = {}
        for language, path in self._paths(split).items():
            rows = read_json(path)
            if not isinstance(rows, list):
                raise CCRError(f"{path}: not a JSON list of captions; fetch the file again.")

            def add(row: tuple[int, object], path: Path = path, language: str = language) -> None:
                where = f"{path}: record {row[0]}"
                image, texts = _parse(row[1], where)
                captions = images.setdefault(image, _Image({}, where)).captions
                captions.setdefault(language, []).extend((text, where) for text in texts)

            for _ in usable(add, enumerate(rows, 1), report):
                pass
        root = self._image_root.resolve()

        def record(name: str) -> ImageCaptions:
            captions, blank = without_blank(images[name].captions)
            where = images[name].where
            return ImageCaptions(name, image_below(root, name, where), captions, where, blank)

        yield from usable(record, images, report)

    def _paths(self, split: str) -> dict[str, Path]:
        check_split(self.name, split, self.splits, "add it to splits")
        return {
            language: find_file(
                self._folder / self.files.format(language=language, split=self._name_in(language, split)),
                f"get the captions in {language!r}, or leave it out of languages",
            )
            for language in self.languages
        }

    def _name_in(self, language: str, split: str) -> str:
        names = self._names[split]
        if isinstance(names, str):
            return names
        if language not in names:
            raise CCRError(
                f"{self.name}: splits names {split} in {', '.join(names)}, not in {language!r}; add it there or leave "
                f"{language!r} out of languages."
            )
        return names[language]


class _Image(NamedTuple):
    captions: dict[str, list[tuple[str, str]]]  # with their places
    where: str  # of its first record


def _parse(row: object, where: str) -> tuple[str, list[str]]:
    image, caption = (row.get("image"), row.get("caption")) if isinstance(row, dict) else (None, None)
    if not isinstance(image, str) or not image:
        raise RecordFault(f"{where}: image is {image!r}; it is the path of the image file.")
    texts = [caption] if isinstance(caption, str) else caption
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RecordFault(f"{where}: caption is {caption!r}; it is a text or a list of texts.")
    return storable(image, where), [storable(text, where) for text in texts]
