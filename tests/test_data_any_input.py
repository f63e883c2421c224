"""Whatever is in a file of captions, a source yields records or raises the package's own error with the file's name."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ccr_lightning.data.sources.cclm_json import CclmJson
from ccr_lightning.data.sources.coco import Coco
from ccr_lightning.data.sources.jsonl import JsonLines
from ccr_lightning.data.sources.multi30k import Multi30K
from ccr_lightning.data.sources.pretrain_jsonl import PretrainJsonLines
from ccr_lightning.data.sources.wit import WIT
from ccr_lightning.data.sources.xflickrco import XFlickrCO
from ccr_lightning.data.sources.xm3600 import XM3600
from ccr_lightning.data.sources.xtd import XTD
from ccr_lightning.errors import CCRError
from ccr_lightning.types import ImageCaptions

KEYS = st.sampled_from(
    [
        "image",
        "image_id",
        "captions",
        "caption",
        "img_path",
        "sentences",
        "image_url",
        "caption_reference_description",
        "image_content",
        "image_path",
        "binary",
        "image/key",
        "en",
        "images",
        "annotations",
        "filename",
        "filepath",
        "cocoid",
        "split",
        "raw",
    ]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
LEAVES |= st.sampled_from(
    ["a.jpg", "../a.jpg", "/a.jpg", "a\0.jpg", "\ud800", "a" * 300, "YQ==", "test", " ", "\u00a0"]
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=12
)
PLAUSIBLE = st.fixed_dictionaries(
    {},
    optional={
        "image": st.just("a.jpg") | VALUES,
        "captions": st.just({"en": "a dog"}) | VALUES,
        "caption": st.sampled_from(["a dog", ["a dog"], {"en": "a dog"}]) | VALUES,
        "img_path": st.just("a.jpg") | VALUES,
        "sentences": st.sampled_from([["a dog"], [{"raw": "a dog"}]]) | VALUES,
        "image_url": st.just("a.jpg") | VALUES,
        "caption_reference_description": st.just("a dog") | VALUES,
        "image_content": st.just("YQ==") | VALUES,
        "image_path": st.just("a.jpg") | VALUES,
        "image/key": st.just("a") | VALUES,
        "en": st.just({"caption": ["a dog"]}) | VALUES,
    },
)
TEXT_LINES = st.lists(st.text(max_size=12) | st.sampled_from(["a.jpg", "a.jpg\tYQ==", "a#0\ta dog"]), max_size=4)
CONTENTS = (
    st.binary(max_size=60)
    | st.lists(PLAUSIBLE | VALUES, max_size=4).map(lambda records: "\n".join(map(json.dumps, records)).encode())
    | st.lists(PLAUSIBLE | VALUES, max_size=4).map(lambda records: json.dumps(records).encode())
    | st.lists(PLAUSIBLE | VALUES, max_size=4).map(lambda records: json.dumps({"annotations": records}).encode())
    | st.lists(PLAUSIBLE | VALUES, max_size=4).map(lambda records: json.dumps({"images": records}).encode())
    | TEXT_LINES.map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))
    | st.sampled_from(
        [b"", b"\x1f\x8b", b"\x1f\x8b\x08\0\0", b"PK\x03\x04", b"[" * 100_000, b"1" * 5000, b"version https://git-lfs"]
    )
)


def one_image_folder(root):
    for name in ("a.jpg", "val2014/a.jpg", "train2014/a.jpg"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"an encoded picture")
    return str(root)


def sources(root):
    """Name to a source of English, and its file that the test writes; the other files are good."""
    images = one_image_folder(root)
    karpathy = {"filepath": "val2014", "filename": "a.jpg", "split": "test", "sentences": [], "cocoid": 1}
    good = {
        "task1/image_splits/test_2016_flickr.txt": "a.jpg\n",
        "task1/raw/test_2016_flickr.en": "a dog\n",
        "XTD10/test_image_names.txt": "a.jpg\n",
        "XTD10/test_1kcaptions_en.txt": "a dog\n",
        "good_karpathy.json": json.dumps({"images": [karpathy]}),
        "part/keep.txt": "",
        "xFlickrCO/annotations/en/test.jsonl": "",
    }
    for name, text in good.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    other = {"en": [str(root / "captions_en")]}
    return {
        "jsonl": (JsonLines({"test": str(root / "own.jsonl")}, images), "own.jsonl"),
        "multi30k images": (Multi30K(images, images, languages=["en"]), "task1/image_splits/test_2016_flickr.txt"),
        "multi30k": (Multi30K(images, images, languages=["en"]), "task1/raw/test_2016_flickr.en"),
        "xflickrco": (XFlickrCO(images, images, images, ["en"]), "xFlickrCO/annotations/en/test.jsonl"),
        "wit": (WIT(images, languages=["en"]), "test_en.jsonl"),
        "xtd": (XTD(images, images, ["en"]), "XTD10/test_1kcaptions_en.txt"),
        "xm3600": (XM3600(str(root / "xm.jsonl"), images, ["en"]), "xm.jsonl"),
        "pretrain": (PretrainJsonLines({"test": str(root / "part")}, images, ["en"]), "part/0.data"),
        "coco karpathy": (Coco(images, str(root / "karpathy.json")), "karpathy.json"),
        "coco": (Coco(images, str(root / "good_karpathy.json"), {"zh": other["en"]}, ["zh"]), "captions_en"),
        "cclm": (CclmJson(images, images, ["en"]), "en.test.json"),
    }


NAMES = ["jsonl", "multi30k images", "multi30k", "xflickrco", "wit", "xtd", "xm3600", "pretrain"]
NAMES += ["coco karpathy", "coco", "cclm"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder for each source."""
    folders = {name: tmp_path_factory.mktemp("any") for name in NAMES}
    assert list(sources(tmp_path_factory.mktemp("names"))) == NAMES
    return folders


def read(source):
    """The records, or the message of the package's own error; any other is the test's."""
    try:
        return list(source.records("test"))
    except CCRError as error:
        return str(error)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(content=CONTENTS)
def test_any_file_gives_records_or_the_own_error(made, name, content):
    source, file = sources(made[name])[name]
    (made[name] / file).write_bytes(content)
    found = read(source)
    if isinstance(found, str):
        assert str(made[name]) in found
        assert found.endswith(".")
        return
    for record in found:
        assert isinstance(record, ImageCaptions)
        assert all(texts and all(texts) for texts in record.captions.values())
        json.dumps([record.image_id, *record.captions.values()], ensure_ascii=False).encode()
