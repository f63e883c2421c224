"""The preview page, parsed again and held against the records that it shows."""

import base64
import io
import json
import re
import weakref
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from pages import parse, text_of
from PIL import Image

from ccr_lightning.cli.data_preview import run
from ccr_lightning.data import preview, thumbnails
from ccr_lightning.data.faults import RecordFault
from ccr_lightning.data.preview import MAX_FAULTS, write_preview
from ccr_lightning.data.sources import openmoji, xm3600
from ccr_lightning.data.sources.jsonl import JsonLines
from ccr_lightning.data.sources.protocol import Source
from ccr_lightning.errors import CCRError
from ccr_lightning.pages import DARK, LANGUAGE_NAMES, LIGHT, MAX_CHARACTERS
from ccr_lightning.types import ImageCaptions, MachineTranslation

EVIL = """<script>alert("1")</script>'"--><b>&amp;"""


def cards(page):
    return page.findall(".//li[@class='card']")


def ids(page):
    return [text_of(card.find("h3")) for card in cards(page)]


def captions(card):
    """Language to captions as a reader of the page sees them, None for the mark of a missing one."""
    found = {}
    for row in card.findall("dl/div"):
        code = text_of(row.find("dt/span[@class='code']"))
        for text in row.findall("dd"):
            if text.get("class") == "missing":
                assert text_of(text) == "no caption"
                found[code] = None
            else:
                assert text.attrib == {"lang": code, "dir": "auto"}
                found[code] = (*found.get(code, ()), text_of(text))
    return found


