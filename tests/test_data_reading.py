"""Files of captions that are large, packed or broken in ways that all sources share."""

import gzip

import pytest

from ccr_lightning.data.faults import RecordFault
from ccr_lightning.data.sources import reading
from ccr_lightning.data.sources.reading import find_file, image_from_base64, read_lines
from ccr_lightning.errors import CCRError


def test_a_line_that_is_not_utf8_is_a_fault_of_its_own(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\ntw\xff\nthree")
    first, second, third = read_lines(tmp_path / "a.txt")
    assert (first.text, third.text) == ("one", "three")
    with pytest.raises(RecordFault, match=r"a\.txt:2: not UTF-8 \(invalid start byte\)"):
        second.text  # noqa: B018


def test_a_gzip_bomb(tmp_path):
    with gzip.open(tmp_path / "bomb.gz", "wb") as file:
        for _ in range(80):
            file.write(bytes(2**20 - 1) + b"\n")
    assert (tmp_path / "bomb.gz").stat().st_size < 200_000
    with pytest.raises(CCRError, match=r"bomb\.gz:\d+: expands to more than 200 times its size"):
        for _ in read_lines(tmp_path / "bomb.gz"):
            pass


def test_captions_that_repeat_are_no_bomb(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"a dog\n" * 100_000))
    assert sum(1 for _ in read_lines(tmp_path / "a.gz")) == 100_000


def test_a_line_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 2_000_000)
    (tmp_path / "zeros").write_bytes(b"short\n" + bytes(2_000_001))
    lines = read_lines(tmp_path / "zeros")
    assert next(lines).text == "short"
    with pytest.raises(CCRError, match=r"zeros:2: longer than 2 MB; this is no file of captions"):
        next(lines)


def test_a_file_that_is_still_zipped(tmp_path):
    (tmp_path / "train_en.jsonl.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(CCRError, match=r"train_en\.jsonl: there is only train_en\.jsonl\.zip; unzip it first"):
        find_file(tmp_path / "train_en.jsonl", "get it")


@pytest.mark.parametrize("text", ["YQ", "Y Q==", "ü", "a" * 5, None, 3])
def test_what_is_no_base64(text):
    with pytest.raises(RecordFault, match=r"^x:1: the image is not valid base64") as fault:
        image_from_base64(text, "x:1")
    assert fault.value.kind == "unreadable image"
