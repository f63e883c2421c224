"""A pre-training step with all three losses against a plainly written one, split by part.

python -m benchmarks.step [--images 8] [--compiled]

Sizes: Swin-T at 224 px, text and fusion encoder of six layers of width 384 each, 32,000 tokens, 67 M parameters;
captions in 6 languages with lengths like those of Multi30K in XLM-R's tokens (normally distributed, mean 16, deviation
5, from 6 to 40). A step is both passes, clipping and AdamW. The usual way is made of PyTorch's own layers; it pads
captions to 40 tokens, fuses in three passes, draws negatives row by row and uses AdamW as it comes. The floor is as
many operations as the step has, all in one matrix product of convenient size. One thread, CPU seconds, medians.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import negatives
from benchmarks.loss import with_labels
from benchmarks.measure import arguments, compare, in_process, one_or_more, show, write
from ccr_lightning.functional.masking import mask_tokens
from ccr_lightning.functional.matching import draw_matching
from ccr_lightning.models.dual_encoder import Encoded
from ccr_lightning.models.fusion import FusionEncoder
from ccr_lightning.models.retriever import Retriever
from ccr_lightning.models.text import TextEncoder
from ccr_lightning.models.vision import ImageEncoder
from ccr_lightning.training.compiling import compile_parts
from ccr_lightning.training.fusion_losses import batch_masked_lm_loss, batch_matching_loss
from ccr_lightning.training.module import RetrievalModule
from ccr_lightning.training.optim import adamw, parameter_groups
from ccr_lightning.types import Batch

LANGUAGES, PADDED, VOCABULARY = 6, 40, 32000
SWIN, IMAGE_WIDTH = "swin_tiny_patch4_window7_224", 768
WIDTH, HEADS, FEED_FORWARD, EMBED_DIM, DROPOUT = 384, 6, 1536, 256, 0.1
FLOOR, OURS, USUAL = "its arithmetic", "ours", "the usual way"
TRUE_LENGTHS = "text tower, true lengths"


class Sizes(NamedTuple):
    """Of the batch and of the model; smaller ones only show that everything runs."""

    images: int = 8
    pixels: int = 224
    layers: int = 6  # of the text encoder, and of the fusion encoder


class Tokens:
    """What the masked-LM loss asks a tokeniser."""

    special_token_ids = (0, 1, 2, 3, 4)
    mask_token_id = 4
    vocab_size = VOCABULARY


def natural_lengths(images: int, languages: int) -> Tensor:
    """Return tokens of captions, (B, K)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(images, languages, generator=generator).mul(5).add(16).round().clamp(6, PADDED).long()


def batch_of(sizes: Sizes) -> Batch:
    """Return images of noise, and captions of random tokens padded to the longest."""
    images, generator = sizes.images, torch.Generator().manual_seed(0)
    lengths = natural_lengths(images, LANGUAGES)
    length = int(lengths.max())
    return Batch(
        images=torch.randn(images, 3, sizes.pixels, sizes.pixels, generator=generator),
        image_ids=torch.arange(images),
        input_ids=torch.randint(5, VOCABULARY, (images, LANGUAGES, length), generator=generator),
        attention_mask=torch.arange(length) < lengths[..., None],
        caption_mask=torch.ones(images, LANGUAGES, dtype=torch.bool),
        languages=tuple("abcdef"),
        most_tokens=lengths.numpy(),
    )


def module(sizes: Sizes, chunk_size: int | None = None) -> RetrievalModule:
    """Return the package's module."""
    torch.manual_seed(0)
    layers: dict[str, Any] = {
        "layers": sizes.layers,
        "heads": HEADS,
        "feed_forward_size": FEED_FORWARD,
        "dropout": DROPOUT,
    }
    retriever = Retriever(
        ImageEncoder(SWIN, sizes.pixels, drop_path_rate=0.1),
        TextEncoder(VOCABULARY, WIDTH, max_positions=PADDED, **layers),
        FusionEncoder(WIDTH, image_width=IMAGE_WIDTH, **layers),
        embed_dim=EMBED_DIM,
    )
    return RetrievalModule(retriever, chunk_size=chunk_size)


