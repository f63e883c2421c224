"""The figure of benchmarks.growth, from its document alone."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from PIL import Image

COLUMNS = {
    "ranks": ("Exact ranks, recalls and MRV, both directions", "images, with one caption each"),
    "loss": ("1-to-K loss and its gradient", "images in the batch, with 10 captions each"),
}
ROWS = {"seconds": "CPU seconds", "mebibytes": "peak memory beyond embeddings, MiB"}
LINES = (  # before the name of a way, and its style, in the order of the document
    ("floor: ", {"color": "0.45", "linestyle": "--", "linewidth": 1.2}),
    ("ours: ", {"color": "tab:blue", "marker": "o", "markersize": 5, "linewidth": 3, "zorder": 3}),
    ("", {"color": "tab:orange", "marker": "s", "markersize": 4, "linewidth": 1.2}),
    ("", {"color": "tab:green", "marker": "^", "markersize": 4, "linewidth": 1.2}),
)


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Write the figure as a PNG of few colours, which is small."""
    buffer = BytesIO()
    figure(document).savefig(buffer, dpi=150)
    Image.open(buffer).convert("RGB").quantize(64).save(path, optimize=True)


def figure(document: Mapping[str, Any]) -> Figure:
    """Seconds and memory (rows) of the ranks and the loss (columns) against size, all of them logarithmic."""
    drawn = Figure(figsize=(9, 8), layout="constrained")
    of = document["machine"]
    machine = f"one thread of {of['processor']}, torch {of['torch']}, embeddings of 256 components"
    drawn.suptitle(f"Cost as work grows\n{machine}", fontsize=10)
    axes = drawn.subplots(2, 2, sharex="col")
    for column, (name, (title, unit)) in zip(axes.T, COLUMNS.items(), strict=True):
        work = document[name]
        for axis, (what, label) in zip(column, ROWS.items(), strict=True):
            for (way, series), (kind, style) in zip(work["ways"].items(), LINES, strict=False):
                axis.loglog(series["sizes"], series[what], label=f"{kind}{way}{_stopped(series)}", **style)
            axis.set_ylabel(label)
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axis.yaxis.set_minor_locator(NullLocator())
            axis.grid(color="0.9")
        column[0].set_title(title, fontsize=10)
        _shade_libraries(column[1], work["libraries_mebibytes"])
        column[1].set_xlabel(unit)
        sizes = max((series["sizes"] for series in work["ways"].values()), key=len)
        column[1].set_xticks(sizes, [f"{size:,}" for size in sizes])
        column[1].xaxis.set_minor_locator(NullLocator())
        column[1].legend(loc="upper left", bbox_to_anchor=(0, -0.18), fontsize=8, frameon=False)
    return drawn


def _stopped(series: Mapping[str, Any]) -> str:
    """Why a way has no more points, if it has not."""
    if "next" not in series:
        return ""
    of = series["next"]
    if of["mebibytes"] > 8192:
        return f"\n({of['size']:,} would need about {of['mebibytes'] / 1024:.0f} GiB)"
    return f"\n({of['size']:,} would take about {of['seconds'] / 60:.0f} minutes)"


def _shade_libraries(axis: Axes, mebibytes: float) -> None:
    """Memory that cannot be told from that of the libraries."""
    bottom = axis.get_ylim()[0] / 2
    axis.set_ylim(bottom=bottom)
    axis.axhspan(bottom, mebibytes, color="0.93", zorder=0)
    note = f"up to {mebibytes:.0f} MiB: code and buffers of the libraries"
    axis.annotate(note, (0.02, 0.02), xycoords="axes fraction", fontsize=8, color="0.35")
