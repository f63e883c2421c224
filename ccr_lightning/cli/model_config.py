"""The part of a configuration that a model brings which is no run: a folder, a name on the hub or of a library."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ccr_lightning.errors import CCRError

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_OF_LIBRARIES = ("open_clip:", "sentence-transformers:")
_CONFIGS = ("config.json", "open_clip_config.json")


def names_model(given: str) -> bool:
    """Whether what an option names is a model, and no run or checkpoint.

    That is a folder of one, or ``open_clip:...`` or ``sentence-transformers:...``, or else a name on the hub.

    Example:
        >>> names_model("google/siglip2-base-patch16-224"), names_model("runs/pretrain/checkpoints/best.ckpt")
        (True, False)
        >>> names_model("open_clip:ViT-B-32/openai")
        True
    """
    if given.startswith(_OF_LIBRARIES):
        return True
    path = Path(given)
    if path.exists():
        has_config = any((path / name).is_file() for name in _CONFIGS)
        return path.is_dir() and has_config and not (path / "checkpoints").exists()
    return bool(_HUB_NAME.fullmatch(given)) and not path.parent.exists() and path.suffix not in (".ckpt", ".th")


def model_name(given: str) -> str:
    """A name for the results of a model, without slashes.

    Example:
        >>> model_name("google/siglip2-base-patch16-224"), model_name("exports/mine/")
        ('siglip2-base-patch16-224', 'mine')
        >>> model_name("open_clip:ViT-B-32/openai")
        'ViT-B-32-openai'
        >>> model_name("sentence-transformers:clip-ViT-B-32+me/clip-ViT-B-32-multilingual-v1")
        'clip-ViT-B-32+clip-ViT-B-32-multilingual-v1'
    """
    library, _, name = given.partition(":")
    if library == "open_clip":
        return name.replace("/", "-")
    if library == "sentence-transformers":
        return "+".join(Path(os.path.abspath(part)).name for part in name.split("+"))
    return Path(os.path.abspath(given)).name


def refuse_other_files(option: str, given: str) -> None:
    """Says what to do with weights that are neither a run's nor a model's folder.

    Raises:
        CCRError: The option names such a file.
    """
    path = Path(given)
    if not path.is_file() or path.suffix == ".ckpt":
        return
    if any((path.parent / name).is_file() for name in _CONFIGS):
        raise CCRError(f"{option}: this is a file of a model: pass its folder, {path.parent}.")
    raise CCRError(
        f"{option}: this is no checkpoint of a run; one that the authors of CCR^k or CCLM published is made a model "
        f"by: ccr convert {given} FOLDER"
    )


def config_of_model(given: str) -> dict[str, Any]:
    """Returns ``model`` and ``data`` of a configuration: the model, its tokeniser and what makes its images.

    Raises:
        CCRError: There is no such model, or none of a known kind.
    """
    from ccr_lightning.models.loading import describe

    described = describe(given)
    return {
        "model": {"retriever": described.retriever, **described.training},
        "data": {"tokenizer": described.tokenizer, "transform": described.transform},
    }
