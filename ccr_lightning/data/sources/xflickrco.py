"""xFlickr&CO and Flickr30k as IGLUE publishes them: JSON lines of one image each, a file per language and split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ccr_lightning.data.sources.reading import (
    Line,
    files_fingerprint,
    find_file,
    image_below,
    is_blank,
    parse_json,
    read_lines,
)
from ccr_lightning.errors import CCRError
from ccr_lightning.types import ImageCaptions

_OBTAIN = "get the folder datasets/ of the IGLUE repository (github.com/e-bug/iglue)"


class XFlickrCO:
    """xFlickr&CO of IGLUE (Bugliarello et al., 2022), and the English Flickr30k that it is trained on.

    ``test`` has 2,000 images, 1,000 of Flickr30k and 1,000 of COCO, with one caption in each of de en es id ja ru tr
    zh, written for the image in its language. ``train`` and ``val`` are Flickr30k's in English, five captions an image,
    or with ``few_shot`` the few-shot training file of the languages (``train_1`` to ``train_100``; German and Japanese
    have more, and ``train_100x5``), whose images are of Flickr30k's training split.

    Languages are aligned by image file, not by line. A blank caption, of which German and Indonesian have one each,
    counts as missing; all others are taken as they are, with the numbers that the Japanese captions of Flickr30k have
    glued to their nouns, since published results use them so. The image id is the name of the image file.
    Licence: the repository's is MIT; the captions and images keep their publishers' terms.

    Args:
        root: The folder ``datasets`` of IGLUE, which holds ``xFlickrCO`` and ``flickr30k``.
        flickr_root: The folder of Flickr30k's images.
        coco_root: The folder of COCO that holds ``val2014``.
        languages: Languages to yield, in the order of the K axis.
        few_shot: Name of the few-shot file, for example ``train_10``, to be the training split.

    Raises:
        CCRError: A file, line or image is not as described, or a split has no captions in a language.

    Example:
        >>> source = XFlickrCO("datasets", flickr_root="flickr30k-images", coco_root="coco", languages=["en", "ja"])
        >>> source.name, source.languages, source.parallel
        ('xflickrco', ('en', 'ja'), True)
    """

    parallel = True

    def __init__(
        self,
        root: str,
        flickr_root: str,
        coco_root: str,
        languages: Sequence[str] = ("en", "de", "es", "id", "ja", "ru", "tr", "zh"),
        few_shot: str | None = None,
    ) -> None:
        if not languages or len(set(languages)) < len(languages):
            raise CCRError(f"XFlickrCO got the languages {list(languages)}; name at least one, each once.")
        self.name = "xflickrco" if few_shot is None else f"xflickrco-{few_shot}"
        self.languages = tuple(languages)
        self.few_shot = few_shot
        self._root = Path(root)
        self._flickr_root, self._coco_root = Path(flickr_root), Path(coco_root)

    def fingerprint(self, split: str) -> str:
        """Return a short hash of the settings and of the files' paths, sizes and times of change."""
        roots = [self._flickr_root.absolute(), self._coco_root.absolute()]
        return files_fingerprint([self.languages, *roots], list(self._files(split).values()))

    def records(self, split: str) -> Iterator[ImageCaptions]:
        """Yield each image of the split once, in the order of the first language's file."""
        captions: dict[str, dict[str, tuple[str, ...]]] = {}
        places: dict[str, str] = {}
        for language, path in self._files(split).items():
            for line in read_lines(path):
                image, texts = _parse(line)
                of_image = captions.setdefault(image, {})
                if language in of_image:
                    raise CCRError(f"{line.where}: the image {image!r} is in the file twice; keep one of its lines.")
                of_image[language] = texts
                places.setdefault(image, line.where)
        flickr_root, coco_root = self._flickr_root.resolve(), (self._coco_root / "val2014").resolve()
        for image, of_image in captions.items():
            root = coco_root if "COCO" in image else flickr_root
            present = {language: texts for language, texts in of_image.items() if texts}
            yield ImageCaptions(image, image_below(root, image, places[image]), present, places[image])

    def _files(self, split: str) -> Mapping[str, Path]:
        folder = self._root / "xFlickrCO" / "annotations"
        name = {"test": "test", "train": self.few_shot}.get(split)
        if name is not None:
            return {language: self._file(folder, language, name) for language in self.languages}
        if split not in ("train", "val"):
            raise CCRError(f"{self.name} has no split {split!r}, only train, val and test; choose one of these.")
        if self.languages != ("en",):
            raise CCRError(
                f"the split {split!r} of {self.name} is Flickr30k's, in English only; set languages to [en]"
                + (", or name a few_shot file." if split == "train" else ".")
            )
        name = {"train": "train_ann.jsonl", "val": "valid_ann.jsonl"}[split]
        return {"en": find_file(self._root / "flickr30k" / "annotations" / name, _OBTAIN)}

    def _file(self, folder: Path, language: str, name: str) -> Path:
        others = sorted(path.parent.name for path in folder.glob(f"*/{name}.jsonl*"))
        if others and language not in others:
            raise CCRError(
                f"{folder}: {name}.jsonl is there in {', '.join(others)}, not in {language!r}; leave it out of "
                "languages, or get its file."
            )
        return find_file(folder / language / f"{name}.jsonl", _OBTAIN)


def _parse(line: Line) -> tuple[str, tuple[str, ...]]:
    record: Any = parse_json(line)
    image, texts = (record.get("img_path"), record.get("sentences")) if isinstance(record, dict) else (None, None)
    if not isinstance(image, str) or not image:
        raise CCRError(f"{line.where}: img_path is {image!r}; it is the name of the image file.")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise CCRError(f"{line.where}: sentences is {texts!r}; it is a list of captions.")
    return image, tuple(text for text in texts if not is_blank(text))
