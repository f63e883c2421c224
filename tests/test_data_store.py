import hashlib
import io
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from PIL import Image

from ccr_lightning.data import build
from ccr_lightning.data.build import build_store
from ccr_lightning.data.check import StoreSource
from ccr_lightning.data.faults import RecordFault, stop
from ccr_lightning.data.sources.jsonl import JsonLines
from ccr_lightning.data.store import Store, open_store, store_folder, verify_store
from ccr_lightning.errors import CCRError
from ccr_lightning.types import ImageCaptions, MachineTranslation


@pytest.fixture
def built(tiny_jsonl, tmp_path):
    source = JsonLines(**tiny_jsonl(train=5))
    build_store(source, "train", tmp_path / "cache" / "store")
    return source, tmp_path / "cache" / "store"


def visible(folder):
    """Names in a folder, without the locks that are left in it."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def counts(manifest):
    return tuple(manifest[name] for name in ("records", "images", "bad_records", "blank_captions"))


class OneImage:
    """A source that does something between its first record and its end."""

    name, languages, parallel, splits = "one", ("en",), True, ("train", "val", "test")

    def __init__(self, image, then=lambda: None):
        self.image, self.then = image, then

    def fingerprint(self, split):
        return "0"

    def records(self, split, report=stop):
        yield ImageCaptions("a", self.image, {"en": ("A dog.",)}, "here:1")
        self.then()


def test_round_trip(built):
    source, folder = built
    store = open_store(folder)
    records = list(source.records("train"))
    assert len(store) == len(records) == 5
    assert store.image_names == [record.image_id for record in records]
    for row, record in enumerate(records):
        assert store.image(row) == Path(record.image).read_bytes()
        assert store.captions(row) == {language: list(texts) for language, texts in record.captions.items()}
        assert store.where(row) == record.where
    assert store.caption_counts() == {"en": 5, "de": 5, "ja": 5}
    assert store.text_lengths().tolist() == [
        sum(len(text.encode()) for texts in record.captions.values() for text in texts) // 3 for record in records
    ]
    manifest = store.manifest
    assert (manifest["source"], manifest["split"], manifest["fingerprint"]) == (
        "jsonl",
        "train",
        source.fingerprint("train"),
    )
    assert (manifest["records"], manifest["images"], manifest["bad_records"], manifest["blank_captions"]) == (
        5,
        5,
        0,
        0,
    )
    (file,) = manifest["files"]
    content = (folder / file["name"]).read_bytes()
    assert (file["rows"], file["bytes"], file["sha256"]) == (5, len(content), hashlib.sha256(content).hexdigest())
    assert visible(folder.parent) == ["store"]
    assert visible(folder) == ["data-00000.arrow", "left_out.jsonl", "manifest.json"]


def test_missing_captions_are_absent_languages(tmp_path, tiny_jsonl):
    path = Path(tiny_jsonl(train=1)["image_root"]) / "pictures" / "0.png"

    class Uneven(OneImage):
        def records(self, split, report=stop):
            yield ImageCaptions("a", path, {"en": ("A.", "B.")}, "here:1")
            yield ImageCaptions("b", path, {"zh": ("图",), "cs": ("ú\u2028",)}, "here:2")

    build_store(Uneven(path), "test", tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert [store.captions(0), store.captions(1)] == [{"en": ["A.", "B."]}, {"zh": ["图"], "cs": ["ú\u2028"]}]
    assert store.caption_counts() == {"en": 2, "zh": 1, "cs": 1}
    assert store.rows_with_caption(["cs", "de"]).tolist() == [1]
    assert store.rows_with_caption(["zh", "cs", "en"]).tolist() == [0, 1]
    assert store.rows_with_caption(["de"]).tolist() == []


def test_rows_with_a_caption_are_numbered_through_the_file(tmp_path, tiny_jsonl):
    path = Path(tiny_jsonl(train=1)["image_root"]) / "pictures" / "0.png"
    counts = [number % 3 for number in range(250)]  # more rows than the file has in one piece

    class Many(OneImage):
        def records(self, split, report=stop):
            for number, count in enumerate(counts):
                captions = {language: ("A.", "B.") for language in ("en", "de", "ja")[: count + 1]}
                yield ImageCaptions(str(number), path, captions, f"here:{number}")

    build_store(Many(path), "train", tmp_path / "store")
    store = open_store(tmp_path / "store")
    for language, least in (("en", 0), ("de", 1), ("ja", 2)):
        expected = [number for number, count in enumerate(counts) if count >= least]
        assert store.rows_with_caption([language]).tolist() == expected


def test_it_is_built_once(built):
    _, folder = built
    before = (folder / "data-00000.arrow").stat().st_mtime_ns
    build_store(OneImage(b"never read"), "train", folder)
    assert (folder / "data-00000.arrow").stat().st_mtime_ns == before


def test_one_of_two_builders_waits_for_the_other(built, tmp_path, capsys):
    source, _ = built
    picture = next(source.records("train")).image
    folder = tmp_path / "cache" / "both"
    second = threading.Thread(target=build_store, args=(OneImage(b"never read"), "train", folder))

    def start_second():
        second.start()
        while "another process prepares both: waiting for it" not in capsys.readouterr().err:
            time.sleep(0.01)

    build_store(OneImage(picture, then=start_second), "train", folder)
    second.join(timeout=30)
    assert not second.is_alive()
    assert open_store(folder).image_names == ["a"]
    assert visible(folder.parent) == ["both", "store"]


@pytest.mark.parametrize("image", [b"", b"no picture", Path("/nowhere/a.jpg")])
def test_a_failed_build_leaves_nothing(tmp_path, image):
    with pytest.raises(CCRError, match="here:1: "):
        build_store(OneImage(image), "train", tmp_path / "cache" / "store")
    assert visible(tmp_path / "cache") == []


def test_a_file_that_the_source_cannot_read_is_not_blamed_on_the_store(built, tmp_path):
    source, folder = built

    def fail():
        raise OSError(5, "Input/output error", "captions.csv")

    picture = next(source.records("train")).image
    with pytest.raises(
        CCRError, match=r"^the split 'train' of one cannot be read \(.*captions.csv'\); check its files"
    ):
        build_store(OneImage(picture, then=fail), "train", folder.parent / "again")
    assert visible(folder.parent) == ["store"]


@pytest.mark.parametrize("full_at", [100, 1500])
def test_a_full_disk(built, tmp_path, full_at):
    source, folder = built
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (full_at, hard))  # writing fails as it does on a full disk
    try:
        with pytest.raises(CCRError, match=r"again.* (cannot|could not) be written \(.+\); free some space") as error:
            build_store(source, "train", folder.parent / "again")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(error.value.__cause__, OSError)
    assert visible(folder.parent) == ["store"]


def test_a_folder_in_the_way(built, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes").write_text("mine")
    with pytest.raises(CCRError, match=r"taken has something else in it; move that away, or choose another cache_dir"):
        build_store(built[0], "train", tmp_path / "taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["notes"]


def test_a_split_without_images(tmp_path):
    class Empty(OneImage):
        def records(self, split, report=stop):
            return iter(())

    with pytest.raises(CCRError, match="the split 'val' of one has no images"):
        build_store(Empty(b""), "val", tmp_path / "store")


def test_damaged_stores(built, tmp_path):
    _, folder = built
    with pytest.raises(CCRError, match="there is no store"):
        open_store(tmp_path / "nothing")
    arrow = folder / "data-00000.arrow"
    content = arrow.read_bytes()
    for damaged in (content[: len(content) // 2], b""):
        arrow.write_bytes(damaged)
        with pytest.raises(CCRError, match=r"damaged \(data-00000.arrow has \d+ bytes instead of .*delete the folder"):
            open_store(folder)
    changed = content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]
    arrow.write_bytes(changed)
    with pytest.raises(CCRError, match=r"data-00000.arrow: is not as it was written; delete the store's folder"):
        verify_store(folder)
    arrow.write_bytes(content)
    verify_store(folder)
    manifest = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(manifest.replace('"images": 5', '"images": 6'))
    with pytest.raises(CCRError, match=r"damaged \(5 rows instead of 6\)"):
        open_store(folder)
    for text, message in (('{"format": 1}', "of another version"), ("{", "is damaged")):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(CCRError, match=message):
            open_store(folder)


@pytest.mark.parametrize("missing", ["files", "source", "captions", "bad_records", "records"])
def test_a_manifest_that_lacks_something(built, missing):
    source, folder = built
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest[missing]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for use in (open_store, verify_store, lambda folder: build_store(source, "train", folder)):
        with pytest.raises(CCRError, match=rf"is damaged \('{missing}'\); delete the folder"):
            use(folder)


def test_a_store_of_more_files_than_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "FILE_BYTES", 1)
    build_store(Numbered(120), "train", tmp_path / "store")
    _, hard = before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def leave(count):
        """Let so many files be opened beside those that are open."""
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + count, hard))

    leave(60)
    try:
        assert len(open_store(tmp_path / "store")) == 120
        leave(60)
        monkeypatch.setattr("ccr_lightning.data.store._allow_open_files", lambda count: None)
        with pytest.raises(CCRError, match=r"cannot be opened \(.*Too many open files.*\); see to that"):
            open_store(tmp_path / "store")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("name", ["../escaped", "a/b", "a\0b", "a\nb"])
def test_a_name_stays_in_the_cache(tmp_path, name):
    source = Numbered(3)
    source.name = name
    with pytest.raises(CCRError, match="is no name for a file"):
        store_folder(source, "train", tmp_path)


def test_a_worker_maps_the_file(built):
    store = open_store(built[1])
    pickled = pickle.dumps(store)
    assert len(pickled) < 500
    assert pickle.loads(pickled).image(3) == store.image(3)


class Numbered:
    """Pictures and faults by turns, as many as asked for, with a pause before each."""

    name, languages, parallel, splits = "numbered", ("en", "de"), True, ("train",)

    def __init__(self, count, bad=(), pause=0.0):
        self.count, self.bad, self.pause = count, set(bad), pause

    def fingerprint(self, split):
        return str(self.count)

    def records(self, split, report=stop):
        for number in range(self.count):
            time.sleep(self.pause)
            where = f"here:{number}"
            if number in self.bad:
                report(RecordFault(f"{where}: broken; mend it."))
                continue
            picture = io.BytesIO()
            Image.new("RGB", (4, 4), (number % 256, 0, 0)).save(picture, "PNG")
            blank = (f"{where} (de)",) if number % 5 == 0 else ()
            captions = {"en": (f"number {number}",)} | ({} if blank else {"de": (f"Nummer {number}",)})
            yield ImageCaptions(str(number), picture.getvalue(), captions, where, blank)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_store_of_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "FILE_BYTES", 400)
    build_store(Numbered(50, bad=[3, 20, 49]), "train", tmp_path / "store", "skip", 0.1)
    store = open_store(tmp_path / "store")
    names = [number for number in range(50) if number not in (3, 20, 49)]
    assert store.image_names == list(map(str, names))
    assert [store.captions(row)["en"] for row in range(47)] == [[f"number {number}"] for number in names]
    for row in (0, 23, 46):
        assert Image.open(io.BytesIO(store.image(row))).getpixel((0, 0)) == (names[row], 0, 0)
    assert len(store.manifest["files"]) > 5
    assert sum(file["rows"] for file in store.manifest["files"]) == len(store) == 47
    assert store.caption_counts() == {"en": 47, "de": 38}
    assert store.rows_with_caption(["de"]).tolist() == [row for row, number in enumerate(names) if number % 5]
    assert store.rows_with_caption(["de", "en"]).tolist() == list(range(47))
    verify_store(tmp_path / "store")


def test_memory_that_was_read_is_released(tmp_path, monkeypatch):
    """The images are those of before when they are read again."""

    def resident():
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("RssFile")).split()[1])

    class Large(Numbered):
        def records(self, split, report=stop):
            for number in range(8):
                buffer = io.BytesIO()
                Image.new("RGB", (1200, 1000), (number, 0, 0)).save(buffer, "BMP")
                yield ImageCaptions(str(number), buffer.getvalue(), {"en": ("x",)}, "here")

    build_store(Large(8), "train", tmp_path / "store")
    grown = {}
    for between in (100, 2):
        monkeypatch.setattr("ccr_lightning.data.store._READS_BETWEEN_RELEASES", between)
        store, before = open_store(tmp_path / "store"), resident()
        for row in [*range(8), *range(8)]:
            assert Image.open(io.BytesIO(store.image(row))).getpixel((0, 0)) == (row, 0, 0)
        grown[between] = resident() - before
    assert grown[2] < 12_000 < 24_000 < grown[100]  # kB, of 8 images of 3,600


def test_what_was_left_out_is_counted_and_listed(tmp_path, capsys):
    build_store(Numbered(20, bad=[3]), "train", tmp_path / "store", "skip", 0.05)
    assert capsys.readouterr().err == (
        f"left out of numbered/train: 1 of 20 records, 4 blank captions; see {tmp_path / 'store' / 'left_out.jsonl'}\n"
    )
    manifest = open_store(tmp_path / "store").manifest
    assert (manifest["records"], manifest["images"], manifest["bad_records"], manifest["blank_captions"]) == (
        20,
        19,
        1,
        4,
    )
    listed = [json.loads(line) for line in (tmp_path / "store" / "left_out.jsonl").read_text().splitlines()]
    assert [(entry["left_out"], entry["kind"]) for entry in listed] == [
        ("caption", "blank caption"),
        ("record", "unreadable record"),
        *[("caption", "blank caption")] * 3,
    ]
    assert [entry["message"] for entry in listed] == [
        "here:0 (de): the caption is blank.",
        "here:3: broken; mend it.",
        *(f"here:{number} (de): the caption is blank." for number in (5, 10, 15)),
    ]


def test_too_many_bad_records(tmp_path):
    with pytest.raises(CCRError, match=r"^here:3: broken; mend it \(one of 2 bad records of 20, more than the 5 %"):
        build_store(Numbered(20, bad=[3, 8]), "train", tmp_path / "store", "skip", 0.05)
    assert visible(tmp_path) == []
    with pytest.raises(CCRError, match=r"^here:3: broken; mend it"):
        build_store(Numbered(20, bad=[3]), "train", tmp_path / "store", "error")
    build_store(Numbered(20, bad=[3]), "train", tmp_path / "store", "skip", 0.05)
    with pytest.raises(CCRError, match=r"was built without 1 bad records \(the first: here:3: broken; mend"):
        build_store(Numbered(20, bad=[3]), "train", tmp_path / "store", "error")
    with pytest.raises(CCRError, match=r"one of 1 bad records of 20, more than the 4 % that"):
        build_store(Numbered(20, bad=[3]), "train", tmp_path / "store", "skip", 0.04)


def test_many_bad_records_end_a_build_early(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "FILE_BYTES", 400)
    monkeypatch.setattr(build, "EARLIEST_STOP", 100)

    def fail():
        raise AssertionError("read to the end")

    class Endless(Numbered):
        def records(self, split, report=stop):
            yield from super().records(split, report)
            fail()

    with pytest.raises(CCRError, match="bad records"):
        build_store(Endless(500, bad=range(0, 500, 2)), "train", tmp_path / "store", "skip", 0.01)
    assert visible(tmp_path) == []


BUILD = """
import sys
from ccr_lightning.data import build
from tests.test_data_store import Numbered
build.FILE_BYTES = 400
pause, folder = float(sys.argv[1]), sys.argv[2]
build.build_store(Numbered(120, bad=range(3, 120, 40), pause=pause), "train", folder, "skip", 0.1)
"""


def start_build(folder, pause):
    arguments = [sys.executable, "-c", BUILD, str(pause), str(folder)]
    return subprocess.Popen(arguments, cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL)


def test_a_killed_build_goes_on_to_the_same_store(tmp_path):
    assert start_build(tmp_path / "whole", pause=0).wait(timeout=60) == 0
    partial = tmp_path / ".killed.partial"
    for finished in (2, 5):  # killed twice, each time in the middle of a file
        process = start_build(tmp_path / "killed", pause=0.02)
        while len(list(partial.glob("data-*.json"))) < finished:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed").exists()
    untouched = (partial / "data-00000.arrow").stat().st_mtime_ns
    assert start_build(tmp_path / "killed", pause=0).wait(timeout=60) == 0
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert (tmp_path / "killed" / "data-00000.arrow").stat().st_mtime_ns == untouched
    assert not partial.exists()


@pytest.mark.parametrize("change", ["fingerprint", "policy"])
def test_remains_of_another_build_are_not_used(tmp_path, monkeypatch, change):
    monkeypatch.setattr(build, "FILE_BYTES", 400)

    class Interrupted(Numbered):
        def records(self, split, report=stop):
            yield from super().records(split, report)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_store(Interrupted(40, bad=[0]), "train", tmp_path / "store", "skip", 0.1)
    assert visible(tmp_path) == [".store.partial"]
    new = Numbered(41) if change == "fingerprint" else Numbered(40)
    build_store(new, "train", tmp_path / "store", "skip" if change == "fingerprint" else "error")
    assert len(open_store(tmp_path / "store")) == new.count
    assert visible(tmp_path) == ["store"]


def test_bad_records_alone_end_a_build_early(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "FILE_RECORDS", 1000)
    read = []

    class Missing(Numbered):
        def records(self, split, report=stop):
            for number in range(50_000):
                read.append(number)
                yield ImageCaptions(str(number), Path("/nowhere.png"), {"en": ("x",)}, f"here:{number}")

    with pytest.raises(CCRError, match=r"^here:0: .*one of 1000 bad records of 1000"):
        build_store(Missing(1), "train", tmp_path / "store", "skip", 0.01)
    assert len(read) < 1100
    assert visible(tmp_path) == []


@pytest.mark.parametrize("fraction", [float("nan"), -0.1, 5])
def test_a_fraction_that_is_none(tmp_path, fraction):
    with pytest.raises(CCRError, match="give a share from 0 to 1"):
        build_store(Numbered(20, bad=range(10)), "train", tmp_path / "store", "skip", fraction)


def test_machine_translations_are_known_in_a_store(tmp_path):
    german = MachineTranslation("ein Hund", "m2m", "2026-11-25")

    class Translated(Numbered):
        def records(self, split, report=stop):
            for record in super().records(split, report):
                yield ImageCaptions(record.image_id, record.image, {"en": ("a dog",), "de": ("Hund", german)}, "here")

    build_store(Translated(3), "train", tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert store.captions(1) == {"en": ["a dog"], "de": ["Hund", "ein Hund"]}
    (_, record, _) = StoreSource(store).records("train")
    human, translated = record.captions["de"]
    assert type(human) is str
    assert (translated, translated.translated_by, translated.translated_on) == ("ein Hund", "m2m", "2026-11-25")


def test_what_a_store_was_built_without_is_found_in_it(tmp_path):
    build_store(Numbered(20, bad=[3]), "train", tmp_path / "store", "skip", 0.05)
    faults = []
    assert len(list(StoreSource(open_store(tmp_path / "store")).records("train", faults.append))) == 19
    assert [(fault.kind, str(fault)) for fault in faults] == [("unreadable record", "here:3: broken; mend it.")]
    (tmp_path / "store" / "left_out.jsonl").unlink()
    with pytest.raises(CCRError, match=r"is damaged \(left_out.jsonl: "):
        build_store(Numbered(20, bad=[3]), "train", tmp_path / "store", "skip", 0.05)


@pytest.mark.parametrize("damage", ["truncated", "changed", "gone"])
def test_a_finished_file_that_is_not_as_it_was_is_written_again(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(build, "FILE_BYTES", 400)
    build_store(Numbered(60), "train", tmp_path / "whole")

    class Interrupted(Numbered):
        def records(self, split, report=stop):
            yield from super().records(split, report)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_store(Interrupted(60), "train", tmp_path / "store")
    partial = tmp_path / ".store.partial"
    (partial / ".data-00000.arrow.json.4242").write_text("what a kill leaves")
    file = partial / "data-00001.arrow"
    whole = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(whole[:100] if damage == "truncated" else whole[:-9] + b"x" + whole[-8:])
    build_store(Numbered(60), "train", tmp_path / "store")
    assert content(tmp_path / "store") == content(tmp_path / "whole")


def test_the_library_of_data_sets_opens_the_files(built):
    data = datasets.Dataset.from_file(str(built[1] / "data-00000.arrow"))
    assert data[3]["captions"] == [{"language": "en", "texts": ["a yellow circle number 3"]}, *data[3]["captions"][1:]]
    assert data.features["image"].dtype == "binary"


def test_the_digest_of_many_records_takes_little_memory():
    names = ("image_id", "image", "captions", "translations", "text_length", "sha256", "where")
    chunks, expected = [], hashlib.sha256()
    for number in range(1000):
        digests = [hashlib.sha256(b"%d" % (100 * number + row)).hexdigest() for row in range(100)]
        chunks.append(pa.array(digests))
        for digest in digests:
            expected.update(digest.encode())
    store = Store(Path(), {}, pa.table(dict.fromkeys(names, pa.chunked_array(chunks))), [])
    tracemalloc.start()
    try:
        found = store.records_sha256()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == expected.hexdigest()
    assert peak < 500_000  # of 6.4 MB of digests
