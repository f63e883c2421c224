"""How far a long piece of work is, for whoever looks at the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

_T = TypeVar("_T")
_ticks = 0


def tick() -> None:
    """Notes that a batch, or an item of other long work, is done: who waits for this process knows that it works."""
    global _ticks
    _ticks += 1


def ticks() -> int:
    """How often this process has called :func:`tick`.

    Example:
        >>> before = ticks()
        >>> tick()
        >>> ticks() - before
        1
    """
    return _ticks


def counted(items: Iterable[_T], what: str, unit: str, start: int = 0) -> Iterator[_T]:
    """Yield the items, and show on a terminal how many there were, how many a second, and the time so far.

    Args:
        items: The items.
        what: What is done.
        unit: What an item is, in the plural.
        start: How many there were before.
    """
    with progress(what, unit, start=start) as advance:
        for item in items:
            advance(1)
            yield item


@contextmanager
def progress(
    what: str, unit: str, *, total: int | None = None, start: int = 0, is_shown: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how far something is; yields a function that is told what is done.

    Args:
        what: What is done.
        unit: What is counted, in the plural.
        total: How many there will be, to show the time that is left; None if nobody knows.
        start: How many there were before.
        is_shown: Whether to show it at all: one process of several.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Numbers(ProgressColumn):
        def render(self, task: Task) -> Text:
            of_all = "" if task.total is None else f" of {task.total:,.0f}"
            return Text(f"{task.completed:,.0f}{of_all} {unit}, {task.speed or 0:,.0f}/s")

    console = Console(stderr=True)
    end = (TimeElapsedColumn(),) if total is None else (BarColumn(), TextColumn("left:"), TimeRemainingColumn())
    columns = (SpinnerColumn(), TextColumn("{task.description}:"), Numbers(), *end)
    with Progress(*columns, console=console, transient=True, disable=not (is_shown and console.is_terminal)) as bar:
        task = bar.add_task(what, total=total, completed=start)

        def advance(done: int) -> None:
            tick()
            bar.advance(task, done)

        yield advance
