import gzip
import json
import os

import pytest

from ccr_lightning.data.sources.jsonl import JsonLines
from ccr_lightning.data.sources.protocol import Source
from ccr_lightning.errors import CCRError

GOOD = {"image": "a.jpg", "image_id": "a", "captions": {"en": "A dog.", "de": ["Ein Hund."]}}


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (images / name).write_bytes(b"encoded picture " + name.encode())
    return tmp_path


@pytest.fixture
def source(folder):
    """A source with one split of the given lines: dicts, or text as it stands."""

    def make(*lines, **settings):
        text = "".join(
            (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)) + "\n" for line in lines
        )
        (folder / "train.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
        return JsonLines({"train": str(folder / "train.jsonl")}, image_root=str(folder / "images"), **settings)

    return make


def test_records(source, folder):
    data = source(
        GOOD,
        "",
        {"image": "b.jpg", "image_id": 7, "captions": {"ja": ["犬。", " 二匹の犬。 "]}},
        {"image": "c.jpg", "captions": {"en": "Line\nbreak\u2028inside."}},
    )
    assert isinstance(data, Source)
    assert data.languages == ("en", "de", "ja")
    first, second, third = data.records("train")
    assert first.image_id == "a"
    assert first.image == folder / "images" / "a.jpg"
    assert first.captions == {"en": ("A dog.",), "de": ("Ein Hund.",)}
    assert first.where == f"{folder}/train.jsonl:1"
    assert (second.image_id, second.captions, second.where[-2:]) == ("7", {"ja": ("犬。", " 二匹の犬。 ")}, ":3")
    assert (third.image_id, third.captions) == ("c.jpg", {"en": ("Line\nbreak\u2028inside.",)})


def test_languages_are_chosen_and_ordered(source):
    lines = (GOOD, {"image": "b.jpg", "captions": {"ja": "犬。"}}, {"image": "c.jpg", "captions": {"de": "Hund."}})
    data = source(*lines, languages=["de", "en"])
    assert data.languages == ("de", "en")
    assert [list(record.captions) for record in data.records("train")] == [["de", "en"], ["de"]]


def test_lines_of_one_image_are_one_record(source):
    one = {"image": "a.jpg", "image_id": 1}
    data = source(
        {**one, "captions": {"en": "One."}},
        {"image": "b.jpg", "image_id": 2, "captions": {"en": "Other."}},
        {**one, "captions": {"en": "Two.", "de": "Zwei."}},
        {**one, "captions": {"en": "Three."}},
    )
    records = list(data.records("train"))
    assert [record.image_id for record in records] == ["1", "2"]
    assert records[0].captions == {"en": ("One.", "Two.", "Three."), "de": ("Zwei.",)}


def test_gzip_byte_order_mark_and_windows_line_ends(folder):
    text = "\ufeff" + json.dumps(GOOD) + "\r\n" + json.dumps({**GOOD, "image": "b.jpg", "image_id": "ü"}) + "\r\n"
    (folder / "train.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    data = JsonLines({"train": str(folder / "train.jsonl.gz")}, image_root=str(folder / "images"))
    assert [record.image_id for record in data.records("train")] == ["a", "ü"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "a.jpg",', "not valid JSON"),
        ("[1, 2]", "not a JSON object"),
        ({"image": "a.jpg"}, "'captions' is missing"),
        ({"captions": {"en": "A dog."}}, "'image' is missing"),
        ({**GOOD, "imageid": 3}, "unknown key 'imageid'"),
        ({**GOOD, "image": 3}, "image is 3"),
        ({**GOOD, "image": " "}, "image is ' '"),
        ({**GOOD, "image_id": ""}, "image_id is ''"),
        ({**GOOD, "image_id": True}, "image_id is True"),
        ({**GOOD, "image_id": 1.5}, "image_id is 1.5"),
        ('{"image": "a.jpg", "captions": {"en": "one", "en": "two"}}', "the key 'en' is there twice"),
        ({**GOOD, "captions": "A dog."}, "captions is 'A dog.'"),
        ({**GOOD, "captions": {"de": []}}, "'de' are []"),
        ({**GOOD, "captions": {"de": {"text": "Hund"}}}, "a caption in 'de' is {"),
        ({**GOOD, "captions": {"de": {"text": "Hund", "translated_by": "me"}}}, "an object of text, translated_by"),
        ({**GOOD, "captions": {"de": {"text": " ", "translated_by": "m", "translated_on": "x"}}}, "'de' is ' '"),
        ({**GOOD, "captions": {"de": ["Hund", ""]}}, "'de' is ''"),
        ({**GOOD, "captions": {"de": "\u00a0\t"}}, "a caption in 'de' is"),
        ({**GOOD, "captions": {"de": "\u200b"}}, "a caption in 'de' is"),
        ({**GOOD, "captions": {"de": [3]}}, "'de' is 3"),
        ({**GOOD, "image_id": "b"}, None),
        ({**GOOD, "image": "b.jpg", "image_id": "c", "captions": {"en": "."}}, None),
        ({**GOOD, "image": "b.jpg"}, "image_id 'a' is 'b.jpg' here and 'a.jpg' before"),
        ({**GOOD, "image_id": "m", "image": "https://example.org/a.jpg"}, "is a URL"),
        ({**GOOD, "image_id": "m", "image": "/etc/hostname"}, "is absolute"),
        ({**GOOD, "image_id": "m", "image": "C:/a.jpg"}, "is absolute"),
        ({**GOOD, "image_id": "m", "image": "../images/a.jpg"}, "has '..'"),
        ({**GOOD, "image_id": "m", "image": "secret.jpg"}, "link out of"),
        ({**GOOD, "image_id": "m", "image": "loop.jpg"}, "loop.jpg' cannot be reached"),
        ({**GOOD, "image_id": "m", "image": "a\0.jpg"}, r"'a\x00.jpg' cannot be reached"),
        ('{"image": "a.jpg", "captions": {"en": "\udcff"}}', "not UTF-8"),
        ('{"image": "a.jpg", "captions": {"en": "\\ud83d"}}', "half of an escaped character"),
    ],
)
def test_bad_lines(source, folder, line, message):
    (folder / "secret.txt").write_text("not below the image root")
    os.symlink(folder / "secret.txt", folder / "images" / "secret.jpg")
    os.symlink("loop.jpg", folder / "images" / "loop.jpg")
    data = source(GOOD, line, languages=["en"])
    if message is None:
        assert len(list(data.records("train"))) == 2
        return
    with pytest.raises(CCRError) as error:
        list(data.records("train"))
    assert message in str(error.value)
    assert f"{folder}/train.jsonl:2: " in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_lines_do_not_keep_the_languages_from_being_found(source):
    assert source(GOOD, "{").languages == ("en", "de")
    with pytest.raises(CCRError, match=r"train.jsonl:1: not valid JSON"):
        source("{", "[").languages  # noqa: B018


def test_a_split_that_cannot_be_read_does_not_keep_the_languages_from_being_found(source, folder):
    (folder / "val.jsonl").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    data = JsonLines({**source(GOOD).files, "val": str(folder / "val.jsonl")}, str(folder / "images"))
    assert data.languages == ("en", "de")
    assert len(list(data.records("train"))) == 1
    with pytest.raises(CCRError, match="git-LFS pointer"):
        next(data.records("val"))


def test_an_image_without_captions_and_blank_lines_are_passed_over(source):
    data = source(GOOD, {"image": "b.jpg", "captions": {}}, "", "  ")
    assert [record.image_id for record in data.records("train")] == ["a"]


def test_bad_lines_can_be_passed_over(source, folder):
    data = source(
        "{",
        GOOD,
        {**GOOD, "image": "b.jpg", "captions": {"de": "Zwei."}},
        {**GOOD, "captions": {"de": "Noch einer."}},
        {"image": "../c.jpg", "captions": {"en": "Three."}},
        {"image": "c.jpg", "captions": {"en": " "}},
        '{"image": "c.jpg", "captions": {"en": "\udcff"}}',
        {"image": "c.jpg", "captions": {"en": "Three."}},
    )
    faults = []
    first, second = data.records("train", faults.append)
    assert first.captions == {"en": ("A dog.",), "de": ("Ein Hund.", "Noch einer.")}
    assert second.captions == {"en": ("Three.",)}
    found = {str(fault).split(": ")[0].rpartition(":")[2]: fault.kind for fault in faults}
    assert found == {
        "1": "unreadable record",
        "3": "repeated image",
        "5": "unsafe image path",
        "6": "blank caption",
        "7": "unreadable record",
    }


def test_machine_translations_can_be_left_out(source):
    german = {"text": "Ein Hund.", "translated_by": "m2m100", "translated_on": "2026-11-25"}
    line = {"image": "a.jpg", "captions": {"en": "A dog.", "de": [german, "Von Hand."], "fr": german}}
    line["captions"]["fr"] = {**german, "text": "Un chien."}
    data = source(line)
    assert data.languages == ("en", "de", "fr")
    captions = next(data.records("train")).captions
    assert captions == {"en": ("A dog.",), "de": ("Ein Hund.", "Von Hand."), "fr": ("Un chien.",)}
    human = source(line, machine_translations=False)
    assert human.languages == ("en", "de")
    assert next(human.records("train")).captions == {"en": ("A dog.",), "de": ("Von Hand.",)}
    assert human.fingerprint("train") != data.fingerprint("train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git-LFS pointer"),
        (b"PK\x03\x04rest of an archive", "zip archive"),
        (gzip.compress(json.dumps(GOOD).encode(), mtime=0)[:-9], "cannot be read"),
        (b"\x1f\x8b is not gzip", "cannot be read"),
        (gzip.compress(b" " * 5000, mtime=0)[:30] + b"damaged in the middle", "cannot be read"),
        (b"", "is empty"),
    ],
)
def test_bad_files(folder, content, message):
    (folder / "bad").write_bytes(content)
    data = JsonLines({"test": str(folder / "bad")}, image_root=str(folder / "images"), languages=["en"])
    with pytest.raises(CCRError, match=message):
        list(data.records("test"))


