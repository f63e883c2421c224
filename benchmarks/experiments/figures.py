"""The figures of the page of results, from the records alone."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from benchmarks.experiments import ablations, plan
from benchmarks.experiments.gradients import PARTS
from benchmarks.experiments.mechanisms import ANGLES
from benchmarks.experiments.quantities import Interval, Record, average
from benchmarks.experiments.running import Results
from benchmarks.experiments.tables import NAMES, named, records_of
from benchmarks.experiments.trial import SPLITS
from ccr_lightning.files import sha256_of

RECORDS = "sha256 of runs.jsonl"
_COLOURS = {"one_to_k": "tab:blue", "one_to_one": "tab:orange", "english_pivot": "tab:green"}
_BEYOND = {"one_to_k, text to text": "tab:red"}
_VARIED = {  # title of a table of ablations, and what stands below its axis
    "length of training": "epochs",
    "languages per step": "languages per step (K)",
    "missing captions": "missing captions, %",
    "swapped captions": "swapped captions, %",
}
_MARKERS = {"one_to_one, equal text tokens": "s", "one_to_one, equal CPU time": "^"}


def draw(results: Results, folder: Path) -> None:
    """Write those figures whose trainings are there; each says of which records it is."""
    digest = sha256_of(results.path) if results.found else ""
    found = {
        (split, row.name): records
        for split in SPLITS
        for row in (*plan.at_budgets(split), plan.beyond(split, plan.SEEDS)[1])
        if (records := records_of(row, results))
    }
    if found:
        _save(objectives(found), folder / "objectives.png", digest)
    rows = {row.name: records_of(row, results) for row in plan.mechanisms()}
    if all(rows.values()):
        _save(mechanisms(rows), folder / "mechanisms.png", digest)
    varied = {
        title: [(row.name, records) for row in ablations.ablations()[title] if (records := records_of(row, results))]
        for title in _VARIED
    }
    if all(varied.values()):
        _save(varied_settings(varied), folder / "ablations.png", digest)


def _save(figure: Figure, path: Path, digest: str) -> None:
    """As a PNG of few colours, which is small, with the sha256 of the records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = BytesIO()
    figure.savefig(buffer, dpi=130)
    said = PngInfo()
    said.add_text(RECORDS, digest)
    Image.open(buffer).convert("RGB").quantize(64).save(path, optimize=True, pnginfo=said)


def objectives(found: Mapping[tuple[str, str], Sequence[Record]]) -> Figure:
    """R@1 against MRV, a panel for each split: the mean and its interval of each setting."""
    drawn = Figure(figsize=(9, 4), layout="constrained")
    for axes, split in zip(drawn.subplots(1, len(SPLITS), squeeze=False)[0], SPLITS, strict=True):
        for (of_split, name), records in found.items():
            if of_split == split:
                recall, mrv = average(records, "R@1"), average(records, "MRV")
                axes.errorbar(
                    recall.value, mrv.value, xerr=_ends(recall), yerr=_ends(mrv),
                    fmt=_MARKERS.get(name, "o"), color=_BEYOND.get(name, _COLOURS[name.partition(",")[0]]),
                    markersize=5, elinewidth=1, label=named(name),
                )  # fmt: skip
        _log(axes)
        _label(axes, f"{split} split", "R@1, %", "MRV")
    drawn.legend(
        *drawn.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False
    )
    return drawn


def mechanisms(rows: Mapping[str, Sequence[Record]]) -> Figure:
    """Above each language against English in the course of training, below the angles of both encoders' gradients."""
    drawn = Figure(figsize=(10, 6.6), layout="constrained")
    above, below = drawn.subfigures(2, 1)
    panels = above.subplots(1, len(rows), sharex=True, sharey=True)
    panels[0].set_ylabel("R@1 of each other language, %", fontsize=8)
    for axes, (name, records) in zip(panels, rows.items(), strict=True):
        courses = [[of["recall@1"] for of in record["by_language"]] for record in records]
        for language in [language for language in courses[0][0] if language != plan.PIVOT]:
            by_time = [[100 * statistics.mean(of[key] for of in time) for key in (plan.PIVOT, language)]
                       for time in zip(*courses, strict=True)]  # fmt: skip
            axes.plot(*zip(*by_time, strict=True), color=_COLOURS[name], linewidth=0.8)
        axes.axline((0, 0), slope=1, color="0.8", linewidth=1, zorder=0)
        _label(axes, NAMES[name], "R@1 of English in the course of training, %", axes.get_ylabel())
    halves = below.subplots(1, len(PARTS), sharey=True)
    for axes, part in zip(halves, PARTS, strict=True):
        records = rows["one_to_k"]
        steps = [of["step"] for of in records[0]["angles"]]
        for name, colour in _COLOURS.items():
            for which, style in zip(ANGLES, ("-", "--"), strict=True):
                means = [
                    statistics.mean(record["angles"][time][name][part][which] for record in records)
                    for time in range(len(steps))
                ]
                label = NAMES[name] if which == ANGLES[0] else None
                axes.plot(steps, means, style, color=colour, linewidth=1.2, label=label)
        _label(axes, f"{part}: — a step, - - its expectation", "step", "degrees from all languages")
    halves[0].set_ylim(bottom=0)
    halves[0].legend(fontsize=8, frameon=False)
    return drawn


def varied_settings(varied: Mapping[str, Sequence[tuple[str, Sequence[Record]]]]) -> Figure:
    """R@1 and MRV of each objective against what was varied, with intervals."""
    drawn = Figure(figsize=(10, 5), layout="constrained")
    panels = drawn.subplots(2, len(varied), sharex="col", sharey="row")
    for column, (title, rows) in zip(panels.T, varied.items(), strict=True):
        every: list[float] = []
        for objective, colour in _COLOURS.items():
            of = [(name, records) for name, records in rows if records[0]["objective"] == objective]
            if not of:
                continue
            at = [float(number[0]) if (number := re.search(r"\d+", name)) else 0.0 for name, _ in of]
            every += at
            for axes, quantity in zip(column, ("R@1", "MRV"), strict=True):
                means = [average(records, quantity) for _, records in of]
                axes.errorbar(
                    at, [mean.value for mean in means], yerr=np.hstack([_ends(mean) for mean in means]),
                    color=colour, linewidth=1.2, elinewidth=1, marker="o", markersize=3, label=NAMES[objective],
                )  # fmt: skip
        if title in ("length of training", "languages per step"):
            column[0].set_xscale("log", base=2)
            column[0].xaxis.set_major_locator(FixedLocator(sorted(set(every))))
            column[0].xaxis.set_major_formatter("{x:g}")
        _log(column[1])
        _label(column[0], title, "", "")
        _label(column[1], "", _VARIED[title], "")
    for axes, name in zip(panels[:, 0], ("R@1, %", "MRV"), strict=True):
        axes.set_ylabel(name, fontsize=8)
    drawn.legend(
        *panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False
    )
    return drawn


def _ends(mean: Interval) -> Any:
    """Of error bars: how far an interval reaches down and up, (2, 1)."""
    return np.array([[mean.value - mean.low], [mean.high - mean.value]])


def _log(axes: Axes) -> None:
    """An axis upwards with 1, 2, 5, 10, ..."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def _label(axes: Axes, title: str, across: str, up: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(across, fontsize=8)
    axes.set_ylabel(up, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(color="0.92")
