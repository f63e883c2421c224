"""How a split is scored: what the numbers of two papers have to share before they can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ccr_lightning.errors import CCRError

RerankBy = Literal["matching", "matching_and_similarity"]


@dataclass(frozen=True)
class EvaluationProtocol:
    """How a split is scored; docs/evaluation.md defines the numbers.

    Args:
        mrv_languages: The languages over which consistency (MRV, MRSD, agreement) is measured; by default all of the
            data's.
        folds: In the test also the mean over so many equal parts of the images, in the order of the data, each with a
            gallery of its own: 5 for COCO's "1k" beside its "5k".
        text_to_text: In the test also retrieve the captions in each language by those in each other.
        rerank_depth: In the test also order each query's best so many candidates by the matching head; 0 = not at all.
        rerank_by: The order of re-ranking: ``matching``, the paper's, or ``matching_and_similarity``.
        resamples: Bootstrap samples of the images from which 95 % confidence intervals come; 0 for none.

    Raises:
        CCRError: A setting is out of range.

    Example:
        >>> EvaluationProtocol(folds=5).folds
        5
    """

    mrv_languages: list[str] | None = None
    folds: int = 1
    text_to_text: bool = False
    rerank_depth: int = 0
    rerank_by: RerankBy = "matching"
    resamples: int = 1000

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.mrv_languages is not None and not self.mrv_languages:
            raise CCRError("mrv_languages is empty: name two or more languages, or leave it out for all.")
        if self.folds < 1:
            raise CCRError(f"folds is {self.folds}: give a number of parts, 1 for the whole split alone.")
        if self.rerank_depth < 0:
            raise CCRError(f"rerank_depth is {self.rerank_depth}: give the number of candidates, or 0 for none.")
        if self.rerank_by not in get_args(RerankBy):
            raise CCRError(f"re-ranking by {self.rerank_by!r} is unknown: choose {' or '.join(get_args(RerankBy))}.")
        if self.resamples < 0:
            raise CCRError(f"resamples is {self.resamples}: give a number of bootstrap samples, or 0 for none.")