def test_missing_files_splits_and_languages(source, folder):
    with pytest.raises(CCRError, match="no split 'val', only train"):
        list(source(GOOD).records("val"))
    with pytest.raises(CCRError, match="the captions of split 'train' are not there"):
        JsonLines({"train": str(folder / "no.jsonl")}, image_root=str(folder)).fingerprint("train")
    with pytest.raises(CCRError, match="the captions of split 'train' are not there"):
        JsonLines({"train": "a" * 300}, image_root=str(folder)).fingerprint("train")
    with pytest.raises(CCRError, match=r"train.jsonl: no line has a caption in fr, zh"):
        next(source(GOOD, languages=["en", "zh", "fr"]).records("train"))  # before any work is done
    with pytest.raises(CCRError, match="no files"):
        JsonLines({}, image_root="x")
    with pytest.raises(CCRError, match="each once"):
        JsonLines({"train": "x"}, image_root="x", languages=["en", "en"])


def test_fingerprint(source, folder):
    data = source(GOOD)
    before = data.fingerprint("train")
    assert data.languages == ("en", "de")
    assert data.fingerprint("train") == before  # reading the files does not change it
    assert source(GOOD, languages=["en"]).fingerprint("train") != before
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps({"image": "b.jpg", "captions": {"en": "More."}}) + "\n")
    assert data.fingerprint("train") != before


def test_a_split_needs_only_its_own_file(source, folder):
    (folder / "test.jsonl").write_text(json.dumps({"image": "b.jpg", "captions": {"ja": "犬。", "en": "A dog."}}))
    data = source(GOOD)
    both = JsonLines({**data.files, "test": str(folder / "test.jsonl")}, data.image_root)
    before = both.fingerprint("test")
    assert both.languages == ("en", "de", "ja")
    os.utime(folder / "train.jsonl", (1, 1))
    assert both.fingerprint("test") == before
    (folder / "train.jsonl").unlink()
    alone = JsonLines({**data.files, "test": str(folder / "test.jsonl")}, data.image_root)
    assert alone.fingerprint("test") == before
    assert alone.languages == ("ja", "en")
    assert [record.image_id for record in alone.records("test")] == ["b.jpg"]
    (folder / "test.jsonl").unlink()
    with pytest.raises(CCRError, match="the captions of split 'train' are not there"):
        JsonLines(data.files, data.image_root).languages  # noqa: B018
