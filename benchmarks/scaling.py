"""What the paper's model would cost on many GPUs: counted here, carried there. Prints the tables of docs/scaling.md.

python -m benchmarks.scaling [--teraflops 400] [--gigabytes 45]

Operations and the bytes kept for the backward pass are counted in a real step of the paper's model on a few images (a
minute on a CPU, 10 GB); bytes between GPUs follow from the shapes, as python -m benchmarks.communication measures them.
Speeds are assumptions, and arguments: what a GPU computes a second in bfloat16, and what it sends to others.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.step import Tokens
from ccr_lightning.models.fusion import FusionEncoder
from ccr_lightning.models.retriever import Retriever
from ccr_lightning.models.text import TextEncoder
from ccr_lightning.models.vision import ImageEncoder
from ccr_lightning.training.module import RetrievalModule
from ccr_lightning.types import Batch

GLOBAL_BATCH, LANGUAGES, EMBED_DIM, TOKENS = 65536, 10, 256, 16
GPUS = (8, 64, 512)
IMAGES = {"3.3 M": 3_309_520, "1 B": 10**9}
CHUNK = 128
STATES = (50 + LANGUAGES * TOKENS) * 1024  # numbers in the token states of an image and its captions
SIZES: dict[str, Any] = {"hidden_size": 1024, "layers": 6, "heads": 16, "feed_forward_size": 4096, "dropout": 0.1}


class Counted(NamedTuple):
    """Of one image with its captions, in a step without the contrastive loss's products."""

    operations: float
    of_images: float  # among them those of the image encoder
    of_texts: float  # and of the text encoder, without masked-LM's
    kept_bytes: float  # for the backward pass, in float32
    parameters: int


def paper_module() -> RetrievalModule:
    """Return the paper's model with random weights."""
    retriever = Retriever(
        ImageEncoder("swin_base_patch4_window7_224", 224, drop_path_rate=0.1),
        TextEncoder(250002, max_positions=514, **SIZES),
        FusionEncoder(image_width=1024, **SIZES),
        EMBED_DIM,
    )
    return RetrievalModule(retriever)


def batch_of(images: int) -> Batch:
    """Return images of noise with captions of 16 random tokens each, the mean of real ones."""
    shape = (images, LANGUAGES, TOKENS)
    mask = torch.ones(shape, dtype=torch.bool)
    captions = torch.randint(5, 250002, shape)
    languages = tuple("abcdefghij")
    pixels, ids = torch.randn(images, 3, 224, 224), torch.arange(images)
    return Batch(pixels, ids, captions, mask, mask[..., 0], languages, mask.sum(2).numpy())


def counted() -> Counted:
    """Count two steps of different size: their difference is what an image costs."""
    of, tokens = paper_module(), Tokens()
    retriever, operations, kept = of.retriever, [], []
    for images in (2, 4):
        storages: dict[int, int] = {}

        def keep(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        batch = batch_of(images)
        with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda of: of):
            losses = of.losses(batch, tokens)  # type: ignore[arg-type]
            torch.stack(list(losses.values())).sum().backward()
        of.zero_grad()
        operations.append(counter.get_total_flops())
        kept.append(sum(storages.values()))
    encoders = []
    for encode, inputs in (
        (retriever.encode_image, [batch.images]),
        (retriever.encode_text, [batch.input_ids, batch.attention_mask]),
    ):
        with FlopCounterMode(display=False) as counter:
            encode(*inputs).states.sum().backward()
        encoders.append(counter.get_total_flops() / len(batch.images))
    parameters = sum(parameter.numel() for parameter in of.parameters())
    return Counted((operations[1] - operations[0]) / 2, *encoders, (kept[1] - kept[0]) / 2, parameters)


def step_table(cost: Counted, teraflops: float, gigabytes: float) -> list[list[str]]:
    """Rows of quantities, one column for each number of GPUs."""
    rows: dict[str, list[str]] = {}

    def add(name: str, value: str) -> None:
        rows.setdefault(name, []).append(value)

    embeddings = GLOBAL_BATCH * (1 + LANGUAGES) * EMBED_DIM * 4
    for gpus in GPUS:
        own = GLOBAL_BATCH // gpus
        cells = 2 * own * LANGUAGES * GLOBAL_BATCH  # own images with all texts, own texts with all images
        encoders = own * cost.operations / teraflops / 1e12
        loss = 4 * cells * 2 * EMBED_DIM / teraflops / 1e12 * 16  # in float32, a sixteenth as fast
        exchanged = 2 * embeddings * (gpus - 1) / gpus / gigabytes / 1e9
        gradients = 2 * cost.parameters * 4 * (gpus - 1) / gpus / gigabytes / 1e9
        add("images on each GPU", f"{own:,}")
        add("encoders, fusion, both passes", f"{encoders:.2g} s")
        add("contrastive loss, in tiles, float32", f"{loss:.2g} s")
        add("embeddings gathered, gradients scattered back", f"{2 * embeddings / 1e9:.1f} GB, {exchanged:.2g} s")
        add("gradients of the parameters, all-reduced", f"{2 * cost.parameters * 4 / 1e9:.1f} GB, {gradients:.2g} s")
        add("kept for the backward pass, all at once", f"{own * cost.kept_bytes / 2 / 1e9:,.0f} GB")
        in_chunks = own * STATES * 4 + CHUNK * cost.kept_bytes / 2
        add(f"the same with chunk_size {CHUNK}", f"{in_chunks / 1e9:,.0f} GB")
        add("logits of the dense loss, and their gradient", f"{2 * cells * 4 / 1e9:.1f} GB")
        add("gathered embeddings, and their gradient", f"{2 * embeddings / 1e9:.2f} GB")
        add("parameters, gradients, AdamW's averages", f"{cost.parameters * 16 / 1e9:.1f} GB")
        seconds = encoders + loss + exchanged
        for name, images in IMAGES.items():
            add(
                f"an epoch of {name} images, if the all-reduce is hidden",
                _time(images / GLOBAL_BATCH * seconds),
            )
    return [[name, *values] for name, values in rows.items()]


def _time(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 100:
        return f"{minutes:.2g} min"
    return f"{minutes / 60:.2g} h" if minutes < 2880 else f"{minutes / 1440:.2g} days"


def main() -> None:
    """Count, and print the tables."""
    from tabulate import tabulate

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teraflops", type=float, default=400, help="of a GPU in bfloat16, as reached")
    parser.add_argument("--gigabytes", type=float, default=45, help="that a GPU sends a second, as reached")
    args = parser.parse_args()
    cost = counted()
    image, captions = (100 * part / cost.operations for part in (cost.of_images, cost.of_texts))
    print(
        f"counted of one image with {LANGUAGES} captions of {TOKENS} tokens, {cost.parameters / 1e6:.0f} M parameters: "
        f"{cost.operations / 1e9:.0f} GFLOP in both passes ({image:.0f} % for the image, {captions:.0f} % for the "
        f"captions, the rest for matching and masked-LM), {cost.kept_bytes / 1e6:.0f} MB kept for the backward pass in "
        "float32\n"
    )
    headers = [f"batch of {GLOBAL_BATCH:,} x {LANGUAGES}", *(f"{gpus} GPUs" for gpus in GPUS)]
    print(tabulate(step_table(cost, args.teraflops, args.gigabytes), headers, tablefmt="pipe", disable_numparse=True))


if __name__ == "__main__":
    main()
