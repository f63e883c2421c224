"""Re-ranking: order the best candidates of the dual encoder by the matching head."""

from __future__ import annotations

import torch
from torch import Tensor

from ccr_lightning.errors import CCRError
from ccr_lightning.functional.retrieval import reranked_ranks, retrieval_ranks, top_candidates
from ccr_lightning.metrics import LanguageRanks
from ccr_lightning.models.retriever import Encoded, Retriever
from ccr_lightning.types import CaptionBatch, ImageBatch

PAIRS_AT_ONCE = 1024


class StateBank:
    """Embeddings and token states of a split, kept in main memory until all candidates are known."""

    def __init__(self) -> None:
        self._images: list[tuple[Tensor, ...]] = []
        self._captions: list[tuple[Tensor, ...]] = []

    def add(self, batch: ImageBatch | CaptionBatch, encoded: Encoded) -> None:
        """Keeps one batch; its images or captions must not have been added before."""
        if isinstance(batch, ImageBatch):
            self._images.append(_to_cpu(encoded.embeds, encoded.states, batch.image_ids))
        else:
            self._captions.append(
                _to_cpu(encoded.embeds, encoded.states, batch.image_ids, batch.attention_mask, batch.languages)
            )

    def images(self) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (G, D), states (G, P, C) and ids (G,) of the images."""
        embeds, states, ids = (torch.cat(tensors) for tensors in zip(*self._images, strict=True))
        return embeds, states, ids

    def languages(self) -> list[int]:
        """The language indices that have captions, in order."""
        return sorted({language for captions in self._captions for language in captions[4].tolist()})

    def captions(self, language: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embeddings (N, D), states (N, L, C), ids (N,) and masks (N, L) of a language's captions."""
        longest = max(mask.shape[1] for *_, mask, _ in self._captions)
        rows = []
        for embeds, states, ids, mask, languages in self._captions:
            chosen = languages == language
            padding = longest - mask.shape[1]
            rows.append(
                (
                    embeds[chosen],
                    torch.nn.functional.pad(states[chosen], (0, 0, 0, padding)),
                    ids[chosen],
                    torch.nn.functional.pad(mask[chosen], (0, padding)),
                )
            )
        embeds, states, ids, mask = (torch.cat(tensors) for tensors in zip(*rows, strict=True))
        return embeds, states, ids, mask


def rerank(retriever: Retriever, bank: StateBank, depth: int) -> dict[str, dict[int, LanguageRanks]]:
    """Ranks after each query's best ``depth`` candidates are put in the order of their match score.

    Candidates beyond ``depth`` keep the dual encoder's order behind the re-ranked ones, so a query whose positives are
    all beyond keeps its rank (Nie et al., KDD 2024, evaluation; in the authors' code they share one score).

    Args:
        retriever: The model, with a fusion encoder.
        bank: What was encoded of the split; every image at least one caption in a language to count there.
        depth: Number of candidates per query to re-rank.

    Returns:
        Direction to language index to ranks, as ``RetrievalRanks.compute``.

    Raises:
        CCRError: If ``depth`` is larger than a gallery.
    """
    all_embeds, all_states, all_ids = bank.images()
    ranks: dict[str, dict[int, LanguageRanks]] = {"image_to_text": {}, "text_to_image": {}}
    for language in bank.languages():
        text_embeds, text_states, text_ids, masks = bank.captions(language)
        described = torch.isin(all_ids, text_ids)
        image_embeds, image_states, image_ids = all_embeds[described], all_states[described], all_ids[described]
        smallest = min(len(image_ids), len(text_ids))
        if depth > smallest:
            raise CCRError(
                f"rerank_depth {depth} is larger than a gallery of {smallest}: lower --model.rerank_depth to "
                f"{smallest} or less."
            )
        for direction, queries, gallery, query_ids, gallery_ids in (
            ("image_to_text", image_embeds, text_embeds, image_ids, text_ids),
            ("text_to_image", text_embeds, image_embeds, text_ids, image_ids),
        ):
            candidates = top_candidates(queries, gallery, depth)
            query = torch.arange(len(queries)).repeat_interleave(depth)
            text, image = query, candidates.flatten()
            if direction == "image_to_text":
                text, image = image, query
            scores = _match_scores(retriever, text_states, masks, image_states, text, image)
            ranks[direction][language] = LanguageRanks(
                image_ids=query_ids,
                ranks=reranked_ranks(
                    retrieval_ranks(queries, gallery, query_ids, gallery_ids),
                    scores.view(len(queries), depth),
                    gallery_ids[candidates] == query_ids[:, None],
                ),
                gallery=len(gallery),
            )
    return ranks


@torch.no_grad()
def _match_scores(
    retriever: Retriever, text_states: Tensor, masks: Tensor, image_states: Tensor, text: Tensor, image: Tensor
) -> Tensor:
    """Log-odds of a match for each pair (text[i], image[i]); shortest captions first, so little padding is computed."""
    device = retriever.log_logit_scale.device
    scores = torch.empty(len(text), dtype=torch.float32)
    order = masks.sum(1)[text].argsort(stable=True)
    for pairs in torch.split(order, PAIRS_AT_ONCE):
        mask = masks[text[pairs]]
        mask = mask[:, : int(mask.sum(1).max())]
        fused = retriever.fuse(
            text_states[text[pairs], : mask.shape[1]].to(device), mask.to(device), image_states[image[pairs]].to(device)
        )
        logits = retriever.match_logits(fused).float()
        scores[pairs] = (logits[:, 1] - logits[:, 0]).cpu()
    return scores


def _to_cpu(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().cpu() for tensor in tensors)
