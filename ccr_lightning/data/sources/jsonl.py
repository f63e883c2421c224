"""JSON lines: the plain format for your own data, one line per image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ccr_lightning.data.faults import RecordFault, Report, stop, usable
from ccr_lightning.data.sources.reading import (
    Line,
    check_languages,
    check_split,
    files_fingerprint,
    image_below,
    is_blank,
    parse_json,
    read_json_lines,
)
from ccr_lightning.errors import CCRError
from ccr_lightning.types import ImageCaptions, MachineTranslation

_KEYS = {"image", "image_id", "captions"}
_CAPTION_KEYS = {"text", "translated_by", "translated_on"}


class JsonLines:
    """Captioned images listed in JSON lines files (UTF-8, plain or gzip), one file per split.

    A line is ``{"image": "a.jpg", "image_id": "a", "captions": {"en": ["A dog.", "A puppy."], "de": "Ein Hund."}}``.
    ``image`` is a path below ``image_root``; ``image_id`` (a string or an integer) may be left out and is then that
    path; a language has one caption or a list of them, and is left out where there is none. Several lines with the
    same ``image_id`` and ``image`` are one image with all their captions. Images without a caption in the languages
    asked for are passed over.

    A machine translation is an object instead of a text, as ``ccr data translate`` writes it:
    ``{"text": "Ein Hund.", "translated_by": "facebook/m2m100_418M", "translated_on": "2026-11-25"}``.

    Args:
        files: Split (``train``, ``val``, ``test``) to file.
        image_root: Folder of the images.
        languages: Languages to yield, in the order of the K axis; without them all that occur in the files that are
            there, in the order of their first appearance (this reads the files once more).
        machine_translations: Whether to use them; False leaves them out, for evaluation.
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
        machine_translations: bool = True,
        parallel: bool = True,
        name: str = "jsonl",
        obtain: str = "check files",
    ) -> None:
        if not files:
            raise CCRError("JsonLines got no files; name one per split, for example {'train': 'train.jsonl'}.")
        self.files = {split: str(path) for split, path in files.items()}
        self.image_root = str(image_root)
        self.parallel = parallel
        self.name = name
        self.obtain = obtain
        self.machine_translations = machine_translations
        self._asked = None if languages is None else check_languages("JsonLines", languages)
        self._languages = self._asked

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have a file."""
        return tuple(self.files)

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages of the captions, in the order of the K axis."""
        if self._languages is None:
            there = [split for split, path in self.files.items() if os.path.isfile(path)]
            faults: list[CCRError] = []
            found: dict[str, None] = {}
            for split in there or self.files:
                try:
                    for line in self._lines(split, lambda fault: None if faults else faults.append(fault)):
                        found |= dict.fromkeys(line.captions)
                except CCRError as error:  # for records() to say, of a split that is asked for
                    faults.append(error)
            if faults and not found:
                raise faults[0]
            self._languages = tuple(found)
        return self._languages

    def fingerprint(self, split: str) -> str:
        """Return a short hash of the settings and of the file's path, size and time of change; images are not read."""
        settings = [self._asked, self.machine_translations, Path(self.image_root).absolute()]
        return files_fingerprint(settings, [self._path(split)])

    def records(self, split: str, report: Report = stop) -> Iterator[ImageCaptions]:
        """Yield each image of the split once, in the order of the file."""
        later_lines = self._later_lines(split)
        root = Path(self.image_root).resolve()
        images: dict[str, str] = {}
        for line in self._lines(split, report):
            if line.image_id in images:
                if line.image != images[line.image_id]:
                    report(
                        RecordFault(
                            f"{line.where}: image_id {line.image_id!r} is {line.image!r} here and "
                            f"{images[line.image_id]!r} before; give different images different ids.",
                            "repeated image",
                        )
                    )
                continue
            images[line.image_id] = line.image
            captions: dict[str, tuple[str, ...]] = {}
            for part in (line, *later_lines.get(line.image_id, ())):
                for language, texts in part.captions.items():
                    captions[language] = captions.get(language, ()) + texts
            chosen = {language: captions[language] for language in self.languages if language in captions}
            if not chosen:
                continue
            try:
                path = image_below(root, line.image, line.where)
            except RecordFault as fault:
                report(fault)
                continue
            yield ImageCaptions(line.image_id, path, chosen, line.where)

    def _later_lines(self, split: str) -> dict[str, list[_Line]]:
        """Lines after the first of their image, by image id; of the first lines only the image is remembered.

        So :meth:`records`, which reads the file a second time, need not hold all of its captions.
        """
        images: dict[str, str] = {}
        later: dict[str, list[_Line]] = {}
        missing = set(self._asked or ())
        for line in self._lines(split, _leave_to_records):
            if line.image_id not in images:
                images[line.image_id] = line.image
            elif line.image == images[line.image_id]:
                later.setdefault(line.image_id, []).append(line)
            missing.difference_update(line.captions)
        if missing and images:
            names = ", ".join(sorted(missing))
            raise CCRError(f"{self._path(split)}: no line has a caption in {names}; leave it out of languages.")
        return later

    def _path(self, split: str) -> Path:
        check_split(self.name, split, self.splits, "add it to files")
        path = Path(self.files[split])
        if not os.path.isfile(path):  # unlike Path.is_file, this is also False where nobody may look
            raise CCRError(f"{path}: the captions of split {split!r} are not there; {self.obtain}.")
        return path

    def _lines(self, split: str, report: Report) -> Iterator[_Line]:
        def parse(line: Line) -> _Line:
            return _parse(line, self.machine_translations)

        yield from usable(parse, read_json_lines(self._path(split)), report)


