"""WebDataset shards: written, read, and trained on."""

import hashlib
import io
import itertools
import json
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_data_any_input import PLAUSIBLE, VALUES
from test_data_store import Numbered
from watched_training import StopAt, Watcher, one_of_two_ranks, trainer

from ccr_lightning.cli.main import main
from ccr_lightning.data.datamodule import CaptionDataModule
from ccr_lightning.data.faults import stop
from ccr_lightning.data.shards import verify_shards, write_shards
from ccr_lightning.data.sources import webdataset as source_module
from ccr_lightning.data.sources.jsonl import JsonLines
from ccr_lightning.data.sources.webdataset import WebDatasetShards, read_index
from ccr_lightning.data.store import open_store
from ccr_lightning.data.tokenizer import CaptionTokenizer
from ccr_lightning.data.transforms import ImageTransform
from ccr_lightning.errors import CCRError
from ccr_lightning.types import ImageCaptions, MachineTranslation

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*")


def picture(number=0, form="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (number % 256, 0, 0)).save(buffer, form)
    return buffer.getvalue()


class Records:
    """A source of given records."""

    name, parallel, splits = "given", True, ("train",)

    def __init__(self, *records, languages=("en", "de")):
        self.given, self.languages = records, languages

    def fingerprint(self, split):
        return str(len(self.given))

    def records(self, split, report=stop):
        yield from self.given


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def unpacked(path):
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def tar_of(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def read(source, split="test"):
    faults = []
    return list(source.records(split, faults.append)), [str(fault) for fault in faults]


# writing


def test_round_trip(tmp_path):
    translated = MachineTranslation("Ein Hund.", "m2m", "2026-11-25")
    records = [
        ImageCaptions("a", picture(), {"en": ("A dog.", "A\u2028puppy."), "de": (translated,)}, "here:1"),
        ImageCaptions("b/ü", picture(1, "JPEG"), {"de": ("Eine Katze.",)}, "here:2"),
        ImageCaptions("3", picture(2, "WEBP"), {"en": ("A cat.",), "de": ("x",)}, "here:3"),
        ImageCaptions("d", picture(3, "GIF"), {}, "here:4", ("here:4 (en)",)),
    ]
    folder = tmp_path / "new" / "shards"
    index = write_shards(Records(*records), "train", folder, shard_bytes=2 * len(picture()))
    source = WebDatasetShards({"train": str(folder)})
    assert source.languages == ("en", "de")
    found = list(source.records("train"))
    for one, other in zip(found, records, strict=True):
        assert (one.image_id, one.image, one.captions) == (other.image_id, other.image, other.captions)
    assert found[0].captions["de"][0].translated_by == "m2m"
    assert found[3].where == f"{folder / 'shard-000001.tar'}: 000000003"
    assert [[len(captions) for captions in source.captions("train")]] == [[2, 1, 2, 0]]
    assert [name for shard in index.shards for name in unpacked(shard.path)] == [
        "000000000.json", "000000000.png", "000000001.jpg", "000000001.json",
        "000000002.json", "000000002.webp", "000000003.gif", "000000003.json",
    ]  # fmt: skip
    says = index.content
    assert {name: says[name] for name in ("source", "split", "fingerprint", "languages", "images")} == {
        "source": "given", "split": "train", "fingerprint": "4", "languages": ["en", "de"], "images": 4,
    }  # fmt: skip
    assert says["captions"] == {"en": 3, "de": 3}
    assert (says["records"], says["bad_records"], says["blank_captions"]) == (4, 0, 1)
    assert [shard.images for shard in index.shards] == [2, 2]
    assert [shard.languages for shard in index.shards] == [{("de",): 1, ("de", "en"): 1}, {(): 1, ("de", "en"): 1}]
    for shard in index.shards:
        assert shard.sha256 == hashlib.sha256(shard.path.read_bytes()).hexdigest()
    assert json.loads(unpacked(index.shards[0].path)["000000001.json"])["where"] == "here:2"


def test_the_same_data_give_the_same_bytes(tmp_path):
    for name in "ab":
        write_shards(Numbered(20, bad=[3]), "train", tmp_path / name, 400, "skip", 0.1)
        time.sleep(0.01)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert len(content(tmp_path / "a")) > 4
    before = (tmp_path / "a" / "shards.json").stat().st_mtime_ns
    write_shards(Numbered(20, bad=[3]), "train", tmp_path / "a", 400, "skip", 0.1)
    assert (tmp_path / "a" / "shards.json").stat().st_mtime_ns == before


def test_faults_of_the_source(tmp_path, capsys):
    with pytest.raises(CCRError, match=r"^here:3: broken; mend it \(one of 2 bad records of 20, more than the 5 %"):
        write_shards(Numbered(20, bad=[3, 8]), "train", tmp_path / "many", 400, "skip", 0.05)
    with pytest.raises(CCRError, match=r"shards.json: the shards are not finished; run ccr data shards again"):
        list(WebDatasetShards({"train": str(tmp_path / "many")}, ["en"]).records("train"))
    with pytest.raises(CCRError, match=r"^here:3: broken; mend it"):
        write_shards(Numbered(20, bad=[3]), "train", tmp_path / "one")
    index = write_shards(Numbered(20, bad=[3, 19]), "train", tmp_path / "some", 400, "skip", 0.1)
    assert "left out of numbered/train: 2 of 20 records, 4 blank captions; see " in capsys.readouterr().err
    assert (index.content["images"], index.content["bad_records"]) == (18, 2)
    assert [json.loads(line)["message"] for line in (tmp_path / "some" / "left_out.jsonl").open()][:2] == [
        "here:0 (de): the caption is blank.",
        "here:3: broken; mend it.",
    ]
    assert [record.image_id for record in WebDatasetShards({"train": str(tmp_path / "some")}).records("train")] == [
        str(number) for number in range(20) if number not in (3, 19)
    ]
    with pytest.raises(CCRError, match="built without 2 bad records"):
        write_shards(Numbered(20, bad=[3, 19]), "train", tmp_path / "some", 400)
    with pytest.raises(CCRError, match="of other data or size"):
        write_shards(Numbered(21), "train", tmp_path / "some", 400)
    broken = ImageCaptions("a", b"no picture", {"en": ("A.",)}, "here:1")
    with pytest.raises(CCRError, match=r"^here:1: the image a is not a picture"):
        write_shards(Records(broken), "train", tmp_path / "broken")
    with pytest.raises(CCRError, match="the split 'train' of given has no images"):
        write_shards(Records(), "train", tmp_path / "none")


def test_folders_that_hold_something_else(tmp_path):
    (tmp_path / "shard-000000.tar").write_bytes(b"mine")
    with pytest.raises(CCRError, match=r"has 'shard-000000.tar' in it; choose a new or an empty folder"):
        write_shards(Numbered(3), "train", tmp_path)
    assert (tmp_path / "shard-000000.tar").read_bytes() == b"mine"
    with pytest.raises(CCRError, match="shard_bytes is 0"):
        write_shards(Numbered(3), "train", tmp_path / "x", 0)


WRITE = """
import sys
from ccr_lightning.data.shards import write_shards
from tests.test_data_store import Numbered
write_shards(Numbered(60, pause=float(sys.argv[1])), "train", sys.argv[2], int(sys.argv[3]))
"""


def test_a_killed_run_is_begun_again(tmp_path):
    arguments = [sys.executable, "-c", WRITE, "0.02", str(tmp_path / "killed"), "100"]
    killed = subprocess.Popen(arguments, cwd=Path(__file__).parents[1])
    while not (tmp_path / "killed" / "shard-000005.tar").exists():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    with pytest.raises(CCRError, match="not finished"):
        read_index(tmp_path / "killed")
    for name in ("killed", "whole"):
        write_shards(Numbered(60), "train", tmp_path / name, 2000)  # other, larger shards
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_the_package_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(CCRError, match=r"writing shards needs the package 'webdataset'; run: pip install 'ccr-"):
        write_shards(Numbered(3), "train", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_damaged_shards(tmp_path):
    folder = tmp_path / "shards"
    index = write_shards(Numbered(20), "train", folder, 400)
    path, text = index.shards[1].path, (folder / "shards.json").read_text()
    whole = path.read_bytes()
    path.write_bytes(whole[:-1024])
    with pytest.raises(CCRError, match=rf"shard-000001.tar: has {len(whole) - 1024} bytes instead of {len(whole)}"):
        read_index(folder)
    path.write_bytes(whole.replace(b"number", b"nummer"))
    with pytest.raises(CCRError, match=r"shard-000001.tar: is not as it was written"):
        verify_shards(folder)
    path.unlink()
    with pytest.raises(CCRError, match=r"shard-000001.tar: cannot be read \(No such file"):
        read_index(folder)
    path.write_bytes(whole)
    verify_shards(folder)
    for damaged, says in (
        (text[:-9], "is damaged"),
        ("[]", "is damaged"),
        (text.replace('"format": 1', '"format": 0'), "of another version"),
        (text.replace("shard-000001.tar", "../x.tar"), r"is damaged \(ValueError"),
        (text.replace("shard-000001.tar", r"\ud800.tar"), "is damaged .*surrogates"),
        (text.replace("shard-000001.tar", r"\u0000.tar"), "is damaged .*null"),
        (text.replace("shard-000001.tar", f"{'n' * 300}.tar"), "cannot be read"),
        (text.replace('"images": 20', '"images": "20"'), "is damaged"),
    ):
        (folder / "shards.json").write_text(damaged)
        with pytest.raises(CCRError, match=says):
            read_index(folder)
    (folder / "shards.json").unlink()
    with pytest.raises(CCRError, match=r"shards.json: there is no such file; write shards with ccr data shards"):
        read_index(folder)


# reading


def test_the_library_reads_what_is_written_and_is_read(tmp_path):
    index = write_shards(Numbered(5), "train", tmp_path / "shards")
    samples = list(webdataset.WebDataset(str(index.shards[0].path), shardshuffle=False))
    assert [json.loads(sample["json"])["image_id"] for sample in samples] == list("01234")
    assert all(sample["png"] == picture(number) for number, sample in enumerate(samples))
    (tmp_path / "theirs").mkdir()
    with webdataset.ShardWriter(str(tmp_path / "theirs" / "%05d.tar"), maxcount=2, verbose=0) as writer:
        for number in range(3):
            fields = {"caption": f"dog {number}", "url": "x"}
            writer.write({"__key__": f"{number:05}", "jpg": picture(number, "JPEG"), "json": fields, "txt": "x"})
    folders = {"test": str(tmp_path / "theirs")}
    found, faults = read(WebDatasetShards(folders, captions_key="caption", text_language="en"))
    assert not faults
    assert [(record.image_id, record.captions) for record in found] == [
        ("test/00000/00000", {"en": ("dog 0",)}),
        ("test/00000/00001", {"en": ("dog 1",)}),
        ("test/00001/00002", {"en": ("dog 2",)}),
    ]
    assert found[2].image == picture(2, "JPEG")
    with_text = WebDatasetShards(folders, text_language="de")
    assert with_text.languages == ("de",)
    assert [record.captions for record in read(with_text)[0]] == 3 * [{"de": ("x",)}]
    with pytest.raises(CCRError, match="give languages, or text_language"):
        _ = WebDatasetShards(folders).languages


def test_faults_of_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(source_module, "MAX_BYTES", 2000)
    good = json.dumps({"captions": {"en": ["A dog.", " "], "fr": "x"}}).encode()
    members = [
        ("./in/good.one.png", b"no ending of ours"), ("./in/good.JPG", b"picture"), ("./in/good.json", good),
        ("2.json", good),
        ("3.jpg", b"a"), ("3.png", b"b"), ("3.json", good),
        ("4.jpg", b"a"), ("4.json", good), ("4.json", good),
        ("5.jpg", bytes(2001)), ("5.json", good),
        ("6.jpg", b"a"), ("6.json", b"[]"),
        ("7.jpg", b"a"), ("7.json", b'{"captions": "A dog."}'),
        ("8.jpg", b"a"), ("8.json", b'{"captions": {"en": 3}}'),
        ("9.jpg", b"a"), ("9.txt", b"A dog."),
        ("10.jpg", b"a"), ("10.json", b'{"captions": {"fr": "x"}}'),
        ("11.jpg", b"a"), ("11.json", b'{"captions": {"en": "x"}, "image_id": true}'),
        ("12.jpg", b"a"), ("12.json", b'{"captions": {"en": "x"}, "image_id": 7}'),
        ("13.jpg", b"a"), ("13.json", b'{"captions": {"en": "x"}, "image_id": "7"}'),
        ("README.md", b"not a sample"), (".hidden.jpg", b""),
    ]  # fmt: skip
    path = tmp_path / "0.tar"
    path.write_bytes(tar_of(members))
    found, faults = read(WebDatasetShards({"test": str(tmp_path)}, ["en", "de"]))
    assert [(record.image_id, record.captions) for record in found] == [
        ("test/0/./in/good", {"en": ("A dog.",)}),
        ("7", {"en": ("x",)}),
    ]
    assert found[0].blank_captions == (f"{path}: ./in/good (en)",)
    expected = [
        "2: has no image", "3: has images in jpg, png", "4: has .json twice", "5: .jpg has more than 0 MB",
        "6: not a JSON object", "7: 'captions' is not by language", "8: a caption in 'en' is 3", "9: has no captions",
        "11: image_id is True", "13: image_id '7' was there before",
    ]  # fmt: skip
    assert len(faults) == len(expected)
    for fault, says in zip(faults, expected, strict=True):
        assert fault.startswith(f"{path}: {says}")


def test_files_that_are_no_shards(tmp_path):
    good = tar_of([("a.jpg", b"a"), ("a.json", b'{"captions": {"en": "x"}}'), ("b.jpg", bytes(3000))])
    source = WebDatasetShards({"test": str(tmp_path)}, ["en"])
    with pytest.raises(CCRError, match=r"there are no shards \(\*.tar\) of split 'test'; check folders"):
        list(source.records("test"))
    with pytest.raises(CCRError, match="shards has no split 'val', only test; add it to folders"):
        list(source.records("val"))
    end = good.index(bytes(1024), good.index(b"b.jpg") + 512 + 2048)
    cut_off = [good[:n] for n in (0, 100, 512, 513, 1024, 2048, 2600, 4000, end)]
    negative = bytearray(good)
    negative[124:136] = b"\xff" * 11 + b"\x00"  # a size of base 256
    correct_sum(negative)
    for bad in (
        *cut_off,
        b"no tar at all" * 100,
        b"\x1f\x8b" + good,
        bytes(negative),
        good[:512] + b"x" + good[513:-9000],
    ):
        (tmp_path / "0.tar").write_bytes(bad)
        with pytest.raises(CCRError, match=r"0.tar: is no tar file, or damaged, or cut off \(.+\); fetch it again"):
            read(source)
    huge = bytearray(tar_of([("a" * 200 + ".jpg", b"a")]))  # a long name has a header of its own
    huge[124:136] = b"77777777777\0"
    correct_sum(huge)
    (tmp_path / "0.tar").write_bytes(huge)
    with pytest.raises(CCRError, match=r"0.tar: is no tar file"):
        read(source)
    with pytest.raises(CCRError, match="got no folders"):
        WebDatasetShards({})


KEYS = st.sampled_from(["a", "b", "x/a", "ü", "a.b", ""]) | st.text(max_size=4)
FIELDS = (PLAUSIBLE | VALUES).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=20)
MEMBERS = st.tuples(KEYS, st.sampled_from(["jpg", "json", "txt", "png", "JSON", ""]), FIELDS).map(
    lambda member: [member]
)
PAIRS = st.tuples(KEYS, FIELDS).map(lambda pair: [(pair[0], "jpg", b"an image"), (pair[0], "json", pair[1])])
SAMPLES = st.lists(MEMBERS | PAIRS, max_size=5).map(lambda groups: list(itertools.chain(*groups)))


def as_tar(samples):
    return tar_of([(f"{key}.{ending}".replace("\0", ""), data) for key, ending, data in samples])


def damage(whole, changes):
    """Change bytes, most of them of headers, and cut the end off."""
    (cut, _), *changes = changes
    changed = bytearray(whole)
    for place, value in changes:
        changed[place % len(changed)] = value
    for begin in range(0, len(changed), 512):
        if any(changed[begin : begin + 512]):  # tarfile looks no further than a wrong sum
            correct_sum(changed, begin)
    return bytes(changed[: len(changed) - cut % 3 * 700])


def correct_sum(tar, begin=0):
    tar[begin + 148 : begin + 156] = b" " * 8
    tar[begin + 148 : begin + 156] = b"%06o\0 " % sum(tar[begin : begin + 512])


CHANGES = st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=6)
TYPES = st.lists(st.tuples(st.just(156), st.sampled_from(b"0123456789xgLKSV")), max_size=1)
SIZES = st.lists(st.tuples(st.integers(124, 135), st.sampled_from(b"\x80\xff07")), max_size=3)
TARS = (
    st.binary(max_size=600)
    | SAMPLES.map(as_tar)
    | st.builds(
        damage, SAMPLES.map(as_tar), st.builds(lambda *parts: list(itertools.chain(*parts)), CHANGES, TYPES, SIZES)
    )
)


@pytest.fixture(scope="module")
def any_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("any")


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=TARS, text_language=st.sampled_from(["en", None]))
def test_any_bytes_give_records_or_the_own_error(any_folder, data, text_language):
    (any_folder / "0.tar").write_bytes(data)
    source = WebDatasetShards({"test": str(any_folder)}, ["en"], text_language=text_language)
    faults = []
    try:
        for record in source.records("test", faults.append):
            assert isinstance(record, ImageCaptions)
            assert all(texts and all(texts) for texts in record.captions.values())
            record.where.encode()
    except CCRError as error:
        faults.append(error)
    for fault in faults:
        assert str(any_folder) in str(fault)
        assert str(fault).endswith(".")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.binary(max_size=40) | st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["format", "shards", "name", "images", "languages", "captions"]), inner),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_index_gives_the_own_error(any_folder, text):
    folder = any_folder / "index"
    folder.mkdir(exist_ok=True)
    (folder / "shards.json").write_bytes(text)
    with pytest.raises(CCRError, match=r"shards.json: .*\.$"):
        list(WebDatasetShards({"test": str(folder)}).records("test"))


