"""The images on which the languages disagree most: what they show, what is said of them, and where they rank."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ccr_lightning.data.faults import RecordFault
from ccr_lightning.data.thumbnails import Thumbnail, thumbnail
from ccr_lightning.evaluation.query_ranks import RanksFile
from ccr_lightning.report.spread import Spread
from ccr_lightning.types import ImageCaptions, MachineTranslation

SHOWN = 12


class Caption(NamedTuple):
    """A caption as a query."""

    number: int
    text: str | None  # None where the data are not there
    translated_by: str
    rank: int


class InLanguage(NamedTuple):
    """An image in one language."""

    language: str
    captions: list[Caption]
    rank: int  # from image to text

    @property
    def mean(self) -> float:
        """The mean of both directions, by which languages are ordered."""
        return (sum(caption.rank for caption in self.captions) / len(self.captions) + self.rank) / 2


class Instance(NamedTuple):
    """An image in all languages, best rank first."""

    name: str
    variance: float
    picture: Thumbnail | None
    fault: str  # why there is no picture although the data are there
    languages: list[InLanguage]


def most_inconsistent(ranks: RanksFile, spread: Spread, count: int = SHOWN) -> list[tuple[str, float]]:
    """Return the names of the images with the largest rank variance, and that; none whose ranks are all alike."""
    order = np.argsort(-spread.variance, kind="stable")[:count]
    return [
        (ranks.image_names[spread.images[place]], float(spread.variance[place]))
        for place in order.tolist()
        if spread.variance[place] > 0
    ]


def instances_of(
    chosen: Sequence[tuple[str, float]],
    ranks: RanksFile,
    languages: Collection[str],
    records: Mapping[str, ImageCaptions],
) -> list[Instance]:
    """Put together what is known of images.

    Args:
        chosen: Names and rank variances.
        ranks: Of all queries.
        languages: Those to show.
        records: Pictures and captions by name, as far as they are there.
    """
    wanted = {name for name, _ in chosen}
    captions: dict[tuple[str, str], list[Caption]] = {}
    to_text: dict[tuple[str, str], int] = {}
    for of in ranks.queries:
        if of.language not in languages:
            continue
        for place, (image, rank) in enumerate(zip(of.images.tolist(), of.ranks.tolist(), strict=True)):
            if (name := ranks.image_names[image]) not in wanted:
                continue
            if of.captions is None:
                to_text[name, of.language] = rank
            else:
                number = int(of.captions[place])
                text, by = _text(records.get(name), of.language, number)
                captions.setdefault((name, of.language), []).append(Caption(number, text, by, rank))
    found = []
    for name, variance in chosen:
        rows = [InLanguage(of, captions[name, of], to_text[name, of]) for of in languages]
        picture, fault = _picture(records.get(name))
        found.append(Instance(name, variance, picture, fault, sorted(rows, key=lambda row: row.mean)))
    return found


def _text(record: ImageCaptions | None, language: str, number: int) -> tuple[str | None, str]:
    if record is None or number >= len(texts := record.captions.get(language, ())):
        return None, ""
    text = texts[number]
    return str(text), text.translated_by if isinstance(text, MachineTranslation) else ""


def _picture(record: ImageCaptions | None) -> tuple[Thumbnail | None, str]:
    if record is None:
        return None, ""
    try:
        return thumbnail(record.image, record.where), ""
    except RecordFault as fault:
        return None, str(fault)


def bar(rank: float, worst: float) -> int:
    """Return how much of its cell the bar behind a rank fills, in percent, on a logarithmic scale.

    Example:
        >>> bar(1, 100), bar(10, 100), bar(100, 100)
        (2, 51, 100)
    """
    return 2 + round(98 * math.log(rank) / max(math.log(worst), 1e-9))
