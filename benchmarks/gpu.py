"""The comparisons on a CUDA GPU, timed by its own clock: ranks, the loss and the step, with peaks of its memory.

python -m benchmarks.gpu [ranks million loss step] [--peak_teraflops 989]

ranks    exact ranks of both directions against the float32 product of the same tiles (no TF32), 30,000 images
million  exact ranks of both directions, 1 M images with captions in 10 languages
loss     the 1-to-K loss and its gradient against three products in float32 and in bfloat16, 4,096 images, 10 languages
step     the paper's model in bfloat16, 64 images, 10 languages: images a second, share of what the GPU could compute;
         fails if anything in the step waits for the GPU
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import loss, scaling
from benchmarks.measure import write
from benchmarks.step import Tokens, natural_lengths
from ccr_lightning.functional.ranks import mutual_rank_counts
from ccr_lightning.functional.similarity import full_precision, slices
from ccr_lightning.training.optim import adamw, parameter_groups

WIDTH, TILE, LANGUAGES = 256, 4096, 10


def seconds(way: Callable[[], Any], device: torch.device, rounds: int = 5) -> float:
    """Median of what a way takes, after one time that does not count."""
    way()
    taken = []
    for _ in range(rounds):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            way()
            end.record()
            torch.cuda.synchronize()
            taken.append(begin.elapsed_time(end) / 1000)
        else:
            start = time.perf_counter()
            way()
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def peak_mebibytes(way: Callable[[], Any], device: torch.device) -> float:
    """Memory of the GPU at its peak, beyond what was in use; not a number on a CPU."""
    if device.type != "cuda":
        return float("nan")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    way()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def product(images: Tensor, texts: Tensor) -> None:
    """Every cell once, tile by tile, kept nowhere."""
    with full_precision(images.device):
        for rows in slices(len(images), TILE):
            for columns in slices(len(texts), TILE):
                images[rows] @ texts[columns].T


def sides(images: int, device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return images and captions as of a trained model, (N, D) each."""
    generator = torch.Generator(device).manual_seed(seed)
    image_embeds, noise = (
        F.normalize(torch.randn(images, WIDTH, generator=generator, device=device), dim=1) for _ in range(2)
    )
    return image_embeds, F.normalize(image_embeds + 3.4 * noise, dim=1)


def ranks(device: torch.device, images: int = 30000) -> dict[str, Any]:
    """Compare ranks with the product."""
    image_embeds, text_embeds = sides(images, device)
    ids = torch.arange(images, device=device)
    ours = partial(mutual_rank_counts, image_embeds, text_embeds, ids, ids)
    least, own = seconds(partial(product, image_embeds, text_embeds), device), seconds(ours, device)
    peak = peak_mebibytes(ours, device)
    print(f"ranks, {images:,} images: {own:.3f} s, {own / least:.2f} times the product, {peak:.0f} MiB")
    return {"images": images, "seconds": own, "ratio": own / least, "mebibytes": peak}


def million(device: torch.device, images: int = 10**6) -> dict[str, Any]:
    """Rank a large gallery in every language."""
    ids = torch.arange(images, device=device)
    taken = 0.0
    for language in range(LANGUAGES):
        embeds = sides(images, device, seed=language)
        int(embeds[1].sum())  # waits for the GPU
        start = time.perf_counter()
        counts = mutual_rank_counts(*embeds, ids, ids)
        int(counts[0].ahead.sum())
        taken += time.perf_counter() - start
    print(f"ranks, {images:,} images x {LANGUAGES} languages, both directions: {taken:.1f} s")
    return {"images": images, "languages": LANGUAGES, "seconds": taken}


def losses(device: torch.device, images: int = 4096) -> dict[str, Any]:
    """Compare the forms of the loss with the products alone."""
    embeds = [of.detach().to(device).requires_grad_() for of in loss.embeddings(images)]
    rows, columns = embeds[0].detach(), embeds[1].detach().flatten(0, 1)

    def products(dtype: torch.dtype) -> None:
        with full_precision(device):
            for _ in range(3):
                rows.to(dtype) @ columns.to(dtype).T

    least = {dtype: seconds(partial(products, dtype), device) for dtype in (torch.float32, torch.bfloat16)}
    results: dict[str, Any] = {"images": images, "languages": LANGUAGES}
    for name, of in loss.LOSSES.items():
        way: Callable[[], Any] = partial(loss.trained, of, (embeds[0], embeds[1], embeds[2]))
        own = seconds(way, device)
        ratios = ", ".join(f"{own / floor:.2f} times three products in {dtype}" for dtype, floor in least.items())
        peak = peak_mebibytes(way, device)
        print(f"loss, {images:,} x {LANGUAGES}, {name}: {own:.4f} s, {ratios}, {peak:.0f} MiB")
        results[name] = {"seconds": own, "mebibytes": peak}
        results[name] |= {f"ratio to three products in {dtype}": own / floor for dtype, floor in least.items()}
    return results


def step(device: torch.device, images: int = 64, peak_teraflops: float = 989.0) -> dict[str, Any]:
    """Run steps of the paper's model, in which nothing may wait for the GPU."""
    of, tokens = scaling.paper_module().to(device), Tokens()
    batch = scaling.batch_of(natural_lengths(images, LANGUAGES))
    batch = batch._replace(**{name: of.to(device) for name, of in batch._asdict().items() if torch.is_tensor(of)})
    optimizer = adamw(parameter_groups(of.retriever, 1e-4, 0.01), (0.9, 0.98))

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            total = torch.stack(list(of.losses(batch, tokens).values())).sum()  # type: ignore[arg-type]
        total.backward()
        torch.nn.utils.clip_grad_norm_(of.parameters(), 1.0)
        optimizer.step()
        of.retriever.clamp_temperature_()

    with FlopCounterMode(display=False) as counter:
        run()
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        run()
        torch.cuda.set_sync_debug_mode("default")
        print("step: nothing waits for the GPU")
    own, done, peak = seconds(run, device), counter.get_total_flops(), peak_mebibytes(run, device)
    share = done / own / peak_teraflops / 1e12
    print(
        f"step of the paper's model, {images} x {LANGUAGES}: {own:.3f} s, {images / own:.0f} images a second, "
        f"{100 * share:.0f} % of {peak_teraflops:.0f} TFLOP/s, {peak:.0f} MiB"
    )
    return {"images": images, "seconds": own, "operations": done, "share": share, "mebibytes": peak}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/benchmarks/gpu.json"))
    choices = ["ranks", "million", "loss", "step"]
    parser.add_argument("names", nargs="*", choices=[*choices, "all"], default="all")
    parser.add_argument("--peak_teraflops", type=float, default=989.0, help="of the GPU in bfloat16, as its maker says")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("there is no CUDA GPU here; python -m benchmarks makes the comparisons on a CPU.")
    device = torch.device("cuda")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    ways: dict[str, Callable[[torch.device], dict[str, Any]]] = {
        "ranks": ranks,
        "million": million,
        "loss": losses,
        "step": partial(step, peak_teraflops=args.peak_teraflops),
    }
    results = {name: ways[name](device) for name in (choices if "all" in args.names else args.names)}
    write(args.output, {"device": torch.cuda.get_device_name(), **results})


if __name__ == "__main__":
    main()
