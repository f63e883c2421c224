"""Standard input and output, wherever they lead: closed, to a full disk, or in an encoding with few characters."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any, TextIO

_PACKAGE = str(Path(__file__).parents[1])


def prepare_streams() -> None:
    r"""Opens those that are closed, and lets output have characters that its encoding has not, as ``\xb7``."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the next file to be opened, a checkpoint maybe, would get the number and what is printed
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    out = sys.stdout
    if out is sys.__stdout__ and isinstance(out, io.TextIOWrapper) and isinstance(out.buffer, io.RawIOBase):
        # Of PYTHONUNBUFFERED: what it cannot write is lost, and nobody could tell later whether that was so.
        kept: Any = io.BufferedWriter(out.buffer)
        out = sys.stdout = io.TextIOWrapper(kept, out.encoding, out.errors, line_buffering=True)
    if isinstance(out, io.TextIOWrapper) and (out.errors == "strict" or out.encoding.lower() not in ("utf-8", "utf8")):
        out.reconfigure(errors="backslashreplace")


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


def fits_output(text: str) -> bool:
    """Whether the encoding of standard output has all characters of a text."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def json_text(value: object, indent: int | None = None) -> str:
    """JSON to print, in which characters stand as they are where the output's encoding has them."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return text if fits_output(text) else json.dumps(value, indent=indent)


def output_error() -> OSError | None:
    """Returns why what is still to be written cannot be: output leads nowhere from now on. None if it can."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def show_own_warnings() -> None:
    """Shows this package's warnings as a sentence, and not that matplotlib finds no place for a cache of its own."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    others = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category is UserWarning and filename.startswith(_PACKAGE):
            print(f"warning: {message}", file=sys.stderr)
        else:
            others(message, category, filename, lineno, file, line)

    warnings.showwarning = show
