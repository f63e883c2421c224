"""What a store of many images costs: building it, opening it, the memory of a worker, and samples a second.

python -m benchmarks.data_scale --images 20000 200000 --folder FOLDER

Pictures are noise with the spectrum of photographs, 640 x 480 pixels (as COCO's) and 500 x 375 (as Flickr30k's), JPEG
of quality 85; each has a caption in ten languages, of 4 to 16 made-up words. Samples are 224 x 224 pixels of a random
crop, their captions as token ids. All is measured with one thread; rates are compared in turns and given as the median
of their ratios.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ccr_lightning.data.build import build_store
from ccr_lightning.data.collate import collate_training
from ccr_lightning.data.dataset import TrainSamples
from ccr_lightning.data.faults import Report, stop
from ccr_lightning.data.sampler import TrainBatchSampler
from ccr_lightning.data.store import Store, open_store
from ccr_lightning.data.tokenizer import CaptionTokenizer
from ccr_lightning.data.transforms import CLIP_MEAN, CLIP_STD, ImageTransform
from ccr_lightning.types import ImageCaptions

LANGUAGES = ("cs", "de", "en", "es", "fr", "id", "ja", "ru", "tr", "zh")
SIZES = ((640, 480), (500, 375))
PICTURES = 256
BATCH = 64
ROUNDS = 7
PAPER = 3_309_520  # images that the paper pre-trains on


class Photographs:
    """Any number of pictures that look to a codec like photographs, no two files of them equal."""

    name, languages, parallel, splits = "photographs", LANGUAGES, True, ("train",)

    def __init__(self, count: int, size: tuple[int, int] = SIZES[0]) -> None:
        self.count = count
        self._pictures = [_photograph(number, *size) for number in range(PICTURES)]
        rng = random.Random(0)
        letters = {language: "abcdefghijklmnopqrstuvwxyz" for language in LANGUAGES}
        letters |= {"ru": "абвгдежзиклмнопрстуф", "ja": "かきくけこさしすせそ山川", "zh": "一二三山川日月人口木水火土"}
        self._zipf = np.cumsum(1 / np.arange(1, 4001)).tolist()  # some words are frequent, as in any language
        self._words = {
            language: ["".join(rng.choices(letters[language], k=rng.randint(2, 9))) for _ in range(4000)]
            for language in LANGUAGES
        }

    def fingerprint(self, split: str) -> str:
        """Return the number of pictures."""
        return str(self.count)

    def records(self, split: str, report: Report = stop) -> Iterator[ImageCaptions]:
        """Yield the pictures; a comment in each file makes it its own."""
        for number in range(self.count):
            rng = random.Random(number)
            words = rng.randint(4, 16)
            captions = {
                name: (" ".join(rng.choices(self._words[name], cum_weights=self._zipf, k=words)),) for name in LANGUAGES
            }
            picture = self._pictures[number % PICTURES]
            comment = b"\xff\xfe\x00\x0a" + number.to_bytes(8, "big")
            yield ImageCaptions(str(number), picture[:2] + comment + picture[2:], captions, f"made:{number}")


def _photograph(seed: int, width: int, height: int) -> bytes:
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    amplitude = frequency**-1.7

    def noise() -> Any:
        phases = np.exp(2j * np.pi * rng.random(amplitude.shape))
        return np.fft.irfft2(amplitude * phases, s=(height, width))

    light = noise()
    channels = [light + 0.5 * noise() for _ in range(3)]
    pixels = np.stack([128 + 55 * (channel - channel.mean()) / channel.std() for channel in channels], axis=2)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def main() -> None:
    """Builds the stores that are not there, then measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=5000, help="read by a worker before its memory is taken")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.worker is not None:
        _work(args.folder / str(args.worker), args.samples)
        return
    for count in args.images:
        _build(count, args.folder)
    for count in args.images:
        _print_worker(count, args.folder, args.samples)
    for size in SIZES:
        _print_rates(size, args.folder)
    _print_padding(open_store(args.folder / "640x480"), _tokenizer(args.folder))


def _build(count: int, folder: Path) -> None:
    if (folder / str(count)).exists():
        return
    source = Photographs(count)
    begin = time.monotonic()
    build_store(source, "train", folder / str(count))
    seconds = time.monotonic() - begin
    size = sum(file["bytes"] for file in open_store(folder / str(count)).manifest["files"])
    print(
        f"{count:,} images built in {seconds:.0f} s ({count / seconds:,.0f} a second), {size / 1e9:.1f} GB; "
        f"{PAPER:,} would take {seconds / 3600 * PAPER / count:.1f} hours and {size / 1e9 * PAPER / count:.0f} GB"
    )


def _print_worker(count: int, folder: Path, samples: int) -> None:
    """Starts a worker for one batch, timed as a whole process, and one for many, whose memory is looked at."""
    _tokenizer(folder)
    command = [sys.executable, "-m", "benchmarks.data_scale", "--folder", str(folder), "--worker", str(count)]
    begin = time.monotonic()
    subprocess.run([*command, "--samples", str(BATCH)], check=True, capture_output=True)
    first = time.monotonic() - begin
    output = subprocess.run([*command, "--samples", str(samples)], check=True, capture_output=True, text=True).stdout
    print(f"{count:,} images: process start to first batch {first:.1f} s; after {samples:,} samples {output.strip()}")


