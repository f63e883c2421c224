"""Sources of published data sets: small files in their layouts, with their oddities, written for these tests."""

import base64
import gzip
import json

import pytest

from ccr_lightning.data.sources.cclm_json import CclmJson
from ccr_lightning.data.sources.coco import Coco
from ccr_lightning.data.sources.flickr30k import Flickr30k
from ccr_lightning.data.sources.multi30k import Multi30K
from ccr_lightning.data.sources.pretrain_jsonl import PretrainJsonLines
from ccr_lightning.data.sources.protocol import Source
from ccr_lightning.data.sources.wit import WIT
from ccr_lightning.data.sources.xflickrco import XFlickrCO
from ccr_lightning.data.sources.xm3600 import XM3600
from ccr_lightning.data.sources.xtd import XTD
from ccr_lightning.errors import CCRError


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def lines(*texts):
    return "".join(f"{text}\n" for text in texts)


def jsonl(*records):
    return lines(*(json.dumps(record, ensure_ascii=False) for record in records))


def images(folder, *names):
    for name in names:
        write(folder / name, b"an encoded picture")
    return str(folder)


def found(source, split="test"):
    assert isinstance(source, Source)
    records = list(source.records(split))
    for record in records:
        image = record.image if isinstance(record.image, bytes) else record.image.read_bytes()
        assert image == b"an encoded picture"
    assert len(source.fingerprint(split)) == 16
    return {record.image_id: record.captions for record in records}


def blank(source, split="test"):
    """Places of the blank captions that were left out, without the folder."""
    return [place.rpartition("/")[2] for record in source.records(split) for place in record.blank_captions]


@pytest.fixture
def multi30k(tmp_path):
    raw, splits = tmp_path / "data" / "task1" / "raw", tmp_path / "data" / "task1" / "image_splits"
    write(splits / "val.txt", lines("1.jpg", "2.jpg"))
    write(raw / "val.en.gz", lines("a dog ", "two\u2028dogs"))
    write(raw / "val.cs", lines("pes", "\u00a0\u200b"))
    write(splits / "test_2017_mscoco.txt", lines("COCO_val2014_7.jpg#11", "COCO_val2014_8.jpg#12"))
    write(raw / "test_2017_mscoco.en.gz", lines("a cat", "a cow"))
    second = tmp_path / "data" / "task2"
    write(second / "image_splits" / "val_images.txt", lines("1.jpg", "2.jpg"))
    for number in range(1, 6):
        write(second / "raw" / f"val.{number}.en.gz", lines(f"first {number}", f"second {number}"))
    names = ("1.jpg", "2.jpg", "COCO_val2014_7.jpg", "COCO_val2014_8.jpg")
    return {"root": str(tmp_path / "data"), "image_root": images(tmp_path / "images", *names)}


def test_multi30k(multi30k):
    source = Multi30K(**multi30k, languages=["cs", "en"])
    assert source.parallel
    assert found(source, "val") == {
        "1.jpg": {"cs": ("pes",), "en": ("a dog ",)},
        "2.jpg": {"en": ("two\u2028dogs",)},
    }
    assert blank(source, "val") == ["val.cs:2 (cs)"]
    source = Multi30K(**multi30k, languages=["en"], splits={"test": "test_2017_mscoco"})
    assert found(source) == {"COCO_val2014_7.jpg": {"en": ("a cat",)}, "COCO_val2014_8.jpg": {"en": ("a cow",)}}


def test_multi30k_task_2(multi30k):
    source = Multi30K(**multi30k, task=2, languages=["en"])
    assert not source.parallel
    assert found(source, "val") == {
        f"{n}.jpg": {"en": tuple(f"{word} {number}" for number in range(1, 6))}
        for n, word in ((1, "first"), (2, "second"))
    }


