"""Reading the checkpoint of a run, without Lightning, whose import takes seconds."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ccr_lightning.errors import CCRError
from ccr_lightning.memory import refuse_out_of_memory
from ccr_lightning.models.mismatch import mismatch


def read_checkpoint(
    path: Path, map_location: Any = "cpu", weights_only: bool | None = True, verify: bool | None = None
) -> dict[str, Any]:
    """Reads a checkpoint and compares it with its checksums.

    Args:
        path: The file.
        map_location: As for ``torch.load``; ``meta`` reads no weights.
        weights_only: As for ``torch.load``.
        verify: Whether to compare all of it with its checksums; by default unless no weights are read.

    Raises:
        CCRError: If it is damaged, or something else than the checkpoint of a run.
    """
    try:
        if verify or (verify is None and map_location != "meta"):  # torch does not compare the checksums that it writes
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise zipfile.BadZipFile(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickles of other versions
            checkpoint: Any = torch.load(path, map_location, weights_only=weights_only)
    except Exception as error:  # torch.load raises anything from EOFError to RuntimeError
        refuse_out_of_memory(error, path)
        raise CCRError(
            f"{path}: the checkpoint cannot be read ({type(error).__name__}), it is damaged, or holds more than "
            "tensors, numbers and texts, which is never executed: copy or train it again."
        ) from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "pytorch-lightning_version"} <= checkpoint.keys():
        raise CCRError(f"{path}: the file is not the checkpoint of a run; pass one that ccr fit wrote.")
    return checkpoint


def explain_mismatch(model: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> str | None:
    """Says in one sentence how a checkpoint's tensors differ from a model's, or returns None if they fit.

    Example:
        >>> print(explain_mismatch({"a": torch.zeros(2)}, {"a": torch.zeros(3)}))  # doctest: +ELLIPSIS
        the checkpoint is of another architecture: 1 of 1 tensors differ, first 'a' (2,) in the model and (3,) in ...
    """
    if (differs := mismatch(model, checkpoint, "checkpoint")) is None:
        return None
    return f"the checkpoint is of another architecture: {differs}; use the config.yaml of the run that made it."
