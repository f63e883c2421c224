import os
import pickle
import resource
from pathlib import Path

import pytest

from ccr_lightning.data.sources.jsonl import JsonLines
from ccr_lightning.data.store import build_store, default_cache_dir, open_store
from ccr_lightning.errors import CCRError
from ccr_lightning.types import ImageCaptions


@pytest.fixture
def built(tiny_jsonl, tmp_path):
    source = JsonLines(**tiny_jsonl(train=5))
    build_store(source, "train", tmp_path / "cache" / "store")
    return source, tmp_path / "cache" / "store"


class OneImage:
    """A source that does something between its first record and its end."""

    name, languages, parallel = "one", ("en",), True

    def __init__(self, image, then=lambda: None):
        self.image, self.then = image, then

    def fingerprint(self, split):
        return "0"

    def records(self, split):
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
    assert store.manifest["fingerprint"] == source.fingerprint("train")
    assert [path.name for path in folder.parent.iterdir()] == ["store"]


def test_missing_captions_are_absent_languages(tmp_path, tiny_jsonl):
    path = Path(tiny_jsonl(train=1)["image_root"]) / "pictures" / "0.png"

    class Uneven(OneImage):
        def records(self, split):
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
        def records(self, split):
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
    before = (folder / "data.arrow").stat().st_mtime_ns
    build_store(OneImage(b"never read"), "train", folder)
    assert (folder / "data.arrow").stat().st_mtime_ns == before


def test_the_faster_of_two_builders_wins(built, tmp_path):
    source, folder = built
    picture = next(source.records("train")).image
    slow = OneImage(picture, then=lambda: os.rename(folder, tmp_path / "cache" / "slow"))
    build_store(slow, "train", tmp_path / "cache" / "slow")
    assert len(open_store(tmp_path / "cache" / "slow")) == 5  # the one that was there first, not the slow one's
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["slow"]


@pytest.mark.parametrize("image", [b"", b"no picture", Path("/nowhere/a.jpg")])
def test_a_failed_build_leaves_nothing(tmp_path, image):
    with pytest.raises(CCRError, match="here:1: "):
        build_store(OneImage(image), "train", tmp_path / "cache" / "store")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_that_the_source_cannot_read_is_not_blamed_on_the_store(built, tmp_path):
    source, folder = built

    def fail():
        raise OSError(5, "Input/output error", "captions.csv")

    picture = next(source.records("train")).image
    with pytest.raises(
        CCRError, match=r"^the split 'train' of one cannot be read \(.*captions.csv'\); check its files"
    ):
        build_store(OneImage(picture, then=fail), "train", folder.parent / "again")
    assert [path.name for path in folder.parent.iterdir()] == ["store"]


@pytest.mark.parametrize("full_at", [100, 1500])
def test_a_full_disk(built, tmp_path, full_at):
    source, folder = built
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (full_at, hard))  # writing fails as it does on a full disk
    try:
        with pytest.raises(CCRError, match=r"the store .*again cannot be written \(.+\); free some space") as error:
            build_store(source, "train", folder.parent / "again")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(error.value.__cause__, OSError)
    assert [path.name for path in folder.parent.iterdir()] == ["store"]


def test_a_folder_in_the_way(built, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes").write_text("mine")
    with pytest.raises(CCRError, match=r"taken cannot be written .* choose another cache_dir"):
        build_store(built[0], "train", tmp_path / "taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["notes"]


def test_a_split_without_images(tmp_path):
    class Empty(OneImage):
        def records(self, split):
            return iter(())

    with pytest.raises(CCRError, match="the split 'val' of one has no images"):
        build_store(Empty(b""), "val", tmp_path / "store")


def test_damaged_stores(built, tmp_path):
    _, folder = built
    with pytest.raises(CCRError, match="there is no store"):
        open_store(tmp_path / "nothing")
    arrow = folder / "data.arrow"
    content = arrow.read_bytes()
    for damaged in (content[: len(content) // 2], b""):
        arrow.write_bytes(damaged)
        with pytest.raises(CCRError, match="delete the folder"):
            open_store(folder)
    arrow.write_bytes(content)
    (folder / "manifest.json").write_text('{"format": 0}')
    with pytest.raises(CCRError, match="of another version"):
        open_store(folder)


def test_a_worker_maps_the_file(built):
    store = open_store(built[1])
    pickled = pickle.dumps(store)
    assert len(pickled) < 500
    assert pickle.loads(pickled).image(3) == store.image(3)


def test_cache_dir(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CCR_CACHE_DIR", str(tmp_path / "chosen"))
    assert default_cache_dir() == tmp_path / "chosen"
    monkeypatch.setenv("CCR_CACHE_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(CCRError, match="cannot be written"):
        default_cache_dir()
    monkeypatch.delenv("CCR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "ccr-lightning"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_dir() == tmp_path / "home" / ".cache" / "ccr-lightning"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.warns(UserWarning, match="set CCR_CACHE_DIR"):
        assert default_cache_dir().parent == tmp_path