def decode(image):
    kind, data = image.get("src").split(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def png(colour="red", size=(2, 2)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


class Records:
    """A source of whatever records and faults it is given by split."""

    def __init__(self, name="records", languages=("en", "de"), parallel=True, **of_split):
        self.name, self.languages, self.parallel = name, languages, parallel
        self.splits, self._of_split = tuple(of_split), of_split

    def fingerprint(self, split):
        return split

    def records(self, split, report):
        for item in self._of_split[split]:
            if isinstance(item, RecordFault):
                report(item)
            elif isinstance(item, Exception):
                raise item
            else:
                yield item


def record(image_id="a", image=None, captions=None, where="a.txt:1", blank=()):
    return ImageCaptions(image_id, image or png(), captions or {"en": ("a dog",)}, where, blank)


def numbered(count):
    image = png()
    return [record(str(number), image, where=f"a.txt:{number}") for number in range(count)]


@pytest.fixture
def show(tmp_path):
    """A function that writes a page and returns it parsed."""

    def write(source, splits=None, **settings):
        path = tmp_path / "page.html"
        write_preview(source, path, source.splits if splits is None else splits, **settings)
        return parse(path)

    return write


# ---- what is on the page


def test_every_record_of_a_small_source_is_shown_as_it_is(show, tiny_jsonl):
    source = JsonLines(**tiny_jsonl(train=5, val=2, test=3))
    page = show(source)
    sections = page.findall(".//section")
    assert [text_of(section.find("h2")) for section in sections] == ["train", "val", "test"]
    for section, split in zip(sections, source.splits, strict=True):
        expected = list(source.records(split))
        shown = section.findall(".//li[@class='card']")
        assert len(shown) == len(expected)
        for card, one in zip(shown, expected, strict=True):
            assert captions(card) == one.captions
            assert text_of(card.find("h3")) == one.image_id
            assert text_of(card.find("p[@class='where']")) == one.where
            assert card.find(".//img").get("alt") == one.captions["en"][0]
            assert card.find(".//img").get("lang") == "en"


def test_counts_of_the_whole_split_and_not_of_the_sample(show):
    texts = {"en": ("a", "b"), "de": ("c",)}
    source = Records(train=[record(str(n), captions=texts) for n in range(1200)] + [record("x"), record("y")])
    page = show(source, count=3)
    section = page.find(".//section")
    assert text_of(section.find("p[@class='counts']")) == "3 of 1,202 images shown · 3,602 captions in 2 languages"
    assert [text_of(item) for item in section.findall(".//ul[@class='coverage']/li")] == [
        "en English 2,402 captions",
        "de German 1,200 captions, 2 images without",
    ]
    assert "1 of 2 languages" in text_of(section.find("details/summary"))
    assert len(cards(page)) == 3


def test_languages_have_the_order_of_the_source_and_their_names(show):
    page = show(Records(languages=("ar", "fa", "xx", "en"), train=[record(captions={"en": ("a",), "tlh": ("b",)})]))
    labels = [text_of(term) for term in page.findall(".//dl/div/dt")]
    assert labels == ["ar Arabic", "fa Persian", "xx", "en English", "tlh"]


def test_the_languages_of_the_data_sets_have_names():
    assert {*openmoji.LANGUAGES, *xm3600.LANGUAGES, *("bg", "et", "ko", "cs")} <= LANGUAGE_NAMES.keys()
    assert len(set(LANGUAGE_NAMES.values())) == len(LANGUAGE_NAMES)


def test_missing_and_blank_captions_are_marked(show):
    blank = ("de.txt:1 (de)", "de.txt:2 (de)")
    page = show(Records(train=[record(captions={"de": ("ein Hund", "zwei")}), record("b", blank=blank)]))
    first, second = cards(page)
    assert captions(first) == {"en": None, "de": ("ein Hund", "zwei")}
    assert (first.find(".//img").get("alt"), first.find(".//img").get("lang")) == ("ein Hund", "de")
    assert first.find("p[@class='blank']") is None
    assert captions(second) == {"en": ("a dog",), "de": None}
    assert text_of(second.find("p[@class='blank']")) == "2 blank captions left out: de.txt:1 (de), de.txt:2 (de)"
    assert text_of(page.find(".//p[@class='counts']")).endswith("2 blank captions left out")


def test_a_file_that_is_no_page_is_not_replaced(tmp_path):
    (tmp_path / "captions.jsonl").write_text("mine")
    with pytest.raises(CCRError, match=r"captions\.jsonl is there, and no page"):
        write_preview(Records(train=[record()]), tmp_path / "captions.jsonl", ["train"])
    assert (tmp_path / "captions.jsonl").read_text() == "mine"


def test_machine_translations_are_marked(show):
    german = MachineTranslation("ein Hund", "m2m100 & co", "2026-11-25")
    page = show(Records(train=[record(captions={"en": ("a dog",), "de": (german, "zwei")})]))
    marks = [text_of(dd) for dd in cards(page)[0].iter("dd")]
    assert marks == ["a dog", "ein Hund", "translated by m2m100 & co", "zwei"]


def test_a_record_without_any_caption_is_shown(show):
    page = show(Records(train=[ImageCaptions("a", png(), {"de": ()}, "a.txt:1")]))
    assert captions(cards(page)[0]) == {"en": None, "de": None}
    assert page.find(".//img").get("alt") == "an image without captions"
    assert text_of(page.find(".//summary")).endswith("2 of 2 languages")


def test_whatever_comes_from_data_is_text(show):
    one = record(EVIL, captions={EVIL: (EVIL,)}, where=EVIL, blank=(EVIL,))
    broken = record(EVIL, image=b"x", where=EVIL)
    source = Records(EVIL, ("en", EVIL), **{EVIL: [one, broken, RecordFault(EVIL, EVIL), CCRError(EVIL)]})
    page = show(source)
    assert not {element.tag for element in page.iter()} & {"script", "b"}
    assert [text_of(page.find(f".//{tag}")) for tag in ("h1", "h2", "h3")] == [
        EVIL,
        EVIL,
        "1 record that cannot be used",
    ]
    assert ids(page) == [EVIL, EVIL]
    assert captions(cards(page)[0]) == {"en": None, EVIL: (EVIL,)}
    assert page.find(".//img").get("alt") == page.find(".//img").get("lang") == EVIL
    assert EVIL in text_of(cards(page)[0].find("p[@class='blank']"))
    assert EVIL in text_of(cards(page)[1].find(".//p[@class='fault']"))
    assert EVIL in text_of(page.find(".//section/p[@class='fault']"))
    assert text_of(page.find(".//div[@class='fault']/ul/li")) == EVIL


def test_very_long_texts_are_cut(show):
    page = show(Records(train=[record(captions={"en": ("a" * 10**6,)}), RecordFault("b" * 10**6)]))
    [text] = captions(cards(page)[0])["en"]
    assert text == "a" * MAX_CHARACTERS + "… (1,000,000 characters)"
    assert len(text_of(page)) < 10 * MAX_CHARACTERS + len(preview._STYLE)


def test_a_file_name_that_is_not_utf8(show):
    page = show(Records(train=[record(where=b"caf\xe9.txt:1".decode(errors="surrogateescape"))]))
    assert text_of(page.find(".//p[@class='where']")) == "caf?.txt:1"


# ---- images


def test_thumbnails_are_small_and_keep_shape_and_colours(show):
    sizes = {"wide": (1000, 500), "high": (30, 900), "small": (40, 30), "flat": (400, 2)}
    half = Image.new("RGB", (1000, 500), (200, 30, 30))
    half.paste((20, 60, 220), (500, 0, 1000, 500))
    images = {name: png("green", size) for name, size in sizes.items()}
    buffer = io.BytesIO()
    half.save(buffer, "JPEG", quality=95, comment=b"taken by somebody")
    images["wide"] = buffer.getvalue()
    page = show(Records(train=[record(name, image) for name, image in images.items()]))
    shown = {text_of(card.find("h3")): card.find(".//img") for card in cards(page)}
    thumbnails = {name: decode(image) for name, image in shown.items()}
    assert {name: image.size for name, image in thumbnails.items()} == {
        "wide": (256, 128), "high": (9, 256), "small": (40, 30), "flat": (256, 1)
    }  # fmt: skip
    for name, image in shown.items():
        assert (int(image.get("width")), int(image.get("height"))) == thumbnails[name].size
    wide = np.asarray(thumbnails["wide"], dtype=int)
    assert np.abs(wide[:, :120] - [200, 30, 30]).max() <= 6
    assert np.abs(wide[:, 136:] - [20, 60, 220]).max() <= 6
    assert np.abs(np.asarray(thumbnails["small"], dtype=int) - [0, 128, 0]).max() <= 3
    assert "comment" not in thumbnails["wide"].info


def test_images_that_cannot_be_decoded_have_their_sentence_and_captions(show, tmp_path):
    gone = record("gone", tmp_path / "gone.jpg", {"en": ("gone",)}, "a.txt:1")
    page = show(Records(train=[gone, record("half", png(size=(50, 50))[:-30], where="a.txt:2"), record("whole")]))
    first, second, third = cards(page)
    assert re.search(r"^a.txt:1: cannot read .*gone.jpg", text_of(first.find("div/p[@class='fault']")))
    assert captions(first) == {"en": ("gone",), "de": None}
    assert text_of(second.find("div/p[@class='fault']")).startswith("a.txt:2: the image is damaged")
    assert [card.find(".//img") is None for card in (first, second, third)] == [True, True, False]


# ---- the sample


def test_the_sample_has_the_order_of_the_files_and_is_that_of_its_seed_and_split(show, tmp_path):
    source = Records(train=numbered(500), val=numbered(500))
    first = ids(show(source, ["train"], count=20))
    written = (tmp_path / "page.html").read_bytes()
    assert len(set(first)) == 20
    assert first == sorted(first, key=int)
    assert ids(show(source, ["train"], count=20, seed=1)) != first
    both = ids(show(source, ["val", "train"], count=20))
    assert both[20:] == first
    assert both[:20] != first
    show(source, ["train"], count=20)
    assert (tmp_path / "page.html").read_bytes() == written


def test_every_record_is_as_likely_to_be_shown():
    source = Records(train=numbered(20))
    seeds, count = 2000, 5
    drawn = [[int(one.image_id) for one in preview._read(source, "train", count, seed).sample] for seed in range(seeds)]
    single = np.bincount(np.concatenate(drawn), minlength=20)
    assert single.sum() == seeds * count
    chance = count / 20
    assert np.abs(single - seeds * chance).max() < 4 * np.sqrt(seeds * chance * (1 - chance))
    pairs = Counter((a, b) for chosen in drawn for a in chosen for b in chosen if a < b)
    chance = count * (count - 1) / (20 * 19)
    assert len(pairs) == 190
    assert max(abs(n - seeds * chance) for n in pairs.values()) < 5 * np.sqrt(seeds * chance * (1 - chance))


@pytest.mark.parametrize("there", [0, 1, 7, 8])
def test_all_records_of_a_split_that_has_too_few(show, there):
    page = show(Records(train=numbered(there)), count=8)
    assert ids(page) == [str(number) for number in range(there)]


class Tracked(ImageCaptions):
    __slots__ = ("__weakref__",)


def test_few_of_many_records_are_in_memory_and_only_the_shown_images_are_decoded(tmp_path, monkeypatch):
    alive, most, opened = weakref.WeakSet(), 0, []

    def stream():
        nonlocal most
        for number in range(10_000):
            one = Tracked(str(number), b"no picture", {"en": ("a",)}, "x")
            alive.add(one)
            most = max(most, len(alive))
            yield one
            if number % 2:
                yield RecordFault(f"line {number} is bad", "repeated image")

    def open_image(source, where):
        opened.append(source)
        raise RecordFault("no")

    monkeypatch.setattr(Tracked, "__hash__", object.__hash__)
    monkeypatch.setattr(thumbnails, "open_image", open_image)
    [shown] = write_preview(Records(train=stream()), tmp_path / "page.html", ["train"], count=24)
    assert shown == ("train", 10_000, 24, 24, 5_000, None)
    assert len(opened) == 24
    assert 24 <= most <= 28


# ---- faults


def test_faulty_records_are_counted_by_kind_and_the_first_are_shown(show):
    faults = [RecordFault(f"a.txt:{n}: bad.", "blank caption") for n in range(1234)]
    page = show(Records(train=[*faults, record(), RecordFault("b.txt:1: worse.", "missing image")]))
    box = page.find(".//div[@class='fault']")
    assert text_of(box.find("h3")) == "1,235 records that cannot be used"
    assert [text_of(kind) for kind in box.findall("h4")] == ["blank caption: 1,234", "missing image: 1"]
    assert [text_of(item) for item in box.findall("ul/li")] == [
        *map(str, faults[:MAX_FAULTS]),
        f"and {1234 - MAX_FAULTS:,} more",
        "b.txt:1: worse.",
    ]
    assert ids(page) == ["a"]


def test_bad_lines_of_a_file_are_shown_with_their_place(show, tiny_jsonl):
    settings = tiny_jsonl(train=4)
    path = Path(settings["files"]["train"])
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([lines[0], "{", *lines[1:], '{"image": "../x", "captions": {"en": "x"}}']), "utf-8")
    page = show(JsonLines(**settings), ["train"])
    assert len(cards(page)) == 4
    sentences = [text_of(item) for item in page.findall(".//div[@class='fault']/ul/li")]
    assert [sentence.partition(": ")[0] for sentence in sentences] == [f"{path}:2", f"{path}:6"]


def test_a_split_that_ends_early_is_shown_up_to_there(show, tiny_jsonl):
    source = Records(train=[record(), CCRError("a.gz:2: cut off."), record("b")], val=[record("c")])
    page = show(source)
    assert text_of(page.find(".//section/p[@class='fault']")) == "The reading stopped here: a.gz:2: cut off."
    assert ids(page) == ["a", "c"]
    settings = tiny_jsonl(train=2)
    Path(settings["files"]["val"]).unlink()
    page = show(JsonLines(**settings), ["train", "val"])
    assert "captions of split 'val' are not there" in text_of(page.findall(".//section")[1])
    assert len(cards(page)) == 2


def test_what_leaves_nothing_to_show_is_an_error(tmp_path):
    page = tmp_path / "page.html"
    source = Records(train=[CCRError("train is gone.")], val=[CCRError("val is gone.")])
    with pytest.raises(CCRError, match=r"^train is gone\.$"):
        write_preview(source, page, ["train", "val"])
    with pytest.raises(CCRError, match="no split 'trian', only train, val"):
        write_preview(source, page, ["trian"])
    with pytest.raises(CCRError, match="0 images"):
        write_preview(source, page, ["train"], count=0)
    with pytest.raises(CCRError, match="the preview could not be written"):
        write_preview(Records(train=numbered(1)), tmp_path, ["train"])
    assert list(tmp_path.iterdir()) == []


# ---- a page that works by itself, for everybody


def test_the_page_needs_nothing_else(show, tmp_path, tiny_jsonl):
    page = show(JsonLines(**tiny_jsonl()))
    assert not {element.tag for element in page.iter()} & {"script", "link", "iframe", "object", "base", "form"}
    targets = [
        value
        for element in page.iter()
        for name, value in element.items()
        if name in ("src", "href", "srcset", "action")
    ]
    assert all(target.startswith(("data:image/jpeg;base64,", "#split-")) for target in targets)
    anchors = {element.get("id") for element in page.iter()}
    assert {target[1:] for target in targets if target.startswith("#")} == anchors - {None}
    assert not [name for element in page.iter() for name in element.attrib if name.startswith("on")]
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|://|url\(|@import", text)


def test_headings_are_in_order_and_images_are_described(show):
    page = show(Records(train=[record(), RecordFault("x", "missing image")], val=[record("b")]))
    levels = [int(element.tag[1]) for element in page.iter() if re.fullmatch("h[1-6]", element.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.get("lang") == "en"
    assert all(image.get("alt") for image in page.iter("img"))


def luminance(colour):
    levels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
    return np.dot(linear, [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_texts_stand_out_from_what_is_behind_them(colours):
    assert all(f"--{name}: {colour};" in preview._STYLE for name, colour in colours.items())
    pairs = [("text", "page"), ("text", "card"), ("muted", "page"), ("muted", "card"), ("link", "page")]
    pairs += [("warn", "page"), ("warn", "card"), ("code", "code-back"), ("warn", "warn-back"), ("fault", "fault-back")]
    pairs += [("text", "heat"), *((f"series-{number}", "card") for number in range(1, 5))]
    for front, back in pairs:
        low, high = sorted((luminance(colours[front]), luminance(colours[back])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (front, back)  # WCAG 2, level AA


# ---- the command


@pytest.fixture
def lines(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    path = tmp_path / "mine.jsonl"
    texts = [json.dumps({"image": f"{name}.png", "captions": {"en": name}}) for name in "ab"]
    path.write_text("\n".join([*texts, "{"]), encoding="utf-8")
    return path


def test_the_command_writes_the_page_and_says_what_is_on_it(lines, tmp_path, capsys):
    out = tmp_path / "new" / "page.html"
    assert run([str(lines), "--out", str(out), "--count", "5", "--seed", "3"]) == 0
    says = capsys.readouterr().out.splitlines()
    assert says[0].endswith(": 2 of 2 images shown, 1 of these cannot be decoded, 1 record cannot be used")
    assert says[1] == f"{out}: written; open it in a browser"
    assert ids(parse(out)) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "required: CONFIG"),
        (["FILE", "--counts", "3"], "unknown option '--counts'"),
        (["FILE", "--coun", "3"], "unknown option '--coun'"),
        (["FILE", "--count", "x"], "invalid int value: 'x'"),
        (["FILE", "--split", "nowhere"], "no split 'nowhere'"),
    ],
)
def test_the_command_explains_mistakes(arguments, says, lines, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CCRError, match=re.escape(says)):
        run([str(lines) if argument == "FILE" else argument for argument in arguments])
    assert not Path("preview.html").exists()


def test_the_stand_in_for_a_source_is_one():
    assert isinstance(Records(), Source)
