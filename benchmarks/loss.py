"""The 1-to-K loss, forward and backward, against three matrix products and a loss with one-hot labels.

python -m benchmarks.loss [--batches 1024 2048] [--compiled]

Embeddings have 256 components and captions 10 languages, in float32. Three products is what the logits and both
gradients take at least. The gradient of each form is compared with that in float64. One thread, CPU seconds, medians
of ratios.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import Measured, arguments, compare, in_process, one_or_more, product_of_tiles, show, write
from ccr_lightning.functional.contrastive import one_to_k_contrastive_loss

WIDTH, LANGUAGES, SCALE = 256, 10, 1 / 0.07
TILE = (256, 1024)
FLOOR, OURS = "three products", "tiled"

Loss = Callable[..., Tensor]


def embeddings(batch: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, captions and the inverse of the temperature, all with gradient."""
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(batch, WIDTH, generator=generator), dim=1)
    texts = F.normalize(images[:, None] + 0.2 * torch.randn(batch, LANGUAGES, WIDTH, generator=generator), dim=-1)
    images, texts, logit_scale = (of.to(dtype).requires_grad_() for of in (images, texts, torch.tensor(SCALE)))
    return images, texts, logit_scale


def products(images: Tensor, texts: Tensor, _: Tensor) -> None:
    """The floor: three products of the size of the logits, in tiles."""
    for _ in range(3):
        product_of_tiles(images.detach(), texts.detach().flatten(0, 1), TILE)


def with_labels(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    """The formula as it is often written: log-softmax of the logits in both directions, times one-hot labels."""
    batch, languages = texts.shape[:2]
    logits = logit_scale * (images @ texts.flatten(0, 1).T)
    labels = torch.eye(batch, device=logits.device).repeat_interleave(languages, 1)
    to_text = -(logits.log_softmax(1) * labels).sum(1) / languages
    to_image = -(logits.T.log_softmax(1) * labels.T).sum(1)
    return 0.5 * (to_text.mean() + to_image.mean())


LOSSES: dict[str, Loss] = {
    OURS: partial(one_to_k_contrastive_loss, is_tiled=True),
    "dense": partial(one_to_k_contrastive_loss, is_tiled=False),
    "log-softmax with one-hot labels": with_labels,
}


def trained(loss: Loss, sides: tuple[Tensor, Tensor, Tensor]) -> None:
    """Forward and backward."""
    for of in sides:
        of.grad = None
    loss(*sides).backward()


def ways(batch: int, losses: Mapping[str, Loss]) -> dict[str, Callable[[], Any]]:
    """Return the floor, and forward and backward of each loss."""
    sides = embeddings(batch)
    return {FLOOR: partial(products, *sides)} | {name: partial(trained, loss, sides) for name, loss in losses.items()}


def gradient_error(loss: Loss, batch: int) -> float:
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


def compared(batch: int, losses: Mapping[str, Loss], rounds: int) -> tuple[dict[str, Measured], dict[str, float]]:
    """Return what each loss costs, and the error of its gradient."""
    measured = compare(ways(batch, losses), FLOOR, rounds=rounds)
    return measured, {name: gradient_error(loss, batch) for name, loss in losses.items()}


def main() -> None:
    """Compare, print a table for each size, write JSON."""
    parser = arguments(__doc__, "loss")
    parser.add_argument("--batches", type=one_or_more, nargs="+", default=[1024])
    parser.add_argument("--compiled", action="store_true", help="also with torch.compile, which needs a C++ compiler")
    args = parser.parse_args()
    torch.set_num_threads(1)
    losses = dict(LOSSES)
    if args.compiled:
        losses["dense, compiled"] = torch.compile(losses["dense"])
    results: dict[str, Any] = {}
    for batch in args.batches:
        measured, errors = in_process(partial(compared, batch, losses, args.rounds))
        title = f"{batch} images x {LANGUAGES} languages"
        show(title, measured, FLOOR)
        print("gradient against float64: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))
        results[title] = {name: of._asdict() for name, of in measured.items()} | {"gradient_errors": errors}
    write(args.output, results)


if __name__ == "__main__":
    main()
