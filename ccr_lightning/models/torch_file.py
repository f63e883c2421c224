"""Files that torch.save wrote, by whomever: nothing in them is executed, and damage is recognised."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccr_lightning.errors import CCRError
from ccr_lightning.memory import refuse_out_of_memory


def _numpy_names() -> list[Any]:
    """What states of numpy's generators are pickled with: plain arrays of numbers, under old and new names."""
    from _codecs import encode

    core: Any = import_module("numpy._core.multiarray")
    functions = [(getattr(core, name), name) for name in ("_reconstruct", "scalar")]
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    named = [(function, f"numpy.{old}.multiarray.{name}") for function, name in functions for old in ("core", "_core")]
    return [*named, np.ndarray, np.dtype, *sorted(kinds, key=str), encode]


def read_torch_file(path: str | Path) -> Any:
    """Reads a file of plain containers, numbers, texts, torch tensors and numpy arrays, on the CPU.

    Tensors stay in the file until they are used, where its format allows for that.

    Args:
        path: The file. It is never fetched from anywhere.

    Returns:
        Its content.

    Raises:
        CCRError: There is no such file, it is truncated or damaged, or it holds anything else, such as code.
    """
    path = Path(path)
    if not path.is_file():
        raise CCRError(f"{path}: there is no such file; check the path.")
    try:
        is_archive = zipfile.is_zipfile(path)
        if is_archive:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch does not compare the checksums that it writes
            if damaged is not None:
                raise CCRError(f"{path}: the file is damaged at {damaged}: fetch it again.")
        with torch.serialization.safe_globals(_numpy_names()), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL (\S+) (?:was|whose)", str(error)):
            raise CCRError(
                f"{path}: the file asks for {found[1]}, which is no tensor, number or text, and could run code; "
                "it is not read: ask its makers for the weights alone."
            ) from error
        raise CCRError(f"{path}: the file cannot be read, it is damaged or not torch's: fetch it again.") from error
    except CCRError:
        raise
    except Exception as error:  # torch.load raises anything from EOFError to RuntimeError
        refuse_out_of_memory(error, path)
        raise CCRError(
            f"{path}: the file cannot be read ({type(error).__name__}), it is truncated, damaged or not torch's: fetch "
            "it again."
        ) from error
