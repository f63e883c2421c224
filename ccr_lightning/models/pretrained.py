"""A retriever as a folder to keep and to share: weights, settings, tokeniser, preprocessing and a card."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccr_lightning._version import __version__
from ccr_lightning.data.open_clip_source import CONFIG as OPEN_CLIP_CONFIG
from ccr_lightning.errors import CCRError
from ccr_lightning.files import atomic_write, load_json, sha256_of
from ccr_lightning.hub import TEXTS, local_folder
from ccr_lightning.memory import refuse_out_of_memory
from ccr_lightning.models.card import model_card

if TYPE_CHECKING:
    from torch import Tensor

    from ccr_lightning.data.tokenizer import CaptionTokenizer
    from ccr_lightning.data.transforms import ImageTransform

LIBRARY = "ccr-lightning"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
_FORMAT = 1
_LAYERS = {"hidden_size", "layers", "heads", "feed_forward_size", "dropout"}
_SETTINGS: dict[str, set[str]] = {  # all that a shared model may say: nothing that names a file
    "retriever": {"image_encoder", "text_encoder", "fusion", "embed_dim"},
    "image_encoder": {"name", "image_size", "drop_path_rate", "model_args"},
    "text_encoder": {"vocab_size", "max_positions", *_LAYERS},
    "fusion": {"image_width", *_LAYERS},
    "tokenizer": {"max_tokens"},
    "transform": {"image_size", "crop_scale", "horizontal_flip", "rand_augment", "mean", "std"},
}


def write_pretrained(
    folder: Path,
    settings: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    tokenizer: CaptionTokenizer,
    transform: ImageTransform,
    results: Mapping[str, Any] | None,
) -> None:
    """Writes a retriever into a folder, ``config.json`` last: a folder that has it is whole.

    Args:
        folder: Made if need be; the files of a retriever that is there are replaced.
        settings: ``Retriever.settings``.
        weights: The state of the retriever.
        tokenizer: What makes token ids for it.
        transform: What makes pixels for it.
        results: The document of a test of it, for the card.

    Raises:
        CCRError: If a file cannot be written.
    """
    from safetensors.torch import save

    (folder / CONFIG).unlink(missing_ok=True)
    with atomic_write(folder / WEIGHTS, "the weights") as file:
        file.write(
            save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, {"format": "pt"})
        )
    names = [WEIGHTS, *tokenizer.save(folder)]
    config = {
        "library_name": LIBRARY,
        "format": _FORMAT,
        "made_with": f"ccr-lightning {__version__}",
        "retriever": dict(settings),
        "tokenizer": {"max_tokens": tokenizer.max_tokens},
        "transform": transform.settings,
        "sha256": {name: sha256_of(folder / name) for name in names},
    }
    usage = f"from ccr_lightning import Retriever\n\nretriever = Retriever.from_pretrained({folder.resolve().name!r})"
    parameters = sum(tensor.numel() for tensor in weights.values())
    with atomic_write(folder / "README.md", "the card") as file:
        file.write(model_card(folder.resolve().name, parameters, usage, results).encode())
    with atomic_write(folder / CONFIG, "the settings") as file:
        file.write((json.dumps(config, indent=2) + "\n").encode())


def retriever_folder(name_or_path: str | Path) -> Path:
    """Returns the folder of a retriever, a copy of the hub's if it is named by its name there.

    Raises:
        CCRError: There is none.
    """
    return local_folder(name_or_path, *TEXTS, WEIGHTS)


def read_config(name_or_path: str | Path) -> dict[str, Any]:
    """Returns what ``config.json`` says, of any model in a folder or on the Hugging Face hub.

    Raises:
        CCRError: It is missing or damaged, or the hub cannot be reached.
    """
    folder = local_folder(name_or_path, CONFIG)
    path = folder / CONFIG
    try:
        config = load_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        what = "this is a run: make a model of it with ccr export" if (folder / "checkpoints").is_dir() else ""
        raise CCRError(f"{folder}: {what or f'there is no {CONFIG} in this folder; pass that of a model'}.") from error
    except (OSError, ValueError) as error:
        raise CCRError(f"{path}: cannot be read ({error}); fetch or save the model again.") from error
    if not isinstance(config, dict):
        raise CCRError(f"{path}: this is no JSON object, as the settings of a model are; fetch or save it again.")
    return config


def is_of_open_clip(name_or_path: str) -> bool:
    """Whether a folder or a name on the Hugging Face hub has a model of open_clip, and none that is read without it.

    Raises:
        CCRError: The hub cannot be reached, or a file is damaged.
    """
    folder = local_folder(name_or_path, CONFIG, OPEN_CLIP_CONFIG)
    if not (folder / OPEN_CLIP_CONFIG).is_file():
        return False
    return not (folder / CONFIG).is_file() or "text_config" not in read_config(folder)


def check_retriever_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Checks that a folder has a retriever, and that its files are those that were saved.

    Raises:
        CCRError: If not; it names the file.
    """
    path = folder / CONFIG
    if config.get("library_name") != LIBRARY:
        raise CCRError(f"{path}: this is no retriever of {LIBRARY}; load it with from_pretrained of the package.")
    if config.get("format") != _FORMAT:
        raise CCRError(f"{path}: its format is {config.get('format')!r}, and this version reads {_FORMAT}: update it.")
    kinds = {"retriever": dict, "tokenizer": dict, "transform": dict, "sha256": dict}
    for key, kind in kinds.items():
        if not isinstance(config.get(key), kind):
            raise CCRError(f"{path}: {key!r} is missing or no mapping; fetch or save the model again.")
    if missing := [part for part in _SETTINGS if part not in config and part not in config["retriever"]]:
        raise CCRError(f"{path}: {missing[0]!r} is missing; fetch or save the model again.")
    for part, allowed in _SETTINGS.items():
        own = config[part] if part in config else config["retriever"].get(part)
        if part == "fusion" and own is None:
            continue
        if not isinstance(own, dict) or (unknown := own.keys() - allowed):
            what = "is no mapping" if not isinstance(own, dict) else f"has {min(unknown)!r}, a setting that none has"
            raise CCRError(f"{path}: {part!r} {what}; fetch or save the model again.")
    for name, digest in {WEIGHTS: "", **config["sha256"]}.items():
        if "/" in name or not os.path.isfile(folder / name):  # a Path raises where a name is too long
            raise CCRError(f"{folder / name}: there is no such file, which {CONFIG} names; fetch or save it again.")
        if sha256_of(folder / name) != digest:
            raise CCRError(f"{folder / name}: the file is not the one that was saved (sha256); fetch or save it again.")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Returns the tensors of a folder's ``model.safetensors``.

    Raises:
        CCRError: The file is damaged.
    """
    from safetensors.torch import load_file

    try:
        weights: dict[str, Tensor] = load_file(folder / WEIGHTS)
    except Exception as error:  # safetensors has an exception of its own, and OSError
        refuse_out_of_memory(error, folder / WEIGHTS)
        raise CCRError(f"{folder / WEIGHTS}: cannot be read ({error}); fetch or save the model again.") from error
    return weights
