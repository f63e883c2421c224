"""The page itself: one file that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from ccr_lightning._version import __version__
from ccr_lightning.evaluation.comparison import columns_of, incomplete, read_results, rows_of
from ccr_lightning.evaluation.scores import CUTOFFS, DIRECTIONS, PIVOT, RECALLS
from ccr_lightning.files import atomic_write
from ccr_lightning.pages import CONTENT_POLICY, LANGUAGE_NAMES, STYLE, refuse_to_replace, shortened, without_controls
from ccr_lightning.report import figures, numbers, spread
from ccr_lightning.report.drawing import Figure, png, svg
from ccr_lightning.report.instances import Instance, bar, instances_of, most_inconsistent
from ccr_lightning.report.reading import Curve, Scored, read_config, read_curves, read_scored
from ccr_lightning.report.records import Records

FindRecords = Callable[[Path, Mapping[str, Any], Sequence[str]], Records]

_ROWS = 20  # of a table of what was logged
_TEMPLATES = Path(__file__).parent / "templates"


class Written(NamedTuple):
    """A file that was written."""

    path: Path
    bytes: int


class Consistency(NamedTuple):
    """What the ranks of a run say, language against language."""

    spread: spread.Spread
    first: str  # the language that the others are compared with
    bins: list[spread.Bin]
    half: int  # images that make half of MRV
    pairs: list[spread.Pair]
    instances: list[Instance]
    remark: str  # on pictures and captions


class Training(NamedTuple):
    """What was logged in training."""

    figures: list[Figure]
    tables: list[tuple[str, list[str], list[tuple[int, dict[str, float]]]]]  # title, names, step to values
    left_out: bool  # whether the tables lack some steps


class Section(NamedTuple):
    """What the page says of one results document."""

    scored: Scored
    numbers: numbers.Numbers
    recall: Figure
    heat_map: Figure | None
    scatter: Figure | None
    variance: Figure | None
    consistency: Consistency | None
    training: Training | None
    config: Markup | None

    @property
    def worst_shown(self) -> int:
        """The largest rank of the images that are shown."""
        assert self.consistency is not None
        rows = [row for of in self.consistency.instances for row in of.languages]
        return max(rank for row in rows for rank in (row.rank, *(caption.rank for caption in row.captions)))

    @property
    def figures(self) -> list[Figure]:
        """All figures, in order."""
        maybe = (self.recall, self.heat_map, self.scatter, self.variance)
        return [*filter(None, maybe), *(self.training.figures if self.training else ())]


class Compared(NamedTuple):
    """Results on the same data."""

    figure: Figure
    sections: list[Section]


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
        CCRError: Nothing can be reported, something is damaged, a library is missing, or a file cannot be written.
    """
    refuse_to_replace(path, "the report")
    results = read_results(runs)
    scored = read_scored(results)
    rows = rows_of(results)
    sections, folders = [], set()
    for of in scored:
        try:
            sections.append(_section(of, find_records, of.path.parent not in folders))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise incomplete(of.path, error) from error
        folders.add(of.path.parent)
    compared = _compared(sections)
    page = _template().render(
        sections=sections,
        rows=rows,
        columns=columns_of(rows),
        compared=compared,
        policy=CONTENT_POLICY,
        style=STYLE,
        own_style=(_TEMPLATES / "report.css").read_text(encoding="utf-8"),
        version=__version__,
    )
    written = [_write(path, page.encode(errors="replace"), "the report")]
    if png_folder is not None:
        for figure, prefix in [*((of.figure, "") for of in compared), *_named(sections)]:
            file = png_folder / f"{prefix}{figure.name}.png"
            written.append(_write(file, png(figure), "the figure"))
    return written


def _named(sections: Sequence[Section]) -> list[tuple[Figure, str]]:
    """The figures with what begins the names of their files."""
    names = [re.sub(r"[^\w.-]+", "-", section.scored.name).strip("-.") for section in sections]
    prefixes = [
        name if names.count(name) == 1 else f"{name}-{section.scored.key}"
        for name, section in zip(names, sections, strict=True)
    ]
    return [
        (figure, f"{prefix}-") for prefix, section in zip(prefixes, sections, strict=True) for figure in section.figures
    ]


def _write(path: Path, content: bytes, what: str) -> Written:
    with atomic_write(path, what) as file:
        file.write(content)
    return Written(path, len(content))


