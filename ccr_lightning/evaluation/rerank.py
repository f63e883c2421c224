"""Re-ranking: order the best candidates of the dual encoder by the matching head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from ccr_lightning import distributed
from ccr_lightning.errors import CCRError
from ccr_lightning.evaluation.protocol import RerankBy
from ccr_lightning.functional.galleries import Direction, Embeddings, LanguageRanks, galleries, ranks_by_language
from ccr_lightning.functional.ranks import RankCounts
from ccr_lightning.functional.retrieval import reranked_counts, top_candidates
from ccr_lightning.functional.similarity import pair_similarity
from ccr_lightning.models.retriever import Retriever
from ccr_lightning.models.transformer import KeysValues
from ccr_lightning.progress import progress
from ccr_lightning.types import CaptionBatch, ImageBatch

IMAGES_AT_ONCE = 64  # images that are encoded together
TEXTS_AT_ONCE = 64  # captions that are encoded together
PAIRS_AT_ONCE = 1024  # pairs that are fused together
KEPT_BYTES = 2**30  # of the keys and values of images, on the device


class SplitReader(Protocol):
    """Reads chosen images and captions of a split once more, as batches on the model's device, normalised."""

    def images(self, batches: Sequence[Sequence[int]]) -> Iterable[ImageBatch]:
        """Batches of the images with these ids."""

    def captions(self, batches: Sequence[Sequence[int]]) -> Iterable[CaptionBatch]:
        """Batches of the captions in these rows of the split."""

    def caption_rows(self, languages: Tensor, image_ids: Tensor, caption_index: Tensor) -> Tensor:
        """The row of each caption in the split, by its language, image, and number among its image's."""

    def caption_lengths(self) -> Tensor:
        """How long each caption of the split is, in any unit."""


class _Candidates(NamedTuple):
    """The best items of each query of one gallery."""

    dual: LanguageRanks
    queries: Tensor  # (Q,) rows of the images, or of the captions
    items: Tensor  # (Q, n) rows of the captions, or of the images
    item_ids: Tensor  # (Q, n)
    by_order: Tensor  # (Q, n) bool, True for those that are as similar as an item that is left out


def rerank(
    retriever: Retriever,
    embeddings: Embeddings,
    parts: Sequence[Embeddings],
    reader: SplitReader,
    depth: int,
    by: RerankBy = "matching",
) -> list[dict[Direction, dict[int, LanguageRanks]]]:
    """Ranks after each query's best ``depth`` candidates are put in the order of their match score.

    The score is the matching head's log-odds of a match, as in the paper, or that plus the dual encoder's logit. The
    sum has a reason: the head learns to tell matches from negatives that are drawn in proportion to exp(logit), so its
    log-odds say how much likelier a pair is than the dual encoder believes.

    Candidates beyond ``depth`` keep the dual encoder's order behind the re-ranked ones, so a query whose positives are
    all beyond keeps its rank (Nie et al., KDD 2024, evaluation; in the authors' code they share one score). Items that
    tie with one that is left out are left out too: which of them are candidates is a matter of the order of the data,
    on which nothing depends.

    Every pair is scored once, whatever the number of queries, directions and folds that ask for it. The keys and values
    of ``KEPT_BYTES`` of images are on the device at a time (twice while they are put together), with the states of 64
    captions and, in one layer, 1,024 pairs; captions are encoded once more for each such chunk of images. Devices share
    the pairs, in batches that depend neither on how the split was encoded nor on the number of devices; each encodes
    all images. Main memory is some 50 bytes for each pair.

    Args:
        retriever: The model, with a fusion encoder.
        embeddings: Those of the split.
        parts: The parts of it that are galleries of their own: itself, and its folds if there are any.
        reader: Gives the split's images and captions once more.
        depth: Number of candidates per query to re-rank.
        by: ``matching`` or ``matching_and_similarity``.

    Returns:
        Of each part, direction to language index to ranks, with their first results.

    Raises:
        CCRError: If the model has no fusion encoder, or is in training mode, or if a gallery has fewer than ``depth``
            items.
    """
    if retriever.fusion is None:
        raise CCRError("this retriever has no fusion encoder, which re-ranking needs: give it a fusion.")
    if retriever.training:
        raise CCRError("the retriever is in training mode, in which dropout changes scores: call eval() first.")
    embeddings = Embeddings(*(tensor.cpu() for tensor in embeddings))
    asked = [(number, found) for number, part in enumerate(parts) for found in _candidates(embeddings, part, depth)]
    pairs = torch.unique(torch.cat([_pairs(of, direction, embeddings).flatten() for _, (direction, _, of) in asked]))
    scores = _match_scores(retriever, embeddings, pairs, reader)
    if by == "matching_and_similarity":
        texts, images = pairs // len(embeddings.image_ids), pairs % len(embeddings.image_ids)
        similarity = pair_similarity(embeddings.text_embeds, embeddings.image_embeds, texts, images)
        scores += retriever.logit_scale.item() * similarity
    ranks: list[dict[Direction, dict[int, LanguageRanks]]] = [{"image_to_text": {}, "text_to_image": {}} for _ in parts]
    for number, (direction, language, of) in asked:
        of_candidates = scores[torch.searchsorted(pairs, _pairs(of, direction, embeddings))]
        ranks[number][direction][language] = _reordered(of, of_candidates)
    return ranks