# training


@pytest.fixture
def data(write_tiny_jsonl, tmp_path):
    arguments = write_tiny_jsonl(tmp_path / "tiny", train=61, val=6, test=9)

    def make(shard_bytes=600, **settings):
        folder = tmp_path / f"shards-{shard_bytes}"
        write_shards(JsonLines(**arguments), "train", folder, shard_bytes)
        without_train = {split: path for split, path in arguments["files"].items() if split != "train"}
        settings = {
            "source": JsonLines(**{**arguments, "files": without_train}),
            "tokenizer": CaptionTokenizer(vocab_size=200),
            "transform": ImageTransform(16),
            "batch_size": 4,
            "eval_batch_size": 4,
            "train_shards": str(folder),
            "shuffle_buffer": 9,
            "cache_dir": str(tmp_path / "cache"),
            **settings,
        }
        return CaptionDataModule(**settings)

    make.arguments = arguments
    return make


@pytest.fixture
def epoch_of(data):
    """A function that returns the batches of each of some ranks in an epoch."""

    def batches(epoch=0, ranks=1, start=None, **settings):
        found = []
        for rank in range(ranks):
            module = data(**settings)
            module.prepare_data()
            module.setup()
            if ranks == 2:
                module.trainer = one_of_two_ranks(rank)
            loader = module.train_dataloader()
            if start is not None:
                loader.batch_sampler.start = (epoch, start)
            loader.batch_sampler.sampler.set_epoch(epoch)
            found.append(list(loader))
            assert len(loader) == len(found[-1]) + (start or 0)
        return found

    return batches


