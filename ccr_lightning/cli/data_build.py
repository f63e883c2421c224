"""``ccr data build``: the stores that training and evaluation read."""

from __future__ import annotations

from collections.abc import Sequence

from ccr_lightning.cli.data_arguments import Arguments
from ccr_lightning.data.build import build_store, default_policy
from ccr_lightning.data.cache import cache_folder
from ccr_lightning.data.sources.reading import check_split
from ccr_lightning.data.store import open_store, store_folder

HELP = """\
usage: ccr data build CONFIG|PATH [options]

Reads the data, decodes every image once, and writes each split to a store: Arrow files with the encoded images and all
captions, which training reads in any order from disk. 'ccr fit' does the same when it starts; this does it ahead, on a
machine without a GPU: give it the same configurations and cache folder as 'ccr fit', which then finds the stores. A
build that was killed goes on where it was; the result is the same to the byte.

arguments:
  CONFIG|PATH           a configuration with data.source (several are merged), or a file or folder of JSON lines

options:
  --split NAME ...      splits to build (default: all)
  --cache_dir DIR       where stores lie (default: the configuration's data.cache_dir, else $CCR_CACHE_DIR)
  --bad_records WHAT    error: stop at the first bad record; skip: leave bad ones out, list them in left_out.jsonl
                        (default: skip in train, error elsewhere)
  --max_bad_fraction X  with skip, stop above this share of bad records (default: 0.01)
  --image_root DIR      the folder of the images, for JSON lines
  --data.NAME VALUE     any setting of the configuration's source, as for ccr fit

example:
  ccr data build configs/pretrain.yaml --cache_dir /data/stores
"""


def run(args: Sequence[str]) -> int:
    """Builds the stores and prints where they are.

    Raises:
        CCRError: For whatever the user can put right.
    """
    parser = Arguments("build")
    parser.add_argument("--split", nargs="+", action="extend")
    parser.add_argument("--cache_dir")
    parser.add_argument("--bad_records", choices=("error", "skip"))
    parser.add_argument("--max_bad_fraction", type=float)
    options, data = parser.read_unprepared(args)
    source = data.source
    for split in options.split or ():
        check_split(source.name, split, source.splits)
    most = data.max_bad_fraction if options.max_bad_fraction is None else options.max_bad_fraction
    for split in options.split or source.splits:
        folder = store_folder(source, split, cache_folder(options.cache_dir or data.cache_dir))
        build_store(source, split, folder, options.bad_records or data.bad_records or default_policy(split), most)
        manifest = open_store(folder).manifest
        megabytes = sum(file["bytes"] for file in manifest["files"]) / 1e6
        captions = sum(manifest["captions"].values())
        print(f"{split}: {manifest['images']:,} images, {captions:,} captions, {megabytes:,.0f} MB in {folder}")
    return 0