def _work(folder: Path, samples: int) -> None:
    """What a process that loads batches does; prints the memory it ends with."""
    batches = _batches(open_store(folder), _tokenizer(folder.parent))
    for _ in range(samples // BATCH):
        next(batches)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    lines = [line.split() for line in status.splitlines() if line.startswith(("VmRSS", "RssAnon", "RssFile"))]
    memory = {name.rstrip(":"): int(kilobytes) // 1024 for name, kilobytes, _ in lines}
    print(f"{memory['VmRSS']} MB resident, {memory['RssAnon']} its own and {memory['RssFile']} of mapped files")


def _batches(store: Store, tokenizer: CaptionTokenizer) -> Iterator[Any]:
    samples = TrainSamples(store, ImageTransform(), LANGUAGES, None, (), seed=0)
    for epoch in range(1000):
        sampler = TrainBatchSampler(len(samples), BATCH, seed=0)
        sampler.set_epoch(epoch)
        for keys in sampler:
            yield collate_training([samples[key] for key in keys], tokenizer)


def _tokenizer(folder: Path) -> CaptionTokenizer:
    """One tokeniser for all that is measured, trained on the first captions."""
    path = folder / "tokenizer.json"
    if not path.exists():
        tokenizer = CaptionTokenizer(vocab_size=20_000)
        records = Photographs(5000).records("train")
        tokenizer.train(text for record in records for texts in record.captions.values() for text in texts)
        path.write_text(json.dumps(tokenizer.to_dict()), encoding="utf-8")
    return CaptionTokenizer.from_dict(json.loads(path.read_text(encoding="utf-8")))


def _print_rates(size: tuple[int, int], folder: Path) -> None:
    name = f"{size[0]}x{size[1]}"
    build_store(Photographs(60 * BATCH, size), "train", folder / name)
    store, tokenizer = open_store(folder / name), _tokenizer(folder)
    lines = _base64_lines(store, folder / f"{name}.data")
    ours = _batches(store, tokenizer)
    transform, pictures = ImageTransform(), [store.image(row) for row in range(BATCH)]
    ways: dict[str, Callable[[], object]] = {
        "store": lambda: next(ours),
        "store, normalised": lambda: transform.normalize(next(ours).images),
        "base64 lines": lambda: _base64_batch(lines, tokenizer),
        "bare decoding": lambda: [_decode(picture) for picture in pictures],
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for way in [*ways, *list(ways) * ROUNDS]:  # the first time warms up
        begin = time.process_time()
        for _ in range(4):
            ways[way]()
        seconds[way].append(time.process_time() - begin)
    rates = [f"{way} {4 * BATCH / statistics.median(taken[1:]):.0f}" for way, taken in seconds.items()]
    print(f"{name}, samples a CPU second: {', '.join(rates)}")
    for one, other in (("store, normalised", "base64 lines"), ("store", "bare decoding")):
        ratios = [b / a for a, b in zip(seconds[one][1:], seconds[other][1:], strict=True)]
        print(f"{name}, {one} to {other}: {statistics.median(ratios):.2f}")


def _print_padding(store: Store, tokenizer: CaptionTokenizer) -> None:
    """The share of padding among the tokens of an epoch's batches, drawn by chance and by length."""
    for window in (1, 50):
        samples = TrainSamples(store, ImageTransform(), LANGUAGES, None, (), seed=0)
        sampler = TrainBatchSampler(len(samples), BATCH, seed=0, lengths=samples.text_lengths(), length_window=window)
        tokens = padding = 0
        for keys in sampler:
            texts = [text for key in keys for texts in store.captions(key.position).values() for text in texts]
            mask = tokenizer.encode(texts)[1]
            tokens += mask.numel()
            padding += int((~mask).sum())
        print(f"length_window {window}: {100 * padding / tokens:.0f} % of the tokens are padding")


def _decode(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def _base64_lines(store: Store, path: Path) -> Iterator[bytes]:
    """The same data as lines of JSON with the picture in base64, without end."""
    with path.open("wb") as file:
        for row in range(len(store)):
            captions = {language: texts[0] for language, texts in store.captions(row).items()}
            line = {"caption": captions, "image": base64.b64encode(store.image(row)).decode()}
            file.write(json.dumps(line).encode() + b"\n")
    while True:
        with path.open("rb") as file:
            yield from file


def _base64_batch(lines: Iterator[bytes], tokenizer: CaptionTokenizer) -> Any:
    """A batch as the code bases before this one load it: line by line, and caption by caption."""
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(224, scale=(0.8, 1.0), interpolation=v2.InterpolationMode.BICUBIC),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    images, ids = [], []
    for _ in range(BATCH):
        record = json.loads(next(lines))
        images.append(transform(_decode(base64.b64decode(record["image"]))))
        ids.append([_token_ids(record["caption"][language], tokenizer) for language in LANGUAGES])
    return torch.stack(images), torch.tensor(ids)


def _token_ids(caption: str, tokenizer: CaptionTokenizer) -> list[int]:
    backend = tokenizer._tokenizer
    tokens = ["<s>", *backend.tokenize(caption)[: tokenizer.max_tokens - 2], "</s>"]
    ids: list[int] = backend.convert_tokens_to_ids(tokens)
    return ids + [tokenizer.pad_token_id] * (tokenizer.max_tokens - len(ids))


if __name__ == "__main__":
    main()