def _candidates(embeddings: Embeddings, part: Embeddings, depth: int) -> Iterator[tuple[Direction, int, _Candidates]]:
    """The candidates of every query of a part, in each language and direction."""
    part = Embeddings(*(tensor.cpu() for tensor in part))
    # The rows of the part's images and captions among all.
    images = torch.isin(embeddings.image_ids, part.image_ids).nonzero().squeeze(1)
    texts = torch.isin(embeddings.text_ids, part.image_ids).nonzero().squeeze(1)
    for direction in get_args(Direction):
        asked, searched = (images, texts) if direction == "image_to_text" else (texts, images)
        ranks = ranks_by_language(part, direction)
        for language, queries, items in galleries(part, direction):
            if depth > len(items.rows):
                of = "a gallery" if len(images) == len(embeddings.image_ids) else "the gallery of a fold"
                raise CCRError(
                    f"rerank_depth is {depth}, but {of} has {len(items.rows)} items: give at most {len(items.rows)}."
                )
            best, by_order = _best(queries.embeds, items.embeds, depth)
            rows = asked[queries.rows], searched[items.rows[best]]
            yield direction, language, _Candidates(ranks[language], *rows, items.ids[best], by_order)


def _best(queries: Tensor, gallery: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """The candidates, and which of them are as similar as an item that is left out."""
    best = top_candidates(queries, gallery, min(depth + 1, len(gallery)))
    rows = torch.arange(len(queries)).repeat_interleave(best.shape[1])
    similarity = pair_similarity(queries, gallery, rows, best.flatten()).view(best.shape)
    if best.shape[1] == depth:
        return best, torch.zeros_like(best, dtype=torch.bool)
    return best[:, :depth], similarity[:, :depth] == similarity[:, depth:]


def _pairs(of: _Candidates, direction: Direction, embeddings: Embeddings) -> Tensor:
    """(Q, n) numbers of pairs: that of the caption times the number of images, plus that of the image."""
    texts, images = (of.items, of.queries[:, None]) if direction == "image_to_text" else (of.queries[:, None], of.items)
    return texts * len(embeddings.image_ids) + images


def _reordered(of: _Candidates, scores: Tensor) -> LanguageRanks:
    ids = of.dual.image_ids
    before = RankCounts(of.dual.ranks - 1 - of.dual.ties, of.dual.ties)
    scores = scores.masked_fill(of.by_order, scores.min() - 1)  # behind all others, where they were
    is_within = of.dual.ranks <= scores.shape[1]  # and so are all ties of the best positive
    counts = reranked_counts(before, scores, (of.item_ids == ids[:, None]) & is_within[:, None])
    best = (scores == scores.amax(1, keepdim=True)) & ~of.by_order
    lowest = of.item_ids.masked_fill(~best, torch.iinfo(torch.int64).max).amin(1)
    highest = of.item_ids.masked_fill(~best, -1).amax(1)
    first = torch.where(lowest == highest, lowest, -1)
    return LanguageRanks(ids, 1 + counts.ahead + counts.tied, of.dual.gallery, counts.tied, first)


@torch.no_grad()
def _match_scores(retriever: Retriever, embeddings: Embeddings, pairs: Tensor, reader: SplitReader) -> Tensor:
    """Log-odds of a match for each pair, (P,) float32; the devices share the work, and each gets all scores."""
    scores = torch.zeros(len(pairs), dtype=torch.float32)
    read_rows = reader.caption_rows(embeddings.text_languages, embeddings.text_ids, embeddings.caption_index)
    lengths = reader.caption_lengths()[read_rows]
    texts, images = pairs // len(embeddings.image_ids), pairs % len(embeddings.image_ids)
    wanted, place = torch.unique(images, return_inverse=True)  # images without a caption are nobody's candidates
    rank, world_size = distributed.rank(), distributed.world_size()
    with progress("re-ranking", "pairs", total=len(pairs), is_shown=rank == 0) as advance:
        for start, kept in _kept_images(retriever, embeddings.image_ids[wanted], reader):
            chosen = ((place >= start) & (place < start + len(kept[0].keys))).nonzero().squeeze(1)
            rows, counts = torch.unique_consecutive(texts[chosen], return_counts=True)  # pairs are sorted by caption
            begins = counts.cumsum(0) - counts
            shortest_first = lengths[rows].argsort(stable=True)
            own = torch.split(shortest_first, TEXTS_AT_ONCE)[rank::world_size]
            batches = reader.captions([read_rows[rows[batch]].tolist() for batch in own])
            for batch, captions in zip(own, batches, strict=True):
                caption = torch.arange(len(batch)).repeat_interleave(counts[batch])
                within = torch.arange(len(caption)) - (counts[batch].cumsum(0) - counts[batch])[caption]
                of_batch = chosen[begins[batch][caption] + within]
                scores[of_batch] = _fused_scores(retriever, captions, caption, place[of_batch] - start, kept)
                advance(len(of_batch) * world_size)
            del kept  # before the next ones are put together
    return distributed.total(scores.to(retriever.log_logit_scale.device)).cpu()


def _kept_images(
    retriever: Retriever, image_ids: Tensor, reader: SplitReader
) -> Iterator[tuple[int, list[KeysValues]]]:
    """The number of the first, and keys and values, of some images after others, as many as ``KEPT_BYTES`` hold."""
    fusion = retriever.fusion
    assert fusion is not None
    start, size, kept = 0, 0, list[list[KeysValues]]()
    for batch in reader.images([ids.tolist() for ids in torch.split(image_ids, IMAGES_AT_ONCE)]):
        of_batch = fusion.keys_values(retriever.encode_image(batch.images).states)
        of_batch_bytes = sum(tensor.nbytes for layer in of_batch for tensor in layer)
        if kept and size + of_batch_bytes > KEPT_BYTES:
            count = sum(len(layers[0].keys) for layers in kept)
            yield start, _joined(kept)
            start, size = start + count, 0
        kept.append(of_batch)
        size += of_batch_bytes
    yield start, _joined(kept)


def _joined(kept: list[list[KeysValues]]) -> list[KeysValues]:
    """The batches as one; the list of them is left empty, so that nothing is held twice."""
    layers = [
        KeysValues(*(torch.cat(tensors) for tensors in zip(*layer, strict=True))) for layer in zip(*kept, strict=True)
    ]
    kept.clear()
    return layers


def _fused_scores(
    retriever: Retriever, captions: CaptionBatch, caption: Tensor, image: Tensor, kept: Sequence[KeysValues]
) -> Tensor:
    """Log-odds of pairs (caption[i], image[i]), rows of the batch and of the kept images; the captions ascend."""
    fusion = retriever.fusion
    assert fusion is not None
    states = retriever.encode_text(captions.input_ids, captions.attention_mask).states
    lengths = captions.attention_mask.sum(1).cpu()
    scores = []
    for pairs in torch.split(torch.arange(len(caption)), PAIRS_AT_ONCE):
        some, of_some = torch.unique_consecutive(caption[pairs], return_inverse=True)
        length = int(lengths[some].max())
        device = states.device
        first = fusion.first_states(
            states[some.to(device), :length],
            captions.attention_mask[some.to(device), :length],
            of_some.to(device),
            kept,
            image[pairs].to(device),
        )
        with torch.autocast(device.type, enabled=False):  # whose few bits would make ties of different scores
            logits = retriever.matching_head(first[:, None].to(retriever.matching_head.output.weight.dtype)).float()
        scores.append((logits[:, 1] - logits[:, 0]).cpu())
    return torch.cat(scores)
