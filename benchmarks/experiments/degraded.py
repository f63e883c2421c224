"""A source with fewer or worse captions for training; what is tested stays as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from ccr_lightning.data.faults import Report, stop
from ccr_lightning.data.seeding import derived_seed
from ccr_lightning.data.sources.protocol import Source
from ccr_lightning.files import settings_sha256
from ccr_lightning.types import ImageCaptions


class Degraded:
    """Leaves out or swaps captions of the training split of another source.

    Args:
        source: The whole.
        kept: Language to the share of images that keep their captions in it; 1 for the others. An image keeps one
            caption at least.
        swapped: Share of images, in each language, whose captions in it are those of another image.
        seed: Of what is left out and swapped.
    """

    def __init__(
        self, source: Source, kept: Mapping[str, float] | None = None, swapped: float = 0.0, seed: int = 0
    ) -> None:
        self.source, self.kept, self.swapped, self.seed = source, dict(kept or {}), swapped, seed
        self.name, self.languages = source.name, source.languages
        self.parallel, self.splits = source.parallel, source.splits

    def fingerprint(self, split: str) -> str:
        """Return that of the source, and for training of what is done to it."""
        of_source = self.source.fingerprint(split)
        if split != "train":
            return of_source
        return settings_sha256({"of": of_source, "kept": self.kept, "swapped": self.swapped, "seed": self.seed})[:16]

    def records(self, split: str, report: Report = stop) -> Iterator[ImageCaptions]:
        """Yield the images of a split; those of training with what is left of their captions."""
        if split != "train":
            yield from self.source.records(split, report)
            return
        records = list(self.source.records(split, report))
        captions = [dict(record.captions) for record in records]
        for language in self.languages:
            self._swap([of for record, of in zip(records, captions, strict=True) if language in of], language)
        for record, of in zip(records, captions, strict=True):
            yield replace(record, captions=self._keep(record.image_id, of))

    def _swap(self, captions: list[dict[str, tuple[str, ...]]], language: str) -> None:
        """Pass the captions of some images on to the next of them."""
        order = sorted(range(len(captions)), key=lambda row: derived_seed("swap", self.seed, language, row))
        chosen = [captions[row] for row in order[: round(self.swapped * len(captions))]]
        texts = [of[language] for of in chosen]
        for of, text in zip(chosen, texts[1:] + texts[:1], strict=True):
            of[language] = text

    def _keep(self, image_id: str, captions: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        lots = {language: derived_seed("keep", self.seed, language, image_id) / 2**63 for language in captions}
        margins = {language: lot - self.kept.get(language, 1.0) for language, lot in lots.items()}
        one = min(margins, key=lambda language: margins[language])
        return {name: texts for name, texts in captions.items() if margins[name] < 0 or name == one}