def rows(batches):
    return [batch.image_ids.tolist() for batch in batches]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_once_and_as_many_steps_on_each_rank(epoch_of, ranks, workers):
    settings = {"ranks": ranks, "num_workers": workers, "languages_per_step": 2}
    found, again, next_epoch = epoch_of(0, **settings), epoch_of(0, **settings), epoch_of(1, **settings)
    processes = ranks * max(1, workers)
    assert {len(batches) for batches in found} == {61 // (4 * processes) * max(1, workers)}
    images = list(itertools.chain(*(itertools.chain(*rows(batches)) for batches in found)))
    assert len(images) == len(set(images)) == 61 // (4 * processes) * processes * 4
    assert set(images) <= set(range(61))
    for one, other in zip(found, again, strict=True):
        for a, b in zip(one, other, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a[:5], b[:5], strict=True))
            assert a.languages == b.languages
    languages = [[batch.languages for batch in batches] for batches in found]
    assert languages[0] == languages[-1]
    assert len(set(languages[0])) > 1
    assert rows(found[0]) != rows(next_epoch[0])
    left_out = [
        set(range(61)) - set(itertools.chain(*(itertools.chain(*rows(b)) for b in e))) for e in (found, next_epoch)
    ]
    assert left_out[0] != left_out[1]
    assert rows(epoch_of(0, seed=1, **settings)[0]) != rows(found[0])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 5, 13])
