"""Reads all of a source, decodes every picture, and says what there is and what is wrong with it."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from itertools import combinations
from typing import Any, cast

import numpy as np

from ccr_lightning.data.faults import FaultKind, RecordFault, Report, printable, stop
from ccr_lightning.data.images import damage
from ccr_lightning.data.records import RecordOrFault, read_records, with_pictures
from ccr_lightning.data.sources.protocol import Source
from ccr_lightning.data.sources.reading import check_split
from ccr_lightning.data.store import Store, read_left_out
from ccr_lightning.errors import CCRError
from ccr_lightning.progress import counted
from ccr_lightning.types import ImageCaptions

PLACES = 5  # of a kind of finding that are remembered, unless more are asked for

_Hashes = np.ndarray[Any, np.dtype[np.uint64]]


@dataclass
class Finding:
    """Something found in a split.

    Attributes:
        kind: What it is.
        split: Where.
        is_fault: Whether it changes results: something is left out, or scored wrongly. The others are remarks.
        count: How often.
        places: The first few, each a sentence that starts with ``file:line``.
        most_places: How many of them are remembered.
    """

    kind: str
    split: str
    is_fault: bool
    count: int = 0
    places: list[str] = field(default_factory=list)
    most_places: int = field(default=PLACES, repr=False)

    def add(self, place: str) -> None:
        """Count it, and remember its place if it is one of the first."""
        self.count += 1
        if len(self.places) < self.most_places:
            self.places.append(printable(place))


@dataclass
class SplitCounts:
    """What a split has."""

    images: int = 0
    captions: Counter[str] = field(default_factory=Counter)  # by language
    images_with_caption: Counter[str] = field(default_factory=Counter)


@dataclass
class CheckReport:
    """What a source has and what was found.

    Attributes:
        source: Name of the source.
        languages: Its languages.
        splits: Split to counts.
        findings: Faults first.
    """

    source: str
    languages: tuple[str, ...]
    splits: dict[str, SplitCounts]
    findings: list[Finding]

    @property
    def has_faults(self) -> bool:
        """Whether something would change results."""
        return any(finding.is_fault for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain types."""
        return {
            "source": self.source,
            "languages": list(self.languages),
            "splits": {split: _as_dict(counts) for split, counts in self.splits.items()},
            "findings": [
                {name: value for name, value in vars(finding).items() if name != "most_places"}
                for finding in self.findings
            ],
            "has_faults": self.has_faults,
        }


def check_source(
    source: Source,
    splits: Sequence[str] | None = None,
    images: bool = True,
    against: Sequence[tuple[str, Source]] = (),
    places: int = PLACES,
) -> CheckReport:
    """Read all records of splits and all their pictures, and report what is there and what is wrong.

    Faults are records, captions and pictures that cannot be used; an image that is in two splits, by its id or its
    bytes; the same picture under two ids in a split other than ``train``; an image without any caption; a language
    without any in a split; one language under two codes that differ in case only; and a split that cannot be read.
    Remarks are images that lack a language where languages are parallel, the same picture under two ids in ``train``,
    captions that several images share (in training these may be false negatives), languages whose codes differ in the
    region only, and JPEGs of which a part is damaged, which all programs show but each in its own way. Memory is 16
    bytes for each caption and some 200 for each image.

    Args:
        source: The source.
        splits: The splits to read; by default all.
        images: Whether to read the pictures; without them they are compared by their ids only.
        against: Names and sources of other data; an image that one of them has too, in any split, is a fault, and so is
            what of them cannot be read.
        places: How many places of each kind of finding to remember.

    Raises:
        CCRError: The source has no such split.
    """
    for name in splits or ():
        check_split(source.name, name, source.splits)
    seen = {name: _Split(source, name, images, places) for name in splits or source.splits}
    for split in seen.values():
        split.read()
    findings = [finding for split in seen.values() for finding in split.findings()]
    findings += _codes_of_one_language(list(seen.values()))
    for earlier, later in combinations(seen.values(), 2):
        findings += later.shared_with(earlier, f"the split {earlier.name!r}")
    for name, other in against:
        for other_name in other.splits:
            elsewhere = _Split(other, other_name, images, places)
            elsewhere.read()
            place = f"{name}, split {other_name!r},"
            findings += elsewhere.not_compared(f"{name}, {other_name}")
            findings += [finding for split in seen.values() for finding in split.shared_with(elsewhere, place)]
    findings.sort(key=lambda finding: not finding.is_fault)
    counts = {name: split.counts for name, split in seen.items()}
    return CheckReport(source.name, tuple(source.languages), counts, findings)


