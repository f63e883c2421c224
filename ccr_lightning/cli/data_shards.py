"""``ccr data shards``: WebDataset shards, for storage on which random access is slow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ccr_lightning.cli.data_arguments import Arguments
from ccr_lightning.data.build import default_policy
from ccr_lightning.data.shards import write_shards
from ccr_lightning.data.sources.reading import check_split

HELP = """\
usage: ccr data shards CONFIG|PATH --out FOLDER [options]

Reads the data, decodes every image once, and writes each split to FOLDER/SPLIT: tar files in WebDataset's layout, and
shards.json with what is in them. Training reads them in order (data.train_shards: FOLDER/train), for storage on which
random access is slow; it mixes images less than with the stores that 'ccr data build' writes. The same data give the
same bytes.

arguments:
  CONFIG|PATH           a configuration with data.source (several are merged), or a file or folder of JSON lines

options:
  --out FOLDER          where the shards go; each split into a new or an empty folder below it
  --split NAME ...      splits to write (default: all)
  --shard_mb X          close a shard when its pictures have so many MB (default: 256); there should be several shards
                        for each process that loads batches
  --bad_records WHAT    error: stop at the first bad record; skip: leave bad ones out, list them in left_out.jsonl
                        (default: skip in train, error elsewhere)
  --max_bad_fraction X  with skip, stop above this share of bad records (default: 0.01)
  --image_root DIR      the folder of the images, for JSON lines
  --data.NAME VALUE     any setting of the configuration's source, as for ccr fit

One package more is needed: pip install 'ccr-lightning[webdataset]'

example:
  ccr data shards configs/pretrain.yaml --out /network/shards --split train
"""


def run(args: Sequence[str]) -> int:
    """Writes the shards and prints where they are.

    Raises:
        CCRError: For whatever the user can put right.
    """
    parser = Arguments("shards")
    parser.add_argument("--out", required=True)
    parser.add_argument("--split", nargs="+", action="extend")
    parser.add_argument("--shard_mb", type=float, default=256.0)
    parser.add_argument("--bad_records", choices=("error", "skip"))
    parser.add_argument("--max_bad_fraction", type=float)
    options, data = parser.read_unprepared(args)
    if not 0 < options.shard_mb < 1e6:
        parser.error(f"--shard_mb is {options.shard_mb}; give a number of MB above 0")
    source = data.source
    for split in options.split or ():
        check_split(source.name, split, source.splits)
    most = data.max_bad_fraction if options.max_bad_fraction is None else options.max_bad_fraction
    for split in options.split or source.splits:
        policy = options.bad_records or data.bad_records or default_policy(split)
        folder = Path(options.out) / split
        index = write_shards(source, split, folder, int(options.shard_mb * 1e6), policy, most)
        megabytes = sum(shard.bytes for shard in index.shards) / 1e6
        captions = sum(index.content["captions"].values())
        images, shards = index.content["images"], len(index.shards)
        print(f"{split}: {images:,} images, {captions:,} captions, {megabytes:,.0f} MB in {shards} shards in {folder}")
    return 0