def test_an_epoch_goes_on_at_any_batch(epoch_of, workers, start):
    settings = {"num_workers": workers, "languages_per_step": 2}
    (whole,), (rest,) = epoch_of(2, **settings), epoch_of(2, start=start, **settings)
    assert len(rest) == len(whole) - start
    for a, b in zip(rest, whole[start:], strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:5], b[:5], strict=True))
        assert a.languages == b.languages


def test_the_samples_are_those_of_the_store(data, epoch_of, tmp_path):
    """The augmentation, the caption and the row of an image: only the order differs."""
    (streamed,) = epoch_of(1)
    module = data(source=JsonLines(**data.arguments), train_shards=None)
    module.prepare_data()
    module.setup()
    loader = module.train_dataloader()
    loader.batch_sampler.set_epoch(1)

    def by_row(batches):
        return {
            row: (batch.images[i].tolist(), batch.input_ids[i][batch.attention_mask[i]].tolist())
            for batch in batches
            for i, row in enumerate(batch.image_ids.tolist())
        }

    one, other = by_row(streamed), by_row(loader)
    assert len(one.keys() & other.keys()) > 55
    assert all(one[row] == other[row] for row in one.keys() & other.keys())


def test_images_are_mixed(epoch_of):
    (batches,) = epoch_of(0, shuffle_buffer=20, shard_bytes=1500)
    shard_of = [row // 12 for batch in rows(batches) for row in batch]
    assert sum(len(set(shard_of[n : n + 4])) > 1 for n in range(0, 60, 4)) > 5
    order = [row for batch in rows(batches) for row in batch]
    neighbours = sum(abs(a - b) == 1 for a, b in itertools.pairwise(order))
    assert neighbours < 15
    unmixed = [row for batch in rows(epoch_of(0, shuffle_buffer=1, shard_bytes=1500)[0]) for row in batch]
    assert sum(b - a == 1 for a, b in itertools.pairwise(unmixed)) > 45


def test_images_without_a_caption_in_the_languages_are_passed_over(tmp_path):
    records = [
        ImageCaptions(str(n), picture(n), {"en": (f"{n}",)} | ({"de": (f"{n}",)} if n % 3 else {}), f"here:{n}")
        for n in range(40)
    ]
    write_shards(Records(*records), "train", tmp_path / "shards", 300)
    module = CaptionDataModule(
        Records(*records), transform=ImageTransform(8), languages=["de"], batch_size=4, num_workers=2,
        train_shards=str(tmp_path / "shards"), cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    module.prepare_data()
    loader = module.train_dataloader()
    assert len(loader) == 26 // 8 * 2
    seen = [row for batch in rows(loader) for row in batch]
    assert len(seen) == len(set(seen)) == 24
    assert all(row % 3 for row in seen)


MOMENTS = [("after batch", 1, 4), ("before batch", 1, 3), ("after epoch", 0, None)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("moment", "epoch", "batch"), MOMENTS)
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(data, tmp_path, moment, epoch, batch, workers):
    settings = {"languages_per_step": 2, "num_workers": workers}
    whole, first, second = Watcher(), Watcher(), Watcher()
    trainer(max_epochs=2).fit(whole, datamodule=data(**settings))
    assert len({str(seen[2:]) for seen in whole.seen}) == len(whole.seen) == 2 * (15 if workers == 0 else 14)
    stop_at = StopAt(moment, epoch, batch, tmp_path / "stop.ckpt")
    with pytest.raises(KeyError, match="stopped"):
        trainer(max_epochs=2, callbacks=[stop_at]).fit(first, datamodule=data(**settings))
    trainer(max_epochs=2).fit(second, datamodule=data(**settings), ckpt_path=tmp_path / "stop.ckpt")
    assert first.seen + second.seen == whole.seen


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_workers": 2}, "1 devices read with 2 workers each, 4 images at a time out of 9"),
        ({"shuffle_buffer": 8}, "4 images at a time out of 8"),
        ({"shard_bytes": 700}, r"shards \w+ in en, de, ja"),
        ({"batch_size": 5}, "5 images at a time"),
        ({"train_shards": None}, "a store"),
    ],
)
def test_a_resume_within_an_epoch_needs_the_same_order(data, tmp_path, settings, says):
    for moment, batch in (("after batch", 3), ("after epoch", None)):
        stop_at = StopAt(moment, 0, batch, tmp_path / f"{moment}.ckpt")
        with pytest.raises(KeyError, match="stopped"):
            trainer(callbacks=[stop_at]).fit(Watcher(), datamodule=data())
    if "train_shards" in settings:
        settings = {**settings, "source": JsonLines(**data.arguments)}
    other = data(**settings)
    expected = (
        rf"within an epoch of shards .* out of 9, and now there would be .*{says}.*; resume as it was, or from the"
    )
    with pytest.raises(CCRError, match=expected):
        trainer().fit(Watcher(), datamodule=other, ckpt_path=tmp_path / "after batch.ckpt")
    watcher = Watcher()
    trainer(max_epochs=2).fit(watcher, datamodule=data(**settings), ckpt_path=tmp_path / "after epoch.ckpt")
    assert {seen[0] for seen in watcher.seen} == {1}


