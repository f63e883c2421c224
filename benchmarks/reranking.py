"""Re-ranking against the usual way of doing it, on the same model in the same run.

python -m benchmarks.reranking

The usual way goes query by query; captions are padded to 40 tokens, and what fusion needs of an image is computed anew
for every pair. Captions here have lengths like those of Multi30K in XLM-R's tokens (normally distributed, mean 16,
deviation 5, from 6 to 40), images 50 tokens. All on one thread, in CPU seconds; medians of interleaved repetitions.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import one_or_more
from ccr_lightning.evaluation.rerank import rerank
from ccr_lightning.functional.galleries import Direction, Embeddings, ranks_by_language
from ccr_lightning.functional.ranks import RankCounts
from ccr_lightning.functional.retrieval import reranked_counts, top_candidates
from ccr_lightning.metrics import RetrievalEmbeddings
from ccr_lightning.models.fusion import FusionEncoder
from ccr_lightning.models.retriever import Retriever
from ccr_lightning.models.text import TextEncoder
from ccr_lightning.types import CaptionBatch, ImageBatch

PADDED = 40  # tokens of a caption in the usual way
LANGUAGES = 2
SIZES: dict[str, Any] = {"hidden_size": 256, "heads": 4, "feed_forward_size": 1024, "dropout": 0.0}


class Patches(nn.Module):
    """An image encoder that costs next to nothing: 7 x 7 patches of 224 pixels, and their mean."""

    pretrained = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.patches = nn.Conv2d(3, width, kernel_size=32, stride=32)

    def forward(self, images: Tensor) -> Tensor:
        """Return states (B, 50, width)."""
        states = self.patches(images).flatten(2).transpose(1, 2)
        return torch.cat([states.mean(1, keepdim=True), states], 1)


class Split:
    """Images, and a caption of each in every language."""

    def __init__(self, images: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.pixels = torch.randn(images, 3, 224, 224, generator=generator)
        lengths = torch.randn(LANGUAGES * images, generator=generator).mul(5).add(16).round().clamp(6, PADDED).long()
        self.tokens = [torch.randint(5, 1000, (int(length),), generator=generator) for length in lengths]
        self.image_ids = torch.arange(images).repeat(LANGUAGES)
        self.languages = torch.arange(LANGUAGES).repeat_interleave(images)

    def images(self, batches: Sequence[Sequence[int]]) -> Iterator[ImageBatch]:
        """Yield batches of the images with these ids."""
        for ids in batches:
            yield ImageBatch(self.pixels[list(ids)], torch.tensor(ids))

    def captions(self, batches: Sequence[Sequence[int]]) -> Iterator[CaptionBatch]:
        """Yield batches of the captions with these numbers."""
        for numbers in batches:
            rows = list(numbers)
            input_ids, mask = self.padded(rows, max(len(self.tokens[row]) for row in rows))
            numbered = torch.zeros(len(rows), dtype=torch.int64)
            yield CaptionBatch(input_ids, mask, self.image_ids[rows], self.languages[rows], numbered)

    def padded(self, rows: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
        """Return token ids and mask, (N, length) each."""
        input_ids = torch.ones(len(rows), length, dtype=torch.int64)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for place, row in enumerate(rows):
            input_ids[place, : len(self.tokens[row])] = self.tokens[row]
            mask[place, : len(self.tokens[row])] = True
        return input_ids, mask

    def caption_rows(self, languages: Tensor, image_ids: Tensor, caption_index: Tensor) -> Tensor:
        """Return the row of each caption in the split."""
        return languages * len(self.pixels) + image_ids

    def caption_lengths(self) -> Tensor:
        """Return the tokens of each caption."""
        return torch.tensor([len(tokens) for tokens in self.tokens])


def retriever(layers: int) -> Retriever:
    """Return a model of small sizes with random weights, large enough that scores differ."""
    torch.manual_seed(0)
    image: Any = Patches(256)
    text = TextEncoder(vocab_size=1000, layers=layers, max_positions=PADDED, **SIZES)
    fusion = FusionEncoder(layers=layers, image_width=256, **SIZES)
    return Retriever(image, text, fusion).eval()


@torch.no_grad()
def embeddings_of(model: Retriever, split: Split) -> Embeddings:
    """Return those of the whole split."""
    metric = RetrievalEmbeddings()
    for images in split.images([range(len(split.pixels))]):
        metric.update(model.encode_image(images.images).embeds, None, images.image_ids)
    for of in split.captions([range(len(split.tokens))]):
        embeds = model.encode_text(of.input_ids, of.attention_mask).embeds
        metric.update(None, embeds, of.image_ids, languages=of.languages, caption_index=of.caption_index)
    result: Embeddings = metric.compute()
    return result


def _attend(attention: Any, states: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
    def heads(projected: Tensor) -> Tensor:
        return projected.unflatten(2, (attention.heads, -1)).transpose(1, 2)

    looked_at = heads(attention.key(context)), heads(attention.value(context))
    attended = F.scaled_dot_product_attention(heads(attention.query(states)), *looked_at, mask)
    normed: Tensor = attention.norm(states + attention.output(attended.transpose(1, 2).flatten(2)))
    return normed


def usual_scores(model: Retriever, text_states: Tensor, mask: Tensor, image_states: Tensor) -> Tensor:
    """Log-odds of a match of N pairs, all padded, everything computed for each of them."""
    assert model.fusion is not None
    states = text_states
    for layer in model.fusion.layers:
        part: Any = layer
        states = _attend(part.attention, states, states, mask[:, None, None])
        states = part.feed_forward(_attend(part.cross_attention, states, image_states, None))
    logits = model.match_logits(states)
    return logits[:, 1] - logits[:, 0]


@torch.no_grad()
def usual_way(
    model: Retriever, split: Split, embeddings: Embeddings, depth: int, queries: int
) -> tuple[dict[tuple[Direction, int], Tensor], float, int]:
    """Ranks of the first queries of each direction and language; CPU seconds and pairs of the re-ranking alone."""
    image_states = model.encode_image(split.pixels).states
    input_ids, mask = split.padded(range(len(split.tokens)), PADDED)
    text_states = model.encode_text(input_ids, mask).states
    ranks: dict[tuple[Direction, int], Tensor] = {}
    pairs, start = 0, time.process_time()
    for language in range(LANGUAGES):
        texts = (embeddings.text_languages == language).nonzero().squeeze(1)
        for direction in get_args(Direction):
            dual = ranks_by_language(embeddings, direction)[language]
            images = embeddings.image_embeds
            sides = (images, embeddings.text_embeds[texts])
            asked, gallery = sides if direction == "image_to_text" else sides[::-1]
            candidates = top_candidates(asked[:queries], gallery, depth)
            scores = []
            for query, row in enumerate(candidates):
                own = torch.full_like(row, query)
                text, image = (texts[row], own) if direction == "image_to_text" else (texts[own], row)
                scores.append(usual_scores(model, text_states[text], mask[text], image_states[image]))
                pairs += depth
            counts = RankCounts((dual.ranks - 1 - dual.ties)[:queries], dual.ties[:queries])
            positive = candidates == torch.arange(queries)[:, None]
            found = reranked_counts(counts, torch.stack(scores), positive)
            ranks[direction, language] = 1 + found.ahead + found.tied
    return ranks, time.process_time() - start, pairs


def multiplications(split: Split, model: Retriever, pairs: int, distinct: float, layers: int) -> float:
    """Multiply-adds that re-ranking needs at least: no padding, nothing twice, one state in the last layer."""
    assert model.fusion is not None
    width, tokens = model.fusion.width, statistics.mean(len(of) for of in split.tokens)
    own, cross, feed_forward = 4 * width**2, 2 * width**2, 8 * width**2
    whole = tokens * (own + cross + feed_forward)
    first = tokens * (cross + feed_forward)
    last = 2 * tokens * width**2 + 2 * width**2 + cross + feed_forward
    images = len(split.pixels) * 50 * 2 * width**2 * layers
    return pairs * distinct * (first + (layers - 2) * whole + last) + images


def peak_rate() -> float:
    """Multiply-adds a second of a large matrix product on this thread."""
    a, b = torch.randn(2048, 1024), torch.randn(1024, 1024)
    seconds = []
    for _ in range(7):
        start = time.process_time()
        a @ b
        seconds.append(time.process_time() - start)
    return 2048 * 1024 * 1024 / statistics.median(seconds)


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def main() -> None:
    """Compare, and print the ratio and the share of the arithmetic floor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=one_or_more, default=150)
    parser.add_argument("--depth", type=one_or_more, default=128)
    parser.add_argument("--layers", type=one_or_more, default=4)
    parser.add_argument(
        "--queries", type=one_or_more, default=4, help="of each direction and language, in the usual way"
    )
    parser.add_argument("--repeats", type=one_or_more, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    split, model = Split(args.images), retriever(args.layers)
    embeddings = embeddings_of(model, split)
    ratios, shares, rates = [], [], []
    all_pairs = 2 * LANGUAGES * args.images * args.depth
    counted: list[int] = []
    hook = model.matching_head.register_forward_hook(lambda layer, inputs, output: counted.append(len(output)))
    for _ in range(args.repeats):
        usual, usual_seconds, usual_pairs = usual_way(model, split, embeddings, args.depth, args.queries)
        counted.clear()
        (ranks,), seconds = _timed(lambda: rerank(model, embeddings, [embeddings], split, args.depth))
        for (direction, language), expected in usual.items():
            if not torch.equal(ranks[direction][language].ranks[: args.queries], expected):
                raise SystemExit("the two ways rank differently")
        floor = multiplications(split, model, all_pairs, sum(counted) / all_pairs, args.layers) / peak_rate()
        rates.append((usual_pairs / usual_seconds, all_pairs / seconds))
        ratios.append(rates[-1][1] / rates[-1][0])
        shares.append(floor / seconds)
    hook.remove()
    slow, fast = (statistics.median(column) for column in zip(*rates, strict=True))
    print(
        f"{args.images} images, {LANGUAGES} languages, depth {args.depth}, {args.layers} + {args.layers} layers of 256"
    )
    print(f"{all_pairs:,} pairs asked for, of which {sum(counted):,} are distinct; ranks equal")
    print(f"pairs a CPU second: usual {slow:,.0f}, here {fast:,.0f} (images and captions encoded once more included)")
    ratio, distinct = statistics.median(ratios), sum(counted) / all_pairs
    print(f"ratio {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}); by distinct pairs {ratio * distinct:.2f}")
    print(f"share of the arithmetic floor {statistics.median(shares):.2f}")


if __name__ == "__main__":
    main()
