"""The configuration of a run whose checkpoint is scored or trained on, under what the command line changes in it."""

from __future__ import annotations

import atexit
import copy
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ccr_lightning.cli.arguments import given_configs, is_given, last_value, values_of, without
from ccr_lightning.cli.messages import load_config
from ccr_lightning.cli.model_config import config_of_model, model_name, names_model, refuse_other_files
from ccr_lightning.cli.processes import is_first_process
from ccr_lightning.cli.trusted import known_groups, refuse_other_classes, settings_of, trainer_for_scoring
from ccr_lightning.errors import CCRError

# What another source has its own of.
OF_THE_DATA = (
    *("source", "languages", "languages_per_step", "required_languages"),
    *("bad_records", "max_bad_fraction", "train_shards"),
)
OF_THE_PROTOCOL = ("mrv_languages", "folds")

# What belongs to the weights of a run, whatever they are trained on next.
_OF_THE_WEIGHTS = {"model": ("retriever",), "data": ("tokenizer", "transform")}


def find_checkpoint(option: str, given: str) -> tuple[Path, Path]:
    """Returns the checkpoint that an option names, of a run its best one, and the folder of its run.

    Args:
        option: Its name, for messages; empty if the command names it without one.
        given: Its value.

    Raises:
        CCRError: There is none.
    """
    option = f"{option} {given}".lstrip()
    refuse_other_files(option, given)
    path = Path(given)
    if path.is_dir():
        path = path / "checkpoints" / "best.ckpt"
        if not path.is_file() and (last := path.with_name("last.ckpt")).is_file():
            if is_first_process():
                print(f"no validation ran, hence there is no best checkpoint: {last} is taken", flush=True)
            path = last
    if not path.is_file():
        if Path(given).is_dir():
            raise CCRError(f"{option}: there is neither a run nor a model there: no {path}, and no config.json.")
        raise CCRError(f"{option}: there is no checkpoint at {path}; check the path.")
    if len(path.parts) < 3 or ".." in path.parts:  # the name of the run is in none of them
        return path, path.absolute().resolve().parent.parent
    return path, path.parent.parent


def start_from_run(args: Sequence[str]) -> list[str]:
    """Returns the arguments of ``ccr fit`` with what belongs to the weights that ``--init_from`` names before them.

    That is the run's model, tokeniser and transform; the run is named ``RUN-CONFIG`` unless it has a name. A run that
    resumes needs its own checkpoint only.

    Raises:
        CCRError: There is no such checkpoint, or a configuration cannot be read.
    """
    configs = given_configs(args)
    on_command_line = last_value(args, "--init_from")
    given = on_command_line
    if given is None:
        given = next((str(of) for path in configs[::-1] if (of := load_config(path).get("init_from"))), None)
    if given in (None, "null"):  # null is what a model's name has become for the processes that a run starts
        return list(args)
    path, added = Path(given), []
    refuse_other_files(f"--init_from {given}", given)
    name = last_value(args, "--name")
    if name is None and on_command_line is not None:
        start = Path(os.path.abspath(path)).parents[1].name if path.suffix == ".ckpt" else model_name(given)
        name = f"{start}-{Path(configs[-1]).stem if configs else args[0]}"
        added = [f"--name={name}"]
    own = Path(last_value(args, "--runs_dir") or "runs") / str(name) / "config.yaml"
    if not path.exists() and is_given(args, "--resume") and own.is_file():
        return [args[0], "--config", _part_of_the_weights(own), *added, *args[1:]]
    if names_model(given):
        base, weights = _base_of_model(given)
        return [args[0], "--config", base, *added, *args[1:], "--init_from", weights or "null"]
    checkpoint, run = find_checkpoint("--init_from", given)
    if (file := run / "config.yaml").is_file():
        added += ["--config", _part_of_the_weights(file)]
    elif not any(map(_names_a_model, configs)):
        raise CCRError(
            f"--init_from {given}: there is no {file}, which a run has; pass a run, a checkpoint in the folder of its "
            "run, or --config with the model too."
        )
    return [args[0], *added, *args[1:], "--init_from", str(checkpoint)]


def _names_a_model(config: str) -> bool:
    model: Any = load_config(config).get("model")
    if isinstance(model, str):
        model = load_config(str(Path(config).parent / model))
    retriever = model.get("retriever") if isinstance(model, dict) else None
    return isinstance(retriever, str) or (isinstance(retriever, dict) and "class_path" in retriever)


def _part_of_the_weights(file: Path) -> str:
    """The path of a configuration with what belongs to the weights of the run that the file is of."""
    config = run_config(file)
    names: dict[str, tuple[str, ...]] = dict(_OF_THE_WEIGHTS)
    retriever = _init_args(config["model"], "retriever")
    if "name_or_path" in retriever:
        names["model"] += ("objective",)
    if not retriever.get("fusion"):
        names["model"] += ("matching_weight", "masked_lm_weight")
    kept = {
        part: {name: config[part][name] for name in of_part if name in config[part]} for part, of_part in names.items()
    }
    _refuse_other_classes(kept, file)
    return _temporary_config(kept)


def _refuse_other_classes(config: Mapping[str, Any], file: Path) -> None:
    from ccr_lightning.data.datamodule import CaptionDataModule
    from ccr_lightning.training.module import RetrievalModule

    for part, cls in (("model", RetrievalModule), ("data", CaptionDataModule)):
        refuse_other_classes(config[part], settings_of(cls), str(file))


