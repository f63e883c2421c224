"""What a report says of each results document, and of several on the same data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from ccr_lightning.evaluation.scores import DIRECTIONS, PIVOT
from ccr_lightning.pages import without_controls
from ccr_lightning.report import figures, spread
from ccr_lightning.report.drawing import Figure
from ccr_lightning.report.instances import Instance, instances_of, most_inconsistent
from ccr_lightning.report.numbers import Numbers
from ccr_lightning.report.reading import Curve, Scored, read_config, read_curves
from ccr_lightning.report.records import Records

FindRecords = Callable[[Path, Mapping[str, Any], Sequence[str]], Records]

_ROWS = 20  # of a table of what was logged


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
    numbers: Numbers
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


def section_of(scored: Scored, find_records: FindRecords, is_first_of_run: bool) -> Section:
    """Put together what is said of a results document.

    Args:
        scored: The document, and its ranks.
        find_records: Given the folder of a run, its results and image ids, it finds pictures and captions.
        is_first_of_run: Whether to show the training and the configuration, which all documents of a run share.

    Raises:
        CCRError: What was logged, or the configuration, is damaged.
    """
    document = scored.document
    mrv = document["mrv"]
    is_defined = mrv["mean"] is not None
    consistency = None
    if is_defined and scored.ranks is not None:
        consistency = _consistency(scored, find_records)
    pairs = mrv.get("pairs")
    return Section(
        scored,
        Numbers(scored),
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
        named = {curve.name: curve for curve in curves if curve.name.startswith(prefix)}
        chosen = [named[name] for name in figures.CURVE_NAMES if name in named]
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


def compared(sections: Sequence[Section]) -> list[Compared]:
    """What was scored on the same data, as far as it is more than one."""
    by_data: dict[str, list[Section]] = {}
    for section in sections:
        by_data.setdefault(section.scored.document["data"]["sha256"], []).append(section)
    found = []
    for group in by_data.values():
        if len(group) > 1:
            scored = [section.scored for section in group]
            recalls = {direction: [_recall_at_1(of, direction) for of in scored] for direction in DIRECTIONS}
            mrvs = [(of.name, of.document["mrv"]) for of in scored if of.document["mrv"]["mean"] is not None]
            drawn = figures.runs_compared(
                recalls, [figures.Estimate(name, of["mean"], of["interval"]) for name, of in mrvs]
            )
            found.append(Compared(drawn._replace(name=f"runs-{scored[0].key}"), group))
    return found


def _recall_at_1(scored: Scored, direction: str) -> figures.Estimate:
    of = scored.document["mean_recalls"][direction]
    return figures.Estimate(scored.name, of["recall@1"], of["intervals"]["recall@1"])
