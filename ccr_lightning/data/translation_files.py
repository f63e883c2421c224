"""The files of a translation: what was asked for, and lines that grow by whole chunks and outlive ``kill -9``."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from ccr_lightning.errors import CCRError
from ccr_lightning.files import atomic_write, could_not_be_written, file_name, load_json
from ccr_lightning.locks import one_process

OTHERWISE = "choose another folder; then start again"


@dataclass(frozen=True)
class Settings:
    """What decides about the output; work that was begun with other settings is not continued."""

    source: str
    fingerprint: str
    split: str
    model: str
    beams: int
    source_language: str
    target_languages: list[str]
    records_per_chunk: int


@dataclass
class Translation:
    """A translated split.

    Attributes:
        settings: How it was made.
        translated_on: The day on which it was begun, which all its translations bear.
        image_root: The folder that the paths of the images start from.
        images: Number of images.
        captions_to_do: Number of translations that are asked for.
        captions: Language to the number of its captions in the file, human and translated.
        left_out: Language to the number of captions without a translation that can be used.
        images_without_source: Number of images without a caption in the source language, which stay as they were.
    """

    settings: Settings
    translated_on: str
    image_root: str
    images: int
    captions_to_do: int
    captions: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    images_without_source: int = 0


class TranslationFiles:
    """The files of a split's translation in a folder.

    Attributes:
        lines: The finished lines, ``<split>.jsonl``.
        part: The lines so far, ``<split>.jsonl.part``.
        state: What is asked for and, in the end, what came of it, ``<split>.translation.json``.

    Args:
        out: The folder.
        split: The split.
    """

    def __init__(self, out: Path, split: str) -> None:
        self.out = out
        self.lines = out / file_name(f"{split}.jsonl")
        self.part = out / f"{split}.jsonl.part"
        self.state = out / f"{split}.translation.json"
        self._lock = out / f".{split}.translation.lock"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out; the lock ends with the process, however that ends.

        Raises:
            CCRError: Another process is at work, or the folder cannot be written.
        """
        busy = f"{self.lines}: another process is writing it; wait for it, or stop it first."
        with one_process(self._lock, busy, "choose another one"):
            yield

    def begun(self, settings: Settings) -> Translation | None:
        """Return the translation that was begun or finished here; None if there is none.

        Raises:
            CCRError: It was begun with other settings, or the lines are there and come from somewhere else.
        """
        if not self.state.exists():
            if self.lines.exists():
                raise CCRError(f"{self.lines} is there already and no translation of this; choose another folder.")
            return None
        try:
            state = load_json(self.state.read_text(encoding="utf-8"))
            translation = Translation(**state | {"settings": Settings(**state["settings"])})
            translation.captions, translation.left_out = Counter(translation.captions), Counter(translation.left_out)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CCRError(f"{self.state}: cannot be read ({error}); choose another folder.") from error
        here = asdict(settings)
        for name, there in asdict(translation.settings).items():
            if there != here[name]:
                raise CCRError(
                    f"{self.lines}: was begun with {name} {_say(there)} and not {_say(here[name])}; go on with "
                    f"{_say(there)}, or choose another folder."
                    if name != "fingerprint"
                    else f"{self.lines}: the source has changed since this was begun; choose another folder."
                )
        return translation

    def begin(self, translation: Translation) -> None:
        """Note what will be done, before anything is."""
        self.part.unlink(missing_ok=True)
        self._note(translation)

    def finish(self, translation: Translation) -> None:
        """Note what came of it, and give the lines their name."""
        self._note(translation)
        self.part.replace(self.lines)

    @contextmanager
    def growing(self) -> Iterator[GrowingLines]:
        """Open the lines so far.

        Raises:
            CCRError: They cannot be written.
        """
        try:
            self.part.touch()
            with self.part.open("r+b") as file:
                yield GrowingLines(file, self.part)
        except OSError as error:
            raise could_not_be_written(self.part, "the translations", error, OTHERWISE) from error

    def _note(self, translation: Translation) -> None:
        with atomic_write(self.state, "the state of the translation", OTHERWISE) as file:
            state = vars(translation) | {"settings": asdict(translation.settings)}
            file.write(json.dumps(state, ensure_ascii=False, indent=2).encode())


class GrowingLines:
    """A file of JSON lines, read from its start chunk by chunk, and written from where it ends.

    Args:
        file: The file, open for reading and writing.
        path: Its name, for messages.
    """

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path = file, path

    def read_chunk(self, size: int) -> list[Any] | None:
        """Return the next lines; if they are not there in whole, drop what is there of them and return None.

        Raises:
            CCRError: A whole line is no JSON.
        """
        start = self._file.tell()
        lines = list(islice(self._file, size))
        if len(lines) == size and lines[-1].endswith(b"\n"):
            try:
                return [load_json(line) for line in lines]
            except ValueError as error:
                raise CCRError(f"{self._path}: is damaged ({error}); delete it and start again.") from error
        self._file.seek(start)
        self._file.truncate()
        return None

    def write_chunk(self, lines: Sequence[Any]) -> None:
        """Append lines; when this returns they are on the disk."""
        self._file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())


def _say(value: object) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)
