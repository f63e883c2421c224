"""``ccr embed``: pictures to an index that ``ccr search`` and ``ccr serve`` search."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ccr_lightning.cli.arguments import CommandArguments
from ccr_lightning.errors import CCRError

if TYPE_CHECKING:
    from ccr_lightning.cli.data_arguments import DataSettings
    from ccr_lightning.data.faults import Report
    from ccr_lightning.search.found import Found
    from ccr_lightning.search.picture import Picture

HELP = """\
usage: ccr embed IMAGES... -o INDEX [--ckpt_path MODEL] [options]

Embeds pictures with a model and keeps the result in a folder, which 'ccr search' and 'ccr serve' search in any
language. Called again, it embeds only what is new or has changed, and drops what is gone; interrupted, it goes on.
Pictures that cannot be read are left out and listed in INDEX/left_out.jsonl.

arguments:
  IMAGES                files, folders (with the folders in them), or patterns such as 'photos/**/*.jpg';
                        or captioned data: configurations (.yaml), a file of JSON lines (.jsonl), a store, or a folder
                        of shards; their captions can be found then, too

options:
  -o, --output INDEX    the folder of the index
  --ckpt_path MODEL     a run, a checkpoint, or a model's folder or name on the hub (default: that of the index)
  --split NAME ...      splits of captioned data (default: all)
  --image_root DIR      the folder of the images, for JSON lines
  --data.NAME VALUE     any setting of the configuration's source, as for ccr fit
  --batch_size N        pictures at a time (default: 64)
  --device D            cpu, cuda, ... (default: cuda if there is one)

examples:
  ccr embed ~/Pictures -o pictures.index --ckpt_path google/siglip2-base-patch16-224
  ccr embed configs/pretrain.yaml -o openmoji.index --ckpt_path runs/pretrain
  ccr search pictures.index "ein roter Apfel" "赤いりんご"
"""


class _Wanted(NamedTuple):
    """What is to be embedded."""

    found: Callable[[Report], Iterable[Found]]
    total: int | None
    drop: Callable[[Picture], bool]  # which are dropped if they are not found
    prefixes: Mapping[str, str]  # of the names of records, to a hash of the settings of their source


def run(args: Sequence[str]) -> int:
    """Embeds what is new.

    Raises:
        CCRError: For whatever the user can put right.
    """
    if not args or any(arg in ("-h", "--help") for arg in args):
        print(HELP, end="")
        return 0
    import torch

    from ccr_lightning.cli.load_model import load_model
    from ccr_lightning.progress import progress
    from ccr_lightning.search.embed import embed
    from ccr_lightning.search.index import LEFT_OUT
    from ccr_lightning.search.writing import open_to_write

    parser = CommandArguments("embed")
    parser.add_argument("images", nargs="+", metavar="IMAGES")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--ckpt_path")
    parser.add_argument("--split", nargs="+", action="extend", default=[])
    parser.add_argument("--image_root")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options, settings = parser.parse_with_settings(args)
    if options.batch_size < 1:
        parser.error(f"--batch_size is {options.batch_size}: give 1 or more")
    wanted = _wanted(options.images, options.split, options.image_root, settings)
    with open_to_write(options.output) as index:
        given = options.ckpt_path or index.model.get("named")
        if not given:
            parser.error("a new index needs --ckpt_path, which names a model")
        model = load_model(given).model
        index.take_model(model, os.path.abspath(given) if os.path.exists(given) else given)
        try:
            if torch.device(options.device).type == "meta":
                raise RuntimeError("it holds no numbers")
            model.to(options.device)
        except (AssertionError, RuntimeError) as error:  # torch raises either for a device that is not there
            raise CCRError(f"--device {options.device}: {str(error).splitlines()[0]}") from error
        for prefix, of_source in wanted.prefixes.items():
            index.take_source(prefix, of_source)
        with progress("embedding", "pictures", total=wanted.total) as advance:
            done = embed(
                index,
                wanted.found,
                model,
                batch_size=options.batch_size,
                drop=wanted.drop,
                advance=advance,
            )
        if not len(index):
            raise CCRError(
                f"none of the {len(done.left_out):,} pictures could be read: {index.folder / LEFT_OUT} says why."
            )
        why = f" ({LEFT_OUT} says why)" if done.left_out else ""
        captions = f" with {index.captions:,} captions" if index.captions else ""
        print(
            f"{done.new:,} pictures embedded, {done.dropped:,} dropped, {len(done.left_out):,} left out{why}; "
            f"{len(index):,}{captions} in {index.folder}"
        )
    return 0


def _wanted(named: Sequence[str], splits: Sequence[str], image_root: str | None, settings: Sequence[str]) -> _Wanted:
    from ccr_lightning.cli.data_arguments import read_data
    from ccr_lightning.data.sources.reading import check_split
    from ccr_lightning.files import settings_sha256
    from ccr_lightning.search.found import find_pictures, gone_from, of_files, of_source, prefix

    if not any(map(_is_captioned, named)):
        if splits or image_root or settings:
            raise CCRError(
                "--split, --image_root and --data settings are for captioned data: leave them out for picture files."
            )
        paths = find_pictures(named)
        return _Wanted(partial(of_files, paths), len(paths), gone_from(named), {})
    data = read_data(named, image_root, settings)
    for split in splits:
        check_split(data.source.name, split, data.source.splits)
    chosen = tuple(dict.fromkeys(splits)) or data.source.splits
    prefixes = tuple(prefix(data.source, split) for split in chosen)
    return _Wanted(
        partial(of_source, data.source, chosen),
        _count(data, chosen),
        lambda picture: picture.name.startswith(prefixes),
        dict.fromkeys(prefixes, settings_sha256(data.described)),
    )


def _count(data: DataSettings, splits: Sequence[str]) -> int | None:
    """How many pictures splits have, where their stores say so."""
    from ccr_lightning.data.cache import cache_folder
    from ccr_lightning.data.check import StoreSource
    from ccr_lightning.data.store import MANIFEST, read_manifest, store_folder

    if isinstance(data.source, StoreSource):
        return len(data.source)
    folders = [store_folder(data.source, split, cache_folder(data.cache_dir)) for split in splits]
    if not all((folder / MANIFEST).is_file() for folder in folders):
        return None
    return sum(int(read_manifest(folder)["images"]) for folder in folders)


def _is_captioned(name: str) -> bool:
    """Whether it names captioned data rather than pictures."""
    from ccr_lightning.data.sources.webdataset import INDEX
    from ccr_lightning.data.store import MANIFEST

    data = (".yaml", ".yml", ".jsonl", ".jsonl.gz")
    return name.endswith(data) or any(os.path.isfile(Path(name) / file) for file in (MANIFEST, INDEX))