def test_multi30k_errors(multi30k, tmp_path):
    with pytest.raises(CCRError, match="task 2 has no captions in fr, only in en, de"):
        Multi30K(**multi30k, task=2, languages=["en", "fr"])
    without_czech = Multi30K(**multi30k, languages=["en", "cs"], splits={"test": "test_2017_mscoco"})
    with pytest.raises(CCRError, match=r"'test_2017_mscoco' of multi30k-task1 has captions in en, not in 'cs'; leave"):
        next(without_czech.records("test"))
    with pytest.raises(CCRError, match="no split 'train', only test"):
        without_czech.fingerprint("train")
    with pytest.raises(CCRError, match=r"raw/train\.en: there is no such file; get the folder data/"):
        next(Multi30K(**multi30k, languages=["en"]).records("train"))
    write(tmp_path / "data" / "task1" / "raw" / "val.cs", lines("pes"))
    with pytest.raises(CCRError, match=r"val\.cs: 1 captions for the 2 images of .*val\.txt; fetch both again"):
        next(Multi30K(**multi30k, languages=["en", "cs"]).records("val"))


@pytest.fixture
def iglue(tmp_path):
    def line(image, *sentences):
        image_id = int(image[-8:-4]) if "COCO" in image else image.removesuffix(".jpg")
        return {"sentences": list(sentences), "id": image_id, "img_path": image}

    coco, flickr = "COCO_val2014_000000001234.jpg", "1007129816.jpg"
    folder = tmp_path / "datasets" / "xFlickrCO" / "annotations"
    write(folder / "de" / "test.jsonl", jsonl(line(flickr, ""), line(coco, "Motorradfahrer")))
    write(folder / "ja" / "test.jsonl", jsonl(line(coco, "バイク"), line(flickr, "1男が、3メガネを")))
    write(folder / "ja" / "train_1.jsonl", jsonl(line(flickr, "男")))
    english = jsonl(line(flickr, "A man. ", "A man\nin a hat."))
    write(tmp_path / "datasets" / "flickr30k" / "annotations" / "valid_ann.jsonl", english)
    return {
        "root": str(tmp_path / "datasets"),
        "flickr_root": images(tmp_path / "flickr", flickr),
        "coco_root": images(tmp_path / "coco", f"val2014/{coco}"),
    }


def test_xflickrco_is_aligned_by_image(iglue):
    assert found(XFlickrCO(**iglue, languages=["de", "ja"])) == {
        "1007129816.jpg": {"ja": ("1男が、3メガネを",)},  # the German caption is empty
        "COCO_val2014_000000001234.jpg": {"de": ("Motorradfahrer",), "ja": ("バイク",)},
    }
    assert blank(XFlickrCO(**iglue, languages=["de", "ja"])) == ["test.jsonl:1 (de)"]


def test_xflickrco_training_files(iglue):
    few = XFlickrCO(**iglue, languages=["ja"], few_shot="train_1")
    assert found(few, "train") == {"1007129816.jpg": {"ja": ("男",)}}
    assert few.splits == ("train", "test")


def test_flickr30k(iglue, tmp_path):
    source = Flickr30k(iglue["root"], iglue["flickr_root"])
    assert found(source, "val") == {"1007129816.jpg": {"en": ("A man. ", "A man\nin a hat.")}}
    with pytest.raises(CCRError, match=r"train_ann\.jsonl: there is no such file; get the folder datasets/"):
        source.fingerprint("train")
    path = tmp_path / "datasets" / "flickr30k" / "annotations" / "valid_ann.jsonl"
    write(path, path.read_bytes() * 2)
    with pytest.raises(CCRError, match=r"valid_ann\.jsonl:2: the image '1007129816\.jpg' is in the file twice"):
        list(source.records("val"))


