"""Results of several runs side by side, in the layout of Table 1 of Nie et al., KDD 2024."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ccr_lightning.errors import CCRError
from ccr_lightning.evaluation.results import FORMAT
from ccr_lightning.files import load_json

Format = Literal["table", "markdown", "latex", "csv"]
Rows = Mapping[str, Mapping[tuple[str, str], float]]  # row to (benchmark, number) to value

_NAMES = {"xflickrco": "xFlickr&CO", "wit": "WIT", "multi30k-task1": "Multi30K", "coco": "COCO"}
_ORDER = ("xFlickr&CO", "WIT", "Multi30K", "COCO")  # then others, as they come
_BY_LANGUAGE = ("Multi30K", "COCO")
_YEAR = "test_2016_flickr"  # the test split of Multi30K that needs no name
_MEAN_OVER = {  # languages of the paper's means
    "xFlickr&CO": ("de", "en", "es", "id", "ja", "ru", "tr", "zh"),
    "WIT": ("ar", "bg", "da", "el", "en", "et", "id", "ja", "ko", "tr", "vi"),
}
_MRV_OVER = {"xFlickr&CO": ("en", "de", "ja", "zh"), "Multi30K": ("en", "de", "fr", "cs")}


class Result(NamedTuple):
    """A results file that was read."""

    path: Path
    document: Mapping[str, Any]


def read_results(paths: Sequence[str | Path]) -> list[Result]:
    """Read the results of test splits from files, or from the folders of runs, of which some may have none.

    A file that is named twice is read once.

    Raises:
        CCRError: A path does not exist, none has any results, or a file is none or of another version.
    """
    found: dict[Path, Result] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise CCRError(f"{path}: there is no such run or file; check the path.")
        files = [path] if path.is_file() else sorted(path.glob("results*.json"), key=lambda file: file.stem)
        read = [Result(file, _read(file)) for file in files]
        found |= {result.path.resolve(): result for result in read if result.document["split"] == "test"}
    if not found:
        raise CCRError(f"{', '.join(map(str, paths))}: there are no results of a test split here; run ccr test first.")
    return list(found.values())


def _read(file: Path) -> Mapping[str, Any]:
    try:
        document: dict[str, Any] = load_json(file.read_text(encoding="utf-8"))
        version = document.get("format")
    except (OSError, ValueError, AttributeError) as error:
        raise CCRError(f"{file}: cannot be read as results ({error}); name the folder of a run.") from error
    if version != FORMAT:
        raise CCRError(f"{file}: these results are of another version of this package; run ccr test again.")
    if "split" not in document:
        raise incomplete(file, KeyError("split"))
    source = document.get("source", {})
    if not isinstance(source, dict) or not isinstance(source.get("init_args"), dict | None):
        raise CCRError(f"{file}: 'source' is no class_path with init_args, as ccr test writes it; run ccr test again.")
    return document


def rows_of(results: Sequence[Result]) -> dict[str, dict[tuple[str, str], float]]:
    """Return the row of each model, with and without re-ranking, in percent (MRV and MRSD as they are).

    A model is named after its run, whatever the folder of the results; where models of one name have different weights,
    each has a row, with the beginning of its hash.

    Raises:
        CCRError: A file lacks something, or two say different things for the same place in the table.
    """
    rows: dict[str, dict[tuple[str, str], float]] = {}
    places: dict[tuple[str, tuple[str, str]], Path] = {}
    for name, (path, document) in zip(names_of(results), results, strict=True):
        try:
            columns = _columns(document)
            if texts := [value for value in columns.values() if not isinstance(value, int | float)]:
                raise TypeError(f"{texts[0]!r} is no number")
        except (KeyError, TypeError, AttributeError) as error:
            raise incomplete(path, error) from error
        for column, value in columns.items():
            other = places.setdefault((name, column), path)
            known = rows.setdefault(name, {}).setdefault(column, value)
            if not math.isclose(known, value, rel_tol=1e-9):  # a mean over other languages beside may round otherwise
                raise CCRError(f"{other} and {path} differ in {' '.join(column)} of {name}; name one of them.")
    return rows


def names_of(results: Sequence[Result]) -> list[str]:
    """Return the name of each model in a table, see :func:`rows_of`.

    Raises:
        CCRError: A file lacks something.
    """
    parts = []
    for path, document in results:
        try:
            parts.append((_run(path, document), _sha256(document), _reranking(document)))
        except (KeyError, TypeError, AttributeError) as error:
            raise incomplete(path, error) from error
    weights: dict[str, set[str]] = {}
    for run, sha256, _ in parts:
        weights.setdefault(run, set()).add(sha256)
    return [
        (run if len(weights[run]) == 1 else f"{run} ({sha256[:6]})") + reranking for run, sha256, reranking in parts
    ]


def incomplete(path: Path, error: Exception) -> CCRError:
    """Return what to say of results that lack something."""
    return CCRError(f"{path}: something is missing in these results ({error}); run ccr test again.")


def _run(path: Path, document: Mapping[str, Any]) -> str:
    checkpoint = (document.get("checkpoint") or {}).get("path")
    if checkpoint is None:
        return path.parent.name
    weights = Path(checkpoint).absolute()
    return weights.parent.parent.name if weights.suffix == ".ckpt" else weights.name  # of a run, or a model's folder


def _sha256(document: Mapping[str, Any]) -> str:
    return str((document.get("model") or {}).get("sha256"))


def _reranking(document: Mapping[str, Any]) -> str:
    if document["ranking"] == "dual_encoder":
        return ""
    protocol = document["protocol"]
    by = "" if protocol["rerank_by"] == "matching" else " by matching and similarity"
    return f", re-ranked {protocol['rerank_depth']}{by}"


def _columns(document: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    benchmark, title = _benchmark(document)
    scores = document["folds"] or document
    columns: dict[tuple[str, str], float] = {}
    if benchmark in _BY_LANGUAGE:
        for language, of in scores["language_means"].items():
            columns[title, language] = 100 * (of if isinstance(of, float) else of["mean_recall"])
    else:
        columns[title, "IR"] = 100 * scores["mean_recalls"]["text_to_image"]["recall@1"]
        columns[title, "TR"] = 100 * scores["mean_recalls"]["image_to_text"]["recall@1"]
    if document["mrv"]["mean"] is not None:
        languages = document["mrv"]["languages"]
        others = "" if set(languages) == set(_MRV_OVER.get(title, languages)) else f" {' '.join(languages)}"
        for name in ("MRV", "MRSD"):
            columns[title, f"{name}{others}"] = document[name.lower()]["mean"]
    return columns


def _benchmark(document: Mapping[str, Any]) -> tuple[str, str]:
    """The benchmark, and what the columns say: the same, and what is scored in another way than the paper's."""
    dataset, settings = document["dataset"], document["source"]["init_args"] or {}
    dataset = "xflickrco" if dataset.startswith("xflickrco-") else dataset  # with a few-shot file to train on
    benchmark = _NAMES.get(dataset, dataset)
    languages = list(document["language_means"])
    if benchmark == "Multi30K" and (split := (settings.get("splits") or {}).get("test", _YEAR)) != _YEAR:
        return benchmark, f"{benchmark} {split.removeprefix('test_')}"
    if benchmark == "COCO" and not document["folds"] and not settings.get("lists"):
        return benchmark, f"{benchmark} in one gallery"
    if set(languages) != set(_MEAN_OVER.get(benchmark, languages)):
        return benchmark, f"{benchmark} {' '.join(languages)}"
    return benchmark, benchmark


