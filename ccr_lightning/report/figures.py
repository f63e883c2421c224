"""The figures of a report, drawn from what is on the page as numbers too."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ccr_lightning.evaluation.scores import DIRECTIONS, RECALLS
from ccr_lightning.functional.galleries import Direction
from ccr_lightning.pages import LIGHT
from ccr_lightning.report.drawing import Figure, Panel, heat_colour
from ccr_lightning.report.reading import Curve
from ccr_lightning.report.spread import Bin, Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMN = 3.4  # inches, of a paper with two columns
DIRECTION_NAMES: dict[Direction, str] = {"image_to_text": "image → text", "text_to_image": "text → image"}
CUTOFF_NAMES = {name: name.replace("recall@", "R@") for name in RECALLS}
_CUTOFF_COLOURS = dict(zip(RECALLS, ("bar", "bar-2", "bar-3"), strict=True))
_SERIES = ("series-1", "series-2", "series-3", "series-4")
MOST_ANNOTATED = 16  # languages of a heat map whose cells have room for a number
_BINS_PER_DECADE = 8  # of ranks above ten, where points are drawn together
_MARKERS = ((64, 9.0), (16, 6.5), (4, 4.5), (2, 3.2), (1, 2.2))  # queries at a point from which on it has which size
_LONGEST_NAME = 28
_FAR = 50  # times the lowest value, from where on a curve is drawn on a logarithmic scale
_CURVES: dict[str, tuple[str, dict[str, str], float]] = {  # figure to title, curves and their labels, factor
    "losses": (
        "training loss",
        {
            "train/loss": "weighted sum",
            "train/contrastive": "contrastive",
            "train/matching": "matching",
            "train/masked_lm": "masked-LM",
        },
        1,
    ),
    "validation_recall": (
        "validation recall, %",
        {
            "val/mean_recall": "mean recall",
            "val/i2t/recall@1": "R@1 image → text",
            "val/t2i/recall@1": "R@1 text → image",
        },
        100,
    ),
    "validation_mrv": ("validation MRV", {"val/mrv": "MRV"}, 1),
}
CURVE_NAMES = {name: label for _, labels, _ in _CURVES.values() for name, label in labels.items()}


class Estimate(NamedTuple):
    """A number of a run, with its 95 % interval."""

    name: str
    value: float
    interval: Sequence[float] | None


def recall_bars(document: Mapping[str, Any]) -> Figure:
    """Recall of each language, a panel for each direction; the whisker is the interval of R@1."""
    languages = document["languages"]
    panels = [
        Panel(DIRECTION_NAMES[direction], partial(_draw_recall, languages=languages, direction=direction))
        for direction in DIRECTIONS
    ]
    legend = [(CUTOFF_NAMES[name], _CUTOFF_COLOURS[name]) for name in RECALLS]
    return Figure("recall", panels, COLUMN, 0.55 + 0.19 * len(languages), legend=legend)


def _draw_recall(axes: Axes, languages: Mapping[str, Any], direction: str) -> None:
    places = np.arange(len(languages))
    for name in reversed(RECALLS):
        widths = [100 * of[direction][name] for of in languages.values()]
        axes.barh(places, widths, height=0.74, color=LIGHT[_CUTOFF_COLOURS[name]])
    for place, of in enumerate(languages.values()):
        recall, interval = of[direction]["recall@1"], of[direction]["intervals"]["recall@1"]
        if interval is not None:
            _whisker(axes, [100 * end for end in interval], place)
        axes.text(102, place, f"{100 * recall:.1f}", va="center", fontsize=7, clip_on=False)
    axes.set(xlim=(0, 100), ylim=(len(languages) - 0.5, -0.5), xlabel="recall, % (number: R@1)")
    axes.set_yticks(places, list(languages))
    axes.spines["left"].set_visible(False)


def _whisker(axes: Axes, ends: Sequence[float], place: float) -> None:
    axes.plot(ends, [place, place], color=LIGHT["card"], linewidth=2.6, solid_capstyle="butt")
    axes.plot(ends, [place, place], color=LIGHT["text"], linewidth=0.9, solid_capstyle="butt")


def heat_map(languages: Sequence[str], pairs: Mapping[str, Mapping[str, float]]) -> Figure:
    """MRV of each two languages."""
    size = max(COLUMN, 0.2 + 0.2 * len(languages))
    draw = partial(_draw_heat, languages=languages, pairs=pairs)
    return Figure("agreement", [Panel("MRV of each two languages", draw)], size, size - 0.1)


def _draw_heat(axes: Axes, languages: Sequence[str], pairs: Mapping[str, Mapping[str, float]]) -> None:
    from matplotlib.colors import ListedColormap

    most = max((value for of in pairs.values() for value in of.values()), default=0) or 1
    count = len(languages)
    values = np.full((count, count), np.nan)
    for one, others in pairs.items():
        for other, value in others.items():
            i, j = languages.index(one), languages.index(other)
            values[i, j] = values[j, i] = value
    shares = sorted({share for share in (values / most).flatten().tolist() if not math.isnan(share)})
    indices = np.ma.masked_invalid(np.searchsorted(shares, values / most).astype(float))
    indices.mask |= np.isnan(values)
    colours = ListedColormap([heat_colour(share) for share in shares])
    axes.pcolormesh(indices, cmap=colours, vmin=-0.5, vmax=len(shares) - 0.5, edgecolors=LIGHT["card"], linewidth=0.6)
    if count <= MOST_ANNOTATED:
        for i, j in np.argwhere(~np.isnan(values)).tolist():
            axes.text(j + 0.5, i + 0.5, short(values[i, j]), ha="center", va="center", fontsize=min(7, 78 / count))
    axes.set(ylim=(count, 0), aspect="equal")
    ticks = np.arange(count) + 0.5
    axes.set_yticks(ticks, languages)
    axes.set_xticks(ticks, languages, rotation=0 if count <= MOST_ANNOTATED else 90)
    axes.tick_params(top=True, bottom=False, labeltop=True, labelbottom=False, labelcolor=LIGHT["text"])
    axes.spines[:].set_visible(False)


def short(value: float) -> str:
    """Write a variance in three or four characters.

    Example:
        >>> [short(value) for value in (0.234, 2.34, 23.4, 2340.0, 23400.0)]
        ['.23', '2.3', '23', '2340', '2e4']
    """
    if value >= 9999.5:
        return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")
    if value >= 9.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 0.995 else f"{value:.2f}".removeprefix("0")


def scatter(spread: Spread, first: str) -> Figure:
    """The rank in the first language against that in each other one, queries of both directions."""
    place = spread.languages.index(first)
    largest = float(spread.ranks.max())
    panels = [
        Panel(
            other,
            partial(
                _draw_scatter,
                points=_merged(spread.ranks[:, :, place].flatten(), spread.ranks[:, :, number].flatten()),
                largest=largest,
                names=(first, other),
            ),
        )
        for number, other in enumerate(spread.languages)
        if number != place
    ]
    return Figure("ranks", panels, 1.42, 1.42, columns=5)


def _merged(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Counter[tuple[float, float]]:
    """How many queries there are at each point; ranks that are hard to tell apart are drawn as one."""
    return Counter(zip(map(_coarse, x.tolist()), map(_coarse, y.tolist()), strict=True))


def _coarse(rank: float) -> float:
    if rank <= 10:
        return round(2 * rank) / 2
    return float(f"{10 ** (round(_BINS_PER_DECADE * math.log10(rank)) / _BINS_PER_DECADE):.3g}")


def _draw_scatter(axes: Axes, points: Counter[tuple[float, float]], largest: float, names: tuple[str, str]) -> None:
    ends = (0.7, max(14.0, 1.4 * largest))
    axes.plot(ends, ends, color=LIGHT["muted"], linewidth=0.6, zorder=1)
    scale, more = min(1, 1.6 / math.log10(ends[1])), math.inf
    for least, size in _MARKERS:
        chosen = [point for point, count in points.items() if least <= count < more]
        if chosen:
            x, y = zip(*chosen, strict=True)
            axes.plot(x, y, "o", markersize=scale * size, color=LIGHT["series-1"], alpha=0.6, markeredgewidth=0)
        more = least
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    ticks = [10**power for power in range(1 + int(math.log10(ends[1])))]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, [_compact(tick) for tick in ticks])
        axis.set_ticks([], minor=True)
    axes.tick_params(labelcolor=LIGHT["muted"])
    axes.set_xlabel(names[0], labelpad=0, color=LIGHT["text"], size=8)
    axes.set_ylabel(names[1], labelpad=0, color=LIGHT["text"], size=8)


def variance_bars(bins: Sequence[Bin]) -> Figure:
    """How many images have a rank variance of which size."""
    draw = partial(_draw_bins, bins=bins)
    return Figure("variance", [Panel("rank variance of the images", draw)], COLUMN, 2.7)


def bin_name(of: Bin) -> str:
    """Write the range of a bin.

    Example:
        >>> [bin_name(Bin(above, 3 * (above or 0), 5)) for above in (None, 0.1, 1e3, 1e6)]
        ['0', '0.1–0.3', '1k–3k', '1M–3M']
    """
    return "0" if of.above is None else f"{_compact(of.above)}–{_compact(of.up_to)}"


def _compact(value: float) -> str:
    for least, unit in ((1e6, "M"), (1e3, "k")):
        if value >= least:
            return f"{value / least:g}{unit}"
    return f"{value:g}"


def _draw_bins(axes: Axes, bins: Sequence[Bin]) -> None:
    total = sum(of.images for of in bins)
    places = np.arange(len(bins))
    shares = [100 * of.images / total for of in bins]
    axes.bar(places, shares, width=0.82, color=[LIGHT["bar-2"], *[LIGHT["bar"]] * (len(bins) - 1)])
    for place, (of, share) in enumerate(zip(bins, shares, strict=True)):
        axes.annotate(f"{of.images}", (place, share), (0, 2), textcoords="offset points", ha="center", fontsize=6.5)
    rotation = 0 if len(bins) <= 6 else 40
    anchor: dict[str, Any] = {"rotation": rotation} | ({"ha": "right", "rotation_mode": "anchor"} if rotation else {})
    axes.set_xticks(places, [bin_name(of) for of in bins], **anchor)
    axes.set(xlabel="variance of the rank over the languages", ylabel="images, %", ylim=(0, 1.12 * max(shares)))
    axes.grid(axis="y")
    axes.tick_params(axis="y", labelcolor=LIGHT["muted"])


def curve_figures(curves: Sequence[Curve]) -> list[Figure]:
    """Losses, validation recall and validation MRV, as far as they were logged."""
    named = {curve.name: curve for curve in curves}
    figures = []
    for name, (title, labels, factor) in _CURVES.items():
        there = [of for of in labels if of in named]
        if there:
            draw = partial(_draw_curves, curves=[named[of] for of in there], label=title, factor=factor)
            legend = [(labels[of], colour) for of, colour in zip(there, _SERIES, strict=False)]
            figures.append(Figure(name, [Panel(title, draw)], COLUMN, 2.0, legend=legend if len(legend) > 1 else ()))
    return figures


def _draw_curves(axes: Axes, curves: Sequence[Curve], label: str, factor: float) -> None:
    for curve, colour in zip(curves, _SERIES, strict=False):
        values = [factor * value for value in curve.values]
        axes.plot(curve.steps, values, color=LIGHT[colour], linewidth=1.3)
        if len(values) <= 20:
            axes.plot(curve.steps, values, "o", color=LIGHT[colour], markersize=2.6)
    axes.set(xlabel="step", ylabel=label)
    lowest, highest = axes.dataLim.intervaly
    if len(curves) == 1 and lowest > 0 and highest > _FAR * lowest:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    elif factor == 1:
        axes.set_ylim(bottom=min(0, lowest))
    axes.grid(axis="y")
    axes.tick_params(axis="y", labelcolor=LIGHT["muted"])


def runs_compared(recalls: Mapping[Direction, Sequence[Estimate]], mrv: Sequence[Estimate]) -> Figure:
    """R@1 of both directions, and MRV where it is defined, of several runs.

    Args:
        recalls: Direction to the runs.
        mrv: The runs; none if it is undefined for all.
    """
    panels = [
        Panel(f"mean R@1, {DIRECTION_NAMES[direction]}, %", partial(_draw_runs, estimates=of, factor=100))
        for direction, of in recalls.items()
    ]
    if mrv:
        panels.append(Panel("MRV, lower is better", partial(_draw_runs, estimates=mrv, factor=1)))
    most = max(len(of) for of in (*recalls.values(), mrv))
    return Figure("runs", panels, COLUMN, 0.55 + 0.26 * most)


def _draw_runs(axes: Axes, estimates: Sequence[Estimate], factor: float) -> None:
    for place, of in enumerate(estimates):
        ends = [of.value, of.value] if of.interval is None else list(of.interval)
        axes.plot([factor * end for end in ends], [place, place], color=LIGHT["series-1"], linewidth=1.4)
        axes.plot([factor * of.value], [place], "o", color=LIGHT["series-1"], markersize=5)
    axes.set_ylim(len(estimates) - 0.5, -0.5)
    axes.set_yticks(range(len(estimates)), [_cut(of.name) for of in estimates])
    axes.margins(x=0.12)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
