"""Tables in terminals."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table


def print_table(table: Table) -> None:
    """Prints a table as wide as it is: in a terminal that is narrower its lines break, and no number is cut off."""
    console = Console(highlight=False)
    options = console.options.update(width=10_000)
    console.width = max(console.width, Measurement.get(console, options, table).maximum)
    console.print(table)