def test_xflickrco_errors(iglue, tmp_path):
    with pytest.raises(CCRError, match=r"test\.jsonl is there in de, ja, not in 'tr'; leave it out"):
        next(XFlickrCO(**iglue, languages=["de", "tr"]).records("test"))
    with pytest.raises(CCRError, match="xflickrco has no split 'train', only test; name a few_shot file"):
        next(XFlickrCO(**iglue, languages=["de"]).records("train"))
    path = tmp_path / "datasets" / "xFlickrCO" / "annotations" / "de" / "test.jsonl"
    for record, message in (
        ({"sentences": ["x"]}, "test.jsonl:1: img_path is None"),
        ({"sentences": "x", "img_path": "1.jpg"}, "test.jsonl:1: sentences is 'x'"),
        ({"sentences": ["x"], "img_path": "../1.jpg"}, "test.jsonl:1: the image '../1.jpg' is absolute or has '..'"),
        ([], "test.jsonl:1: not a JSON object"),
    ):
        write(path, jsonl(record))
        with pytest.raises(CCRError, match=message):
            next(XFlickrCO(**iglue, languages=["de"]).records("test"))
    twice = {"sentences": ["x"], "img_path": "1007129816.jpg"}
    write(path, jsonl(twice, twice))
    with pytest.raises(CCRError, match=r"test\.jsonl:2: the image '1007129816\.jpg' is in the file twice"):
        next(XFlickrCO(**iglue, languages=["de"]).records("test"))


@pytest.fixture
def xtd(tmp_path):
    names = ("COCO_train2014_1.jpg", "COCO_val2014_2.jpg")
    write(tmp_path / "XTD10" / "test_image_names.txt", lines(*names))
    write(tmp_path / "XTD10" / "test_1kcaptions_ko.txt", "개\r\n고양이".encode())  # CR LF, and no end of the last line
    write(tmp_path / "STAIR" / "test_1kcaptions_jp.txt", lines("犬", "猫"))
    write(tmp_path / "MIC" / "test_1kcaptions_de.txt", lines("ein Hund", "eine\u2028Katze"))
    coco = images(tmp_path / "coco", "train2014/COCO_train2014_1.jpg", "val2014/COCO_val2014_2.jpg")
    return {"root": str(tmp_path), "coco_root": coco}


def test_xtd(xtd):
    assert found(XTD(**xtd, languages=["ja", "ko", "de"])) == {
        "COCO_train2014_1.jpg": {"ja": ("犬",), "ko": ("개",), "de": ("ein Hund",)},
        "COCO_val2014_2.jpg": {"ja": ("猫",), "ko": ("고양이",), "de": ("eine\u2028Katze",)},
    }


def test_xtd_errors(xtd, tmp_path):
    with pytest.raises(CCRError, match=r"XTD has no captions in jp, only in en, es, .*, ja; choose"):
        XTD(**xtd, languages=["jp"])
    with pytest.raises(CCRError, match="xtd has no split 'val', only test"):
        next(XTD(**xtd, languages=["ja"]).records("val"))
    with pytest.raises(CCRError, match=r"test_1kcaptions_en\.txt: there is no such file; get the repository"):
        next(XTD(**xtd).records("test"))
    write(tmp_path / "STAIR" / "test_1kcaptions_jp.txt", lines("犬"))
    with pytest.raises(CCRError, match=r"captions_jp\.txt: 1 captions for the 2 images of .*names\.txt"):
        next(XTD(**xtd, languages=["ja"]).records("test"))