def ready(optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> None:
    """Let the optimiser have its memory, which is no part of a step's."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


def step(losses: Callable[[], Tensor], optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> None:
    """Both passes, clipping and the optimiser."""
    optimizer.zero_grad()
    losses().backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def ours(of: RetrievalModule, batch: Batch) -> Callable[[], None]:
    """Return the package's step."""
    tokens: Any = Tokens
    optimizer = adamw(parameter_groups(of.retriever, 1e-4, 0.01), (0.9, 0.98))
    parameters: list[Tensor] = list(of.parameters())
    ready(optimizer, parameters)
    return partial(step, lambda: torch.stack(list(of.losses(batch, tokens).values())).sum(), optimizer, parameters)


def padded(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return token ids and mask of all captions, (N, 40) each."""
    spare = (0, PADDED - batch.input_ids.shape[2])
    return F.pad(batch.input_ids, spare).flatten(0, 1), F.pad(batch.attention_mask, spare).flatten(0, 1)


class Usual(nn.Module):
    """A model of the same sizes of PyTorch's layers, and its losses."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.vision = timm.create_model(SWIN, img_size=sizes.pixels, num_classes=0, drop_path_rate=0.1)
        kind: dict[str, Any] = {"dropout": DROPOUT, "activation": "gelu", "batch_first": True}
        self.words, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(PADDED, WIDTH)
        text = nn.TransformerEncoderLayer(WIDTH, HEADS, FEED_FORWARD, **kind)
        self.text = nn.TransformerEncoder(text, sizes.layers, enable_nested_tensor=False)
        self.context = nn.Linear(IMAGE_WIDTH, WIDTH)
        fusion = nn.TransformerDecoderLayer(WIDTH, HEADS, FEED_FORWARD, **kind)
        self.fusion = nn.TransformerDecoder(fusion, sizes.layers)
        self.project_image, self.project_text = nn.Linear(IMAGE_WIDTH, EMBED_DIM), nn.Linear(WIDTH, EMBED_DIM)
        self.match = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, 2))
        self.predict = nn.Linear(WIDTH, VOCABULARY)
        self.predict.weight = self.words.weight
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def encode(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return token states (N, L, C) of captions (N, L)."""
        states = self.words(input_ids) + self.places.weight[: input_ids.shape[1]]
        encoded: Tensor = self.text(states, src_key_padding_mask=~mask)
        return encoded

    def losses(self, batch: Batch) -> Tensor:
        """Return the sum of the three losses."""
        input_ids, mask = padded(batch)
        patches = self.vision.forward_features(batch.images).flatten(1, 2)
        image_states = torch.cat([patches.mean(1, keepdim=True), patches], 1)
        text_states = self.encode(input_ids, mask)
        images = F.normalize(self.project_image(image_states[:, 0]), dim=-1)
        texts = F.normalize(self.project_text(text_states[:, 0]), dim=-1).view(len(images), LANGUAGES, -1)
        loss = with_labels(images, texts, self.log_scale.exp())

        language, negative_image, negative_text = negatives.loop(images.detach(), texts.detach())
        own = torch.arange(len(images))
        positive = own * LANGUAGES + language
        context = self.context(image_states)

        def fuse(states: Tensor, rows: Tensor, image: Tensor) -> Tensor:
            fused: Tensor = self.fusion(states, context[image], tgt_key_padding_mask=~mask[rows])
            return fused

        pairs = ((positive, own), (positive, negative_image), (negative_text, own))
        logits = torch.cat([self.match(fuse(text_states[rows], rows, image)[:, 0]) for rows, image in pairs])
        loss = loss + F.cross_entropy(logits, (torch.arange(len(logits)) < len(images)).long())
        masked = mask_tokens(input_ids[positive], mask[positive], mask_token_id=4, vocab_size=VOCABULARY)
        fused = fuse(self.encode(masked.input_ids, mask[positive]), positive, own)
        hidden = masked.targets >= 0
        return loss + F.cross_entropy(self.predict(fused[hidden]), masked.targets[hidden])


def usual(sizes: Sizes, batch: Batch) -> Callable[[], None]:
    """Return the step of the usual way."""
    torch.manual_seed(0)
    model = Usual(sizes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, betas=(0.9, 0.98))
    parameters: list[Tensor] = list(model.parameters())
    ready(optimizer, parameters)
    return partial(step, lambda: model.losses(batch), optimizer, parameters)


def arithmetic(operations: float) -> None:
    """The floor: as many operations in matrix products."""
    rows, columns = torch.randn(1568, 384), torch.randn(384, 1536)
    space = torch.empty(1568, 1536)
    for _ in range(round(operations / (2 * 1568 * 384 * 1536))):
        torch.mm(rows, columns, out=space)


def operations(way: Callable[[], Any]) -> float:
    """Floating-point operations of the matrix products and convolutions in both passes."""
    with FlopCounterMode(display=False) as counter:
        way()
    return float(counter.get_total_flops())


def parts(of: RetrievalModule, batch: Batch) -> dict[str, Callable[[], Any]]:
    """Return each part of the step alone, with both passes."""
    retriever = of.retriever
    tokens: Any = Tokens
    most = int(batch.most_tokens.sum())

    def encoded() -> tuple[Encoded, Encoded]:
        images = retriever.encode_image(batch.images)
        return images, retriever.encode_text(batch.input_ids, batch.attention_mask, most)

    def grown(encoded: Encoded) -> None:
        (encoded.embeds.sum() + encoded.states.sum()).backward()

    with torch.no_grad():
        images, texts = (Encoded(*(of.clone() for of in side)) for side in encoded())
    for side in (images, texts):
        for tensor in side:
            tensor.requires_grad_()
    scale = retriever.logit_scale.detach()
    draw = draw_matching(images.embeds, texts.embeds, scale)
    optimizer = adamw(parameter_groups(retriever, 1e-4, 0.01), (0.9, 0.98))

    def optimize() -> None:
        torch.nn.utils.clip_grad_norm_(list(retriever.parameters()), 1.0)
        optimizer.step()

    return {
        "images": lambda: grown(retriever.encode_image(batch.images)),
        "texts": lambda: grown(retriever.encode_text(batch.input_ids, batch.attention_mask, most)),
        "contrastive": lambda: of.contrastive(images.embeds, texts.embeds, scale).backward(),
        "draws": lambda: draw_matching(images.embeds, texts.embeds, scale),
        "matching": lambda: batch_matching_loss(retriever, batch, images, texts, draw).backward(),
        "masked-LM": lambda: batch_masked_lm_loss(retriever, batch, images, draw, tokens, 0.4).backward(),
        "clipping and AdamW": optimize,
    }


def text_tower(sizes: Sizes, of: RetrievalModule, batch: Batch) -> dict[str, Callable[[], Any]]:
    """Return the text encoder on true lengths, and PyTorch's on captions padded to 40 tokens."""
    model = Usual(sizes)
    input_ids, mask = padded(batch)
    return {
        TRUE_LENGTHS: lambda: of.retriever.encode_text(batch.input_ids, batch.attention_mask).states.sum().backward(),
        "text tower, padded to 40": lambda: model.encode(input_ids, mask).sum().backward(),
    }


def main() -> None:
    """Compare, print the tables, write JSON."""
    parser = arguments(__doc__, "step", rounds=3)
    for name, default in Sizes()._asdict().items():
        parser.add_argument(f"--{name}", type=one_or_more, default=default)
    parser.add_argument("--compiled", action="store_true", help="also with torch.compile, which needs a C++ compiler")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sizes = Sizes(args.images, args.pixels, args.layers)
    batch, of = batch_of(sizes), module(sizes)
    count = in_process(lambda: operations(ours(of, batch)))
    quarter = max(1, args.images // 4)
    ways: dict[str, Callable[[], Any]] = {
        FLOOR: partial(arithmetic, count),
        OURS: ours(of, batch),
        f"{OURS}, chunk_size {quarter}": ours(module(sizes, quarter), batch),
        USUAL: usual(sizes, batch),
    }
    if args.compiled:
        compiled = module(sizes)
        compile_parts(compiled.retriever, torch.device("cpu"))
        ways[f"{OURS}, compiled"] = ours(compiled, batch)
    parameters = sum(parameter.numel() for parameter in of.parameters())
    title = (
        f"{args.images} images x {LANGUAGES} languages, {parameters / 1e6:.1f} M parameters, {count / 1e9:.0f} GFLOP"
    )
    results: dict[str, Any] = {title: compare(ways, FLOOR, rounds=args.rounds)}
    results["parts"] = compare(parts(of, batch) | {"step": ours(of, batch)}, "step", rounds=args.rounds, memory=False)
    results["text tower"] = compare(text_tower(sizes, of, batch), TRUE_LENGTHS, rounds=args.rounds, memory=False)
    for name, floor in ((title, FLOOR), ("parts", "step"), ("text tower", TRUE_LENGTHS)):
        show(name, results[name], floor)
    write(args.output, {name: {way: cost._asdict() for way, cost in of.items()} for name, of in results.items()})


if __name__ == "__main__":
    main()