def test_a_run_of_a_store_does_not_go_on_with_shards(data, tmp_path):
    with_store = data(train_shards=None, source=JsonLines(**data.arguments))
    with pytest.raises(KeyError, match="stopped"):
        trainer(callbacks=[StopAt("after batch", 0, 3, tmp_path / "a.ckpt")]).fit(Watcher(), datamodule=with_store)
    with pytest.raises(CCRError, match=r"within an epoch of 61 images of a store in .*, and now there would be shards"):
        trainer().fit(Watcher(), datamodule=data(), ckpt_path=tmp_path / "a.ckpt")


def test_overfitting_repeats_its_batches(data):
    watcher = Watcher()
    trainer(overfit_batches=1, limit_val_batches=0).fit(watcher, datamodule=data())
    assert len(watcher.seen) == 3
    assert len({str(seen[1:]) for seen in watcher.seen}) == 1


def test_only_evaluation_has_stores(data, tmp_path):
    module = data()
    module.prepare_data()
    assert sorted(path.name.split("-")[1] for path in (tmp_path / "cache").iterdir() if path.name[0] != ".") == [
        "test",
        "tokenizer",
        "val",
    ]
    module.setup()
    images, _ = module.val_dataloader()
    assert sum(len(batch.image_ids) for batch in images) == 6
    with pytest.raises(CCRError, match="read without a store"):
        module.image_names("train")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"num_workers": 40},
            r"fewer than the 40 processes that load them \(40 on each of 1 devices\); lower num_workers",
        ),
        ({"batch_size": 62}, "has 61 images, too few for a batch of 62 of each of 1 processes"),
        ({"length_window": 2}, "leave it at 1 with train_shards"),
        ({"shuffle_buffer": 0}, "shuffle_buffer is 0"),
        ({"train_shards": "nowhere"}, "nowhere/shards.json: there is no such file; write shards"),
    ],
)
def test_bad_settings(data, settings, says):
    def load():
        module = data(**settings)
        module.prepare_data()
        module.train_dataloader()

    with pytest.raises(CCRError, match=says):
        load()


