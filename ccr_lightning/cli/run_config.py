"""The configuration of a run whose checkpoint is scored, under what the command line changes in it."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ccr_lightning.cli.messages import given_configs, load_config
from ccr_lightning.errors import CCRError

# What another source has its own of.
_OF_THE_DATA = (
    *("source", "languages", "languages_per_step", "required_languages"),
    *("bad_records", "max_bad_fraction", "train_shards"),
)
_OF_THE_PROTOCOL = ("mrv_languages", "folds")


def add_run_config(args: Sequence[str], run: Path) -> list[str]:
    """Returns the arguments with the run's configuration before the given ones, and the place of the results.

    With a data source that is not the run's, nothing of the run's source remains, and the results have a place of their
    own.

    Args:
        args: The command and its arguments.
        run: The run's folder.

    Raises:
        CCRError: The run has no configuration and none is given, or one cannot be read.
    """
    configs = given_configs(args)
    file = run / "config.yaml"
    if not file.is_file():
        if configs:
            return list(args)
        raise CCRError(
            f"--ckpt_path {args[list(args).index('--ckpt_path') + 1]}: there is no {file}, which a run has; pass a "
            "checkpoint in the folder of its run, or --config too."
        )
    others = [path for path in configs if not _is_same(path, file)]
    source = _other_source(args, others)
    base = str(file) if source is None else _without_source(file)
    name = run.name if source is None else f"{run.name}-{source}"
    place = {"--runs_dir": str(run.parent), "--name": name}  # the run may have moved since it was made
    given = {arg.split("=", 1)[0] for arg in args}
    added = [part for option, value in place.items() if option not in given for part in (option, value)]
    return [args[0], "--config", base, *added, *_without_config(args[1:], file)]


def _without_config(args: Sequence[str], file: Path) -> list[str]:
    """The arguments without the run's own configuration, which comes first anyway."""
    kept: list[str] = []
    for arg in args:
        option, _, path = arg.partition("=")
        if path and option in ("-c", "--config") and _is_same(path, file):
            continue
        if kept and kept[-1] in ("-c", "--config") and _is_same(arg, file):
            kept.pop()
            continue
        kept.append(arg)
    return kept


def _is_same(path: str, file: Path) -> bool:
    return Path(path).exists() and file.samefile(path)


def _other_source(args: Sequence[str], configs: Sequence[str]) -> str | None:
    """A name for the data source that the arguments put in the place of the run's; None if they do not."""
    name = None
    for path in configs:
        data: Any = load_config(path).get("data")
        source = data.get("source") if isinstance(data, dict) else None
        if source is not None and (isinstance(source, str) or "class_path" in source):
            name = Path(path).stem
    parts = [part for arg in args for part in arg.split("=", 1)]
    for option, value in pairwise(parts):
        if option in ("--data.source", "--data.source.class_path"):
            name = value.rpartition(".")[2].lower()
    return name


def _without(settings: Any, names: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in (settings or {}).items() if key not in names}


def _without_source(file: Path) -> str:
    """The path of a copy of the run's configuration without its data source, for as long as this process runs."""
    config = load_config(str(file))
    config["data"] = _without(config.get("data"), _OF_THE_DATA)
    model = config.get("model") or {}
    config["model"] = {**model, "protocol": _without(model.get("protocol"), _OF_THE_PROTOCOL)}
    folder = Path(tempfile.mkdtemp(prefix="ccr-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy = folder / "config.yaml"
    copy.write_text(json.dumps(config), encoding="utf-8")
    return str(copy)