def test_xm3600(tmp_path):
    captions = tmp_path / "captions.jsonl"
    record = {"image/key": "0a", "image/locale": "fil", "fil": {"caption": ["aso", " "], "caption/tokenized": ["aso"]}}
    other = {"image/key": "0b", "en": {"caption": ["a dog", "a puppy"]}, "fil": {"caption": ["aso"]}}
    write(captions, jsonl(record, other))
    settings = {"captions": str(captions), "image_root": images(tmp_path / "images", "0a.jpg", "0b.jpg")}
    assert found(XM3600(**settings, languages=["en", "fil"])) == {
        "0a": {"fil": ("aso",)},
        "0b": {"en": ("a dog", "a puppy"), "fil": ("aso",)},
    }
    with pytest.raises(CCRError, match="has no split 'train', only test"):
        next(XM3600(**settings).records("train"))
    with pytest.raises(CCRError, match=r"has no captions in la, only in ar, bn, .*, zh; choose"):
        XM3600(**settings, languages=["la"])
    for broken, message in (
        ({"en": {"caption": ["x"]}}, "captions.jsonl:1: image/key is None"),
        ({"image/key": "0a", "en": {"caption": "x"}}, "captions.jsonl:1: the captions in 'en' are 'x'"),
    ):
        write(captions, jsonl(broken))
        with pytest.raises(CCRError, match=message):
            next(XM3600(**settings, languages=["en"]).records("test"))


PICTURE = base64.b64encode(b"an encoded picture").decode()


def wit_line(url, caption, language, **more):
    line = {"image_idx": 3, "image_url": url, "caption_reference_description": caption, "language": language}
    return line | {"page_url": "https://example.org", "wit_ix": 1} | more


@pytest.fixture
def wit(tmp_path):
    english = [wit_line("u/1.jpg", "a tower", "en"), wit_line("u/2.png", "a\nbridge", "en")]
    english += [wit_line("u/1.jpg", "a tower", "en"), wit_line("u/1.jpg", "the tower", "en")]
    write(tmp_path / "test_en.jsonl", jsonl(*english))
    write(tmp_path / "test_el.jsonl", jsonl(wit_line("u/3.jpg", "\u00a0", "el"), wit_line("u/2.png", "γέφυρα", "el")))
    table = [f"u/{name}\t{PICTURE}" for name in ("9.jpg", "2.png", "1.jpg", "3.jpg")]
    write(tmp_path / "images.tsv", lines(*table))
    return tmp_path


def test_wit_is_grouped_by_url(wit):
    source = WIT(str(wit), images=str(wit / "images.tsv"), languages=["en", "el"])
    assert not source.parallel
    assert found(source) == {
        "u/1.jpg": {"en": ("a tower", "a tower", "the tower")},
        "u/2.png": {"en": ("a\nbridge",), "el": ("γέφυρα",)},
        "u/3.jpg": {},
    }


def test_wit_with_images_in_its_lines(wit):
    line = wit_line("u/1.jpg", "a tower", "en", image_content=PICTURE)
    write(wit / "test_en.jsonl", jsonl(line, wit_line("u/1.jpg", "the tower", "en")))
    assert found(WIT(str(wit), languages=["en"])) == {"u/1.jpg": {"en": ("a tower", "the tower")}}


def test_wit_with_the_public_pixel_files(wit):
    """Many files of three columns, of which gzip is one; the first image of a URL counts."""
    other = base64.b64encode(b"another picture").decode()
    pixels = wit / "pixels"
    write(pixels / "test_image_pixels_part-00000.csv.gz", lines(f"u/1.jpg\t{PICTURE}\thttps://meta/1", "u/8.jpg\t\t"))
    write(pixels / "test_image_pixels_part-00001.csv", lines(f"u/2.png\t{PICTURE}\tm", f"u/1.jpg\t{other}\tm"))
    write(pixels / "more.tsv.gz", lines(f"u/3.jpg\t{PICTURE}"))
    write(pixels / "readme.txt", "no images")
    files = [str(pixels / name) for name in ("test_image_pixels_part-00000.csv", "test_image_pixels_part-00001.csv")]
    english = {"u/1.jpg": {"en": ("a tower", "a tower", "the tower")}, "u/2.png": {"en": ("a\nbridge",)}}
    assert found(WIT(str(wit), images=files, languages=["en"])) == english
    of_folder = WIT(str(wit), images=str(pixels), languages=["en", "el"])
    assert found(of_folder) == {
        "u/1.jpg": english["u/1.jpg"],
        "u/2.png": {"en": ("a\nbridge",), "el": ("γέφυρα",)},
        "u/3.jpg": {},
    }
    before = of_folder.fingerprint("test")
    write(pixels / "one_more.csv", lines(f"u/9.jpg\t{PICTURE}"))
    assert of_folder.fingerprint("test") != before


