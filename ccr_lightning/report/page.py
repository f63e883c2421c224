"""The page itself: one file that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ccr_lightning._version import __version__
from ccr_lightning.evaluation.comparison import columns_of, incomplete, read_results, rows_of
from ccr_lightning.evaluation.scores import DIRECTIONS, RECALLS
from ccr_lightning.files import atomic_write
from ccr_lightning.pages import (
    CONTENT_POLICY,
    LANGUAGE_NAMES,
    STYLE,
    refuse_to_replace,
    shortened,
    without_controls,
)
from ccr_lightning.report import figures, numbers
from ccr_lightning.report.drawing import Figure, png, svg
from ccr_lightning.report.instances import bar
from ccr_lightning.report.reading import Scored, read_scored
from ccr_lightning.report.sections import FindRecords, Section, compared, section_of

_TEMPLATES = Path(__file__).parent / "templates"


class Written(NamedTuple):
    """A file that was written."""

    path: Path
    bytes: int


def write_report(
    runs: Sequence[str | Path], path: Path, find_records: FindRecords, png_folder: Path | None = None
) -> list[Written]:
    """Write one HTML page on the test results of runs, and maybe its figures as PNG.

    Args:
        runs: Folders of runs, or results files.
        path: The page; one that is there is replaced.
        find_records: Given the folder of a run, its results and image ids, it finds pictures and captions.
        png_folder: Where the figures go.

    Returns:
        The files, the page first.

    Raises:
        CCRError: Nothing can be reported, something is damaged, or a file cannot be written.
    """
    refuse_to_replace(path, "the report")
    results = read_results(runs)
    scored = read_scored(results)
    folders = [of.path.parent for of in scored]
    environment = _environment()
    told = [
        _told(environment, of, find_records, is_first_of_run=of.path.parent not in folders[:place])
        for place, of in enumerate(scored)
    ]
    sections = [section for section, _ in told]
    rows, groups = rows_of(results), compared(sections)
    page = environment.get_template("report.html.jinja").render(
        sections=sections,
        bodies=[body for _, body in told],
        rows=rows,
        columns=columns_of(rows),
        compared=groups,
        policy=CONTENT_POLICY,
        style=STYLE,
        own_style=(_TEMPLATES / "report.css").read_text(encoding="utf-8"),
        version=__version__,
    )
    written = [_write(path, page.encode(errors="replace"), "the report")]
    if png_folder is not None:
        for figure, prefix in [*((of.figure, "") for of in groups), *_named(sections)]:
            file = png_folder / f"{prefix}{figure.name}.png"
            written.append(_write(file, png(figure), "the figure"))
    return written


def _told(
    environment: Environment, scored: Scored, find_records: FindRecords, is_first_of_run: bool
) -> tuple[Section, Markup]:
    """A section, and its part of the page: everything that is read from one document is read here."""
    try:
        section = section_of(scored, find_records, is_first_of_run)
        return section, Markup(environment.get_template("section.html.jinja").render(section=section))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise incomplete(scored.path, error) from error


def _named(sections: Sequence[Section]) -> list[tuple[Figure, str]]:
    """The figures with what begins the names of their files."""
    names = [re.sub(r"[^\w.-]+", "-", section.scored.name).strip("-.") for section in sections]
    if len({name.lower() for name in names}) < len(names):  # a file system may take both cases for one
        names = [f"{name}-{section.scored.key}" for name, section in zip(names, sections, strict=True)]
    return [(figure, f"{name}-") for name, section in zip(names, sections, strict=True) for figure in section.figures]


def _write(path: Path, content: bytes, what: str) -> Written:
    with atomic_write(path, what) as file:
        file.write(content)
    return Written(path, len(content))


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean,
    )
    environment.globals.update(
        svg=_svg,
        column=figures.COLUMN,
        bar=bar,
        data=numbers.data,
        plain=numbers.plain,
        count=numbers.count,
        bin_name=figures.bin_name,
        directions=DIRECTIONS,
        direction_names=figures.DIRECTION_NAMES,
        recalls=RECALLS,
        cutoff_names=figures.CUTOFF_NAMES,
        curve_names=figures.CURVE_NAMES,
        language_names=LANGUAGE_NAMES,
    )
    return environment


def _svg(figure: Figure, number: int, prefix: str, label: str) -> Markup:
    return Markup(svg(figure._replace(name=f"{prefix}-{figure.name}"), number, without_controls(label)))


def _clean(value: Any) -> Any:
    """A text as it is fit for a page; markup is the page's own."""
    return shortened(without_controls(value)) if type(value) is str else value
