"""The model that a command names: of a run or its checkpoint, of a folder, or of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentError, ArgumentParser

from ccr_lightning.cli.messages import explain_parse_error, own_cause
from ccr_lightning.cli.model_config import names_model
from ccr_lightning.cli.run_config import find_checkpoint, run_config
from ccr_lightning.cli.trusted import refuse_other_classes
from ccr_lightning.data.tokenizer import CaptionTokenizer
from ccr_lightning.data.transforms import ImageTransform
from ccr_lightning.errors import CCRError
from ccr_lightning.files import load_json, sha256_of
from ccr_lightning.models.dual_encoder import DualEncoder
from ccr_lightning.models.loading import from_pretrained
from ccr_lightning.training.checkpoint_file import explain_mismatch, read_checkpoint
from ccr_lightning.training.tuning import merge_adapters, tune


class Loaded(NamedTuple):
    """A model that a command names, and what it was loaded from."""

    model: DualEncoder  # in evaluation mode, with its tokenizer and transform
    checkpoint: Path | None  # of a run
    run: Path | None  # its folder


def load_model(given: str) -> Loaded:
    """Loads the model of a run (its best checkpoint), of a checkpoint in a run's folder, of a folder or of the hub.

    Raises:
        CCRError: There is none, it is damaged, or its run has no configuration.
    """
    if names_model(given):
        return Loaded(from_pretrained(given), None, None)
    checkpoint, run = find_checkpoint("", given)
    if not (run / "config.yaml").is_file():
        raise CCRError(f"{given}: there is no {run / 'config.yaml'}, which a run has; pass a run or a model's folder.")
    file = run / "config.yaml"
    config = run_config(file)
    content = read_checkpoint(checkpoint)
    of = config["model"]
    model: DualEncoder = _built(of.get("retriever"), DualEncoder, "model.retriever", file)
    if of.get("tuned") == "lora":
        tune(model, "lora", lora_rank=of["lora_rank"])
    prefix = "retriever."
    weights = {name.removeprefix(prefix): tensor for name, tensor in content["state_dict"].items()}
    if mismatch := explain_mismatch(model.state_dict(), weights):
        raise CCRError(f"{checkpoint}: {mismatch}")
    model.load_state_dict(weights)
    merge_adapters(model)
    tokenizer = content["CaptionDataModule"]["tokenizer"]
    if model.tokenizer is None:
        model.tokenizer = CaptionTokenizer.from_dict(tokenizer)
    model.tokenizer.max_tokens = tokenizer["max_tokens"]
    if model.transform is None:
        transform = config["data"].get("transform")
        built = _built(transform, ImageTransform, "data.transform", file) if transform else ImageTransform()
        model.transform = built
    return Loaded(model.eval(), checkpoint, run)


def _built(part: Any, kind: type, name: str, file: Path) -> Any:
    """An object of what the configuration of a run says."""
    group, setting = name.split(".")
    refuse_other_classes({setting: part}, {setting: kind}, str(file))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{name}", type=kind, required=True)
    try:
        return parser.instantiate(parser.parse_object({group: {setting: part}}))[name]
    except (ArgumentError, TypeError, ValueError) as error:
        raise own_cause(error) or CCRError(f"{file}: {explain_parse_error(str(error), [parser])}") from error


def results_of(loaded: Loaded) -> dict[str, Any] | None:
    """Returns what the run's own test found, if it was a test of the checkpoint.

    Raises:
        CCRError: The results cannot be read.
    """
    if loaded.run is None or loaded.checkpoint is None:
        return None
    path = loaded.run / "results.json"
    try:
        document: dict[str, Any] = load_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CCRError(f"{path}: cannot be read ({error}); test the run again, or remove it.") from error
    return document if document["checkpoint"]["sha256"] == sha256_of(loaded.checkpoint) else None
