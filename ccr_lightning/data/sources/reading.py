"""What the sources have in common: lines and JSON of published files, and image paths that stay in their folder."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from ccr_lightning.data.images import LFS_POINTER
from ccr_lightning.errors import CCRError

_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"  # zero-width characters, which str.strip() keeps


class Line(NamedTuple):
    """A line of a text file, without its end, and its place as ``file:number``."""

    text: str
    where: str


def find_file(path: Path, obtain: str) -> Path:
    """Return ``path``, or the same with ``.gz``, whichever is there.

    Raises:
        CCRError: Neither is; ``obtain`` says what to do.
    """
    for candidate in (path, path.with_name(f"{path.name}.gz")):
        if candidate.is_file():
            return candidate
    raise CCRError(f"{path}: there is no such file; {obtain}.")


def read_lines(path: Path) -> Iterator[Line]:
    r"""Yield the lines of a UTF-8 file, plain or gzip.

    Lines end with LF or CR LF; other characters that Unicode counts as line ends are part of a caption.

    Raises:
        CCRError: The file cannot be read, is empty, is not UTF-8, or is a git-LFS pointer or a zip archive.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> _ = path.write_bytes("ein Hund\r\nzwei\u2028Hunde".encode())
        >>> [line.text for line in read_lines(path)]
        ['ein Hund', 'zwei\u2028Hunde']
    """
    number = 0
    try:
        with path.open("rb") as stream:
            head = stream.read(len(LFS_POINTER))
        if head == LFS_POINTER:
            raise CCRError(f"{path}: a git-LFS pointer, not the captions; run git lfs pull where the file comes from.")
        if head.startswith(b"PK\x03\x04"):
            raise CCRError(f"{path}: a zip archive; unzip it first.")
        opener: Any = gzip.open if head.startswith(b"\x1f\x8b") else open
        with opener(path, "rb") as content:
            for number, raw in enumerate(content, 1):
                where = f"{path}:{number}"
                try:
                    text = raw.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise CCRError(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8.") from error
                yield Line(text, where)
    except (EOFError, OSError, zlib.error) as error:
        raise CCRError(f"{path}:{number + 1}: cannot be read ({error}); fetch the file again.") from error
    if not number:
        raise CCRError(f"{path}: the file is empty; fetch it again.")


def parse_json(line: Line) -> Any:
    """Return the JSON value of a line.

    Raises:
        CCRError: It is none, or holds half of an escaped surrogate pair, which cannot be stored.
    """
    try:
        value = json.loads(line.text)
        if "\\ud" in line.text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise CCRError(f"{line.where}: not UTF-8 ({error.reason}); save the file as UTF-8.") from error
    except (RecursionError, ValueError) as error:
        raise CCRError(f"{line.where}: not valid JSON ({error}); write one JSON object per line.") from error
    return value


def read_json(path: Path) -> Any:
    """Return the JSON value of a whole file, plain or gzip.

    Raises:
        CCRError: As :func:`read_lines` and :func:`parse_json`; a fault of the JSON is given with its line.
    """
    text = "\n".join(line.text for line in read_lines(path))
    try:
        return json.loads(text)
    except RecursionError as error:
        raise CCRError(f"{path}: not valid JSON (nested too deeply); fetch the file again.") from error
    except json.JSONDecodeError as error:
        raise CCRError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); fetch the file again.") from error


def is_blank(caption: str) -> bool:
    r"""Whether a caption has nothing to read: white space, no-break and zero-width spaces only.

    Example:
        >>> is_blank(" \u00a0\u200b"), is_blank("a dog")
        (True, False)
    """
    return not caption.strip().strip(_INVISIBLE).strip()


def image_below(root: Path, name: str, where: str) -> Path:
    """Return the path of an image below ``root``, which is resolved; the file is not opened.

    Args:
        root: The folder of the images.
        name: Relative path, with ``/`` on every system.
        where: Place of the record, for the message.

    Raises:
        CCRError: The path is absolute, has ``..``, leads out of ``root`` by a link, or is no file.
    """
    relative = PurePosixPath(name)
    if relative.is_absolute() or PureWindowsPath(name).drive or ".." in relative.parts:
        raise CCRError(f"{where}: the image {name!r} is absolute or has '..'; give a path below the image folder.")
    path = root / relative
    try:
        is_below, is_there = path.resolve().is_relative_to(root), path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, no permission, a loop of links, a NUL
        reason = getattr(error, "strerror", None) or error
        raise CCRError(f"{where}: the image {name!r} cannot be reached ({reason}); mend its name.") from error
    if not is_below:
        raise CCRError(f"{where}: the image {name!r} is a link out of {root}; copy the picture into it.")
    if not is_there:
        raise CCRError(f"{where}: the image {path} is not there; check the image folder and the name.")
    return path


def files_fingerprint(settings: Sequence[object], files: Sequence[Path]) -> str:
    """Return a short hash of settings and of the files' paths, sizes and times of change; contents are not read."""
    parts = [*map(str, settings)]
    for path in files:
        state = path.stat()
        parts += [str(path.absolute()), str(state.st_size), str(state.st_mtime_ns)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
