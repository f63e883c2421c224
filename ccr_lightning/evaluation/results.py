"""The results of a test run as plain numbers, and the JSON document that is kept of them."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ccr_lightning._version import __version__
from ccr_lightning.errors import CCRError
from ccr_lightning.files import atomic_write, sha256_of
from ccr_lightning.functional.retrieval import Statistic, align_ranks, mean_rank_variance, recall_at_k
from ccr_lightning.metrics import Direction, LanguageRanks

if TYPE_CHECKING:
    from torch import Tensor

Ranking = Literal["dual_encoder", "re-ranked"]

CUTOFFS = (1, 5, 10)
SHORT: dict[Direction, str] = {"image_to_text": "i2t", "text_to_image": "t2i"}


def retrieval_results(
    ranks: Mapping[str, Mapping[int, LanguageRanks]],
    languages: Sequence[str],
    *,
    mrv_languages: Sequence[str] | None = None,
    parallel: bool = True,
) -> dict[str, Any]:
    """Computes recall@k of each language and direction, and MRV and MRSD, from the ranks (Nie et al., KDD 2024).

    MRV (mean variance of the rank over languages) and MRSD (mean standard deviation) count only images that have a
    caption in each of their languages. Where they mean nothing they are None, with a ``reason``.

    Args:
        ranks: What ``RetrievalRanks.compute`` returns.
        languages: The languages that its indices stand for.
        mrv_languages: The languages of MRV and MRSD; by default all that have captions.
        parallel: False if the languages have captions of their own instead of translations of each other, or images of
            their own; MRV then says nothing about the model.

    Returns:
        ``languages``: language to direction to ``recall@1``, ``recall@5`` and ``recall@10`` in [0, 1], and the numbers
        of ``queries`` and of items in the ``gallery``; ``mean_recalls``: direction to the means over languages;
        ``mean_recall``: the mean of all these recalls; ``mrv`` and ``mrsd``: one value for each direction, their
        ``mean``, the ``languages``, the number of ``instances`` (images), and, if there are no values, the ``reason``.
        Python numbers throughout.

    Raises:
        CCRError: If there are no ranks, or if a language has none or no name.

    Example:
        >>> import torch
        >>> ids, perfect, worse = torch.tensor([4, 5]), torch.tensor([1, 1]), torch.tensor([1, 2])
        >>> de, en = LanguageRanks(ids, worse, 2), LanguageRanks(ids, perfect, 2)
        >>> ranks = {"image_to_text": {0: de, 1: en}, "text_to_image": {0: en, 1: en}}
        >>> results = retrieval_results(ranks, ["de", "en"])
        >>> results["languages"]["de"]["image_to_text"]["recall@1"], results["mean_recall"], results["mrv"]["mean"]
        (0.5, 0.9583333333333334, 0.0625)
    """
    present = sorted(set().union(*ranks.values()))
    if not present or present[0] < 0 or present[-1] >= len(languages):
        raise CCRError(
            f"the ranks are of the languages {present}, but the names are {list(languages)}: pass ranks of at least "
            "one language, and a name for each index."
        )
    names = [languages[index] for index in present]
    scores = {
        languages[index]: {direction: _recalls(ranks[direction][index]) for direction in get_args(Direction)}
        for index in present
    }
    means: dict[str, dict[str, float]] = {
        direction: {
            f"recall@{k}": sum(of[direction][f"recall@{k}"] for of in scores.values()) / len(scores) for k in CUTOFFS
        }
        for direction in get_args(Direction)
    }
    recalls = [recall for of in means.values() for recall in of.values()]

    mrv_languages = names if mrv_languages is None else list(mrv_languages)
    unknown = [language for language in mrv_languages if language not in names]
    if unknown:
        raise CCRError(
            f"MRV is asked for over {unknown[0]!r}, but captions are there in {', '.join(names)} only: remove it."
        )
    chosen = [index for index, name in zip(present, names, strict=True) if name in mrv_languages]
    return {
        "languages": scores,
        "mean_recalls": means,
        "mean_recall": sum(recalls) / len(recalls),
        **_consistency(ranks, languages, chosen, parallel),
    }


def _recalls(of: LanguageRanks) -> dict[str, Any]:
    recalls: dict[str, Any] = {f"recall@{k}": recall_at_k(of.ranks, k).item() for k in CUTOFFS}
    return recalls | {"queries": len(of.ranks), "gallery": of.gallery}


def _consistency(
    ranks: Mapping[str, Mapping[int, LanguageRanks]], languages: Sequence[str], chosen: list[int], parallel: bool
) -> dict[str, Any]:
    """MRV and MRSD over the chosen languages."""
    reason = None
    instances = 0
    aligned: dict[str, Tensor] = {}
    if len(chosen) < 2:
        reason = "a single language has nothing to be consistent with"
    elif not parallel:
        reason = "the captions of the languages are not translations of each other"
    else:
        for direction in get_args(Direction):
            of = [ranks[direction][index] for index in chosen]
            image_ids, aligned[direction] = align_ranks([one.image_ids for one in of], [one.ranks for one in of])
            instances = len(image_ids)
        if not instances:
            reason = "no image has a caption in each of the languages"

    def scores(statistic: Statistic) -> dict[str, Any]:
        result: dict[str, Any] = dict.fromkeys((*get_args(Direction), "mean"))
        if reason is None:
            result |= {direction: mean_rank_variance(aligned[direction], statistic).item() for direction in aligned}
            result["mean"] = sum(result[direction] for direction in aligned) / len(aligned)
        result |= {"languages": [languages[index] for index in chosen], "instances": instances}
        return result if reason is None else result | {"reason": reason}

    return {"mrv": scores("variance"), "mrsd": scores("std")}


def results_document(
    scores: Mapping[str, Any],
    *,
    dataset: str,
    split: str,
    ranking: Ranking = "dual_encoder",
    rerank_depth: int,
    rerank_by: str | None = None,
    checkpoint: Path | None,
    seed: int,
    left_out: Mapping[str, int],
) -> dict[str, Any]:
    """Adds to the scores what one needs to know to trust and to repeat them.

    Args:
        scores: What ``retrieval_results`` returns.
        dataset: Name of the data.
        split: The part of it that was scored.
        ranking: ``dual_encoder``, or ``re-ranked`` if the matching head ordered the best candidates.
        rerank_depth: How many candidates of each query it ordered; 0 for the dual encoder alone.
        rerank_by: What it ordered them by; None for the dual encoder alone.
        checkpoint: File of the weights; None if they were not loaded from one.
        seed: The seed of the run.
        left_out: What the split had that was not scored: the numbers of ``bad_records`` and ``blank_captions``.

    Returns:
        ``dataset``, ``split``, ``left_out``, ``ranking``, ``rerank_depth``, ``rerank_by``, ``checkpoint`` (its ``path``
        and ``sha256``), ``seed``, ``versions`` (None for a package that is not installed), then the scores.

    Raises:
        CCRError: If the checkpoint cannot be read.

    Example:
        >>> made_with = {"dataset": "demo", "split": "test", "rerank_depth": 0, "checkpoint": None, "seed": 1}
        >>> document = results_document({}, **made_with, left_out={"bad_records": 0, "blank_captions": 0})
        >>> document["checkpoint"], document["ranking"]
        ({'path': None, 'sha256': None}, 'dual_encoder')
    """
    return {
        "dataset": dataset,
        "split": split,
        "left_out": dict(left_out),
        "ranking": ranking,
        "rerank_depth": rerank_depth,
        "rerank_by": rerank_by,
        "checkpoint": {
            "path": None if checkpoint is None else str(checkpoint),
            "sha256": None if checkpoint is None else _sha256(checkpoint),
        },
        "seed": seed,
        "versions": {
            "python": platform.python_version(),
            "ccr_lightning": __version__,
            **{
                package: _installed(package)
                for package in ("torch", "lightning", "torchmetrics", "transformers", "timm", "tokenizers")
            },
        },
        **scores,
    }


def _sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise CCRError(f"{path}: the checkpoint cannot be read ({error.strerror}); check the path.") from error


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def write_results(path: Path, document: Mapping[str, Any]) -> None:
    """Writes the document as JSON; the file is there in full, or as it was before.

    Args:
        path: The file; its folder is made if need be.
        document: What ``results_document`` returns.

    Raises:
        CCRError: If the file cannot be written.
    """
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_write(path, "the results") as file:
        file.write(text.encode())
