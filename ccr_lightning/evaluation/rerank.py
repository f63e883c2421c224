"""Re-ranking: order the best candidates of the dual encoder by the matching head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from ccr_lightning.errors import CCRError
from ccr_lightning.functional.retrieval import reranked_ranks, top_candidates
from ccr_lightning.metrics import Direction, LanguageRanks
from ccr_lightning.models.retriever import Encoded, Retriever
from ccr_lightning.models.transformer import KeysValues
from ccr_lightning.types import CaptionBatch, ImageBatch

RerankBy = Literal["matching", "matching_and_similarity"]

PAIRS_AT_ONCE = 1024


class StateBank:
    """Embeddings and token states of a split, kept in main memory until all candidates are known."""

    def __init__(self) -> None:
        self._images: list[tuple[Tensor, ...]] = []
        self._captions: list[tuple[Tensor, ...]] = []

    def add(self, batch: ImageBatch | CaptionBatch, encoded: Encoded) -> None:
        """Keeps one batch; its images or captions must not have been added before."""
        states = encoded.states.float()  # they may come out of autocast, and meet the weights outside it
        if isinstance(batch, ImageBatch):
            self._images.append(_to_cpu(encoded.embeds, states, batch.image_ids))
        else:
            own = (batch.image_ids, batch.attention_mask, batch.languages, batch.caption_index)
            self._captions.append(_to_cpu(encoded.embeds, states, *own))

    def images(self) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (G, D), states (G, P, C) and ids (G,) of the images, by id."""
        embeds, states, ids = (torch.cat(tensors) for tensors in zip(*self._images, strict=True))
        order = ids.argsort()
        return embeds[order], states[order], ids[order]

    def captions(self, language: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embeddings (N, D), states (N, L, C), ids (N,) and masks (N, L) of a language's captions, by id and number."""
        longest = max(captions[3].shape[1] for captions in self._captions)
        rows = []
        for embeds, states, ids, mask, languages, index in self._captions:
            chosen = languages == language
            padding = longest - mask.shape[1]
            rows.append(
                (
                    embeds[chosen],
                    torch.nn.functional.pad(states[chosen], (0, 0, 0, padding)),
                    ids[chosen],
                    torch.nn.functional.pad(mask[chosen], (0, padding)),
                    index[chosen],
                )
            )
        embeds, states, ids, mask, index = (torch.cat(tensors) for tensors in zip(*rows, strict=True))
        order = index.argsort(stable=True)
        order = order[ids[order].argsort(stable=True)]
        return embeds[order], states[order], ids[order], mask[order]


def rerank(
    retriever: Retriever,
    bank: StateBank,
    ranks: Mapping[str, Mapping[int, LanguageRanks]],
    depth: int,
    by: RerankBy = "matching",
) -> dict[str, dict[int, LanguageRanks]]:
    """Ranks after each query's best ``depth`` candidates are put in the order of their match score.

    The score is the matching head's log-odds of a match, as in the paper, or that plus the dual encoder's logit. The
    sum has a reason: the head learns to tell matches from negatives that are drawn in proportion to exp(logit), so its
    log-odds say how much likelier a pair is than the dual encoder believes.

    Candidates beyond ``depth`` keep the dual encoder's order behind the re-ranked ones, so a query whose positives are
    all beyond keeps its rank (Nie et al., KDD 2024, evaluation; in the authors' code they share one score).

    Args:
        retriever: The model, with a fusion encoder.
        bank: What was encoded of the split.
        ranks: Those of the dual encoder, what ``RetrievalRanks.compute`` says of the same split.
        depth: Number of candidates per query to re-rank; all of a gallery that has fewer.
        by: ``matching`` or ``matching_and_similarity``.

    Returns:
        Direction to language index to ranks, as ``ranks``.

    Raises:
        CCRError: If the model has no fusion encoder, or ``by`` is unknown.
    """
    if by not in get_args(RerankBy):
        raise CCRError(f"re-ranking by {by!r} is unknown: choose {' or '.join(get_args(RerankBy))}.")
    logit_scale = retriever.logit_scale.item()
    all_embeds, all_states, all_ids = bank.images()
    reranked: dict[str, dict[int, LanguageRanks]] = {direction: {} for direction in get_args(Direction)}
    for language, of_images in ranks["image_to_text"].items():
        text_embeds, text_states, text_ids, masks = bank.captions(language)
        shown = torch.isin(all_ids, of_images.image_ids.cpu())
        image_embeds, image_states, image_ids = all_embeds[shown], all_states[shown], all_ids[shown]
        for direction in get_args(Direction):
            dual = ranks[direction][language]
            if direction == "image_to_text":
                candidates = top_candidates(image_embeds, text_embeds, min(depth, len(text_embeds)))
                gallery_ids, text, image = text_ids, candidates, _own_number(candidates)
            else:
                candidates = top_candidates(text_embeds, image_embeds, min(depth, len(image_embeds)))
                gallery_ids, text, image = image_ids, _own_number(candidates), candidates
            text, image = text.flatten(), image.flatten()
            scores = _match_scores(retriever, text_states, masks, image_states, text, image)
            if by == "matching_and_similarity":
                for pairs in torch.split(torch.arange(len(scores)), PAIRS_AT_ONCE):
                    similarity = (text_embeds[text[pairs]] * image_embeds[image[pairs]]).sum(1)
                    scores[pairs] += logit_scale * similarity
            is_positive = gallery_ids[candidates] == dual.image_ids.cpu()[:, None]
            new = reranked_ranks(dual.ranks.cpu(), scores.view_as(candidates), is_positive)
            reranked[direction][language] = LanguageRanks(dual.image_ids.cpu(), new, dual.gallery)
    return reranked


def _own_number(candidates: Tensor) -> Tensor:
    return torch.arange(len(candidates))[:, None].expand_as(candidates)


@torch.no_grad()
def _match_scores(
    retriever: Retriever, text_states: Tensor, masks: Tensor, image_states: Tensor, text: Tensor, image: Tensor
) -> Tensor:
    """Log-odds of a match for each pair (text[i], image[i]).

    Images come in chunks, since what fusion needs of an image is computed once for all its pairs; within a chunk the
    shortest captions come first, so little padding is computed.
    """
    fusion = retriever.fusion
    if fusion is None:
        raise CCRError("this retriever has no fusion encoder, which re-ranking needs: give it a fusion.")
    device = retriever.log_logit_scale.device
    scores = torch.empty(len(text), dtype=torch.float32)
    lengths = masks.sum(1)[text]
    images_at_once = max(1, PAIRS_AT_ONCE * len(image_states) // len(text))
    for start in range(0, len(image_states), images_at_once):
        kept = fusion.keys_values(image_states[start : start + images_at_once].to(device))
        chosen = ((image >= start) & (image < start + images_at_once)).nonzero().squeeze(1)
        ordered = chosen[lengths[chosen].argsort(stable=True)]
        for pairs in torch.split(ordered, PAIRS_AT_ONCE) if len(ordered) else ():
            mask = masks[text[pairs], : int(lengths[pairs].max())]
            rows = (image[pairs] - start).to(device)
            fused = fusion.attend(
                text_states[text[pairs], : mask.shape[1]].to(device),
                mask.to(device),
                [KeysValues(of.keys[rows], of.values[rows]) for of in kept],
            )
            logits = retriever.match_logits(fused).float()
            scores[pairs] = (logits[:, 1] - logits[:, 0]).cpu()
    return scores


def _to_cpu(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().cpu() for tensor in tensors)
