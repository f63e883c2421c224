"""``ccr doctor``: what is installed, what the machine has, and what to do about what is wrong."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from ccr_lightning.cli.arguments import CommandArguments
from ccr_lightning.cli.streams import json_text
from ccr_lightning.doctor import devices, folders, machine, packages, settings
from ccr_lightning.doctor.finding import Finding, Status

HELP = """\
usage: ccr doctor [options]

Says which versions are installed, which devices there are, how much memory and disk is free, where commands write, what
is optional and missing, and what to do about each problem. It asks nothing of the network, and takes some seconds at
most. The exit status is 1 if there is a problem.

options:
  --runs_dir DIR        the folder of runs to look at (default: runs)
  --json                one JSON document, for a report of a bug: look through it before you send it, it has paths

examples:
  ccr doctor
  ccr doctor --json > doctor.json
"""

_MARKS: dict[Status, tuple[str, str]] = {"ok": ("ok", "32"), "advice": ("note", "33"), "problem": ("PROBLEM", "31")}
_WIDTH = 100


def run(args: Sequence[str]) -> int:
    """Prints what is found; returns 1 if there is a problem.

    Raises:
        CCRError: An option is unknown.
    """
    if any(arg in ("-h", "--help") for arg in args):
        print(HELP, end="")
        return 0
    parser = CommandArguments("doctor")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(args)
    found = [*packages.examine(), *devices.examine(), *machine.examine()]
    found += [*folders.examine(options.runs_dir), *settings.examine()]
    if options.json:
        print(json_text([finding._asdict() for finding in found], indent=1))
    else:
        _show(found)
    return int(any(finding.status == "problem" for finding in found))


def _show(found: Sequence[Finding]) -> None:
    for topic, findings in groupby(found, key=lambda finding: finding.topic):
        print(topic)
        for finding in findings:
            more = f" ({finding.remedy})" if finding.remedy and finding.status == "ok" else ""
            _print_wrapped(f"  {_mark(finding.status)} ", f"{finding.name}: {finding.found}{more}")
    for status, heading in (("advice", "notes"), ("problem", "problems")):
        _show_remedies(heading, [finding for finding in found if finding.status == status])
    problems = sum(finding.status == "problem" for finding in found)
    print({0: "\nno problems", 1: "\n1 problem"}.get(problems, f"\n{problems} problems"))


def _show_remedies(heading: str, findings: Iterable[Finding]) -> None:
    for number, finding in enumerate(findings):
        if number == 0:
            print(f"\n{heading}")
        _print_wrapped("  - ", f"{finding.name}: {finding.found}")
        _print_wrapped("    -> ", finding.remedy)


def _mark(status: Status) -> str:
    word, colour = _MARKS[status]
    padded = f"{word:7}"
    return f"\033[{colour}m{padded}\033[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else padded


def _print_wrapped(before: str, text: str) -> None:
    """A mark may have invisible characters, which are not counted."""
    indent = 10 if "-" not in before else len(before)
    lines = textwrap.wrap(text, _WIDTH - indent, break_long_words=False, break_on_hyphens=False)
    print(before + f"\n{' ' * indent}".join(lines or [""]))