class StoreSource:
    """A store as a source of its one split, so that it can be checked like any other."""

    parallel = False

    def __init__(self, store: Store) -> None:
        self._store = store
        self.name: str = store.manifest["source"]
        self.languages = tuple(store.caption_counts())
        self.splits: tuple[str, ...] = (store.manifest["split"],)

    def __len__(self) -> int:
        return len(self._store)

    def fingerprint(self, split: str) -> str:
        """Return that of the source which the store was built from."""
        return str(self._store.manifest["fingerprint"])

    def records(self, split: str, report: Report = stop) -> Iterator[ImageCaptions]:
        """Yield the rows; what the store was built without is reported, blank captions with the first row."""
        blank: list[str] = []
        for entry in read_left_out(self._store.folder):
            if entry["left_out"] == "record":
                report(RecordFault(entry["message"], cast(FaultKind, entry["kind"])))
            else:
                blank.append(entry["message"].removesuffix(": the caption is blank."))
        for row, name in enumerate(self._store.image_names):
            captions = self._store.captions_with_origin(row)
            yield ImageCaptions(name, self._store.image(row), captions, self._store.where(row), tuple(blank))
            blank = []


class _Split:
    """What is remembered of a split: counts, and hashes of ids, pictures and captions."""

    def __init__(self, source: Source, name: str, images: bool, places: int) -> None:
        self.source, self.name = source, name
        self.first_places: dict[str, str] = {}  # of each language
        self._new_finding = partial(Finding, split=name, most_places=places)
        self.counts = SplitCounts()
        self._images = images
        self._where: list[str] = []
        self._ids, self._pictures = array("Q"), array("Q")
        self._captions = {language: (array("Q"), array("I")) for language in source.languages}
        self._found: dict[str, Finding] = {}
        self._unread = self._new_finding("not compared", is_fault=True)
        self._lacking = {
            language: self._new_finding(f"image without {language}", is_fault=False) for language in source.languages
        }

    def read(self) -> None:
        records: Iterable[RecordOrFault] = read_records(self.source, self.name)
        records = with_pictures(records, damage) if self._images else records
        try:
            for record in counted(records, f"reading {self.source.name}/{self.name}", "images"):
                if isinstance(record, RecordFault):
                    self._find(record.kind, str(record))
                    self._unread.add(str(record))
                else:
                    self._add(record)
        except CCRError as error:
            self._find("unreadable split", str(error))
            self._unread.add(str(error))

    def findings(self) -> list[Finding]:
        """What is wrong within the split."""
        self._find_repeated_pictures()
        self._find_repeated_captions()
        if not self.counts.images and "unreadable split" not in self._found:
            self._find("empty split", f"{self.name}: there are no images with captions; check its file.")
        for language, lacking in self._lacking.items():
            if self.counts.images and not self.counts.images_with_caption[language]:
                self._find("language without captions", f"{self.name}: no image has a caption in {language!r}.")
            elif lacking.count and self.source.parallel:
                self._found[lacking.kind] = lacking
        return list(self._found.values())

    def not_compared(self, name: str) -> list[Finding]:
        """A finding, in the place called ``name``, if records or pictures could not be read."""
        return [replace(self._unread, split=name)] if self._unread.count else []

    def shared_with(self, other: _Split, name: str) -> list[Finding]:
        """A finding if images of another split, called ``name``, are in this one too."""
        rows = _places_in(_hashes(other._ids), _hashes(self._ids))
        if self._images:
            rows = np.where(rows >= 0, rows, _places_in(_hashes(other._pictures), _hashes(self._pictures)))
        finding = self._new_finding("image in two places", is_fault=True)
        for row in np.flatnonzero(rows >= 0):
            finding.add(f"{self._where[row]}: the image is in {name} too ({other._where[rows[row]]}).")
        return [finding] if finding.count else []

    def _add(self, record: ImageCaptions) -> None:
        row = len(self._where)
        self._where.append(record.where)
        self._ids.append(_hash(record.image_id.encode()))
        if self._images and isinstance(record.image, bytes):
            self._pictures.append(_hash(record.image))
        self.counts.images += 1
        for language, texts in record.captions.items():
            self.counts.captions[language] += len(texts)
            self.counts.images_with_caption[language] += 1
            self.first_places.setdefault(language, record.where)
            hashes, rows = self._captions[language]
            hashes.extend(_hash(text.strip().encode()) for text in texts)
            rows.extend([row] * len(texts))
        for language in self._lacking.keys() - record.captions.keys():
            self._lacking[language].add(f"{record.where}: no caption in {language!r}.")
        if record.image_damage:
            place = f"{record.where}: {record.image_damage}; look at it, and fetch it again if that shows."
            self._find("damaged JPEG", place, is_fault=False)
        for place in record.blank_captions:
            self._find("blank caption", f"{place}: the caption is blank; write it, or know that it is left out.")
        if not record.captions:
            self._find("image without captions", f"{record.where}: the image has no caption; add one or remove it.")

    def _find_repeated_pictures(self) -> None:
        is_fault = self.name != "train"
        for row, first in _repeated(_hashes(self._pictures)):
            place = f"{self._where[row]}: the picture is that of {self._where[first]} under another id."
            self._find("repeated picture", place, is_fault=is_fault)

    def _find_repeated_captions(self) -> None:
        for language, (hashes, rows) in self._captions.items():
            for second, first in _repeated(_hashes(hashes)):
                where = self._where[rows[second]]
                if rows[second] == rows[first]:
                    place = f"{where}: the image has a caption in {language!r} twice."
                    self._find("caption twice", place, is_fault=False)
                else:
                    place = f"{where}: the caption in {language!r} is also that of {self._where[rows[first]]}."
                    self._find("repeated caption", place, is_fault=False)

    def _find(self, kind: str, place: str, is_fault: bool = True) -> None:
        self._found.setdefault(kind, self._new_finding(kind, is_fault=is_fault)).add(place)


