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
EMBEDDINGS = GLOBAL_BATCH * (1 + LANGUAGES) * EMBED_DIM * 4  # bytes
GPUS = (8, 64, 512)
IMAGES = {"3.3 M": 3_309_520, "1 B": 10**9}
LONGEST = 40  # tokens, to which states are padded
STATES = 4 * 1024 * (50 + LANGUAGES * LONGEST)  # bytes of the token states of an image and its captions
OF_MATCHING = 4 * 1024 * 3 * (50 + LONGEST)  # and of three pairs of an image
MEMORY = 75e9  # bytes of a GPU that can be used
SIZES: dict[str, Any] = {"hidden_size": 1024, "layers": 6, "heads": 16, "feed_forward_size": 4096, "dropout": 0.1}


class Counted(NamedTuple):
    """Of one image with its captions, in a step without the contrastive loss's products."""

    operations: float
    of_images: float  # among them those of the image encoder
    of_texts: float  # and of the text encoder, without masked-LM's
    kept_bytes: float  # for the backward pass, in bfloat16 where a CPU's autocast has it
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


def batch_of(lengths: Tensor) -> Batch:
    """Return images of noise with captions of random tokens, of these lengths (B, K)."""
    images, languages, length = *lengths.shape, int(lengths.max())
    captions = torch.randint(5, 250002, (images, languages, length))
    mask = torch.arange(length) < lengths[..., None]
    pixels, ids, names = torch.randn(images, 3, 224, 224), torch.arange(images), tuple("abcdefghij"[:languages])
    return Batch(pixels, ids, captions, mask, mask[..., 0], names, lengths.numpy())


def counted() -> Counted:
    """Count two steps of different size: their difference is what an image costs."""
    of, tokens = paper_module(), Tokens()
    retriever, operations, kept = of.retriever, [], []
    for images in (2, 4):
        storages: dict[int, int] = {}

        def keep(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        batch = batch_of(torch.full((images, LANGUAGES), TOKENS))
        with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda of: of):
            with torch.autocast("cpu", torch.bfloat16):
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


def memory(cost: Counted, own: int, chunk: int) -> float:
    """Bytes that a GPU needs for its own images, in chunks."""
    kept = chunk * cost.kept_bytes
    if chunk < own:
        kept += 2 * own * (STATES + OF_MATCHING)  # with their gradients
    draws = 3 * own * own * LANGUAGES * 4
    return 16 * cost.parameters + 2 * EMBEDDINGS + kept + draws


def step_table(cost: Counted, teraflops: float, gigabytes: float) -> list[list[str]]:
    """Rows of quantities, one column for each number of GPUs."""
    rows: dict[str, list[str]] = {}

    def add(name: str, value: str) -> None:
        rows.setdefault(name, []).append(value)

    for gpus in GPUS:
        own = GLOBAL_BATCH // gpus
        fitting = [own >> halved for halved in range(own.bit_length()) if memory(cost, own, own >> halved) < MEMORY]
        chunk = fitting[0] if fitting else 1
        cells = 2 * own * LANGUAGES * GLOBAL_BATCH  # own images with all texts, own texts with all images
        encoders = own * cost.operations / teraflops / 1e12 * (4 / 3 if chunk < own else 1)
        loss = 4 * cells * 2 * EMBED_DIM / teraflops / 1e12 * 16  # in float32, a sixteenth as fast
        exchanged = 2 * EMBEDDINGS * (gpus - 1) / gpus / gigabytes / 1e9
        gradients = 2 * cost.parameters * 4 * (gpus - 1) / gpus / gigabytes / 1e9
        hidden = 0.0 if chunk < own else encoders * 2 / 3  # with chunks gradients are ready at the end of the pass
        seconds = encoders + loss + exchanged + max(0.0, gradients - hidden)
        add("images on each GPU", f"{own:,}")
        add("memory, all at once", f"{memory(cost, own, own) / 1e9:,.0f} GB")
        add("largest chunk_size that fits, and the memory", f"{chunk:,}: {memory(cost, own, chunk) / 1e9:.0f} GB")
        add("encoders and fusion in such chunks", f"{encoders:.2g} s")
        add("contrastive loss, in tiles, float32", f"{loss:.2g} s")
        add("logits of the dense loss, and their gradient", f"{2 * cells * 4 / 1e9:.1f} GB")
        add("embeddings gathered, gradients scattered back", f"{2 * EMBEDDINGS / 1e9:.1f} GB, {exchanged:.2g} s")
        add("gradients of the parameters, all-reduced", f"{2 * cost.parameters * 4 / 1e9:.1f} GB, {gradients:.2g} s")
        add("not hidden behind the backward pass", f"{max(0.0, gradients - hidden):.2g} s")
        add("a step", f"{seconds:.2g} s, {GLOBAL_BATCH / seconds:,.0f} images a second")
        for name, images in IMAGES.items():
            add(f"an epoch of {name} images", _time(images / GLOBAL_BATCH * seconds))
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
        "bfloat16\n"
    )
    headers = [f"batch of {GLOBAL_BATCH:,} x {LANGUAGES}", *(f"{gpus} GPUs" for gpus in GPUS)]
    print(tabulate(step_table(cost, args.teraflops, args.gigabytes), headers, tablefmt="pipe", disable_numparse=True))


if __name__ == "__main__":
    main()
