"""``ccr data preview``: a page with a sample of the images and their captions."""

from __future__ import annotations

from collections.abc import Sequence

from ccr_lightning.cli.data_arguments import Arguments
from ccr_lightning.data.preview import write_preview

HELP = """\
usage: ccr data preview CONFIG|PATH [options]

Writes one HTML page with a sample of the images of each split and their captions in all languages, to look at in a
browser; it works offline. Records and images that cannot be read are shown with their file and line.

arguments:
  CONFIG|PATH           a configuration with data.source (several are merged), JSON lines or a folder of them, a
                        store, or a folder of shards

options:
  --split NAME ...      splits to show (default: all)
  --count N             images of each split (default: 24)
  --seed N              seed of the sample (default: 0)
  --out FILE            the page, replaced if it is there (default: preview.html)
  --image_root DIR      the folder of the images, for JSON lines
  --data.NAME VALUE     any setting of the configuration's source, as for ccr fit

example:
  ccr data preview configs/pretrain.yaml --split val test --count 48
"""


def run(args: Sequence[str]) -> int:
    """Writes the page and prints what is on it.

    Raises:
        CCRError: For whatever the user can put right.
    """
    parser = Arguments("preview")
    parser.add_argument("--split", nargs="+", action="extend")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="preview.html")
    options, (source, *_) = parser.read(args)
    previews = write_preview(source, options.out, options.split or source.splits, options.count, options.seed)
    for preview in previews:
        line = f"{preview.split}: {preview.shown:,} of {preview.images:,} images shown"
        if preview.undecodable:
            line += f", {preview.undecodable:,} of these cannot be decoded"
        if preview.faults:
            line += f", {preview.faults:,} record{'s' * (preview.faults != 1)} cannot be used"
        if preview.stopped:
            line += f"; the reading stopped: {preview.stopped}"
        print(line)
    print(f"{options.out}: written; open it in a browser")
    return 0