def _codes_of_one_language(splits: Sequence[_Split]) -> Iterator[Finding]:
    """Findings of languages under two codes, in the splits where the rarer code is."""
    total: Counter[str] = sum((split.counts.captions for split in splits), Counter())
    for often, rarely in combinations(sorted(total, key=lambda code: (-total[code], code)), 2):
        is_same = often.lower().replace("_", "-") == rarely.lower().replace("_", "-")
        if is_same or often.lower().partition("-")[0] == rarely.lower().replace("_", "-").partition("-")[0]:
            for split in splits:
                if (where := split.first_places.get(rarely)) is not None:
                    finding = Finding("two codes of one language", split.name, is_fault=is_same)
                    finding.add(
                        f"{where}: {rarely!r}, of which there are {total[rarely]:,} captions, and {often!r}, of which "
                        f"there are {total[often]:,}, {'are' if is_same else 'may be'} one language; use one code."
                    )
                    yield finding


def _as_dict(counts: SplitCounts) -> dict[str, Any]:
    by_language = {"captions": dict(counts.captions), "images_with_caption": dict(counts.images_with_caption)}
    return {"images": counts.images, **by_language}


def _hash(content: bytes) -> int:
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")


def _hashes(values: array[int]) -> _Hashes:
    return np.frombuffer(values, dtype=np.uint64) if values else np.empty(0, dtype=np.uint64)


def _places_in(searched: _Hashes, hashes: _Hashes) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Where the first of each hash is among those that are searched; -1 where it is not."""
    if not len(searched):
        return np.full(len(hashes), -1)
    order = np.argsort(searched, kind="stable")
    at = np.minimum(np.searchsorted(searched[order], hashes), len(searched) - 1)
    return np.where(searched[order[at]] == hashes, order[at], -1)


def _repeated(hashes: _Hashes) -> Iterator[tuple[int, int]]:
    """Pairs of places with the same hash: each that is not the first, and the first."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(hashes) else np.empty(0, dtype=np.int64)
    firsts = np.repeat(order[starts], np.diff(np.r_[starts, len(hashes)]))
    pairs = np.stack([order, firsts], axis=1)[order != firsts]
    for place, first in pairs[np.argsort(pairs[:, 0])]:
        yield int(place), int(first)