def test_wit_reports_each_missing_image(wit):
    write(wit / "images.tsv", lines(f"u/1.jpg\t{PICTURE}\tm"))
    (wit / "empty").mkdir()
    faults = []
    source = WIT(str(wit), images=str(wit / "images.tsv"), languages=["en", "el"])
    assert [record.image_id for record in source.records("test", faults.append)] == ["u/1.jpg"]
    assert [fault.kind for fault in faults] == ["missing image"] * 2
    assert "test_en.jsonl:2: the image 'u/2.png' has no line for it in " in str(faults[0])
    with pytest.raises(CCRError, match=r"no files \*\.csv or \*\.tsv in it"):
        WIT(str(wit), images=str(wit / "empty"), languages=["en"]).fingerprint("test")
    with pytest.raises(CCRError, match="images is empty"):
        WIT(str(wit), images=[])


def test_wit_errors(wit):
    settings = {"annotations": str(wit), "images": str(wit / "images.tsv")}
    with pytest.raises(CCRError, match=r"'test' is there in el, en, not in 'ja'; leave it out"):
        next(WIT(**settings, languages=["ja"]).records("test"))
    with pytest.raises(CCRError, match="no split 'dev', only train, val, test"):
        next(WIT(**settings).records("dev"))
    with pytest.raises(CCRError, match=r"test_en\.jsonl:1: the image 'u/1\.jpg' has no image_content in its line; get"):
        list(WIT(str(wit), languages=["en"]).records("test"))
    write(wit / "images.tsv", lines("u/1.jpg\t***"))
    with pytest.raises(CCRError, match=r"images\.tsv:1: the image is not valid base64"):
        list(WIT(**settings, languages=["en"]).records("test"))
    write(wit / "images.tsv", lines("u/1.jpg"))
    with pytest.raises(CCRError, match=r"images\.tsv:1: no tab"):
        list(WIT(**settings, languages=["en"]).records("test"))
    write(wit / "test_en.jsonl", jsonl({"image_url": "u/1.jpg"}))
    with pytest.raises(CCRError, match=r"test_en\.jsonl:1: caption_reference_description is None"):
        list(WIT(**settings, languages=["en"]).records("test"))
    write(wit / "val_en.jsonl", b"PK\x03\x04 and so on")
    with pytest.raises(CCRError, match=r"val_en\.jsonl: a zip archive; unzip it first"):
        list(WIT(**settings, languages=["en"]).records("val"))


@pytest.fixture
def pretrain(tmp_path):
    several = [{"en": "a dog", "de": "ein Hund"}, {"en": "a puppy", "de": ""}]
    write(tmp_path / "cc" / "part_0.data", jsonl({"caption": several, "image_path": "x/1.jpg"}))
    inside = {"caption": {"en": "a cat", "fr": "un chat"}, "binary": PICTURE}
    write(tmp_path / "cc" / "part_1.data", jsonl(inside, {"caption": {"de": "eine Kuh"}, "image": PICTURE}))
    return {"folders": {"train": str(tmp_path / "cc")}, "image_root": images(tmp_path / "images", "x/1.jpg")}


def test_pretraining_files(pretrain):
    assert found(PretrainJsonLines(**pretrain, languages=["de", "en"]), "train") == {
        "x/1.jpg": {"de": ("ein Hund",), "en": ("a dog", "a puppy")},
        "train/part_1.data:1": {"en": ("a cat",)},
        "train/part_1.data:2": {"de": ("eine Kuh",)},
    }