def _section(scored: Scored, find_records: FindRecords, is_first_of_run: bool) -> Section:
    document = scored.document
    mrv = document["mrv"]
    is_defined = mrv["mean"] is not None
    consistency = None
    if is_defined and scored.ranks is not None:
        consistency = _consistency(scored, find_records)
    pairs = mrv.get("pairs")
    return Section(
        scored,
        numbers.Numbers(scored),
        figures.recall_bars(document),
        figures.heat_map(mrv["languages"], pairs) if is_defined and pairs else None,
        figures.scatter(consistency.spread, consistency.first) if consistency else None,
        figures.variance_bars(consistency.bins) if consistency else None,
        consistency,
        _training(read_curves(scored.path.parent)) if is_first_of_run else None,
        _config(scored.path.parent) if is_first_of_run else None,
    )


def _config(folder: Path) -> Markup | None:
    text = read_config(folder)
    return None if text is None else escape(without_controls(text))


def _consistency(scored: Scored, find_records: FindRecords) -> Consistency:
    assert scored.ranks is not None
    languages = scored.document["mrv"]["languages"]
    found = spread.spread_of(scored.ranks, languages)
    first = PIVOT if PIVOT in languages else languages[0]
    chosen = most_inconsistent(scored.ranks, found)
    records = Records({}, "")
    if chosen:
        records = find_records(scored.path.parent, scored.document, [name for name, _ in chosen])
    return Consistency(
        found,
        first,
        spread.histogram(found.variance),
        spread.images_of_half(found.variance),
        spread.pairs_with(found, first),
        instances_of(chosen, scored.ranks, languages, records.by_name),
        records.remark,
    )


def _training(curves: Sequence[Curve]) -> Training | None:
    drawn = figures.curve_figures(curves)
    if not drawn:
        return None
    tables, left_out = [], False
    for title, prefix in (("losses", "train/"), ("validation", "val/")):
        chosen = [curve for curve in curves if curve.name in figures.CURVE_NAMES and curve.name.startswith(prefix)]
        if not chosen:
            continue
        steps = sorted({step for curve in chosen for step in curve.steps})
        kept = {steps[round(place * (len(steps) - 1) / (_ROWS - 1))] for place in range(_ROWS)}
        left_out |= len(kept) < len(steps)
        by_step: dict[int, dict[str, float]] = {step: {} for step in sorted(kept)}
        for curve in chosen:
            for step, value in zip(curve.steps, curve.values, strict=True):
                if step in by_step:
                    by_step[step][curve.name] = value
        tables.append((title, [curve.name for curve in chosen], list(by_step.items())))
    return Training(drawn, tables, left_out)


def _compared(sections: Sequence[Section]) -> list[Compared]:
    """What was scored on the same data, as far as it is more than one."""
    by_data: dict[str, list[Section]] = {}
    for section in sections:
        by_data.setdefault(section.scored.document["data"]["sha256"], []).append(section)
    compared = []
    for group in by_data.values():
        if len(group) > 1:
            scored = [section.scored for section in group]
            recalls = {direction: [_recall_at_1(of, direction) for of in scored] for direction in DIRECTIONS}
            mrvs = [(of.name, of.document["mrv"]) for of in scored if of.document["mrv"]["mean"] is not None]
            drawn = figures.runs_compared(
                recalls, [figures.Estimate(name, of["mean"], of["interval"]) for name, of in mrvs]
            )
            compared.append(Compared(drawn._replace(name=f"runs-{scored[0].key}"), group))
    return compared


def _recall_at_1(scored: Scored, direction: str) -> figures.Estimate:
    of = scored.document["mean_recalls"][direction]
    return figures.Estimate(scored.name, of["recall@1"], of["intervals"]["recall@1"])


def _template() -> Template:
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
        percent=numbers.percent,
        plain=numbers.plain,
        count=numbers.count,
        bin_name=figures.bin_name,
        directions=DIRECTIONS,
        direction_names=figures.DIRECTION_NAMES,
        recalls=RECALLS,
        cutoff_names=figures.CUTOFF_NAMES,
        cutoffs=CUTOFFS,
        curve_names=figures.CURVE_NAMES,
        language_names=LANGUAGE_NAMES,
    )
    return environment.get_template("report.html.jinja")


def _svg(figure: Figure, number: int, prefix: str, label: str) -> Markup:
    return Markup(svg(figure._replace(name=f"{prefix}-{figure.name}"), number, without_controls(label)))


def _clean(value: Any) -> Any:
    """A text as it is fit for a page; markup is the page's own."""
    return shortened(without_controls(value)) if type(value) is str else value
