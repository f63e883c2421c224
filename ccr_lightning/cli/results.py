"""``ccr results``: several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from ccr_lightning.cli.arguments import CommandArguments
from ccr_lightning.evaluation.comparison import Format, comparison, read_results, rows_of
from ccr_lightning.evaluation.published import published_rows

HELP = """\
usage: ccr results RUN... [options]

Shows the test results of several runs side by side, in the layout of the paper's Table 1: a row for each model, with
and without re-ranking, and columns for each benchmark. 'ccr test --config configs/test/X.yaml' writes them to RUN-X/.

arguments:
  RUN                   the folder of a run or of a test of it (without results it is passed over), or a results file

options:
  --format F            table (default), markdown, latex (needs the package booktabs) or csv (unrounded)
  --published           add the rows of the paper's Table 1 (what it calls MRV has the size of MRSD: docs/evaluation.md)

example:
  ccr results runs/my-run* --published
"""


def run(args: Sequence[str]) -> int:
    """Prints the table.

    Raises:
        CCRError: For whatever the user can put right.
    """
    if not args or any(arg in ("-h", "--help") for arg in args):
        print(HELP, end="")
        return 0
    parser = CommandArguments("results")
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--format", choices=get_args(Format), default="table")
    parser.add_argument("--published", action="store_true")
    options = parser.parse_args(args)
    published = published_rows() if options.published else {}
    print(comparison({**published, **rows_of(read_results(options.runs))}, options.format))
    return 0