def test_pretraining_files_errors(pretrain, tmp_path):
    with pytest.raises(CCRError, match="pretrain has no split 'val', only train; add it to folders"):
        next(PretrainJsonLines(**pretrain).records("val"))
    with pytest.raises(CCRError, match=r"there are no files \*\.data; check the folder of split 'train'"):
        next(PretrainJsonLines({"train": str(tmp_path)}).records("train"))
    with pytest.raises(CCRError, match=r"part_0\.data:1: image_path 'x/1\.jpg' is below no folder; set image_root"):
        next(PretrainJsonLines(pretrain["folders"]).records("train"))
    good = {"caption": {"en": "a dog"}, "image_path": "x/1.jpg"}
    for record, message in (
        ([], "part_0.data:1: not a JSON object"),
        (good | {"binary": PICTURE}, r"part_0.data:1: found \['image_path', 'binary'\]; give the image as one text"),
        ({"caption": {"en": "a dog"}}, r"part_0.data:1: found \[\]; give the image"),
        (good | {"caption": "a dog"}, "part_0.data:1: caption is 'a dog'; it is an object"),
        (good | {"image_path": "/etc/passwd"}, "part_0.data:1: the image '/etc/passwd' is absolute"),
        ({"caption": {"en": "a dog"}, "image": "é"}, "part_0.data:1: the image is not valid base64"),
    ):
        write(tmp_path / "cc" / "part_0.data", jsonl(record))
        with pytest.raises(CCRError, match=message):
            next(PretrainJsonLines(**pretrain).records("train"))
    write(tmp_path / "cc" / "part_0.data", jsonl(good, good))
    with pytest.raises(CCRError, match=r"part_0\.data:2: the image 'x/1\.jpg' has a line before"):
        list(PretrainJsonLines(**pretrain).records("train"))


def karpathy_image(name, cocoid, split, *captions):
    sentences = [{"raw": text, "tokens": text.split(), "sentid": number} for number, text in enumerate(captions)]
    folder = "train2014" if "train" in name else "val2014"
    return {"filepath": folder, "filename": name, "split": split, "sentences": sentences, "cocoid": cocoid}


@pytest.fixture
def coco(tmp_path):
    one, two, three = (
        "COCO_train2014_000000000001.jpg",
        "COCO_val2014_000000000002.jpg",
        "COCO_val2014_000000000003.jpg",
    )
    listed = [karpathy_image(one, 1, "train", "a dog"), karpathy_image(two, 2, "restval", "a cat ", "cats")]
    listed.append(karpathy_image(three, 3, "test", "a cow", " "))
    write(tmp_path / "dataset_coco.json", json.dumps({"images": listed, "dataset": "coco"}, indent=1))
    annotations = [{"image_id": 3, "id": 8, "caption": "牛"}, {"image_id": 99, "id": 9, "caption": "馬"}]
    write(tmp_path / "stair_train.json", json.dumps({"annotations": [{"image_id": 1, "id": 7, "caption": "犬"}]}))
    write(tmp_path / "stair_val.json.gz", json.dumps({"annotations": annotations}, ensure_ascii=False))
    chinese = [f"{three.removesuffix('.jpg')}#0\t牛", f"{three.removesuffix('.jpg')}#1\t一头牛", f"{one}#0\t狗"]
    write(tmp_path / "coco-cn.txt", lines(*chinese))
    write(tmp_path / "coco-cn_test.txt", lines(three.removesuffix(".jpg")))
    return {
        "coco_root": images(tmp_path / "coco", f"train2014/{one}", f"val2014/{two}", f"val2014/{three}"),
        "karpathy": str(tmp_path / "dataset_coco.json"),
        "captions": {
            "ja": [str(tmp_path / "stair_train.json"), str(tmp_path / "stair_val.json")],
            "zh": [str(tmp_path / "coco-cn.txt")],
        },
    }


