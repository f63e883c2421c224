"""What a report is made of: results, the rank of every query, what was logged in training, the configuration."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ccr_lightning.errors import CCRError
from ccr_lightning.evaluation.comparison import Result, incomplete, names_of
from ccr_lightning.evaluation.query_ranks import RanksFile, read_query_ranks
from ccr_lightning.files import sha256_of

CONFIG, METRICS = "config.yaml", "metrics.csv"

_NEEDED = (
    *("dataset", "split", "left_out", "ranking", "protocol", "checkpoint", "seed", "source", "data", "model", "ran_on"),
    *("versions", "languages", "language_means", "mean_recalls", "mean_recall", "mean_recall_interval"),
    *("worst_language", "mrv", "mrsd", "rank1_agreement", "folds"),
)


class Scored(NamedTuple):
    """A results document with the ranks that its numbers are of."""

    key: str  # what it is called in the page's own references
    name: str  # of the run, as in ``ccr results``, unless that says nothing
    path: Path
    document: Mapping[str, Any]
    ranks: RanksFile | None
    without_ranks: str  # why there are none


class Curve(NamedTuple):
    """What was logged under one name."""

    name: str
    steps: list[int]
    values: list[float]


def read_scored(results: Sequence[Result]) -> list[Scored]:
    """Read what belongs to results files, and check that these have all that a report shows.

    Args:
        results: What ``read_results`` returns.

    Raises:
        CCRError: Results lack something, or ranks are damaged or those of another test.
    """
    for path, document in results:
        if missing := [name for name in _NEEDED if name not in document]:
            raise incomplete(path, KeyError(missing[0]))
    names = _distinct(names_of(results), results)
    return [
        Scored(str(number), name, path, document, *_ranks(path, document))
        for number, (name, (path, document)) in enumerate(zip(names, results, strict=True), 1)
    ]


def _distinct(names: Sequence[str], results: Sequence[Result]) -> list[str]:
    """The names, with the folder where the same was scored on the same data twice."""
    told = [(name, document["dataset"]) for name, (_, document) in zip(names, results, strict=True)]
    return [
        name if told.count(of) == 1 else f"{name} in {path.parent.name}"
        for name, of, (path, _) in zip(names, told, results, strict=True)
    ]


def _ranks(path: Path, document: Mapping[str, Any]) -> tuple[RanksFile | None, str]:
    named = document.get("ranks")
    if not isinstance(named, dict):
        return None, "These results are of a version of this package that did not keep ranks: run ccr test again."
    file = path.parent / Path(str(named.get("file"))).name
    if not file.is_file():
        return None, f"The ranks of these results, {file.name}, are not beside them: run ccr test again."
    try:
        sha256 = sha256_of(file)
    except OSError as error:
        raise CCRError(f"{file}: cannot be read ({error.strerror}); run ccr test again.") from error
    if sha256 != named.get("sha256"):
        raise CCRError(f"{file}: these are not the ranks that {path.name} was made of; run ccr test again.")
    return read_query_ranks(file), ""


def read_curves(folder: Path) -> list[Curve]:
    r"""Read what was logged in the training of a run, by name; nothing if there was no training.

    Raises:
        CCRError: The file is damaged.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "metrics.csv").write_text("step,train/loss,val/mrv\n0,3.5,\n9,2.5,\n9,,1.5\n")
        >>> read_curves(folder)[1:]
        [Curve(name='val/mrv', steps=[9], values=[1.5])]
        >>> read_curves(folder / "elsewhere")
        []
    """
    file = folder / METRICS
    if not file.is_file():
        return []
    curves: dict[str, Curve] = {}
    try:
        with file.open(encoding="utf-8", newline="") as content:
            for line in csv.DictReader(content):
                step = int(line.pop("step"))
                for name, value in line.items():
                    if value and math.isfinite(number := float(value)):
                        curve = curves.setdefault(name, Curve(name, [], []))
                        curve.steps.append(step)
                        curve.values.append(number)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise CCRError(f"{file}: this is not the metrics.csv of a run ({error!r}); move it away.") from error
    return list(curves.values())


def read_config(folder: Path) -> str | None:
    """Read the configuration of a run as it is; None if there is none.

    Raises:
        CCRError: It cannot be read.
    """
    file = folder / CONFIG
    try:
        return file.read_text(encoding="utf-8") if file.is_file() else None
    except (OSError, ValueError) as error:
        raise CCRError(f"{file}: cannot be read ({error}); mend it or move it away.") from error