def columns_of(rows: Rows) -> list[tuple[str, str]]:
    """Return the columns of a table: benchmarks in the paper's order, MRV and MRSD behind what a benchmark has else."""
    return sorted({column: None for row in rows.values() for column in row}, key=_place)


def comparison(rows: Rows, layout: Format) -> str:
    """Lay rows out as a table.

    Args:
        rows: Those of :func:`rows_of`, and maybe published ones.
        layout: ``table`` for the terminal, ``markdown``, ``latex`` (with booktabs) or ``csv`` (unrounded).

    Example:
        >>> print(comparison({"mine": {("WIT", "IR"): 9.936, ("WIT", "TR"): 11.7}}, "markdown"))
        | model   |   WIT IR |   WIT TR |
        |:--------|---------:|---------:|
        | mine    |     9.94 |    11.70 |
    """
    columns = columns_of(rows)
    header = ["model", *(f"{benchmark} {name}" for benchmark, name in columns)]
    if layout == "csv":
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerows([header, *([name, *(row.get(of, "") for of in columns)] for name, row in rows.items())])
        return buffer.getvalue().rstrip("\n")
    from tabulate import tabulate

    cells = [[name, *(f"{row[of]:.2f}" if of in row else "-" for of in columns)] for name, row in rows.items()]
    kind = {"table": "simple_outline", "markdown": "pipe", "latex": "latex_booktabs"}[layout]
    if layout == "table":
        header = ["model", *(f"{benchmark}\n{name}" for benchmark, name in columns)]
    alignment = ("left", *("right" for _ in columns))
    return tabulate(cells, header, tablefmt=kind, disable_numparse=True, colalign=alignment)


def _place(column: tuple[str, str]) -> tuple[int, str, int]:
    benchmark, name = column
    known = benchmark.partition(" ")[0]
    order = _ORDER.index(known) if known in _ORDER else len(_ORDER)
    numbers = ("IR", "TR", "en", "de", "fr", "cs", "zh", "ja")
    last = {"MRV": len(numbers) + 1, "MRSD": len(numbers) + 2}
    return order, benchmark, numbers.index(name) if name in numbers else last.get(name.partition(" ")[0], len(numbers))