def test_coco(coco):
    source = Coco(**coco)
    assert source.languages == ("en", "ja", "zh")
    assert not source.parallel
    assert found(source, "train") == {
        "COCO_train2014_000000000001.jpg": {"en": ("a dog",), "ja": ("犬",), "zh": ("狗",)},
        "COCO_val2014_000000000002.jpg": {"en": ("a cat ", "cats")},
    }
    assert found(source) == {
        "COCO_val2014_000000000003.jpg": {"en": ("a cow",), "ja": ("牛",), "zh": ("牛", "一头牛")},
    }


def test_coco_with_the_splits_of_coco_cn(coco, tmp_path):
    source = Coco(**coco, languages=["zh"], lists={"test": str(tmp_path / "coco-cn_test.txt")})
    assert found(source) == {"COCO_val2014_000000000003.jpg": {"zh": ("牛", "一头牛")}}
    with pytest.raises(CCRError, match="coco has no split 'train', only test"):
        next(source.records("train"))
    write(tmp_path / "coco-cn_test.txt", lines("COCO_val2014_000000000099"))
    with pytest.raises(CCRError, match=r"coco-cn_test\.txt:1: the image 'COCO_val2014_000000000099\.jpg' is not in"):
        next(source.records("test"))


def test_coco_without_the_images_that_are_held_out(coco, tmp_path):
    held_out = tmp_path / "held_out.txt"
    write(held_out, lines("COCO_val2014_000000000002", "COCO_val2014_000000000003"))
    source = Coco(**coco, held_out=[str(held_out)])
    assert list(found(source, "train")) == ["COCO_train2014_000000000001.jpg"]
    assert list(found(source)) == ["COCO_val2014_000000000003.jpg"]  # the test is as it was
    karpathy = json.loads((tmp_path / "dataset_coco.json").read_text())
    karpathy["images"][0]["split"] = karpathy["images"][1]["split"] = "val"
    write(tmp_path / "dataset_coco.json", json.dumps(karpathy))
    assert list(found(source, "val")) == ["COCO_train2014_000000000001.jpg"]
    karpathy["images"][0]["split"] = "train"
    write(tmp_path / "dataset_coco.json", json.dumps(karpathy))
    assert source.fingerprint("train") != Coco(**coco).fingerprint("train")
    assert source.fingerprint("test") == Coco(**coco).fingerprint("test")
    write(held_out, lines("COCO_val2014_000000000099"))
    with pytest.raises(CCRError, match=r"held_out\.txt:1: the image 'COCO_val2014_000000000099\.jpg' is not in"):
        next(source.records("train"))
    held_out.unlink()
    with pytest.raises(CCRError, match=r"held_out\.txt.* or correct held_out"):
        next(source.records("train"))


def test_coco_errors(coco, tmp_path):
    with pytest.raises(CCRError, match=r"has no captions in de, only in en, ja, zh; choose"):
        Coco(**coco, languages=["de"])
    path = tmp_path / "coco-cn.txt"
    for text, message in (
        ("COCO_val2014_1 牛", r"coco-cn\.txt:1: 'COCO_val2014_1 牛' is not '<image>#<number>', a tab and a caption"),
        ('{"annotations": [{"caption": 3, "image_id": 1}]}', r"coco-cn\.txt: annotation 1: caption is 3; it is a text"),
        ('{"annotations": [{"caption": "x", "image_id": [3]}]}', r"annotation 1: image_id is \[3\]; it is an integer"),
        ('{"annotations": [{"caption": "x", "image_id": true}]}', r"annotation 1: image_id is True; it is an integer"),
        ('{"images": []}', r"coco-cn\.txt: annotations is missing or no list"),
        ('{"annotations": [\n{]}', r"coco-cn\.txt:2: not valid JSON"),
    ):
        write(path, text)
        with pytest.raises(CCRError, match=message):
            next(Coco(**coco, languages=["zh"]).records("test"))
    karpathy = json.loads((tmp_path / "dataset_coco.json").read_text())
    first, second = karpathy["images"][:2]
    for images, message in (
        ([first | {"split": "dev"}], "image 1: split is 'dev'; it is one of train, restval, val, test"),
        ([first, second | {"cocoid": first["cocoid"]}], f"image 2: cocoid {first['cocoid']} is that of .* too"),
    ):
        write(tmp_path / "dataset_coco.json", json.dumps({"images": images}))
        with pytest.raises(CCRError, match=message):
            next(Coco(**coco, languages=["en"]).records("test"))
    write(tmp_path / "dataset_coco.json", json.dumps({"images": [{"filename": 3}]}))
    with pytest.raises(CCRError, match=r"dataset_coco\.json: image 1: filename is 3; it is a text"):
        next(Coco(**coco, languages=["en"]).records("test"))


