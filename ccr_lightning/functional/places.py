"""What the host knows of a device, and where a mask is True without the device being waited for."""

from __future__ import annotations

import torch
from torch import Tensor

from ccr_lightning.errors import CCRError


def is_awaited(device: torch.device) -> bool:
    """Whether the host has to wait for a device to see a value on it, such as a GPU with its queue of work.

    Example:
        >>> is_awaited(torch.device("cpu")), is_awaited(torch.device("cuda"))
        (False, True)
    """
    return device.type != "cpu"


def true_places(mask: Tensor, most: int | None = None) -> Tensor:
    """Flat places of the cells that are True, in order; the size of the result needs no wait for the device.

    Args:
        mask: Bool, of any shape with N cells.
        most: At least as many as there are such cells. On a CPU, which counts without waiting, and where it is absent,
            the result has as many places as there are.

    Returns:
        Int64, rising; on other devices filled up with N to ``most``: take care to read and write nothing there.

    Raises:
        CCRError: On a CPU, if there are more than ``most``; other devices stop at an assertion.

    Example:
        >>> true_places(torch.tensor([[True, False], [True, True]]), most=4)
        tensor([0, 2, 3])
    """
    if most is None or not is_awaited(mask.device):
        places = mask.flatten().nonzero().squeeze(1)
        if most is not None and len(places) > most:
            raise CCRError(
                f"{len(places)} cells of a mask are True and the bound is {most}: pass a larger one, or none."
            )
        return places
    torch._assert_async(mask.sum() <= most, "more cells of a mask are True than the bound says")
    return mask.flatten().nonzero_static(size=most, fill_value=mask.numel()).squeeze(1)
