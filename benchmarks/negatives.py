"""Drawing positives and hard negatives of a batch, against a loop over its rows.

python -m benchmarks.negatives [--batches 32 128 1024]

The loop is the usual way: a multinomial draw and an ``.item()`` for the image, and for the text, of every row. One
thread, CPU seconds, medians of ratios.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import Measured, arguments, compare, in_process, one_or_more, show, write
from ccr_lightning.functional.matching import draw_matching

WIDTH, LANGUAGES, SCALE = 256, 6, 1 / 0.07
OURS, LOOP = "all rows at once", "row by row"


def loop(images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same draws, one after the other."""
    batch, languages = texts.shape[:2]
    logits = SCALE * images @ texts.flatten(0, 1).T
    weights = logits.softmax(1)
    own = weights.view(batch, batch, languages)[torch.arange(batch), torch.arange(batch)]
    language = torch.stack([torch.multinomial(row, 1)[0] for row in weights.max() - own + 1e-5])
    to_images = logits[:, torch.arange(batch) * languages + language].softmax(0).T + 1e-5
    to_texts = weights + 1e-5
    negative_images, negative_texts = [], []
    for row in range(batch):
        to_images[row, row] = 0
        negative_images.append(int(torch.multinomial(to_images[row], 1).item()))
        to_texts[row, row * languages : (row + 1) * languages] = 0
        negative_texts.append(int(torch.multinomial(to_texts[row], 1).item()))
    return language, torch.tensor(negative_images), torch.tensor(negative_texts)


def compared(batch: int, rounds: int) -> dict[str, Measured]:
    """Return what both ways cost."""
    images = F.normalize(torch.randn(batch, WIDTH), dim=1)
    texts = F.normalize(images[:, None] + 0.2 * torch.randn(batch, LANGUAGES, WIDTH), dim=-1)
    ways: dict[str, Callable[[], Any]] = {
        OURS: partial(draw_matching, images, texts, SCALE),
        LOOP: partial(loop, images, texts),
    }
    return compare(ways, OURS, rounds=rounds)


def main() -> None:
    """Compare, print a table for each size, write JSON."""
    parser = arguments(__doc__, "negatives", rounds=7)
    parser.add_argument("--batches", type=one_or_more, nargs="+", default=[32, 128, 1024])
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for batch in args.batches:
        title = f"{batch} images x {LANGUAGES} languages"
        measured = in_process(partial(compared, batch, args.rounds))
        show(title, measured, OURS)
        results[title] = {name: of._asdict() for name, of in measured.items()}
    write(args.output, results)


if __name__ == "__main__":
    main()
