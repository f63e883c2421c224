"""COCO in English, Japanese and Chinese: Karpathy's splits, STAIR and YJ Captions, COCO-CN."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ccr_lightning.data.sources.reading import (
    files_fingerprint,
    find_file,
    image_below,
    is_blank,
    read_json,
    read_lines,
)
from ccr_lightning.errors import CCRError
from ccr_lightning.types import ImageCaptions

_KARPATHY_SPLITS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}


class Coco:
    """Captions of COCO's images in several languages, by image.

    Images, splits and English come from Karpathy's ``dataset_coco.json`` (113,287 images in train, with restval, 5,000
    in val and in test; five captions an image). Japanese comes from the json files of STAIR Captions or YJ Captions,
    Chinese from the lines ``<image>#<number> TAB <caption>`` of COCO-CN; what a file is shows in its content. COCO-CN
    has splits of its own, lists of images, which ``lists`` puts in the place of Karpathy's. The languages are written
    independently, so MRV over them says little and is not reported in the paper: ``parallel`` is False.

    Captions are taken as they are, a blank one counts as missing. The image id is the name of the image file.
    Licence: COCO's captions CC BY 4.0, STAIR's too, COCO-CN's MIT; the images have their own.

    Args:
        coco_root: The folder of COCO that holds ``train2014`` and ``val2014``.
        karpathy: ``dataset_coco.json``.
        captions: Language to its files, beside English.
        languages: Languages to yield, in the order of the K axis; by default English and those of ``captions``.
        lists: Split to a file of image names, instead of Karpathy's splits.

    Raises:
        CCRError: A file, record or image is not as described.

    Example:
        >>> Coco("coco", "dataset_coco.json", captions={"ja": ["stair_train.json", "stair_val.json"]}).languages
        ('en', 'ja')
    """

    name = "coco"
    parallel = False

    def __init__(
        self,
        coco_root: str,
        karpathy: str,
        captions: Mapping[str, Sequence[str]] | None = None,
        languages: Sequence[str] | None = None,
        lists: Mapping[str, str] | None = None,
    ) -> None:
        self._files = {language: [Path(path) for path in paths] for language, paths in (captions or {}).items()}
        self.languages = ("en", *self._files) if languages is None else tuple(languages)
        unknown = [language for language in self.languages if language not in ("en", *self._files)]
        if unknown or not self.languages or len(set(self.languages)) < len(self.languages):
            raise CCRError(
                f"Coco has the languages {', '.join(('en', *self._files))}, not {list(self.languages)}; choose some of "
                "them, each once, or name the files of others in captions."
            )
        self._coco_root, self._karpathy = Path(coco_root), Path(karpathy)
        self._lists = None if lists is None else {split: Path(path) for split, path in lists.items()}

    def fingerprint(self, split: str) -> str:
        """Return a short hash of the settings and of the files' paths, sizes and times of change."""
        files = [
            self._karpathy_file(),
            *(path for language in self._others() for path in self._language_files(language)),
        ]
        if (names := self._list_file(split)) is not None:
            files.append(names)
        return files_fingerprint([self.languages, self._coco_root.absolute()], files)

    def records(self, split: str) -> Iterator[ImageCaptions]:
        """Yield each image of the split once, in the order of Karpathy's file, or of the list."""
        path = self._karpathy_file()
        images = {}
        for number, image in enumerate(_list(read_json(path), "images", path)):
            where = f"{path}: image {number + 1}"
            images[_text(image, "filename", where)] = (image, where)
        names = {_number(image, "cocoid", where): name for name, (image, where) in images.items()}
        others = {language: self._captions_of(language, names) for language in self._others()}
        root = self._coco_root.resolve()
        for name in self._names(split, images):
            image, where = images[name]
            captions = {}
            for language in self.languages:
                texts = _english(image, where) if language == "en" else others[language].get(name, [])
                if kept := tuple(text for text in texts if not is_blank(text)):
                    captions[language] = kept
            folder = _text(image, "filepath", where)
            yield ImageCaptions(name, image_below(root, f"{folder}/{name}", where), captions, where)

    def _names(self, split: str, images: Mapping[str, tuple[Any, str]]) -> Iterable[str]:
        file = self._list_file(split)
        if file is None:
            wanted = _KARPATHY_SPLITS[split]
            return [name for name, (image, where) in images.items() if _text(image, "split", where) in wanted]
        names = []
        for line in read_lines(file):
            if line.text.strip():
                name = f"{line.text.strip().partition('#')[0].removesuffix('.jpg')}.jpg"
                if name not in images:
                    raise CCRError(f"{line.where}: the image {name!r} is not in {self._karpathy}; check the list.")
                names.append(name)
        return list(dict.fromkeys(names))

    def _captions_of(self, language: str, names: Mapping[int, str]) -> dict[str, list[str]]:
        """Captions by image name; those of images that Karpathy's file lacks are of no split."""
        captions: dict[str, list[str]] = {}
        for path in self._language_files(language):
            first = next(read_lines(path)).text.lstrip()
            for name, text in _coco_json(path, names) if first.startswith("{") else _coco_cn_lines(path):
                captions.setdefault(name, []).append(text)
        return captions

    def _others(self) -> list[str]:
        return [language for language in self.languages if language != "en"]

    def _language_files(self, language: str) -> list[Path]:
        return [find_file(path, f"get the captions in {language!r}, see Coco") for path in self._files[language]]

    def _karpathy_file(self) -> Path:
        return find_file(self._karpathy, "get Karpathy's caption_datasets.zip and unzip it")

    def _list_file(self, split: str) -> Path | None:
        splits: Iterable[str] = _KARPATHY_SPLITS if self._lists is None else self._lists
        if split not in splits:
            raise CCRError(f"coco has no split {split!r}, only {', '.join(splits)}; choose one of these.")
        return None if self._lists is None else find_file(self._lists[split], "correct lists")


def _english(image: Any, where: str) -> list[str]:
    return [_text(sentence, "raw", where) for sentence in _list(image, "sentences", where)]


def _coco_json(path: Path, names: Mapping[int, str]) -> Iterator[tuple[str, str]]:
    for number, annotation in enumerate(_list(read_json(path), "annotations", path)):
        where = f"{path}: annotation {number + 1}"
        text = _text(annotation, "caption", where)
        if (name := names.get(_number(annotation, "image_id", where))) is not None:
            yield name, text


def _coco_cn_lines(path: Path) -> Iterator[tuple[str, str]]:
    for line in read_lines(path):
        image, tab, text = line.text.partition("\t")
        name, sharp, _ = image.partition("#")
        if not (tab and sharp and name):
            raise CCRError(f"{line.where}: {line.text[:40]!r} is not '<image>#<number>', a tab and a caption; mend it.")
        yield f"{name.removesuffix('.jpg')}.jpg", text


def _list(record: Any, key: str, where: str | Path) -> list[Any]:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, list):
        raise CCRError(f"{where}: {key} is missing or no list; fetch the file again.")
    return value


def _number(record: Any, key: str, where: str) -> int:
    value = record.get(key)
    if not isinstance(value, int):
        raise CCRError(f"{where}: {key} is {value!r}; it is an integer.")
    return value


def _text(record: Any, key: str, where: str) -> str:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, str):
        raise CCRError(f"{where}: {key} is {value!r}; it is a text.")
    return value
