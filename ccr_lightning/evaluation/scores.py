"""The numbers of an evaluation, from the ranks of all queries; docs/evaluation.md defines them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
import torch

from ccr_lightning.errors import CCRError
from ccr_lightning.evaluation.bootstrap import Array, interval, resampled_sums
from ccr_lightning.evaluation.protocol import EvaluationProtocol
from ccr_lightning.functional.consistency import (
    Statistic,
    align_ranks,
    first_agreement,
    pairwise_rank_variance,
    rank_spread,
)
from ccr_lightning.functional.galleries import Direction, LanguageRanks
from ccr_lightning.functional.retrieval import recall_at_k

Ranks = Mapping[Direction, Mapping[int, LanguageRanks]]  # by direction and language index

CUTOFFS = (1, 5, 10)
SHORT: dict[Direction, str] = {"image_to_text": "i2t", "text_to_image": "t2i"}
RECALLS = tuple(f"recall@{k}" for k in CUTOFFS)
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
PIVOT = "en"  # what the gaps of the other languages are measured from

_DEFAULT = EvaluationProtocol()
_SPREADS: dict[str, Statistic] = {"mrv": "variance", "mrsd": "std"}


def retrieval_results(
    ranks: Ranks,
    languages: Sequence[str],
    *,
    protocol: EvaluationProtocol = _DEFAULT,
    parallel: bool = True,
    folds: Sequence[Ranks] = (),
    between: Mapping[tuple[int, int], LanguageRanks] | None = None,
) -> dict[str, Any]:
    """Compute recall of each language and direction, consistency over languages, and their confidence intervals.

    Recall, MRV (mean rank variance) and MRSD (mean rank standard deviation) are those of Nie et al., KDD 2024; the
    docs define all numbers. Consistency counts only images that have a caption in each of its languages. Where it means
    nothing it is None, with a ``reason``.

    Args:
        ranks: Direction to language index to ranks, with their first results.
        languages: The languages that the indices stand for.
        protocol: Its ``mrv_languages`` and ``resamples`` are used here.
        parallel: False if the languages have captions of their own instead of translations of each other, or images of
            their own; consistency then says nothing about the model.
        folds: The ranks within each fold.
        between: Ranks of text-to-text retrieval, by the languages of query and gallery.

    Returns:
        Python numbers throughout; recalls are in [0, 1]:

        - ``languages``: language to direction to ``recall@1``, ``recall@5``, ``recall@10``, their ``intervals``, and
          numbers of ``queries``, of items in the ``gallery``, and of ``tied_queries``;
        - ``language_means``: language to ``mean_recall``, over directions and cut-offs, and its ``interval``;
        - ``mean_recalls``: direction to the means over languages; ``mean_recall``: the mean of all these recalls;
          ``mean_recall_interval``;
        - ``worst_language``: the lowest ``mean_recall`` and, by direction, the lowest recalls, with their languages;
        - ``gap_to_english``: language to how much lower its ``mean_recall`` is, with ``interval``; None without
          English;
        - ``mrv``, ``mrsd``, ``rank1_agreement``: by direction and as ``mean``, with ``interval``, ``languages``,
          numbers of ``instances`` (images) and of those ``left_out`` for want of a caption, and maybe ``reason``;
          of ``mrv`` also its ``pairs``, that of each two languages, once: language to language to the mean of both
          directions;
        - ``folds``: None, or their ``count``, and means over them: ``languages``, ``language_means``, ``mean_recalls``
          and ``mean_recall``;
        - ``text_to_text``: None, or language of the queries to that of the gallery to recalls, and their ``mean``.

    Raises:
        CCRError: If there are no ranks, or if a language has none or no name.

    Example:
        >>> ids, perfect, worse = torch.tensor([4, 5]), torch.tensor([1, 1]), torch.tensor([1, 2])
        >>> en = LanguageRanks(ids, perfect, 2, ties=torch.zeros(2), first=ids)
        >>> de = LanguageRanks(ids, worse, 2, ties=torch.zeros(2), first=torch.tensor([4, 4]))
        >>> ranks = {"image_to_text": {0: de, 1: en}, "text_to_image": {0: en, 1: en}}
        >>> results = retrieval_results(ranks, ["de", "en"])
        >>> results["languages"]["de"]["image_to_text"]["recall@1"], results["mean_recall"], results["mrv"]["mean"]
        (0.5, 0.9583333333333334, 0.0625)
        >>> results["rank1_agreement"]["image_to_text"], results["worst_language"]["mean_recall"]["language"]
        (0.5, 'de')
    """
    present = _present(ranks, languages)
    names = [languages[index] for index in present]
    images = torch.unique(torch.cat([of.image_ids for by_language in ranks.values() for of in by_language.values()]))
    consistency = _Consistency(ranks, present, names, protocol.mrv_languages, parallel, images)
    hits, queries = _hits(ranks, present, images)
    drawn = _draw(hits, queries, consistency.per_image, protocol.resamples)

    recalls = np.array([[_recalls(ranks[direction][index]) for index in present] for direction in DIRECTIONS])
    point, samples = _Aggregates(recalls, names), _Aggregates(drawn.recalls, names)
    scores = {
        name: {
            direction: {
                **dict(zip(RECALLS, recalls[place, number].tolist(), strict=True)),
                "intervals": _intervals(drawn.recalls[:, place, number]),
                "queries": len(ranks[direction][index].ranks),
                "gallery": ranks[direction][index].gallery,
                "tied_queries": ranks[direction][index].tied_queries,
            }
            for place, direction in enumerate(DIRECTIONS)
        }
        for number, (index, name) in enumerate(zip(present, names, strict=True))
    }
    return {
        "languages": scores,
        "language_means": {
            name: {
                "mean_recall": float(point.of_language[number]),
                "interval": interval(samples.of_language[:, number]),
            }
            for number, name in enumerate(names)
        },
        **_means(point, samples),
        "worst_language": _worst(point, samples, recalls, names),
        "gap_to_english": _gaps(point, samples, names),
        **consistency.scores(drawn.per_image),
        "folds": _folds(folds, languages) if folds else None,
        "text_to_text": None if between is None else _between(between, languages),
    }


class _Aggregates:
    """Means of recalls (..., directions, languages, cut-offs), of the split itself or of bootstrap samples."""

    def __init__(self, recalls: Array, names: Sequence[str]) -> None:
        self.of_language = recalls.mean((-3, -1))  # (..., languages)
        self.of_direction = recalls.mean(-2)  # (..., directions, cut-offs)
        self.mean = self.of_direction.mean((-2, -1))  # (...)
        self.worst = self.of_language.min(-1)  # (...)
        pivot = self.of_language[..., [names.index(PIVOT)]] if PIVOT in names else np.nan
        self.gap = pivot - self.of_language  # (..., languages)


class _Drawn(NamedTuple):
    """What the bootstrap samples find."""

    recalls: Array  # (S, directions, languages, cut-offs)
    per_image: Array  # (S, M), means over images


def _draw(hits: Array, queries: Array, per_image: Array, resamples: int) -> _Drawn:
    """Resamples all numbers together.

    Args:
        hits: (I, directions, languages, cut-offs), queries of each image that hit.
        queries: (I, directions, languages).
        per_image: (I, M), quantities of which a mean over images is wanted; NaN for images that do not count.
        resamples: Number S of samples.
    """
    counts = ~np.isnan(per_image)
    parts = [hits.reshape(len(hits), -1), queries.reshape(len(hits), -1), np.where(counts, per_image, 0), counts]
    sums = resampled_sums(np.concatenate(parts, 1, dtype=np.float64), resamples)
    of_hits, of_queries, of_values, of_counts = np.split(sums, np.cumsum([part.shape[1] for part in parts])[:-1], 1)
    with np.errstate(invalid="ignore"):  # a sample may have no query in a language
        recalls = of_hits.reshape(-1, *hits.shape[1:]) / of_queries.reshape(-1, *queries.shape[1:])[..., None]
        return _Drawn(recalls, of_values / of_counts)


def _present(ranks: Ranks, languages: Sequence[str]) -> list[int]:
    present = sorted(set().union(*ranks.values()))
    if any(set(by_language) != set(present) for by_language in ranks.values()):
        raise CCRError(f"some of the languages {present} have no ranks in one direction: rank both directions.")
    if not present or present[0] < 0 or present[-1] >= len(languages):
        raise CCRError(
            f"the ranks are of the languages {present}, but the names are {list(languages)}: pass ranks of at least "
            "one language, and a name for each index."
        )
    return present


def _recalls(of: LanguageRanks) -> list[float]:
    return [recall_at_k(of.ranks, k).item() for k in CUTOFFS]


def _hits(ranks: Ranks, present: Sequence[int], images: torch.Tensor) -> tuple[Array, Array]:
    """How many queries of each image hit, and how many there are."""
    shape = (len(images), len(DIRECTIONS), len(present))
    hits, queries = np.zeros((*shape, len(CUTOFFS))), np.zeros(shape)
    for place, direction in enumerate(DIRECTIONS):
        for number, index in enumerate(present):
            of = ranks[direction][index]
            image = torch.searchsorted(images, of.image_ids).cpu().numpy()
            queries[:, place, number] = np.bincount(image, minlength=len(images))
            for column, k in enumerate(CUTOFFS):
                hit = (of.ranks <= k).cpu().numpy()
                hits[:, place, number, column] = np.bincount(image, weights=hit, minlength=len(images))
    return hits, queries


def _intervals(recalls: Array) -> dict[str, list[float] | None]:
    """Of recalls (S, cut-offs)."""
    return {name: interval(recalls[:, column]) for column, name in enumerate(RECALLS)}


def _means(point: _Aggregates, samples: _Aggregates) -> dict[str, Any]:
    return {
        "mean_recalls": {
            direction: {
                **dict(zip(RECALLS, point.of_direction[place].tolist(), strict=True)),
                "intervals": _intervals(samples.of_direction[:, place]),
            }
            for place, direction in enumerate(DIRECTIONS)
        },
        "mean_recall": float(point.mean),
        "mean_recall_interval": interval(samples.mean),
    }


def _worst(point: _Aggregates, samples: _Aggregates, recalls: Array, names: Sequence[str]) -> dict[str, Any]:
    lowest = recalls.argmin(1)  # (directions, cut-offs)
    return {
        "mean_recall": {
            "language": names[int(point.of_language.argmin())],
            "value": float(point.worst),
            "interval": interval(samples.worst),
        },
        **{
            direction: {
                name: {
                    "language": names[int(lowest[place, column])],
                    "value": float(recalls[place, :, column].min()),
                }
                for column, name in enumerate(RECALLS)
            }
            for place, direction in enumerate(DIRECTIONS)
        },
    }


def _gaps(point: _Aggregates, samples: _Aggregates, names: Sequence[str]) -> dict[str, Any] | None:
    if PIVOT not in names:
        return None
    return {
        name: {"value": float(point.gap[number]), "interval": interval(samples.gap[:, number])}
        for number, name in enumerate(names)
        if name != PIVOT
    }


class _Consistency:
    """MRV, MRSD and agreement in the first result over the chosen languages."""

    def __init__(
        self,
        ranks: Ranks,
        present: Sequence[int],
        names: Sequence[str],
        asked: Sequence[str] | None,
        parallel: bool,
        images: torch.Tensor,
    ) -> None:
        self.languages = [name for name in names if asked is None or name in asked]
        self.statistics = (*_SPREADS, "rank1_agreement")
        self.per_image = np.full((len(images), len(self.statistics) * len(DIRECTIONS)), np.nan)
        self._pairs: list[list[list[float]]] = []  # of each direction, by two languages
        self.reason: str | None = None
        chosen = [index for index, name in zip(present, names, strict=True) if name in self.languages]
        described = [torch.unique(ranks["image_to_text"][index].image_ids) for index in chosen]
        _, languages_of_image = torch.unique(torch.cat([images[:0], *described]), return_counts=True)
        self.left_out = int((languages_of_image < len(chosen)).sum())
        if missing := [language for language in asked or () if language not in names]:
            self.reason = f"there is no caption in {', '.join(missing)}"
        elif len(chosen) < 2:
            self.reason = "a single language has nothing to be consistent with"
        elif not parallel:
            self.reason = "the captions of the languages are not translations of each other"
        else:
            for place, direction in enumerate(DIRECTIONS):
                self._measure([ranks[direction][index] for index in chosen], images, place)
        self.instances = int((~np.isnan(self.per_image[:, 0])).sum())
        if self.reason is None and not self.instances:
            self.reason = "no image has a caption in each of the languages"

    def _measure(self, of: Sequence[LanguageRanks], images: torch.Tensor, place: int) -> None:
        ids, aligned = align_ranks([one.image_ids for one in of], [one.ranks for one in of])
        if not len(ids):
            return
        firsts = [one.first for one in of if one.first is not None]
        if len(firsts) < len(of):
            raise CCRError("the ranks have no first results, which agreement needs: rank with_first=True.")
        values = [rank_spread(aligned, statistic) for statistic in _SPREADS.values()]
        values.append(first_agreement([one.image_ids for one in of], firsts)[1])
        self._pairs.append(pairwise_rank_variance(aligned).tolist())
        rows = torch.searchsorted(images, ids).cpu().numpy()
        for number, value in enumerate(values):
            self.per_image[rows, number * len(DIRECTIONS) + place] = value.cpu().numpy()

    def scores(self, samples: Array) -> dict[str, Any]:
        """The numbers of each statistic; ``samples`` (S, M) are the bootstrap's means of ``per_image``."""
        return {statistic: self._of(number, statistic, samples) for number, statistic in enumerate(self.statistics)}

    def _of(self, number: int, statistic: str, samples: Array) -> dict[str, Any]:
        result: dict[str, Any] = dict.fromkeys((*DIRECTIONS, "mean", "interval"))
        if self.reason is None:
            columns = slice(number * len(DIRECTIONS), (number + 1) * len(DIRECTIONS))
            values = self.per_image[~np.isnan(self.per_image[:, 0]), columns].mean(0)
            result |= dict(zip(DIRECTIONS, values.tolist(), strict=True))
            result |= {"mean": float(values.mean()), "interval": interval(samples[:, columns].mean(1))}
        result |= {"languages": self.languages, "instances": self.instances, "left_out": self.left_out}
        if statistic == "mrv":
            result["pairs"] = self._mean_pairs() if self.reason is None else None
        return result if self.reason is None else result | {"instances": 0, "reason": self.reason}

    def _mean_pairs(self) -> dict[str, dict[str, float]]:
        means = np.mean(self._pairs, 0).tolist()
        return {
            one: {other: means[i][j] for j, other in enumerate(self.languages) if j > i}
            for i, one in enumerate(self.languages[:-1])
        }


