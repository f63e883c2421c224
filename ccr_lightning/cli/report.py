"""``ccr report``: one page on the results of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccr_lightning.cli.arguments import CommandArguments
from ccr_lightning.errors import CCRError

if TYPE_CHECKING:
    from ccr_lightning.report.records import Records

HELP = """\
usage: ccr report RUN... [-o PAGE] [--png DIR]

Writes one HTML page on the test results of runs, to read offline and to send to others: recall per language and
direction, how much the languages agree, the images on which they disagree most, training curves, several runs side by
side, and what produced them. Every number is that of results.json.

arguments:
  RUN                   the folder of a run or of a test of it, or a results file; results.json and
                        results-reranked.json each have a section

options:
  -o, --output PAGE     the page, replaced if it is there (default: report.html)
  --png DIR             write the figures for papers, too: PNG of 300 dots per inch, on white

Pictures and captions are those of the data that was scored, for as long as it is where it was. The page embeds some
of them: mind who may see it.

examples:
  ccr report runs/pretrain -o report.html
  ccr report runs/pretrain runs/pivot --png figures
"""

_LARGE = 5_000_000  # bytes of a page


def run(args: Sequence[str]) -> int:
    """Writes the page and prints what was written.

    Raises:
        CCRError: For whatever the user can put right.
    """
    if not args or any(arg in ("-h", "--help") for arg in args):
        print(HELP, end="")
        return 0
    from ccr_lightning.report.requirements import require_libraries

    parser = CommandArguments("report")
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"))
    parser.add_argument("--png", type=Path)
    options = parser.parse_args(args)
    require_libraries()
    from ccr_lightning.report.page import write_report

    page, *figures = write_report(options.runs, options.output, find_records_of_run, options.png)
    print(f"{page.path}: written, {page.bytes / 1e6:.1f} MB; open it in a browser")
    if figures:
        print(f"{options.png}: {len(figures)} figures written, {sum(of.bytes for of in figures) / 1e6:.1f} MB")
    if page.bytes > _LARGE:
        print(f"the page is above {_LARGE / 1e6:.0f} MB: name fewer runs if it is to be sent")
    return 0


def find_records_of_run(folder: Path, document: Mapping[str, Any], names: Sequence[str]) -> Records:
    """Finds pictures and captions of the data of a run.

    Args:
        folder: That of the run, whose configuration may say where its stores are.
        document: Its results, which say what its data are.
        names: Image ids.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    from ccr_lightning.cli.messages import load_config, own_cause
    from ccr_lightning.cli.trusted import known_groups, refuse_other_classes
    from ccr_lightning.data.cache import cache_folder
    from ccr_lightning.data.sources.protocol import Source
    from ccr_lightning.report.records import Records, find_records

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--source", type=Source)
    try:
        config = load_config(str(folder / "config.yaml")) if (folder / "config.yaml").is_file() else {}
        cache_dir = known_groups(config, str(folder / "config.yaml"))["data"].get("cache_dir")
        described = {"source": document["source"]}
        refuse_other_classes(described, {"source": Source}, str(folder / "results.json"))
        source = parser.instantiate(parser.parse_object(described)).source
        return find_records(source, cache_folder(cache_dir), document, names)
    except (ArgumentError, ValueError, CCRError) as error:
        why = error if isinstance(error, CCRError) else own_cause(error) or "their source cannot be built"
        return Records({}, f"Without pictures and captions, for the data cannot be read: {why}")