class _Line(NamedTuple):
    image_id: str
    image: str
    captions: dict[str, tuple[str, ...]]
    where: str


def _leave_to_records(fault: RecordFault) -> None:
    """Pass a fault over that :meth:`JsonLines.records` finds again."""


def _parse(raw: Line, machine_translations: bool) -> _Line:
    line, where = parse_json(raw), raw.where
    for key in ("image", "captions"):
        if key not in line:
            raise RecordFault(f"{where}: the key {key!r} is missing; add it.")
    if unknown := sorted(set(line) - _KEYS):
        raise RecordFault(f"{where}: unknown key {unknown[0]!r}; the keys are image, image_id and captions.")
    image = line["image"]
    if not isinstance(image, str) or not image.strip():
        raise RecordFault(f"{where}: image is {image!r}; give the path of the file below image_root.")
    image_id = line.get("image_id", image)
    if not isinstance(image_id, str | int) or isinstance(image_id, bool) or image_id == "":
        raise RecordFault(f"{where}: image_id is {image_id!r}; give a string or an integer.")
    return _Line(str(image_id), image, _captions(line["captions"], machine_translations, where), where)


def _captions(by_language: Any, machine_translations: bool, where: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(by_language, dict):
        raise RecordFault(f"{where}: captions is {by_language!r}; give an object of language to one caption or a list.")
    captions = {}
    for language, texts in by_language.items():
        if isinstance(texts, str | dict):
            texts = [texts]
        if not language or not isinstance(texts, list) or not texts:
            raise RecordFault(
                f"{where}: the captions in {language!r} are {texts!r}; give one or a list, or leave the language out."
            )
        read = [_text(text, language, where) for text in texts]
        chosen = tuple(text for text in read if machine_translations or not isinstance(text, MachineTranslation))
        if chosen:
            captions[language] = chosen
    return captions


def caption_text(caption: Any, language: str, where: str) -> str:
    """Return a caption of JSON: a text, or a machine translation, which is an object.

    Raises:
        RecordFault: It is neither.
    """
    origin = {}
    text = caption
    if isinstance(caption, dict) and set(caption) == _CAPTION_KEYS:
        origin = {key: str(value) for key, value in caption.items() if key != "text"}
        text = caption["text"]
    if not isinstance(text, str):
        raise RecordFault(
            f"{where}: a caption in {language!r} is {text!r}; write a text, or an object of "
            f"{', '.join(sorted(_CAPTION_KEYS))}."
        )
    return MachineTranslation(text, **origin) if origin else text


def _text(caption: Any, language: str, where: str) -> str:
    text = caption_text(caption, language, where)
    if is_blank(text):
        raise RecordFault(f"{where}: a caption in {language!r} is {text!r}; write it or remove it.", "blank caption")
    return text
