"""JSON lines: the plain format for your own data, one line per image."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, NamedTuple

from ccr_lightning.data.images import LFS_POINTER
from ccr_lightning.errors import CCRError
from ccr_lightning.types import ImageCaptions

_KEYS = {"image", "image_id", "captions"}
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"  # zero-width characters, which str.strip() keeps


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
        >>> import tempfile
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
        path = self._path(split)
        parts = [self._asked, Path(self.image_root).absolute(), path.absolute(), path.stat().st_size]
        parts.append(path.stat().st_mtime_ns)
        return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]

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
                yield ImageCaptions(line.image_id, _image_path(root, line), chosen, line.where)
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
        path = self._path(split)
        number = 0
        try:
            with _open(path) as stream:
                for number, line in enumerate(stream, 1):
                    if line.strip():
                        yield _parse(line, f"{path}:{number}")
        except (EOFError, OSError, zlib.error) as error:
            raise CCRError(f"{path}:{number + 1}: cannot be read ({error}); fetch the file again.") from error
        if not number:
            raise CCRError(f"{path}: the file is empty; write one JSON object per line.")


class _Line(NamedTuple):
    image_id: str
    image: str
    captions: dict[str, tuple[str, ...]]
    where: str


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as stream:
        head = stream.read(len(LFS_POINTER))
    if head == LFS_POINTER:
        raise CCRError(f"{path}: a git-LFS pointer, not the captions; run git lfs pull where the file comes from.")
    if head.startswith(b"PK\x03\x04"):
        raise CCRError(f"{path}: a zip archive; unzip it first.")
    opener: Any = gzip.open if head.startswith(b"\x1f\x8b") else open
    content: IO[bytes] = opener(path, "rb")
    return content


def _parse(raw: bytes, where: str) -> _Line:
    try:
        text = raw.decode("utf-8-sig")
        line = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(line, ensure_ascii=False).encode()  # half of an escaped surrogate pair cannot be stored
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise CCRError(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8.") from error
    except ValueError as error:
        raise CCRError(f"{where}: not valid JSON ({error}); write one JSON object per line.") from error
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
            if not isinstance(text, str) or not text.strip().strip(_INVISIBLE).strip():
                raise CCRError(f"{where}: a caption in {language!r} is {text!r}; write it or remove it.")
        captions[language] = tuple(texts)
    return captions


def _image_path(root: Path, line: _Line) -> Path:
    relative = PurePosixPath(line.image)
    if relative.is_absolute() or PureWindowsPath(line.image).drive or ".." in relative.parts:
        raise CCRError(f"{line.where}: the image {line.image!r} is absolute or has '..'; give a path below image_root.")
    path = root / relative
    try:
        is_below, is_there = path.resolve().is_relative_to(root), path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, no permission, a loop of links, a NUL
        reason = getattr(error, "strerror", None) or error
        raise CCRError(
            f"{line.where}: the image {line.image!r} cannot be reached ({reason}); mend its name."
        ) from error
    if not is_below:
        raise CCRError(f"{line.where}: the image {line.image!r} is a link out of {root}; copy the picture into it.")
    if not is_there:
        raise CCRError(f"{line.where}: the image {path} is not there; check image_root and the name.")
    return path
