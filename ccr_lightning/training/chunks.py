"""Gradient caching: a batch that does not fit into memory, encoded a few rows at a time, with its exact gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ccr_lightning.errors import CCRError
from ccr_lightning.functional.similarity import slices


def in_chunks(function: Callable[..., Any], size: int | None, *arguments: Any) -> Any:
    """Applies a function to a few rows at a time, and keeps nothing for the backward pass but its inputs and results.

    In the backward pass each chunk is computed once more, with the draws of its dropout repeated, and gives its share
    of the gradient before the next one: memory for one chunk at a time (Gao et al., "Scaling Deep Contrastive Learning
    Batch Size under Memory Limited Setup", RepL4NLP 2021).

    Args:
        function: Row by row: of no row does the result depend on others. It returns a tensor or a named tuple of
            tensors. Its first argument is a tensor on the device whose draws are to be repeated.
        size: Rows of a chunk; None for all at once, as if the function was called.
        arguments: Tensors or arrays of the same number of rows.

    Returns:
        What the function returns for all rows.

    Example:
        >>> in_chunks(torch.exp, 2, torch.zeros(5))
        tensor([1., 1., 1., 1., 1.])
    """
    n_rows = len(arguments[0])
    if size is None or size >= n_rows:
        return function(*arguments)
    # In the backward pass a split puts the gradients of its parts together, a slice adds zeros for all other rows.
    parts = [
        torch.split(argument, size)
        if isinstance(argument, Tensor)
        else [argument[part] for part in slices(n_rows, size)]
        for argument in arguments
    ]
    results = [checkpoint(function, *chunk, use_reentrant=False) for chunk in zip(*parts, strict=True)]
    if isinstance(results[0], Tensor):
        return torch.cat(results)
    return type(results[0])(*(torch.cat(of) for of in zip(*results, strict=True)))


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a row's result depends on others by way of BatchNorm."""
    return any(isinstance(part, _BatchNorm) for part in model.modules())


def check_chunks(size: int | None, model: nn.Module) -> None:
    """Checks that a model can be trained in chunks.

    Raises:
        CCRError: If there is no row in a chunk, or if the result for a row depends on others.
    """
    if size is None:
        return
    if size < 1:
        raise CCRError(f"chunk_size={size} is out of range: choose 1 or more, or leave it out.")
    if has_batch_norm(model):
        raise CCRError(
            f"chunk_size={size} needs a model without BatchNorm, whose statistics would be those of a chunk: choose "
            "another image encoder, such as a Swin, ViT or ConvNeXt, or leave chunk_size out."
        )