def _folds(folds: Sequence[Ranks], languages: Sequence[str]) -> dict[str, Any]:
    present = _present(folds[0], languages)
    recalls = np.array(
        [[[_recalls(ranks[direction][index]) for index in present] for direction in DIRECTIONS] for ranks in folds]
    ).mean(0)
    names = [languages[index] for index in present]
    means = _Aggregates(recalls, names)
    return {
        "count": len(folds),
        "languages": {
            name: {
                direction: dict(zip(RECALLS, recalls[place, number].tolist(), strict=True))
                for place, direction in enumerate(DIRECTIONS)
            }
            for number, name in enumerate(names)
        },
        "language_means": {name: float(mean) for name, mean in zip(names, means.of_language, strict=True)},
        "mean_recalls": {
            direction: dict(zip(RECALLS, means.of_direction[place].tolist(), strict=True))
            for place, direction in enumerate(DIRECTIONS)
        },
        "mean_recall": float(means.mean),
    }


def _between(between: Mapping[tuple[int, int], LanguageRanks], languages: Sequence[str]) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for (asked, searched), of in between.items():
        numbers = {"queries": len(of.ranks), "gallery": of.gallery, "tied_queries": of.tied_queries}
        recalls = dict(zip(RECALLS, _recalls(of), strict=True))
        pairs.setdefault(languages[asked], {})[languages[searched]] = {**recalls, **numbers}
    of_all = np.array([_recalls(of) for of in between.values()])
    mean = dict(zip(RECALLS, of_all.mean(0).tolist(), strict=True)) if len(of_all) else None
    return {"languages": pairs, "mean": mean}
