"""Small pictures in terminals: sharp where the terminal can show images, of coloured half cells elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from PIL import Image

_COLUMNS = 16  # of a picture
_PIXELS = 256  # more would only take time to send


def can_show() -> bool:
    """Return whether standard output is a terminal with colours and a size, and the library for it is installed."""
    if (
        sys.stdout is None
        or not sys.stdout.isatty()
        or os.environ.get("TERM", "dumb") == "dumb"
        or "NO_COLOR" in os.environ
    ):
        return False
    if not os.get_terminal_size().columns:
        return False
    try:
        import textual_image  # noqa: F401
    except ImportError:
        return False
    return True


def print_thumbnails(images: Sequence[Image.Image | None]) -> None:
    """Prints pictures side by side, each over its number; None for one that cannot be shown."""
    from rich.console import Console, RenderableType
    from rich.table import Table
    from textual_image.renderable import Image as Thumbnail

    console = Console()
    in_a_row = max(1, console.width // (_COLUMNS + 2))
    for start in range(0, len(images), in_a_row):
        row = images[start : start + in_a_row]
        grid = Table.grid(padding=(0, 1))
        cells: list[RenderableType] = []
        for image in row:
            grid.add_column(justify="center", width=_COLUMNS)
            if image is None:
                cells.append("(cannot be read)")
                continue
            small = image.copy()
            small.thumbnail((_PIXELS, _PIXELS))
            cells.append(Thumbnail(small, width=_COLUMNS, height="auto"))
        grid.add_row(*cells)
        grid.add_row(*(str(number) for number in range(start + 1, start + 1 + len(row))))
        console.print(grid)
