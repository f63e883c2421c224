"""From the embeddings of a split to its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ccr_lightning.errors import CCRError
from ccr_lightning.evaluation.protocol import EvaluationProtocol
from ccr_lightning.evaluation.query_ranks import QueryRanks, query_ranks
from ccr_lightning.evaluation.scores import retrieval_results
from ccr_lightning.functional.galleries import ALONE, Embeddings, Share, ranks_between_languages, ranks_by_direction

_DEFAULT = EvaluationProtocol()


class Evaluation(NamedTuple):
    """The numbers of a split, and what they are made of."""

    results: dict[str, Any]  # what ``retrieval_results`` returns
    ranks: list[QueryRanks]  # of every query, in the whole gallery


def evaluate(
    embeddings: Embeddings,
    languages: Sequence[str],
    *,
    protocol: EvaluationProtocol = _DEFAULT,
    parallel: bool = True,
    share: Share = ALONE,
) -> Evaluation:
    """Rank everything by similarity and score it.

    Args:
        embeddings: Images and captions of a split; an image's id is its place in the order of the data, which decides
            its fold.
        languages: The languages that the language numbers stand for.
        protocol: How to score; re-ranking is not done here.
        parallel: Whether consistency over languages means anything, see ``retrieval_results``.
        share: Where several processes have the same embeddings, what each of them ranks; all get the same results.

    Returns:
        The numbers, and the rank of every query.

    Raises:
        CCRError: If there is one image only, if it cannot be split into the folds, or if embeddings are not finite.

    Example:
        >>> ids, zeros = torch.arange(4), torch.zeros(4, dtype=torch.int64)
        >>> embeddings = Embeddings(torch.eye(4), ids, torch.eye(4)[[0, 1, 2, 2]], ids, zeros, zeros)
        >>> results, ranks = evaluate(embeddings, ["en"], protocol=EvaluationProtocol(folds=2))
        >>> of_english = results["languages"]["en"]["text_to_image"]
        >>> of_english["recall@1"], of_english["recall@5"], results["folds"]["count"]
        (0.75, 1.0, 2)
        >>> [(of.direction, of.ranks.tolist()) for of in ranks]
        [('image_to_text', [1, 1, 2, 4]), ('text_to_image', [1, 1, 1, 4])]
    """
    whole, *folds = parts(embeddings, protocol.folds)
    ranks = ranks_by_direction(whole, with_first=True, share=share)
    results = retrieval_results(
        ranks,
        languages,
        protocol=protocol,
        parallel=parallel,
        folds=[ranks_by_direction(fold, share=share) for fold in folds],
        between=ranks_between_languages(embeddings) if protocol.text_to_text else None,
    )
    return Evaluation(results, query_ranks(ranks, embeddings, languages))


def parts(embeddings: Embeddings, folds: int) -> list[Embeddings]:
    """Return the whole, and behind it, if there are several, its folds: equal parts in the order of the image ids.

    Raises:
        CCRError: If there is one image only, if the images cannot be split into equal parts, or if a fold lacks a
            language that others have.
    """
    images = len(embeddings.image_ids)
    if images < 2:
        raise CCRError("there is one image only, and nothing to rank it against: evaluate two or more.")
    if folds == 1:
        return [embeddings]
    if images % folds:
        raise CCRError(f"{images} images cannot be split into {folds} equal folds: choose another number of folds.")
    several = [embeddings.of_images(ids) for ids in embeddings.image_ids.chunk(folds)]
    if len({tuple(torch.unique(fold.text_languages).tolist()) for fold in several}) > 1:
        raise CCRError(f"of {folds} folds, some have no caption in some language: choose fewer folds or languages.")
    return [embeddings, *several]
