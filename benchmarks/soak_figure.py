"""The figure of benchmarks.soak, from its document alone."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

FAULT_COLOURS = {"SIGTERM": "tab:blue", "SIGINT": "tab:cyan", "SIGKILL": "tab:red", "killed worker": "tab:orange"}
FAULT_COLOURS |= {"truncated checkpoint": "tab:purple", "flipped bit": "tab:pink", "full disk": "tab:brown"}


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Write the figure as a PNG of few colours, which is small."""
    buffer = BytesIO()
    figure(document).savefig(buffer, dpi=130)
    Image.open(buffer).convert("RGB").quantize(64).save(path, optimize=True)


def figure(document: Mapping[str, Any]) -> Figure:
    """Memory and open files of the hurt run's processes against minutes, a line for each start, with the faults."""
    drawn = Figure(figsize=(10, 6), layout="constrained")
    ended = sum("statuses" in fault for fault in document["faults"])
    drawn.suptitle(
        f"{document['steps']} steps in {document['processes']} starts: {ended} faults that ended the process, "
        f"{document['passed_over']} steps whose loss was not a number\n"
        f"mean recall {100 * document['hurt']['mean_recall']:.1f} %, left alone "
        f"{100 * document['clean']['mean_recall']:.1f} %",
        fontsize=10,
    )
    memory, files = drawn.subplots(2, 1, sharex=True)
    for _, rows in groupby(document["watched"], key=lambda row: row[1]):
        minutes, _, mebibytes, opened = zip(*rows, strict=True)
        memory.plot(minutes, mebibytes, linewidth=1, color="0.25")
        files.plot(minutes, opened, linewidth=1, color="0.25")
    for fault, colour in FAULT_COLOURS.items():
        when = [of["minute"] for of in document["faults"] if of["fault"] == fault]
        for number, minute in enumerate(when):
            for axis in (memory, files):
                axis.axvline(minute, color=colour, linewidth=1.2, alpha=0.7, label=fault if number == 0 else None)
    memory.set_ylabel("memory of all its processes, MiB")
    files.set_ylabel("their open files")
    files.set_xlabel("minutes")
    for axis in (memory, files):
        axis.set_ylim(bottom=0)
        axis.grid(color="0.92")
    drawn.legend(*memory.get_legend_handles_labels(), loc="outside lower center", ncols=7, fontsize=8, frameon=False)
    return drawn
