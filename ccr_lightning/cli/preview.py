"""``ccr data preview``: a page with a sample of the images and their captions."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import NoReturn

from ccr_lightning.errors import CCRError

HELP = """\
usage: ccr data preview CONFIG|PATH [options]

Writes one HTML page with a sample of the images of each split and their captions in all languages, to look at in a
browser; it works offline. Records and images that cannot be read are shown with their file and line.

arguments:
  CONFIG|PATH           a configuration with data.source, or a file of JSON lines

options:
  --split NAME ...      splits to show (default: all)
  --count N             images of each split (default: 24)
  --seed N              seed of the sample (default: 0)
  --out FILE            the page, replaced if it is there (default: preview.html)
  --image_root DIR      the folder of the images, for a file of JSON lines

example:
  ccr data preview configs/pretrain.yaml --split val test --count 48
"""


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CCRError(f"ccr data preview: {message}; run 'ccr data preview --help'.")


def run(args: list[str]) -> int:
    """Writes the page and prints what is on it.

    Args:
        args: The arguments behind ``ccr data preview``.

    Raises:
        CCRError: For whatever the user can put right.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("source", metavar="CONFIG|PATH")
    parser.add_argument("--split", nargs="+", action="extend", default=[])
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="preview.html")
    parser.add_argument("--image_root")
    chosen = parser.parse_args(args)

    from ccr_lightning.cli.data_arguments import read_source
    from ccr_lightning.data.preview import write_preview

    source = read_source(chosen.source, chosen.image_root)
    previews = write_preview(source, chosen.out, chosen.split or source.splits, chosen.count, chosen.seed)
    for preview in previews:
        line = f"{preview.split}: {preview.shown:,} of {preview.images:,} images shown"
        if preview.undecodable:
            line += f", {preview.undecodable:,} of these cannot be decoded"
        if preview.faults:
            line += f", {preview.faults:,} record{'s' * (preview.faults != 1)} cannot be used"
        if preview.stopped:
            line += f"; the reading stopped: {preview.stopped}"
        print(line)
    print(f"{chosen.out}: written; open it in a browser")
    return 0
