"""``metrics.csv`` of a run: what was logged, and when."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers.logger import Logger

from ccr_lightning.errors import CCRError
from ccr_lightning.files import atomic_write, could_not_be_written

_OTHERWISE = "change --runs_dir"


class MetricsFile(Logger):
    """Writes what a run logs to a CSV file: a line each time, with the columns ``step`` and one per name.

    A file that is there stays as it is until the first line is logged, so that a start that fails costs nothing. That
    line replaces it; a run that resumes keeps the lines from before its checkpoint.

    Args:
        path: The file.
        first_step: Lines of earlier steps, of which the file may hold some, are kept; 0 keeps none.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "metrics.csv"
        >>> MetricsFile(path).log_metrics({"train/loss": 2.5}, step=0)
        >>> MetricsFile(path, first_step=1).log_metrics({"train/loss": 1.5}, step=1)
        >>> print(path.read_text(), end="")
        step,train/loss
        0,2.5
        1,1.5
    """

    def __init__(self, path: Path, first_step: int = 0) -> None:
        super().__init__()
        self._path = path
        self._first_step = first_step
        self._columns: list[str] = []  # those of the file, once it is this run's

    @property
    def name(self) -> str:
        """Empty, for the folder is the run's own."""
        return ""

    @property
    def version(self) -> str:
        """Empty, for the folder is the run's own."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder of the file."""
        return str(self._path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds a line.

        Raises:
            CCRError: If it cannot be written.
        """
        line = {**metrics, "step": step}
        if line.keys() <= set(self._columns):
            self._append(line)
        else:
            lines = [*self._lines(), line]
            self._columns = sorted(set().union(*lines))
            header = {name: name for name in self._columns}
            with atomic_write(self._path, "the metrics", _OTHERWISE) as file:
                file.write(self._csv([header, *lines]).encode())

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Does nothing: config.yaml says everything."""

    def _lines(self) -> list[dict[str, Any]]:
        """The lines of the file that stay, without their empty cells."""
        if not self._path.is_file():
            return []
        try:
            text = self._path.read_text(encoding="utf-8")
            whole = csv.DictReader(
                io.StringIO(text[: text.rfind("\n") + 1])
            )  # a crash may have broken off the last line
            lines = [{name: value for name, value in line.items() if value} for line in whole]
            if any(None in line for line in lines):  # as csv calls the names of values that are too many
                raise ValueError("a line has more values than there are names")
            return lines if self._columns else [line for line in lines if int(line["step"]) < self._first_step]
        except (KeyError, ValueError, csv.Error) as error:
            raise CCRError(
                f"{self._path}: this is not the metrics.csv of a run ({type(error).__name__}: {error}); move it away: "
                "the run goes on without it."
            ) from error

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            with self._path.open("r+b") as file:  # a file that somebody has removed would begin anew, without names
                file.seek(0, os.SEEK_END)
                file.write(self._csv([line]).encode())
                file.flush()
                os.fsync(file.fileno())  # a checkpoint that outlasts a power loss has the lines before it
        except OSError as error:
            raise could_not_be_written(self._path, "the metrics", error, _OTHERWISE) from error

    def _csv(self, lines: Sequence[Mapping[str, Any]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerows(lines)
        return text.getvalue()
