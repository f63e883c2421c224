"""``ccr data check``: what there is, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence

from ccr_lightning.cli.data_arguments import Arguments, read_data
from ccr_lightning.cli.streams import json_text
from ccr_lightning.data.check import PLACES, CheckReport, Finding, check_source

HELP = """\
usage: ccr data check CONFIG|PATH [options]

Reads all captions, decodes every image completely, and prints what there is in each split and language, and what is
wrong, with file and line of the first few of each kind. Exit status 1 if anything would change results.

Faults (they change results): records and images that cannot be read; unsafe image paths; an image id that two images
have; blank captions; images without captions; a language without captions, or under two codes that differ in case; an
image that is in two splits, by its id or its content, or twice in a split for evaluation.
Remarks (they may be meant): images without some language; codes that may be one language; JPEGs that are damaged in
part; captions that several images share, and pictures that are twice in train, which are false negatives in training.

arguments:
  CONFIG|PATH           a configuration with data.source (several are merged), JSON lines or a folder of them, a
                        store, or a folder of shards

options:
  --split NAME ...      splits to check (default: all)
  --against OTHER ...   configurations or paths of other data, to find images that these have too: the data that a
                        model was trained on, against those that it is tested on
  --places N            places of each kind to show (default: 5)
  --skip_images         do not read the images: quicker, and possible without them
  --json                print the report as JSON
  --image_root DIR      the folder of the images, for JSON lines
  --data.NAME VALUE     any setting of the configuration's source, as for ccr fit

example:
  ccr data check xtd.yaml --against coco.yaml
"""


def run(args: Sequence[str]) -> int:
    """Prints the report; 1 if it has faults.

    Raises:
        CCRError: For whatever the user can put right.
    """
    parser = Arguments("check")
    parser.add_argument("--split", nargs="+", action="extend")
    parser.add_argument("--against", nargs="+", action="extend", default=[])
    parser.add_argument("--places", type=int, default=PLACES)
    parser.add_argument("--skip_images", action="store_true")
    parser.add_argument("--json", action="store_true")
    options, data = parser.read(args)
    against = [(path, read_data([path]).source) for path in options.against]
    report = check_source(data.source, options.split, not options.skip_images, against, options.places)
    if options.json:
        print(json_text(report.to_dict(), indent=2))
    else:
        _print(report)
    return 1 if report.has_faults else 0


def _print(report: CheckReport) -> None:
    from rich.markup import escape
    from rich.table import Table

    from ccr_lightning.tables import print_table

    table = Table(title=f"{escape(report.source)}: captions by language, and the images that have one")
    table.add_column("")
    for split in report.splits:
        table.add_column(escape(split), justify="right")
    for language in report.languages:
        cells = [
            f"{counts.captions[language]:,} ({counts.images_with_caption[language]:,})"
            for counts in report.splits.values()
        ]
        table.add_row(escape(language), *cells)
    table.add_section()
    table.add_row("images", *(f"{counts.images:,}" for counts in report.splits.values()))
    print_table(table)
    for finding in report.findings:
        _print_finding(finding)
    faults = sum(finding.is_fault for finding in report.findings)
    remarks = len(report.findings) - faults
    print(f"{_number(faults, 'kind')} of faults, {_number(remarks, 'kind')} of remarks")


def _print_finding(finding: Finding) -> None:
    print(f"{'FAULT' if finding.is_fault else 'remark'}: {finding.split}: {finding.kind}, {finding.count:,}")
    for place in finding.places:
        print(f"  {place}")
    if finding.count > len(finding.places):
        print(f"  ... and {finding.count - len(finding.places):,} more (--places {finding.count})")


def _number(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"
