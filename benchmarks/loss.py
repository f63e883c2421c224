"""The 1-to-K loss, forward and backward, against three matrix products and a loss with one-hot labels.

python -m benchmarks.loss [--batches 1024 2048] [--compiled]

Embeddings have 256 components and captions 10 languages, in float32. Three products is what the logits and both
gradients take at least. The gradient of each form is compared with that in float64. One thread, CPU seconds, medians
of ratios.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import compare, show, write
from ccr_lightning.functional.contrastive import one_to_k_contrastive_loss
from ccr_lightning.functional.similarity import slices

WIDTH, LANGUAGES, SCALE = 256, 10, 1 / 0.07
TILE = (256, 1024)
FLOOR = "three products"


def embeddings(batch: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, captions and the inverse of the temperature, all with gradient."""
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(batch, WIDTH, generator=generator), dim=1)
    texts = F.normalize(images[:, None] + 0.2 * torch.randn(batch, LANGUAGES, WIDTH, generator=generator), dim=-1)
    images, texts, logit_scale = (of.to(dtype).requires_grad_() for of in (images, texts, torch.tensor(SCALE)))
    return images, texts, logit_scale


def products(images: Tensor, texts: Tensor, _: Tensor) -> None:
    """The floor: three products of the size of the logits, in tiles."""
    rows, columns = images.detach(), texts.detach().flatten(0, 1)
    space = torch.empty(TILE[0] * TILE[1])
    for _ in range(3):
        for own in slices(len(rows), TILE[0]):
            for others in slices(len(columns), TILE[1]):
                shape = (own.stop - own.start, others.stop - others.start)
                torch.mm(rows[own], columns[others].T, out=space[: shape[0] * shape[1]].view(shape))


def with_labels(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    """The formula as it is often written: log-softmax of the logits in both directions, times one-hot labels."""
    batch, languages = texts.shape[:2]
    logits = logit_scale * (images @ texts.flatten(0, 1).T)
    labels = torch.eye(batch).repeat_interleave(languages, 1)
    to_text = -(logits.log_softmax(1) * labels).sum(1) / languages
    to_image = -(logits.T.log_softmax(1) * labels.T).sum(1)
    return 0.5 * (to_text.mean() + to_image.mean())


def trained(loss: Callable[..., Tensor], sides: tuple[Tensor, Tensor, Tensor]) -> None:
    """Forward and backward."""
    for of in sides:
        of.grad = None
    loss(*sides).backward()


def gradient_error(loss: Callable[..., Tensor], batch: int) -> float:
    """The largest difference of a gradient from that in float64, as a share of the largest gradient."""
    exact, found = embeddings(batch, torch.float64), embeddings(batch)
    trained(partial(one_to_k_contrastive_loss, is_tiled=False), exact)
    trained(loss, found)
    errors = []
    for one, other in zip(exact, found, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        errors.append(((one.grad - other.grad).abs().max() / one.grad.abs().max()).item())
    return max(errors)


def main() -> None:
    """Compare, print a table for each size, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1024])
    parser.add_argument("--compiled", action="store_true", help="also with torch.compile, which needs a C++ compiler")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/benchmarks/loss.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    losses: dict[str, Callable[..., Tensor]] = {
        "tiled": partial(one_to_k_contrastive_loss, is_tiled=True),
        "dense": partial(one_to_k_contrastive_loss, is_tiled=False),
        "log-softmax with one-hot labels": with_labels,
    }
    if args.compiled:
        losses["dense, compiled"] = torch.compile(losses["dense"])
    results: dict[str, Any] = {}
    for batch in args.batches:
        sides = embeddings(batch)
        ways: dict[str, Callable[[], Any]] = {FLOOR: partial(products, *sides)}
        ways |= {name: partial(trained, loss, sides) for name, loss in losses.items()}
        measured = compare(ways, FLOOR, rounds=args.rounds)
        title = f"{batch} images x {LANGUAGES} languages"
        show(title, measured, FLOOR)
        errors = {name: gradient_error(loss, batch) for name, loss in losses.items()}
        print("gradient against float64: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))
        results[title] = {name: of._asdict() for name, of in measured.items()} | {"gradient_errors": errors}
    write(args.output, results)


if __name__ == "__main__":
    main()
