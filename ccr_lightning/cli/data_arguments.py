"""What the ``ccr data`` commands read: configurations, files of captions, folders of them, stores, shards."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ccr_lightning.cli.arguments import CommandArguments
from ccr_lightning.cli.messages import explain_parse_error, load_config, own_cause
from ccr_lightning.data.build import MAX_BAD_FRACTION, BadRecords
from ccr_lightning.data.check import StoreSource
from ccr_lightning.data.shards import verify_shards
from ccr_lightning.data.sources.jsonl import JsonLines
from ccr_lightning.data.sources.protocol import Source
from ccr_lightning.data.sources.webdataset import INDEX, WebDatasetShards
from ccr_lightning.data.store import MANIFEST, open_store, verify_store
from ccr_lightning.errors import CCRError

_SETTINGS = ("source", "cache_dir", "bad_records", "max_bad_fraction")


class DataSettings(NamedTuple):
    """The part of a configuration's ``data`` that decides what is read and where it is kept."""

    source: Source
    described: dict[str, Any]  # which data that is: ``class_path`` and ``init_args``, or a ``path``
    cache_dir: str | None
    bad_records: BadRecords | None
    max_bad_fraction: float


class Arguments(CommandArguments):
    """The arguments of a ``ccr data`` command.

    Args:
        action: Its name.
    """

    def __init__(self, action: str) -> None:
        super().__init__(f"data {action}")
        self.add_argument("data", nargs="+", metavar="CONFIG|PATH")
        self.add_argument("--image_root")

    def read_unprepared(self, args: Sequence[str]) -> tuple[argparse.Namespace, DataSettings]:
        """As :meth:`read`, for commands that prepare data: a store is prepared already."""
        options, data = self.read(args)
        if isinstance(data.source, StoreSource):
            self.error(f"{options.data[0]} is a store; give what it was built from")
        return options, data

    def read(self, args: Sequence[str]) -> tuple[argparse.Namespace, DataSettings]:
        """Return the command's own options, and what its data are."""
        options, settings = self.parse_with_settings(args)
        return options, read_data(options.data, options.image_root, settings)


def read_data(paths: Sequence[str], image_root: str | None = None, settings: Sequence[str] = ()) -> DataSettings:
    """Return what paths and settings on the command line say of the data.

    Args:
        paths: Configurations, of which later ones win, or one file of JSON lines, folder of such files, store, or
            folder of shards.
        image_root: Folder of the images of JSON lines; by default the folder of the file.
        settings: Settings such as ``--data.source.init_args.image_root images``.

    Raises:
        CCRError: They say nothing, or something wrong.
    """
    configs = [path for path in paths if path.endswith((".yaml", ".yml"))]
    if configs:
        if image_root is not None or len(configs) < len(paths):
            raise CCRError("with a configuration, no other path and no --image_root; set --data.source.init_args.")
        return _from_configs(configs, settings)
    if len(paths) > 1 or settings:
        raise CCRError(f"{' '.join([*paths, *settings])}: give one path, or configurations (.yaml) and settings.")
    if not paths[0]:
        raise CCRError("the path is empty; name a configuration, a file or a folder.")
    path = Path(paths[0])
    at = {"path": os.path.abspath(path)}
    if os.path.isfile(path / MANIFEST):
        verify_store(path)
        return DataSettings(StoreSource(open_store(path)), at, None, None, MAX_BAD_FRACTION)
    if os.path.isfile(path / INDEX):
        content = verify_shards(path).content
        source = WebDatasetShards({content["split"]: str(path)}, parallel=False, name=content["source"])
        return DataSettings(source, at, None, None, MAX_BAD_FRACTION)
    return DataSettings(_json_lines(path, image_root), at, None, None, MAX_BAD_FRACTION)


def _json_lines(path: Path, image_root: str | None) -> JsonLines:
    if os.path.isdir(path):  # unlike the methods of Path, False where a name is too long to be one
        files = sorted(file for ending in ("jsonl", "jsonl.gz") for file in path.glob(f"*.{ending}"))
        if not files:
            below = [f"{path / name}" for name in ("train", "val", "test") if os.path.isfile(path / name / INDEX)]
            advice = f"did you mean {below[0]}?" if below else "pass a configuration, or a folder that has some."
            raise CCRError(f"{path}: no files *.jsonl and no store; {advice}")
        root = path
    elif os.path.isfile(path):
        files, root = [path], path.parent
    else:
        raise CCRError(f"{path}: there is no such file or folder; check the path.")
    if image_root is not None and not os.path.isdir(image_root):
        raise CCRError(f"--image_root {image_root}: there is no such folder; check the path.")
    splits = {file.name.split(".jsonl")[0]: str(file) for file in files}
    if len(splits) < len(files):
        raise CCRError(f"{path}: a split is there twice, as .jsonl and as .jsonl.gz; keep one of them.")
    in_order = {split: splits[split] for split in sorted(splits, key=_usual_order)}
    name = path.resolve().name.split(".jsonl")[0]
    return JsonLines(in_order, str(root) if image_root is None else image_root, name=name)


def _usual_order(split: str) -> tuple[int, str]:
    usual = ("train", "val", "test")
    return (usual.index(split), "") if split in usual else (len(usual), split)


def _from_configs(configs: Sequence[str], settings: Sequence[str]) -> DataSettings:
    parser = _settings_parser(configs)
    given = []
    for path in configs:
        data = load_config(path).get("data") or {}
        of_data = {name: data[name] for name in _SETTINGS if name in data}
        given += ["--config", json.dumps({"data": of_data}, ensure_ascii=False)]
    parsed = parser.parse_args([*given, *settings])
    if parsed.data.source is None:
        raise CCRError(f"{', '.join(configs)}: there is no data.source; name one by class_path and init_args.")
    try:
        data = parser.instantiate(parsed).data
    except ValueError as error:
        raise own_cause(error) or error from None
    described = parsed.data.source.as_dict()
    return DataSettings(data.source, described, data.cache_dir, data.bad_records, data.max_bad_fraction)


def _settings_parser(configs: Sequence[str]) -> Any:
    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise CCRError(explain_parse_error(message, [self], configs)) from ex

    parser = Parser(allow_abbrev=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--data.source", type=Source | None, default=None)
    parser.add_argument("--data.cache_dir", type=str | None, default=None)
    parser.add_argument("--data.bad_records", type=BadRecords | None, default=None)
    parser.add_argument("--data.max_bad_fraction", type=float, default=MAX_BAD_FRACTION)
    return parser
