"""Folders of models: named by their path, or fetched from the Hugging Face hub by name."""

from __future__ import annotations

import re
from pathlib import Path

from ccr_lightning.errors import CCRError

TEXTS = ("*.json", "*.txt", "*.model")  # settings and vocabularies
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def local_folder(name_or_path: str | Path, *patterns: str, subfolder: str = "") -> Path:
    """Returns the folder of a model: the one that is named, or a copy of what the hub has under a name.

    Args:
        name_or_path: The folder or the name.
        patterns: Which files of the hub's are needed.
        subfolder: The folder of the hub's in which they lie.

    Raises:
        CCRError: There is no such folder, and nothing on the hub, or no way to it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     local_folder(folder) == Path(folder)
        True
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    name = str(name_or_path)
    if not _NAME.fullmatch(name) or folder.exists():
        raise CCRError(f"{name}: there is no such folder of a model; check the path.")
    from huggingface_hub import snapshot_download

    try:
        wanted = [f"{subfolder}/{pattern}" if subfolder else pattern for pattern in patterns]
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=None if subfolder else ["*/*"]))
    except Exception as error:  # the hub's client raises anything from OSError to ValueError
        raise CCRError(
            f"{name}: there is no such folder here, and the Hugging Face hub has no such model or cannot be reached "
            f"({type(error).__name__}): pass the path of a folder with the model's files."
        ) from error


def model_folder(name_or_path: str | Path) -> Path:
    """:func:`local_folder` with all that transformers needs of a model; pickled weights only if there are no others."""
    folder = local_folder(name_or_path, *TEXTS, "*.safetensors")
    if any(folder.glob("*.safetensors")) or folder == Path(name_or_path):
        return folder
    return local_folder(name_or_path, *TEXTS, "pytorch_model*.bin")
