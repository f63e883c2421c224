"""How weights that were saved differ from those of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def mismatch(model: Mapping[str, Any], saved: Mapping[str, Any], place: str = "file") -> str | None:
    """Says which tensors that were saved differ from a model's in size, or returns None if all fit.

    Args:
        model: The model's state.
        saved: What was saved.
        place: Where it was, for the message.

    Example:
        >>> import torch
        >>> mismatch({"a": torch.zeros(2)}, {"a": torch.zeros(3)})
        "1 of 1 tensors differ, first 'a' (2,) in the model and (3,) in the file"
    """
    names = list(dict.fromkeys([*model, *saved]))

    def size(tensors: Mapping[str, Any], name: str) -> str:
        return str(tuple(tensors[name].shape)) if name in tensors else "missing"

    different = [name for name in names if size(model, name) != size(saved, name)]
    if not different:
        return None
    first = different[0]
    return (
        f"{len(different)} of {len(names)} tensors differ, first {first!r} {size(model, first)} in the model and "
        f"{size(saved, first)} in the {place}"
    )
