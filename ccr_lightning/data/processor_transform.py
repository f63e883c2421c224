"""Pictures as the image processor of a model of transformers makes them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ccr_lightning.data.patches import pack_patches
from ccr_lightning.data.pixels import EncodedPicture, Pixels
from ccr_lightning.data.transforms import ImageTransform
from ccr_lightning.errors import CCRError
from ccr_lightning.hub import TEXTS, local_folder
from ccr_lightning.libraries import reason


class ProcessorTransform(ImageTransform):
    """What a pretrained model's own image processor does, with augmentation for training if asked for.

    Resizing, cropping, mean and deviation are the processor's. Training pictures are random crops instead, resized to
    the same size; for processors that keep a picture's shape (SigLIP 2's NaFlex) crops keep theirs too.

    Args:
        name_or_path: A folder that transformers wrote, or a name on the Hugging Face hub.
        crop_scale: As for :class:`ImageTransform`; by default training pictures are made as those of evaluation.
        horizontal_flip: As for :class:`ImageTransform`.
        rand_augment: As for :class:`ImageTransform`.
        subfolder: Where the files are within ``name_or_path``, as those of sentence-transformers' models may be.

    Raises:
        CCRError: There is no such processor, or its images are not square.
    """

    def __init__(
        self,
        name_or_path: str,
        crop_scale: tuple[float, float] = (1.0, 1.0),
        horizontal_flip: bool = False,
        rand_augment: bool = False,
        subfolder: str = "",
    ) -> None:
        self.name_or_path = name_or_path
        self.processor = processor = _load(name_or_path, subfolder)
        self._keeps_shape = hasattr(processor, "max_num_patches")
        height, width, _ = self._made_of(Image.new("RGB", (40, 30))).shape
        if height != width and not self._keeps_shape:
            raise CCRError(f"{name_or_path}: its images are {height} x {width}; only square ones can be made here.")
        super().__init__(
            width, crop_scale, horizontal_flip, rand_augment, tuple(processor.image_mean), tuple(processor.image_std)
        )

    @property
    def evaluation_settings(self) -> dict[str, Any]:
        """What decides the pixels of :meth:`evaluate` and :meth:`normalize`."""
        return {"image_size": self.image_size, **self.processor.to_dict()}

    def evaluate(self, image: Image.Image) -> Pixels:
        """Return the processor's ``(S, S, 3)`` pixels of an RGB picture, or its patches (``pack_patches``)."""
        return self._made_of(image)

    def train(self, picture: EncodedPicture, seed: int) -> Pixels:
        """Return the augmented pixels of a picture, a function of the picture and the seed."""
        if self.is_fixed:
            return self._made_of(Image.fromarray(picture.pixels()))
        if not self._keeps_shape:
            return super().train(picture, seed)
        rng = random.Random(seed)
        pixels = self._varied(self._cropped(picture, None, rng), rng)
        return self._made_of(Image.fromarray(np.ascontiguousarray(pixels)))

    def normalize(self, images: Tensor) -> Tensor:
        """Return ``(B, 3, H, W)`` pixels as floats with the mean taken off, over the deviation."""
        normalized = super().normalize(images)
        if self._keeps_shape:
            normalized[:, :, 0] = images[:, :, 0].to(normalized.dtype)
        return normalized

    def _made_of(self, image: Image.Image) -> Pixels:
        made = self.processor(images=[image], do_rescale=False, do_normalize=False, return_tensors="pt")
        pixels: Pixels = made["pixel_values"][0].numpy()
        if pixels.dtype != np.uint8:
            raise CCRError(
                f"{self.name_or_path}: its image processor makes {pixels.dtype} of bytes; it is not supported."
            )
        if self._keeps_shape:
            rows, columns = made["spatial_shapes"][0].tolist()
            return pack_patches(pixels, (rows, columns))
        return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def _load(name_or_path: str, subfolder: str) -> Any:
    from transformers import AutoImageProcessor

    try:
        folder = local_folder(name_or_path, *TEXTS, subfolder=subfolder)
        processor: Any = AutoImageProcessor.from_pretrained(folder, subfolder=subfolder, trust_remote_code=False)
    except Exception as error:
        raise CCRError(
            f"the image processor of {name_or_path!r} cannot be loaded ({reason(error)}); give the path of a "
            "folder with the model's files, or a name on the Hugging Face hub and a connection to it."
        ) from error
    is_usual = processor.do_rescale and processor.do_normalize and abs(processor.rescale_factor * 255 - 1) < 1e-6
    if not is_usual:
        raise CCRError(f"{name_or_path}: its image processor does not normalise bytes in the usual way; not supported.")
    return processor
