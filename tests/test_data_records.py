"""The stream of records and faults, and what faults look like wherever they are shown."""

import tracemalloc
from pathlib import Path

import pytest

from ccr_lightning.data import records
from ccr_lightning.data.faults import RecordFault, stop
from ccr_lightning.data.records import read_records
from ccr_lightning.data.sources.pretrain_jsonl import PretrainJsonLines
from ccr_lightning.errors import CCRError
from ccr_lightning.types import ImageCaptions


class Listed:
    """Records and faults in the order of a list."""

    name, languages, parallel, splits = "listed", ("en",), True, ("train",)

    def __init__(self, *found):
        self.found = found

    def fingerprint(self, split):
        return "0"

    def records(self, split, report=stop):
        for one in self.found:
            if isinstance(one, RecordFault):
                report(one)
            else:
                yield one


def test_faults_keep_their_places():
    record, fault = ImageCaptions("a", b"", {}, "a:1"), RecordFault("a:2: broken.")
    for found in ([fault, record], [record, fault], [fault, fault, record, fault, record, record, fault]):
        assert list(read_records(Listed(*found), "train")) == found


def test_nothing_but_bad_records(monkeypatch):
    monkeypatch.setattr(records, "_IN_A_ROW", 50)
    faults = [RecordFault(f"a:{number}: broken.") for number in range(60)]
    record = ImageCaptions("a", b"", {}, "a")
    with pytest.raises(CCRError, match=r"^a:0: broken \(so are 49 records after it in a row\)\.$"):
        list(read_records(Listed(*faults), "train"))
    assert len(list(read_records(Listed(*faults[:50], record, *faults[:50]), "train"))) == 101


def test_faults_do_not_hold_their_lines(tmp_path):
    line = '{"caption": {"en": "x"}, "image": "' + "é" * 500_000 + '"}\n'
    (tmp_path / "a.data").write_text(line * 40)
    tracemalloc.start()
    try:
        found = list(read_records(PretrainJsonLines({"train": str(tmp_path)}, languages=["en"]), "train"))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == 40
    assert held < 2_000_000


def test_faults_are_one_line_that_can_be_written():
    path = Path("x\x1b[31m") / "b\n\udcff.jpg"
    fault = RecordFault(f"a:1: the image {path} is odd.")
    assert str(fault) == "a:1: the image x\\x1b[31m/b\\n\\udcff.jpg is odd."
    assert "ü 図 é" in str(RecordFault("ü 図 é"))