def test_cclm_json(tmp_path):
    rows = [{"caption": text, "image": "coco/1.jpg", "image_id": 1} for text in ("a dog", "dogs")]
    write(tmp_path / "en.train.json", json.dumps(rows))
    write(tmp_path / "ja.train.json", json.dumps([{"caption": "犬", "image": "coco/1.jpg", "image_id": 1}]))
    write(tmp_path / "test_2016_flickr.cs.json", json.dumps([{"caption": ["pes", ""], "image": "2.jpg"}]))
    root = images(tmp_path / "images", "coco/1.jpg", "2.jpg")
    source = CclmJson(str(tmp_path), root, ["ja", "en"], parallel=False)
    assert found(source, "train") == {"coco/1.jpg": {"ja": ("犬",), "en": ("a dog", "dogs")}}
    settings = {"files": "{split}.{language}.json", "splits": {"test": "test_2016_flickr"}}
    assert found(CclmJson(str(tmp_path), root, ["cs"], **settings)) == {"2.jpg": {"cs": ("pes",)}}
    with pytest.raises(CCRError, match=r"test_2016_flickr\.fr\.json: there is no such file; get the captions in 'fr'"):
        next(CclmJson(str(tmp_path), root, ["fr"], **settings).records("test"))
    with pytest.raises(CCRError, match="cclm has no split 'train', only test"):
        next(CclmJson(str(tmp_path), root, ["cs"], **settings).records("train"))
    with pytest.raises(CCRError, match=r"give a name with \{language\} and \{split\} in it"):
        CclmJson(str(tmp_path), root, ["cs"], files="cs.json")
    for content, message in (
        ({"caption": "x"}, r"test_2016_flickr\.cs\.json: not a JSON list"),
        ([{"caption": "x"}], r"cs\.json: record 1: image is None"),
        ([{"caption": 3, "image": "2.jpg"}], r"cs\.json: record 1: caption is 3"),
    ):
        write(tmp_path / "test_2016_flickr.cs.json", json.dumps(content))
        with pytest.raises(CCRError, match=message):
            next(CclmJson(str(tmp_path), root, ["cs"], **settings).records("test"))


def test_cclm_json_whose_names_differ_by_language(tmp_path):
    """As CCLM names its files of COCO."""
    for name, caption in (("en.1k_test", "a dog"), ("zh.test", "狗"), ("en.train", "a cat"), ("zh.train", "猫")):
        write(tmp_path / f"{name}.json", json.dumps([{"caption": caption, "image": "1.jpg"}]))
    root = images(tmp_path / "images", "1.jpg")
    splits = {"train": "train", "test": {"en": "1k_test", "zh": "test"}}
    source = CclmJson(str(tmp_path), root, ["en", "zh"], splits=splits)
    assert source.splits == ("train", "test")
    assert found(source, "test") == {"1.jpg": {"en": ("a dog",), "zh": ("狗",)}}
    assert found(source, "train") == {"1.jpg": {"en": ("a cat",), "zh": ("猫",)}}
    with pytest.raises(CCRError, match=r"splits names test in en, zh, not in 'ja'; add it there or leave 'ja' out"):
        next(CclmJson(str(tmp_path), root, ["en", "ja"], splits=splits).records("test"))
