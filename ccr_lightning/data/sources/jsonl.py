"""JSON lines: the plain format for your own data, one line per image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ccr_lightning.data.sources.reading import Line, files_fingerprint, image_below, is_blank, parse_json, read_lines
from ccr_lightning.errors import CCRError
from ccr_lightning.types import ImageCaptions

_KEYS = {"image", "image_id", "captions"}


class JsonLines:
    """Captioned images listed in JSON lines files (UTF-8, plain or gzip), one file per split.

    A line is ``{"image": "a.jpg", "image_id": "a", "captions": {"en": ["A dog.", "A puppy."], "de": "Ein Hund."}}``.
    ``image`` is a path below ``image_root``; ``image_id`` (a string or an integer) may be left out and is then that
    path; a language has one caption or a list of them, and is left out where there is none. Several lines with the
    same ``image_id`` and ``image`` are one image with all their captions. Images without a caption in the languages
    asked for are passed over.

    Args:
        files: Split (``train``, ``val``, ``test``) to file.
        image_root: Folder of the images.
        languages: Languages to yield, in the order of the K axis; without them all that occur in the files that are
            there, in the order of their first appearance (this reads the files once more).
        parallel: Whether the captions of an image say the same in all languages; without it a rank variance over
            languages is undefined.
        name: Name for folders, logs and tables.
        obtain: What to do when a file is missing, for the error message; a config of a public data set says it here.

    Raises:
        CCRError: A split, file, line, image or language is not as described; the message names file and line.

    Example:
        >>> import json, tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> _ = (root / "a.jpg").write_bytes(b"an encoded picture")
        >>> line = {"image": "a.jpg", "captions": {"en": "A dog.", "de": ["Ein Hund."]}}
        >>> _ = (root / "train.jsonl").write_text(json.dumps(line))
        >>> source = JsonLines({"train": str(root / "train.jsonl")}, image_root=str(root))
        >>> source.languages
        ('en', 'de')
        >>> next(source.records("train")).captions
        {'en': ('A dog.',), 'de': ('Ein Hund.',)}
    """

    def __init__(
        self,
        files: Mapping[str, str],
        image_root: str,
        languages: Sequence[str] | None = None,
        parallel: bool = True,
        name: str = "jsonl",
        obtain: str = "check files",
    ) -> None:
        if not files:
            raise CCRError("JsonLines got no files; name one per split, for example {'train': 'train.jsonl'}.")
        if languages is not None and (not languages or len(set(languages)) < len(languages)):
            raise CCRError(f"JsonLines got the languages {list(languages)}; name at least one, each once.")
        self.files = {split: str(path) for split, path in files.items()}
        self.image_root = str(image_root)
        self.parallel = parallel
        self.name = name
        self.obtain = obtain
        self._asked = None if languages is None else tuple(languages)
        self._languages = self._asked

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages of the captions, in the order of the K axis."""
        if self._languages is None:
            there = [split for split, path in self.files.items() if os.path.isfile(path)]
            lines = (line for split in there or self.files for line in self._lines(split))
            self._languages = tuple(dict.fromkeys(language for line in lines for language in line.captions))
        return self._languages

    def fingerprint(self, split: str) -> str:
        """Return a short hash of the settings and of the file's path, size and time of change; images are not read."""
        return files_fingerprint([self._asked, Path(self.image_root).absolute()], [self._path(split)])

    def records(self, split: str) -> Iterator[ImageCaptions]:
        """Yield each image of the split once, in the order of the file."""
        later_lines = self._later_lines(split)
        root = Path(self.image_root).resolve()
        seen: set[str] = set()
        missing = set(self._asked or ())
        for line in self._lines(split):
            if line.image_id in seen:
                continue
            seen.add(line.image_id)
            captions: dict[str, tuple[str, ...]] = {}
            for part in (line, *later_lines.get(line.image_id, ())):
                for language, texts in part.captions.items():
                    captions[language] = captions.get(language, ()) + texts
            chosen = {language: captions[language] for language in self.languages if language in captions}
            missing.difference_update(chosen)
            if chosen:
                yield ImageCaptions(line.image_id, image_below(root, line.image, line.where), chosen, line.where)
        if missing:
            names = ", ".join(sorted(missing))
            raise CCRError(f"{self._path(split)}: no line has a caption in {names}; leave it out of languages.")

    def _later_lines(self, split: str) -> dict[str, list[_Line]]:
        """Lines after the first of their image, by image id; of the first lines only image and place are remembered.

        So :meth:`records`, which reads the file a second time, need not hold all of its captions.
        """
        first: dict[str, tuple[str, str]] = {}
        later: dict[str, list[_Line]] = {}
        for line in self._lines(split):
            image, where = first.setdefault(line.image_id, (line.image, line.where))
            if image != line.image:
                raise CCRError(
                    f"{line.where}: image_id {line.image_id!r} is {line.image!r} here and {image!r} at {where}; "
                    "give different images different ids."
                )
            if where != line.where:
                later.setdefault(line.image_id, []).append(line)
        return later

    def _path(self, split: str) -> Path:
        if split not in self.files:
            raise CCRError(f"{self.name} has no split {split!r}, only {', '.join(self.files)}; add it to files.")
        path = Path(self.files[split])
        if not os.path.isfile(path):  # unlike Path.is_file, this is also False where nobody may look
            raise CCRError(f"{path}: the captions of split {split!r} are not there; {self.obtain}.")
        return path

    def _lines(self, split: str) -> Iterator[_Line]:
        for line in read_lines(self._path(split)):
            if line.text.strip():
                yield _parse(line)


class _Line(NamedTuple):
    image_id: str
    image: str
    captions: dict[str, tuple[str, ...]]
    where: str


def _parse(raw: Line) -> _Line:
    line, where = parse_json(raw), raw.where
    if not isinstance(line, dict):
        raise CCRError(f"{where}: not a JSON object; write one with the keys image and captions.")
    for key in ("image", "captions"):
        if key not in line:
            raise CCRError(f"{where}: the key {key!r} is missing; add it.")
    if unknown := sorted(set(line) - _KEYS):
        raise CCRError(f"{where}: unknown key {unknown[0]!r}; the keys are image, image_id and captions.")
    image = line["image"]
    if not isinstance(image, str) or not image.strip():
        raise CCRError(f"{where}: image is {image!r}; give the path of the file below image_root.")
    image_id = line.get("image_id", image)
    if not isinstance(image_id, str | int) or isinstance(image_id, bool) or image_id == "":
        raise CCRError(f"{where}: image_id is {image_id!r}; give a string or an integer.")
    return _Line(str(image_id), image, _captions(line["captions"], where), where)


def _captions(by_language: Any, where: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(by_language, dict) or not by_language:
        raise CCRError(f"{where}: captions is {by_language!r}; give an object of language to one caption or a list.")
    captions = {}
    for language, texts in by_language.items():
        if isinstance(texts, str):
            texts = [texts]
        if not language or not isinstance(texts, list) or not texts:
            raise CCRError(
                f"{where}: the captions in {language!r} are {texts!r}; give one or a list, or leave the language out."
            )
        for text in texts:
            if not isinstance(text, str) or is_blank(text):
                raise CCRError(f"{where}: a caption in {language!r} is {text!r}; write it or remove it.")
        captions[language] = tuple(texts)
    return captions
