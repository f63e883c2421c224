"""What the sources have in common: lines and JSON of published files, and image paths that stay in their folder."""

from __future__ import annotations

import base64
import binascii
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from ccr_lightning.data.faults import RecordFault
from ccr_lightning.data.images import LFS_POINTER, MAX_BYTES, ZIP_ARCHIVE
from ccr_lightning.errors import CCRError

MAX_LINE_BYTES = MAX_BYTES * 3 // 2  # room for an image in base64 and its captions
MAX_JSON_BYTES = 1_000_000_000  # of a whole file, which may be one line

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_EXPANSION, _EXPANSION_FROM = 200, 64 * 2**20  # captions shrink 3 to 20 times; a bomb 1,000 times
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"  # zero-width characters, which str.strip() keeps


class Line(NamedTuple):
    """A line of a text file, without its end, and its place as ``file:number``."""

    raw: bytes
    where: str

    @property
    def text(self) -> str:
        """The line as text.

        Raises:
            RecordFault: It is not UTF-8.
        """
        try:
            return self.raw.decode()
        except UnicodeDecodeError as error:
            raise RecordFault(f"{self.where}: not UTF-8 ({error.reason}); save the file as UTF-8.") from error


def check_languages(name: str, asked: Sequence[str], known: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the languages that a source is asked for.

    Args:
        name: What the source is called in the message.
        asked: The languages.
        known: The languages that there are; without them any will do.

    Raises:
        CCRError: There is none, one is there twice, or one is unknown.

    Example:
        >>> check_languages("XTD", ["en", "ja"], known=["de", "en", "ja"])
        ('en', 'ja')
    """
    unknown = [language for language in asked if known is not None and language not in known]
    if unknown:
        raise CCRError(
            f"{name} has no captions in {', '.join(unknown)}, only in {', '.join(known or ())}; choose some of these."
        )
    if not asked or len(set(asked)) < len(asked):
        raise CCRError(f"{name} got the languages {list(asked)}; name at least one, each once.")
    return tuple(asked)


def check_split(name: str, split: str, known: Sequence[str], advice: str = "choose one of these") -> None:
    """Check that a source has a split.

    Raises:
        CCRError: It has not.
    """
    if split not in known:
        raise CCRError(f"{name} has no split {split!r}, only {', '.join(known)}; {advice}.")


def find_file(path: Path, obtain: str) -> Path:
    """Return ``path``, or the same with ``.gz``, whichever is there.

    Raises:
        CCRError: Neither is; ``obtain`` says what to do.
    """
    for candidate in (path, path.with_name(f"{path.name}.gz")):
        if os.path.isfile(candidate):  # unlike Path.is_file, this is also False where nobody may look
            return candidate
    zipped = path.with_name(f"{path.name}.zip")
    if os.path.isfile(zipped):
        raise CCRError(f"{path}: there is only {zipped.name}; unzip it first.")
    raise CCRError(f"{path}: there is no such file; {obtain}.")


def read_lines(path: Path, longest: int | None = None) -> Iterator[Line]:
    r"""Yield the lines of a file, plain or gzip.

    Lines end with LF or CR LF; other characters that Unicode counts as line ends are part of a caption. A byte order
    mark is left out. Memory is bounded: a line has at most ``longest`` bytes, by default ``MAX_LINE_BYTES``, and a
    compressed file expands to at most 200 times its size.

    Raises:
        CCRError: The file cannot be read, is empty, is a git-LFS pointer or a zip archive, or is beyond those bounds.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> _ = path.write_bytes("ein Hund\r\nzwei\u2028Hunde".encode())
        >>> [line.text for line in read_lines(path)]
        ['ein Hund', 'zwei\u2028Hunde']
    """
    number = 0
    longest = MAX_LINE_BYTES if longest is None else longest
    try:
        with path.open("rb") as stream:
            head = stream.read(len(LFS_POINTER))
        if head == LFS_POINTER:
            raise CCRError(f"{path}: a git-LFS pointer, not the captions; run git lfs pull where the file comes from.")
        if head.startswith(ZIP_ARCHIVE):
            raise CCRError(f"{path}: a zip archive; unzip it first.")
        opener: Any = gzip.open if head.startswith(b"\x1f\x8b") else open
        most = max(_EXPANSION_FROM, _EXPANSION * path.stat().st_size)
        with opener(path, "rb") as content:
            while raw := content.readline(longest + 1):
                number += 1
                where = f"{path}:{number}"
                most -= len(raw)
                if len(raw) > longest:
                    raise CCRError(f"{where}: longer than {longest // 10**6} MB; this is no file of captions.")
                if most < 0:
                    raise CCRError(f"{where}: expands to more than {_EXPANSION} times its size; fetch the file again.")
                if number == 1:
                    raw = raw.removeprefix(_BYTE_ORDER_MARK)
                yield Line(raw.removesuffix(b"\n").removesuffix(b"\r"), where)
    except (EOFError, OSError, zlib.error) as error:
        raise CCRError(f"{path}:{number + 1}: cannot be read ({error}); fetch the file again.") from error
    if not number:
        raise CCRError(f"{path}: the file is empty; fetch it again.")


def parse_json(line: Line) -> dict[str, Any]:
    """Return the JSON object of a line.

    Raises:
        RecordFault: It is none, or holds half of an escaped surrogate pair, which cannot be stored.
    """
    text = line.text
    try:
        value = json.loads(text, object_pairs_hook=_each_key_once)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise _half_a_character(line.where) from error
    except (RecursionError, ValueError) as error:
        raise RecordFault(f"{line.where}: not valid JSON ({error}); write one JSON object per line.") from error
    if not isinstance(value, dict):
        raise RecordFault(f"{line.where}: not a JSON object; write one per line.")
    return value


def read_json_lines(path: Path) -> Iterator[Line]:
    """Yield the lines of a file of JSON lines; blank ones, as at its end, are passed over."""
    return (line for line in read_lines(path) if line.raw.strip())


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; of a key that is there twice the reader would drop one."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise ValueError(f"the key {twice!r} is there twice")
    return fields


def read_json(path: Path) -> Any:
    """Return the JSON value of a whole file, plain or gzip.

    Raises:
        CCRError: As :func:`read_lines`; it is not UTF-8 or not JSON, and the fault is given with its line.
    """
    text = "\n".join(line.text for line in read_lines(path, MAX_JSON_BYTES))
    try:
        return json.loads(text)
    except RecursionError as error:
        raise CCRError(f"{path}: not valid JSON (nested too deeply); fetch the file again.") from error
    except json.JSONDecodeError as error:
        raise CCRError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); fetch the file again.") from error
    except ValueError as error:  # a number of thousands of digits
        raise CCRError(f"{path}: not valid JSON ({error}); fetch the file again.") from error


def storable(text: str, where: str) -> str:
    """Return a text of a JSON file.

    Raises:
        RecordFault: It holds half of an escaped surrogate pair, which cannot be stored.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _half_a_character(where) from error
    return text


def _half_a_character(where: str) -> RecordFault:
    return RecordFault(f"{where}: has half of an escaped character, as \\ud83d without its second half; mend it.")


def is_blank(caption: str) -> bool:
    r"""Whether a caption has nothing to read: white space, no-break and zero-width spaces only.

    Example:
        >>> is_blank(" \u00a0\u200b"), is_blank("a dog")
        (True, False)
    """
    return not caption.strip().strip(_INVISIBLE).strip()


def without_blank(
    captions: dict[str, list[tuple[str, str]]],
) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Return captions without the blank ones, and the places of those.

    Args:
        captions: Language to captions, each with its place.

    Example:
        >>> without_blank({"en": [("a dog", "en.txt:1")], "de": [(" ", "de.txt:1")]})
        ({'en': ('a dog',)}, ('de.txt:1 (de)',))
    """
    kept = {language: tuple(text for text, _ in texts if not is_blank(text)) for language, texts in captions.items()}
    blank = tuple(
        f"{where} ({language})" for language, texts in captions.items() for text, where in texts if is_blank(text)
    )
    return {language: texts for language, texts in kept.items() if texts}, blank


def image_below(root: Path, name: str, where: str) -> Path:
    """Return the path of an image below ``root``, which is resolved; whether the file is there shows when it is read.

    Args:
        root: The folder of the images.
        name: Relative path, with ``/`` on every system.
        where: Place of the record, for the message.

    Raises:
        RecordFault: The path is absolute, a URL, has ``..``, or leads out of ``root`` by a link.
    """
    if "://" in name:
        raise RecordFault(f"{where}: the image {name!r} is a URL; fetch it and give its path.", "unsafe image path")
    relative = PurePosixPath(name)
    if relative.is_absolute() or PureWindowsPath(name).drive or ".." in relative.parts:
        raise RecordFault(
            f"{where}: the image {name!r} is absolute or has '..'; give a path below the image folder.",
            "unsafe image path",
        )
    path = root / relative
    try:
        is_below = path.resolve().is_relative_to(root)
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, no permission, a loop of links, a NUL
        reason = getattr(error, "strerror", None) or error
        raise RecordFault(
            f"{where}: the image {name!r} cannot be reached ({reason}); mend its name.", "unsafe image path"
        ) from error
    if not is_below:
        raise RecordFault(
            f"{where}: the image {name!r} is a link out of {root}; copy the picture into it.", "unsafe image path"
        )
    return path


def image_from_base64(text: object, where: str) -> bytes:
    """Return the bytes of an image that a file holds in base64.

    Raises:
        RecordFault: It is no base64.
    """
    try:
        if not isinstance(text, str):
            raise ValueError(f"{type(text).__name__} instead of a text")
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RecordFault(
            f"{where}: the image is not valid base64 ({error}); fetch it again.", "unreadable image"
        ) from error


def files_fingerprint(settings: Sequence[object], files: Sequence[Path]) -> str:
    """Return a short hash of settings and of the files' paths, sizes and times of change; contents are not read."""
    parts = [*map(str, settings)]
    for path in files:
        state = path.stat()
        parts += [str(path.absolute()), str(state.st_size), str(state.st_mtime_ns)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
