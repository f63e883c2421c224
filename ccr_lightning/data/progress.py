"""How far a long reading is, for whoever looks at the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

_T = TypeVar("_T")


def counted(items: Iterable[_T], what: str, unit: str, start: int = 0) -> Iterator[_T]:
    """Yield the items, and show on a terminal how many there were, how many a second, and the time so far.

    Args:
        items: The items.
        what: What is done.
        unit: What an item is, in the plural.
        start: How many there were before.
    """
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class Numbers(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.completed:,.0f} {unit}, {task.speed or 0:,.0f}/s")

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}:"), Numbers(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None, completed=start)
        for item in items:
            progress.advance(task)
            yield item
