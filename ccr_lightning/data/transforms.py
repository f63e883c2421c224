"""Pictures to normalised tensors, with and without augmentation."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ccr_lightning.data.pixels import EncodedPicture, Pixels
from ccr_lightning.errors import CCRError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class ImageTransform:
    """Turns a picture into a square of pixels: augmented for training, only resized for evaluation.

    The paper trains with ``crop_scale=(0.2, 1.0)``, ``horizontal_flip=True`` and ``rand_augment=True`` (RandAugment
    with 2 operations of magnitude 7, here torchvision's, which also recolours). Flips and colours are off by default:
    they make captions that name a side or a colour false.

    Args:
        image_size: Width and height of the result in pixels.
        crop_scale: Smallest and largest share of the area that a random training crop keeps, its aspect ratio between
            3/4 and 4/3; ``(1.0, 1.0)`` keeps the whole picture.
        horizontal_flip: Mirror every second training picture, at random.
        rand_augment: Apply RandAugment(2, 7) to training pictures.
        mean: Mean of each colour channel, CLIP's by default.
        std: Standard deviation of each colour channel, CLIP's by default.

    Example:
        >>> import io
        >>> transform = ImageTransform(image_size=32)
        >>> picture, buffer = Image.new("RGB", (64, 48), "red"), io.BytesIO()
        >>> picture.save(buffer, "PNG")
        >>> pixels = transform.train(EncodedPicture(buffer.getvalue(), "an example"), seed=0)
        >>> pixels.shape, pixels.dtype
        ((32, 32, 3), dtype('uint8'))
        >>> images = torch.from_numpy(np.stack([pixels, transform.evaluate(picture)]))
        >>> transform.normalize(images.permute(0, 3, 1, 2)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        image_size: int = 224,
        crop_scale: tuple[float, float] = (0.8, 1.0),
        horizontal_flip: bool = False,
        rand_augment: bool = False,
        mean: tuple[float, float, float] = CLIP_MEAN,
        std: tuple[float, float, float] = CLIP_STD,
    ) -> None:
        if image_size < 1:
            raise CCRError(f"ImageTransform got image_size {image_size}; give a number of pixels.")
        if len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise CCRError(f"ImageTransform got crop_scale {crop_scale}; give two rising shares of the area in (0, 1].")
        if min(std) <= 0:
            raise CCRError(f"ImageTransform got std {std}; give positive numbers.")
        self.image_size = image_size
        self.mean, self.std = list(mean), list(std)
        self.crop_scale = (crop_scale[0], crop_scale[1])
        self.horizontal_flip = horizontal_flip
        self._rand_augment = _rand_augment() if rand_augment else None
        # pixel / 255, minus the mean, over the deviation, as one multiplication and one addition
        deviation = np.array(std, np.float32)
        self._scale: list[float] = (1 / (255 * deviation)).tolist()
        self._shift: list[float] = (-np.array(mean, np.float32) / deviation).tolist()

    @property
    def is_fixed(self) -> bool:
        """Whether training pictures are not augmented: they look alike in every epoch."""
        return self.crop_scale == (1.0, 1.0) and not self.horizontal_flip and self._rand_augment is None

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments that make such a transform anew."""
        return {
            "image_size": self.image_size,
            "crop_scale": list(self.crop_scale),
            "horizontal_flip": self.horizontal_flip,
            "rand_augment": self._rand_augment is not None,
            "mean": self.mean,
            "std": self.std,
        }

    @property
    def evaluation_settings(self) -> dict[str, Any]:
        """What decides the pixels of :meth:`evaluate` and :meth:`normalize`."""
        return {"image_size": self.image_size, "resize": "bicubic, to a square", "mean": self.mean, "std": self.std}

    def train(self, picture: EncodedPicture, seed: int) -> Pixels:
        """Return the augmented ``(S, S, 3)`` pixels of a picture, a function of the picture and the seed.

        It is faster than :meth:`evaluate` and differs a little: crops have whole pixels, JPEGs are decoded at a half, a
        quarter or an eighth of their size where the crop remains larger than the result, and torch resizes (bicubic
        with antialias), which differs from Pillow by 1 of 255 in some pixels.
        """
        rng = random.Random(seed)
        return self._varied(_resize(self._cropped(picture, self.image_size, rng), self.image_size), rng)

    def _cropped(self, picture: EncodedPicture, size: int | None, rng: random.Random) -> Pixels:
        """A random crop, if it is to be resized to ``size`` decoded at a size that suffices."""
        width, height = picture.size
        left, top, right, bottom = box = 0, 0, width, height
        if self.crop_scale != (1.0, 1.0):
            left, top, right, bottom = box = _crop_box(width, height, self.crop_scale, rng)
        at_least = None
        if size is not None:
            at_least = math.ceil(width * size / (right - left)), math.ceil(height * size / (bottom - top))
        pixels = picture.pixels(at_least)
        if box != (0, 0, width, height):
            x, y = pixels.shape[1] / width, pixels.shape[0] / height
            pixels = pixels[round(top * y) : round(bottom * y), round(left * x) : round(right * x)]
        return pixels

    def _varied(self, pixels: Pixels, rng: random.Random) -> Pixels:
        """The pixels mirrored and recoloured, if that is asked for."""
        if self.horizontal_flip and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        if self._rand_augment is not None:
            image = Image.fromarray(np.ascontiguousarray(pixels))
            pixels = np.asarray(_with_torch_seed(self._rand_augment, image, rng.getrandbits(63)))
        return pixels

    def evaluate(self, image: Image.Image) -> Pixels:
        """Return the ``(S, S, 3)`` pixels of an RGB picture, resized to the square by Pillow (bicubic)."""
        if image.size != (self.image_size, self.image_size):
            image = image.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
        return np.asarray(image)

    def normalize(self, images: Tensor) -> Tensor:
        """Return ``(B, 3, H, W)`` pixels as floats with the mean taken off, over the deviation."""
        normalized = torch.empty(images.shape, device=images.device).copy_(images)
        for channel, scale, shift in zip(normalized.unbind(1), self._scale, self._shift, strict=True):
            channel.mul_(scale).add_(shift)
        return normalized


def _resize(pixels: Pixels, size: int) -> Pixels:
    if pixels.shape[:2] == (size, size):
        return pixels
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nor is it written to
        channels_first = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = F.interpolate(channels_first, (size, size), mode="bicubic", antialias=True)
    result: Pixels = resized[0].permute(1, 2, 0).numpy()
    return result


def _crop_box(width: int, height: int, scale: Sequence[float], rng: random.Random) -> tuple[int, int, int, int]:
    """Draw a box of a share of the area and an aspect ratio from 3/4 to 4/3, log-uniform; at last the whole picture."""
    for _ in range(10):
        area = width * height * rng.uniform(scale[0], scale[1])
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            return left, top, left + w, top + h
    return 0, 0, width, height


def _rand_augment() -> Any:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import RandAugment

    return RandAugment(num_ops=2, magnitude=7, interpolation=InterpolationMode.BILINEAR)


def _with_torch_seed(transform: Any, image: Image.Image, seed: int) -> Image.Image:
    """Apply a transform that draws from torch's CPU generator, and leave that generator as it was."""
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        result: Image.Image = transform(image)
    finally:
        generator.set_state(state)
    return result