def add_run_config(args: Sequence[str]) -> list[str]:
    """Returns the arguments with the configuration of the run that ``--ckpt_path`` names, and the place of the results.

    With a data source that is not the run's, nothing of the run's source remains, and the results have a place of their
    own.

    Args:
        args: The command and its arguments.

    Raises:
        CCRError: There is no such checkpoint, the run has no configuration and none is given, or one cannot be read.
    """
    if is_given(args, "--init_from"):
        raise CCRError(f"--init_from is for ccr fit: ccr {args[0]} scores the weights that --ckpt_path names.")
    if not is_given(args, "--ckpt_path") and any(arg in ("--help_all", "--print_config") for arg in args):
        return list(args)
    given = given_checkpoint(args)
    if names_model(given):
        return _scored_model(args, given)
    checkpoint, run = find_checkpoint("--ckpt_path", given)
    args = [*without(args, "--ckpt_path"), "--ckpt_path", str(checkpoint)]
    configs = given_configs(args)
    file = run / "config.yaml"
    if not file.is_file():
        if configs:
            return args
        raise CCRError(
            f"--ckpt_path {given}: there is no {file}, which a run has; pass a checkpoint in the folder of its run, or "
            "--config too."
        )
    others = [path for path in configs if not _is_same(path, file)]
    source = _other_source(args, others)
    config = run_config(file)
    config["trainer"], left_out = trainer_for_scoring(config["trainer"])
    if source is not None:
        config = _without_source(config)
    _refuse_other_classes(config, file)
    if left_out and is_first_process():
        names = ", ".join(f"trainer.{name}" for name in left_out)
        print(f"{file}: {names} not taken, as it could name code; give it on the command line if needed", flush=True)
    base = _temporary_config(config)
    name = run.name if source is None else f"{run.name}-{source}"
    places = {"--runs_dir": str(run.parent), "--name": name}  # the run may have moved since it was made
    added = [f"{option}={value}" for option, value in places.items() if not is_given(args, option)]
    return [args[0], "--config", base, *added, *_without_config(args[1:], file)]


def _scored_model(args: Sequence[str], given: str) -> list[str]:
    """The arguments with the configuration of a model that is no run, of which the data are given."""
    base, weights = _base_of_model(given)
    args = [*without(args, "--ckpt_path"), "--ckpt_path", weights or given]
    source = _other_source(args, given_configs(args))
    if source is None:
        raise CCRError(
            f"--ckpt_path {given}: a model brings no data: pass --config with a data.source, such as "
            "configs/test/multi30k_2016.yaml."
        )
    name = [] if is_given(args, "--name") else [f"--name={model_name(given)}-{source}"]
    return [args[0], "--config", base, *name, *args[1:]]


def _base_of_model(given: str) -> tuple[str, str | None]:
    """A configuration with a model, and the folder of those weights that building the model does not load."""
    config = config_of_model(given)
    if "name_or_path" in config["model"]["retriever"]["init_args"]:
        return _temporary_config(config), None
    return _temporary_config(config), config["data"]["tokenizer"]["init_args"]["name_or_path"]


def given_checkpoint(args: Sequence[str]) -> str:
    """Returns the value of ``--ckpt_path`` of a command and its arguments.

    Raises:
        CCRError: It is not there.
    """
    given = last_value(args, "--ckpt_path")
    if given is None:
        raise CCRError(
            f"ccr {args[0]} needs --ckpt_path: a run such as runs/pretrain, a checkpoint, or a model by folder or name."
        )
    return given


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
    for value in values_of(args, "--data.source", "--data.source.class_path"):
        name = value.rpartition(".")[2].lower()
    return name


def _without(settings: Any, names: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in names}


def _without_source(config: Mapping[str, Any]) -> dict[str, Any]:
    model, protocol = config["model"], config["model"].get("protocol")
    if isinstance(protocol, dict):
        model = {**model, "protocol": _without(protocol, OF_THE_PROTOCOL)}
    return {**config, "data": _without(config["data"], OF_THE_DATA), "model": model}


def run_config(file: Path) -> dict[str, Any]:
    """Returns the configuration of a run, whose checkpoint has its own weights, and which needs nothing but its folder.

    Args:
        file: Its ``config.yaml``.

    Returns:
        Its model, data and trainer, and its seed; which classes they name is still to be looked at.

    Raises:
        CCRError: It cannot be read, or reaches for settings in ways in which no run does.
    """
    config = copy.deepcopy(known_groups(load_config(str(file)), str(file)))
    retriever: Any = _init_args(config["model"], "retriever")
    retriever.pop("text_weights", None)
    if (named := retriever.get("name_or_path")) is not None:
        retriever["pretrained"] = False
        if (own := file.parent / "model").is_dir():
            parts = [retriever, *(_init_args(config["data"], name) for name in ("tokenizer", "transform"))]
            for part in parts:
                if part.get("name_or_path") == named:
                    part["name_or_path"] = str(own)
    for name in ("pretrained", "pretrained_file"):
        _init_args(retriever, "image_encoder").pop(name, None)
    return config


def _init_args(settings: Any, name: str) -> dict[str, Any]:
    """The arguments of a class that settings name, to be changed in place; nothing that counts if they do not."""
    part = settings.get(name) if isinstance(settings, dict) else None
    arguments = part.get("init_args") if isinstance(part, dict) else None
    return arguments if isinstance(arguments, dict) else {}


def _temporary_config(config: Mapping[str, Any]) -> str:
    """The path of a file with the configuration, for as long as this process runs."""
    folder = Path(tempfile.mkdtemp(prefix="ccr-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    file = folder / "config.yaml"
    file.write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")  # YAML has no halves of characters
    return str(file)
