"""Pictures that keep their shape, as rows of patches: SigLIP 2's NaFlex, within batches of images of one size."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ccr_lightning.data.pixels import Pixels


class Patches(NamedTuple):
    """What a model reads: P patches of each of B pictures, those of smaller ones filled up."""

    pixels: Tensor  # (B, P, N) float, N numbers of a patch, its pixels row by row; 0 where there is no patch
    mask: Tensor  # (B, P) int32, 1 for patches
    shapes: Tensor  # (B, 2) int64, rows and columns of patches


def pack_patches(patches: Pixels, shape: tuple[int, int]) -> Pixels:
    """Puts the patches of a picture into an image: a row of pixels each, after a row that tells how many there are.

    Args:
        patches: ``(P, N)`` uint8, N three times the number of pixels of a patch.
        shape: Rows and columns of patches, each at most 255.

    Returns:
        ``(1 + P, N / 3, 3)`` uint8.
    """
    pixels = patches.reshape(len(patches), -1, 3)
    first = np.zeros_like(pixels[:1])
    first[0, 0, :2] = shape
    return np.concatenate([first, pixels])


def unpack_patches(images: Tensor) -> Patches:
    """Takes apart a batch of what :func:`pack_patches` made, its first rows as they were, the others normalised.

    Args:
        images: (B, 3, 1 + P, N / 3) float.

    Example:
        >>> packed = pack_patches(np.ones((4, 12), np.uint8), (1, 3))
        >>> images = torch.from_numpy(packed).permute(2, 0, 1)[None].float()
        >>> pixels, mask, shapes = unpack_patches(images)
        >>> pixels.shape, mask.tolist(), shapes.tolist()
        (torch.Size([1, 4, 12]), [[1, 1, 1, 0]], [[1, 3]])
    """
    shapes = images[:, :2, 0, 0].round().long()
    pixels = images[:, :, 1:].permute(0, 2, 3, 1).flatten(2)
    mask = torch.arange(pixels.shape[1], device=images.device) < shapes.prod(1)[:, None]
    return Patches(pixels * mask[..., None], mask.int(), shapes)
