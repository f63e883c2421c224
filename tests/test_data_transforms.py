import io
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from ccr_lightning.data.pixels import EncodedPicture
from ccr_lightning.data.transforms import ImageTransform
from ccr_lightning.errors import CCRError


def encoded(image, form="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, form)
    return EncodedPicture(buffer.getvalue(), "x")


@pytest.fixture
def picture():
    """Red grows to the right, green downwards, blue is flat."""
    y, x = np.mgrid[0:40, 0:60]
    return Image.fromarray(np.stack([x * 4, y * 6, np.full_like(x, 90)], axis=2).astype(np.uint8))


def test_evaluation_is_torchvisions_resize_and_normalise(picture):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    transform = ImageTransform(24, mean=mean, std=std)
    reference = v2.Compose(
        [
            v2.Resize((24, 24), interpolation=v2.InterpolationMode.BICUBIC),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )
    pixels = np.stack([transform.evaluate(picture)] * 2)
    images = transform.normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    torch.testing.assert_close(images, torch.stack([reference(picture)] * 2), rtol=1e-5, atol=1e-5)


def test_a_picture_of_the_right_size_keeps_its_pixels(picture):
    square = picture.resize((24, 24))
    for transform in (ImageTransform(24), ImageTransform(24, crop_scale=(1.0, 1.0))):
        assert np.array_equal(transform.evaluate(square), square)
    assert np.array_equal(ImageTransform(24, crop_scale=(1.0, 1.0)).train(encoded(square), 5), square)


@pytest.mark.parametrize(
    ("options", "is_fixed"),
    [
        ({"crop_scale": (1.0, 1.0)}, True),
        ({}, False),
        ({"crop_scale": (1.0, 1.0), "horizontal_flip": True}, False),
        ({"crop_scale": (1.0, 1.0), "rand_augment": True}, False),
    ],
)
def test_without_augmentation_a_picture_stays_as_it_is(picture, options, is_fixed):
    transform = ImageTransform(24, **options)
    assert transform.is_fixed == is_fixed
    assert (len({transform.train(encoded(picture), seed).tobytes() for seed in range(20)}) == 1) == is_fixed


@pytest.mark.parametrize("options", [{}, {"horizontal_flip": True}, {"rand_augment": True}])
def test_augmentation_is_a_function_of_the_seed(picture, options):
    transform = ImageTransform(24, crop_scale=(0.2, 1.0), **options)
    first = [transform.train(encoded(picture), seed) for seed in range(12)]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = (random.getstate()[1], torch.get_rng_state())
    again = [transform.train(encoded(picture), seed) for seed in reversed(range(12))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({a.tobytes() for a in first}) > 8
    assert random.getstate()[1] == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_training_resizes_as_evaluation_does(picture):
    noise = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    transform = ImageTransform(24, crop_scale=(1.0, 1.0))
    for image in (picture, Image.fromarray(noise)):
        difference = transform.train(encoded(image), 0).astype(int) - transform.evaluate(image)
        assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("crop_scale", [(1.0, 1.0), (0.8, 1.0), (0.1, 0.3)])
def test_large_photographs_look_the_same_when_less_of_them_is_decoded(picture, crop_scale):
    transform = ImageTransform(48, crop_scale=crop_scale)
    large = picture.resize((600, 400), Image.Resampling.BICUBIC)
    for seed in range(10):
        difference = transform.train(encoded(large, "JPEG"), seed).astype(int) - transform.train(encoded(large), seed)
        assert np.abs(difference).mean() < 3


def test_crops_keep_the_share_of_the_area(picture):
    transform = ImageTransform(32, crop_scale=(0.25, 0.5))
    shares = []
    for seed in range(200):
        red = transform.train(encoded(picture), seed)[:, :, 0].astype(float).mean(axis=0)
        green = transform.train(encoded(picture), seed)[:, :, 1].astype(float).mean(axis=1)
        assert (np.diff(red) >= -1).all()  # never mirrored
        assert (np.diff(green) >= -1).all()
        # the range of each ramp in the crop, over the middle half to stay clear of the borders
        width, height = (red[24] - red[8]) / 4 * 2, (green[24] - green[8]) / 6 * 2
        shares.append(width * height / (60 * 40))
        assert 0.7 < width / height < 1.45
    assert 0.23 < min(shares) < 0.3
    assert 0.45 < max(shares) < 0.53


def test_every_second_picture_is_mirrored(picture):
    transform = ImageTransform(24, crop_scale=(1.0, 1.0), horizontal_flip=True)
    picture = picture.resize((24, 24))  # so that nothing is resized, which rounds otherwise in a mirror
    straight = np.asarray(picture)
    mirrored = np.asarray(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    found = [transform.train(encoded(picture), seed) for seed in range(200)]
    flips = [np.array_equal(pixels, mirrored) for pixels in found]
    assert all(flip or np.array_equal(pixels, straight) for flip, pixels in zip(flips, found, strict=True))
    assert 70 < sum(flips) < 130


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size 0"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_scale": (0.9, 0.5)}, "crop_scale"),
        ({"crop_scale": (0.5, 1.5)}, "crop_scale"),
        ({"std": (0.1, 0.0, 0.1)}, "std"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(CCRError, match=message):
        ImageTransform(**options)
