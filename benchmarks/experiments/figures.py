"""The figures of the page of results, from the records alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.experiments import plan
from benchmarks.experiments.page import BUDGET_NAMES, NAMES, english_and_others, records_of
from benchmarks.experiments.quantities import Record, average
from benchmarks.experiments.running import Results
from benchmarks.experiments.trial import SPLITS

_COLOURS = {"one_to_k": "tab:blue", "one_to_one": "tab:orange", "english_pivot": "tab:green"}
_MARKERS = {"images": "o", "tokens": "s", "time": "^"}


def draw(results: Results, folder: Path, seeds: Sequence[int] = plan.SEEDS) -> None:
    """Write those figures whose trainings are there."""
    found = {
        (split, budget, row.name): records
        for split in SPLITS
        for budget in plan.BUDGETS
        for row in plan.objectives(budget, split, seeds)
        if (records := records_of(row, results))
    }
    if found:
        _save(objectives(found), folder / "objectives.png")
    rows = {row.name: records_of(row, results) for row in plan.mechanisms()}
    if all(rows.values()):
        _save(mechanisms(rows), folder / "mechanisms.png")


def _save(figure: Figure, path: Path) -> None:
    """As a PNG of few colours, which is small."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = BytesIO()
    figure.savefig(buffer, dpi=130)
    Image.open(buffer).convert("RGB").quantize(64).save(path, optimize=True)


def objectives(found: Mapping[tuple[str, str, str], Sequence[Record]]) -> Figure:
    """R@1 against MRV, a panel for each split: the mean and its interval of each objective and budget."""
    drawn = Figure(figsize=(9, 4), layout="constrained")
    for axes, split in zip(drawn.subplots(1, len(SPLITS), squeeze=False)[0], SPLITS, strict=True):
        for (of_split, budget, name), records in found.items():
            if of_split == split:
                recall, mrv = average(records, "R@1"), average(records, "MRV")
                axes.errorbar(
                    recall.value, mrv.value, xerr=recall.half, yerr=mrv.half,
                    fmt=_MARKERS[budget], color=_COLOURS[name], markersize=5, elinewidth=1,
                    label=f"{NAMES[name]}, {BUDGET_NAMES[budget]}",
                )  # fmt: skip
        axes.set_yscale("log")
        for of in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            of("{x:g}")
        _label(axes, f"{split} split", "R@1, %", "MRV")
    drawn.legend(
        *drawn.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False
    )
    return drawn


def mechanisms(rows: Mapping[str, Sequence[Record]]) -> Figure:
    """The other languages against English in the course of training, and the angles of both encoders' gradients."""
    drawn = Figure(figsize=(10, 3.6), layout="constrained")
    recall, *angles = drawn.subplots(1, 3)
    for name, records in rows.items():
        for number, record in enumerate(records):
            _, english, others = zip(*english_and_others(record), strict=True)
            recall.plot(
                [100 * of for of in english], [100 * of for of in others],
                color=_COLOURS[name], linewidth=1, label=NAMES[name] if number == 0 else None,
            )  # fmt: skip
        for axes, part in zip(angles, ("image encoder", "text encoder"), strict=True):
            steps = [of["step"] for of in records[0]["angles"]]
            for which, style in (("of a step", "-"), ("of their mean", "--")):
                means = [
                    statistics.mean(record["angles"][time][part][which] for record in records)
                    for time in range(len(steps))
                ]
                axes.plot(steps, means, style, color=_COLOURS[name], linewidth=1.2)
    for axes, part in zip(angles, ("image encoder", "text encoder"), strict=True):
        _label(axes, f"{part}: — a step, - - its mean", "step", "degrees from all languages")
        axes.set_ylim(bottom=0)
    highest = max(recall.get_xlim()[1], recall.get_ylim()[1])
    recall.plot([0, highest], [0, highest], color="0.8", linewidth=1, zorder=0)
    _label(recall, "R@1 in the course of training, %", "English", "mean of the other languages")
    recall.legend(fontsize=8, frameon=False)
    return drawn


def _label(axes: Axes, title: str, across: str, up: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(across, fontsize=8)
    axes.set_ylabel(up, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(color="0.92")