def test_a_language_that_the_shards_lack(data, tmp_path):
    write_shards(Numbered(20), "train", tmp_path / "two")
    module = data(train_shards=str(tmp_path / "two"))
    module.prepare_data()
    with pytest.raises(CCRError, match=r"of jsonl has no caption in 'ja': name the others in data\.languages"):
        module.setup("fit")


# commands


@pytest.fixture
def config(write_tiny_jsonl, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["ccr"])
    monkeypatch.setenv("CCR_CACHE_DIR", str(tmp_path / "cache"))
    whole = tiny_config(write_tiny_jsonl(tmp_path / "tiny", train=30), tmp_path / "cache")
    (tmp_path / "a.yaml").write_text(json.dumps(whole))
    return tmp_path / "a.yaml"


def test_commands(config, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["data", "shards", str(config), "--out", str(out), "--split", "train", "--shard_mb", "0.0005"]) == 0
    index = read_index(out / "train")
    line = capsys.readouterr().out
    assert line == f"train: 30 images, 90 captions, 0 MB in {len(index.shards)} shards in {out / 'train'}\n"
    assert len(index.shards) > 4
    assert main(["data", "shards", str(config)]) == 1
    assert "--out" in capsys.readouterr().err

    assert main(["data", "check", str(out / "train")]) == 0
    assert main(["data", "preview", str(out / "train"), "--out", str(tmp_path / "page.html")]) == 0
    source = {
        "class_path": "ccr_lightning.data.sources.webdataset.WebDatasetShards",
        "init_args": {"folders": {"train": str(out / "train")}},
    }
    (tmp_path / "shards.yaml").write_text(json.dumps({"data": {"source": source}}))
    assert main(["data", "build", str(tmp_path / "shards.yaml"), "--cache_dir", str(tmp_path / "stores")]) == 0
    (store,) = (path for path in (tmp_path / "stores").iterdir() if path.is_dir())
    assert open_store(store).image_names == [str(number) for number in range(30)]

    capsys.readouterr()
    arguments = ["fit", "--config", str(config), "--runs_dir", str(tmp_path / "runs")]
    assert main([*arguments, "--data.train_shards", str(out / "train"), "--data.num_workers", "2"]) == 0
    assert (tmp_path / "runs" / "a" / "results.json").exists()
    assert not list((tmp_path / "cache").glob("jsonl-train-*"))


def test_checking_shards_loads_no_torch(tmp_path):
    write_shards(Numbered(5), "train", tmp_path / "shards")
    code = (
        "import sys\nfrom ccr_lightning.cli.main import main\n"
        f"main(['data', 'check', {str(tmp_path / 'shards')!r}])\n"
        "assert not {'torch', 'lightning', 'webdataset'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
