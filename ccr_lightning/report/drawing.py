"""Figures by matplotlib: as SVG in a page, in the page's colours and type, and as PNG for papers."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ccr_lightning.pages import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Draw = Callable[["Axes"], None]

HEAT_LEVELS = 50
DPI = 300
_PAPER = "#ffffff"


class Panel(NamedTuple):
    """One set of axes."""

    title: str
    draw: Draw


class Figure(NamedTuple):
    """Panels of one kind, which a page lays out as it has room, and a paper in rows."""

    name: str  # of its file, and of its marks in a page
    panels: list[Panel]
    width: float  # of a panel, in inches: those of a column of a paper, or a part of it
    height: float
    columns: int = 2  # of panels in a paper
    legend: Sequence[tuple[str, str]] = ()  # text, and the name of a colour of the pages


def heat_colour(share: float) -> str:
    """Return the colour of a share of the largest value, from that of a card to ``heat``.

    Example:
        >>> heat_colour(0) == LIGHT["card"], heat_colour(1) == LIGHT["heat"]
        (True, True)
    """
    return _heat(round(HEAT_LEVELS * share))


def _heat(level: int) -> str:
    ends = [[int(LIGHT[name][place : place + 2], 16) for place in (1, 3, 5)] for name in ("card", "heat")]
    mixed = (round(a + (b - a) * level / HEAT_LEVELS) for a, b in zip(*ends, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _css_colours() -> dict[str, str]:
    """What the colours that figures are drawn in are in a page, which may be dark."""
    mixes = {
        _heat(level): f"color-mix(in srgb, var(--heat) {100 * level // HEAT_LEVELS}%, var(--card))"
        for level in range(1, HEAT_LEVELS)
    }
    return mixes | {colour: f"var(--{name})" for name, colour in LIGHT.items()}


@contextmanager
def _style() -> Iterator[None]:
    from matplotlib import rc_context

    ink, muted, line = (LIGHT[name] for name in ("text", "muted", "line"))
    settings: Any = {
        **{"font.size": 7.5, "axes.titlesize": 8, "axes.titlelocation": "left", "axes.titleweight": "bold"},
        **{"axes.labelsize": 7.5, "xtick.labelsize": 7, "ytick.labelsize": 7, "axes.titlepad": 5},
        **{"text.color": ink, "axes.titlecolor": ink, "axes.labelcolor": muted},
        **{"xtick.color": line, "ytick.color": line, "xtick.labelcolor": muted, "ytick.labelcolor": ink},
        **{"axes.edgecolor": line, "axes.linewidth": 0.6, "grid.color": line, "grid.linewidth": 0.5},
        **{"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True},
        **{"xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0, "ytick.minor.size": 0},
        **{"figure.constrained_layout.use": True, "svg.fonttype": "none", "text.parse_math": False},
        **{"axes.unicode_minus": False, "path.simplify": False},
    }
    with rc_context({"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], **settings}):
        yield


def svg(figure: Figure, number: int, label: str) -> str:
    """Draw a panel as an SVG element for a page: text is text, and colours are the page's variables.

    Args:
        figure: The figure.
        number: Which of its panels.
        label: What a screen reader says of it.
    """
    from matplotlib import rc_context

    panel = figure.panels[number]
    with _style(), rc_context({"svg.hashsalt": f"{figure.name}-{number}"}):
        canvas = _canvas(figure.width, figure.height)
        panel.draw(canvas.subplots())
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    label = html.escape(label)
    return _for_page(buffer.getvalue()).replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def png(figure: Figure) -> bytes:
    """Draw all panels of a figure on white, in the size of a column of a paper or of its page."""
    columns = min(figure.columns, len(figure.panels))
    rows = -(-len(figure.panels) // columns)
    with _style():
        canvas = _canvas(figure.width * columns, figure.height * rows + (0.25 if figure.legend else 0))
        axes = canvas.subplots(rows, columns, squeeze=False).flatten()
        for of, panel in zip(axes, figure.panels, strict=False):
            panel.draw(of)
            if len(figure.panels) > 1:
                of.set_title(panel.title)
        for of in axes[len(figure.panels) :]:
            of.remove()
        if figure.legend:
            from matplotlib.patches import Patch

            patches = [Patch(color=LIGHT[colour], label=label) for label, colour in figure.legend]
            space = {"handlelength": 1.0, "handletextpad": 0.4, "columnspacing": 1.0, "fontsize": 7}
            canvas.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False, **space)
        buffer = io.BytesIO()
        canvas.savefig(buffer, format="png", dpi=DPI, facecolor=_PAPER, metadata={"Software": None})
    return buffer.getvalue()


def _canvas(width: float, height: float) -> Canvas:
    from matplotlib.figure import Figure as Canvas

    return Canvas(figsize=(width, height))


def _for_page(drawn: str) -> str:
    """Only the element itself, small, without a size of its own, fonts and colours left to the page."""
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", drawn.replace("\n", " "), count=1)
    drawn = re.sub(r' (xmlns(:xlink)?|version)="[^"]*"', "", drawn).replace("xlink:href", "href")
    drawn = re.sub(r"<[^>]*>", partial(_for_page_tag, colours=_css_colours()), drawn)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', drawn))
    drawn = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", drawn)
    drawn = re.sub(r">\s+<", "><", re.sub(r" {2,}", " ", drawn)).strip()
    return re.sub(r"<g([^>]*)>((?:<use [^>]*>(?:</use>)?)+)</g>", _style_once, drawn)


def _for_page_tag(found: re.Match[str], colours: Mapping[str, str]) -> str:
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", found[0])
    tag = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", tag)  # as matplotlib 3.10 says both
    tag = re.sub(r"#[0-9a-f]{6}\b", lambda colour: colours.get(colour[0], colour[0]), tag)
    return re.sub(r"(\d\.\d\d)\d+", r"\1", tag)


def _style_once(found: re.Match[str]) -> str:
    """Points of one style say it together."""
    styles = set(re.findall(r' style="[^"]*"', found[2]))
    if len(styles) != 1:
        return found[0]
    (style,) = styles
    return f"<g{found[1]}{style}>{found[2].replace(style, '')}</g>"
