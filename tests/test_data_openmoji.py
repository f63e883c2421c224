import hashlib
import io
import re
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
from PIL import Image

from ccr_lightning.data.sources import openmoji
from ccr_lightning.data.sources.openmoji import LANGUAGES, OpenMoji
from ccr_lightning.data.sources.protocol import Source
from ccr_lightning.errors import CCRError

TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
TONE_NAMES = re.compile(r" (light|medium-light|medium|medium-dark|dark) skin tone")
GENDERS = re.compile(r"\b(man|woman|person|men|women|people|boy|girl|child|older|old(?= woman| man))\b")
HAIR_AND_DIRECTION = re.compile(r"facing right|red hair|curly hair|white hair|blond hair|bald|beard")


@pytest.fixture(scope="module")
def composition():
    source = OpenMoji(image_size=32)
    return {split: list(source.records(split)) for split in ("train", "val", "test")}


@pytest.fixture(scope="module")
def family_names():
    source = OpenMoji("family", languages=["en"], image_size=8)
    return {s: [r.captions["en"][0] for r in source.records(s)] for s in ("train", "val", "test")}


def test_counts_and_disjoint_splits(composition):
    ids = {split: [record.image_id for record in records] for split, records in composition.items()}
    assert {split: len(found) for split, found in ids.items()} == {"train": 3194, "val": 250, "test": 500}
    assert len({i for found in ids.values() for i in found}) == 3944


def test_names_are_plain_and_unique_in_every_language(composition):
    records = [record for found in composition.values() for record in found]
    for language in LANGUAGES:
        names = [record.captions[language] for record in records]
        assert all(len(texts) == 1 for texts in names)
        texts = [texts[0] for texts in names]
        assert len(set(texts)) == 3944
        assert not [text for text in texts if "_" in text or ":" in text or text != text.strip() or "  " in text]


def test_some_records_in_full(composition):
    apple = next(r for r in composition["train"] if r.image_id == "1F34E")
    expected = {"en": "red apple", "de": "roter apfel", "ja": "赤リンゴ", "fr": "pomme rouge", "ru": "красное яблоко"}
    assert {language: apple.captions[language][0] for language in expected} == expected
    picture = np.asarray(Image.open(io.BytesIO(apple.image)).convert("RGB")).astype(int)
    assert picture.shape == (32, 32, 3)
    assert picture[0, 0].tolist() == [255, 255, 255]
    red, green, blue = picture[20, 16]
    assert red > 150
    assert red > green + 80
    assert red > blue + 80


def test_each_held_out_picture_combines_parts_seen_in_training(composition):
    seen_concepts, seen_tones = set(), set()
    for record in composition["train"]:
        codes = record.image_id.split("-")
        tones = tuple(code for code in codes if code in TONES)
        if tones:
            seen_concepts.add(tuple(code for code in codes if code not in TONES))
            seen_tones.add(tones)
    for split in ("val", "test"):
        for record in composition[split]:
            codes = record.image_id.split("-")
            assert tuple(code for code in codes if code not in TONES) in seen_concepts, record.where
            assert tuple(code for code in codes if code in TONES) in seen_tones, record.where


def test_held_out_pictures_are_drawn_like_no_other(composition):
    drawn = {}
    for split, records in composition.items():
        for record in records:
            pixels = Image.open(io.BytesIO(record.image)).convert("RGB").tobytes()
            drawn.setdefault(pixels, []).append(split)
    shared = [splits for splits in drawn.values() if len(splits) > 1]
    assert len(shared) > 100  # OpenMoji does draw many emoji alike
    assert not [splits for splits in shared if {"val", "test"} & set(splits)]


def test_the_split_rule_is_the_documented_order_by_hash(composition):
    held_out = [r.image_id for split in ("test", "val") for r in composition[split]]
    by_hash = sorted(held_out, key=lambda i: hashlib.sha256(i.encode()).hexdigest())
    assert set(by_hash[:500]) == {record.image_id for record in composition["test"]}


def test_the_family_scheme_keeps_concepts_apart(family_names):
    assert {split: len(names) for split, names in family_names.items()} == {"train": 3115, "val": 274, "test": 502}

    def concept(name):
        for pattern in (TONE_NAMES, HAIR_AND_DIRECTION, GENDERS):
            name = pattern.sub("", name)
        return " ".join(name.split())

    concepts = {split: {concept(name) for name in names} - {""} for split, names in family_names.items()}
    assert not concepts["test"] & concepts["train"]
    assert not concepts["val"] & concepts["train"]
    assert not concepts["test"] & concepts["val"]


@pytest.mark.parametrize(
    "members",
    [
        "🧑‍🚀 👩🏽‍🚀 👨🏿‍🚀",
        "🫅 🤴 👸🏻",
        "👩🏻‍❤️‍💋‍👨🏽 💏🏻 💏",
        "👫 👭🏽 🧑🏻‍🤝‍🧑🏿 👨🏻‍🤝‍👨🏿",
        "🧔 🧔🏻‍♀️ 👱🏽‍♂️ 👩🏾‍🦰 👨‍🦲 🧑🏿",
        "🚶 🚶‍➡️ 🚶🏽‍♀️‍➡️",
        "🤝 🫱🏻‍🫲🏿 🤝🏽",
        "👪 👨‍👩‍👧 👩‍👦",
        "🕵️ 🕵️‍♂️ 🕵🏽‍♀️",
    ],
)
def test_family_joins_the_variants_of_a_concept(members):
    codes = ["-".join(f"{ord(c):04X}" for c in member) for member in members.split()]
    assert len({openmoji.family(code) for code in codes}) == 1


def test_family_keeps_signs_apart():
    signs = ["2640-FE0F", "2642-FE0F", "27A1-FE0F", "1F9B0", "1F34E"]
    assert len({openmoji.family(sign) for sign in signs}) == len(signs)


def test_settings(composition):
    source = OpenMoji(languages=["ja", "en"], image_size=16)
    record = next(source.records("val"))
    assert isinstance(source, Source)
    assert list(record.captions) == ["ja", "en"]
    assert Image.open(io.BytesIO(record.image)).size == (16, 16)
    assert record.image_id == composition["val"][0].image_id  # the split does not depend on the size
    assert source.fingerprint("val") == OpenMoji(languages=["ja", "en"], image_size=16).fingerprint("val")
    others = [OpenMoji(), OpenMoji("family"), OpenMoji(languages=["en", "ja"], image_size=16)]
    assert len({source.fingerprint("val"), *(other.fingerprint("val") for other in others)}) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split_scheme": "random"}, "split scheme 'random'"),
        ({"languages": ["en", "xx"]}, "xx"),
        ({"languages": ["en", "en"]}, "each once"),
        ({"languages": []}, "name at least one"),
        ({"image_size": 0}, "0 pixels"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(CCRError, match=message):
        OpenMoji(**arguments)


def test_unknown_split():
    with pytest.raises(CCRError, match="no split 'testing'"):
        next(OpenMoji().records("testing"))


def test_missing_package_says_what_to_install(monkeypatch):
    def version(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(openmoji, "version", version)
    with pytest.raises(CCRError, match=r"pip install 'ccr-lightning\[demo\]'"):
        OpenMoji().fingerprint("train")
