"""A little of tests/fuzz.py, which damages files of all kinds; and that it would notice an escape."""

import json
import random
import sys
import time
from importlib import metadata

import fuzz as fuzzing
import pytest
from fuzz import fuzz
from fuzz_targets import Target, targets
from mutating import mutated

from ccr_lightning.errors import CCRError

INPUTS = 60  # of each target
SLOW = ("checkpoint", "file of torch", "settings of a model")  # to read


@pytest.fixture(scope="module")
def made(tmp_path_factory, trained_run):
    return targets(tmp_path_factory.mktemp("fuzz") / "home", trained_run)


def test_what_is_damaged_is_read_or_refused(made):
    assert len(made) == 39
    for name, target in made.items():
        found = fuzz(target, INPUTS // 6 if name.startswith(SLOW) else INPUTS, f"test {name}")
        assert found.escapes == [], name
        assert found.refused, name


def test_the_good_files_are_read(made):
    """Else all would be refused, whatever the damage."""
    for target in made.values():
        target.read()


def test_an_escape_is_found(tmp_path):
    file = tmp_path / "numbers.txt"
    file.write_text("12\n5\n7\n")

    def read():
        text = file.read_bytes()
        if b"\0" in text or len(text) > 1000 or not text.isascii():
            raise CCRError("numbers.txt: these are no numbers.")
        return sum(int(line) for line in text.split())

    found = fuzz(Target([file], read), 200, "planted")
    assert found.refused
    assert {traceback.splitlines()[-1].partition(":")[0] for _, _, traceback in found.escapes} == {"ValueError"}
    name, content, _ = found.escapes[0]
    assert name == "numbers.txt"
    with pytest.raises(ValueError, match="invalid literal"):
        sum(int(line) for line in content.split())
    assert file.read_text() == "12\n5\n7\n"


def test_what_is_slow_escapes(tmp_path, monkeypatch):
    """A reader takes all OSErrors, TimeoutError among them, for faults of the file; another one anything at all."""
    monkeypatch.setattr(fuzzing, "SECONDS", 0.2)
    file = tmp_path / "file"
    file.write_text("12")

    def hides(faults):
        def read():
            try:
                time.sleep(0.3)
            except faults as error:
                raise CCRError("file: it cannot be read.") from error

        return fuzz(Target([file], read), 1, "slow")

    said = [hides(faults) for faults in (OSError, Exception, BaseException)]
    assert [(of.read, of.refused, len(of.escapes)) for of in said] == [(0, 0, 1)] * 3
    assert all("TooSlow: not read within 0.2 s" in of.escapes[0][2] for of in said[:2])
    assert said[2].escapes[0][2].startswith("refused in 0.")
    within = fuzz(Target([file], lambda: time.sleep(0.01)), 3, "slow")
    assert (within.read, within.escapes) == (3, [])
    time.sleep(0.3)  # no alarm is left


def test_much_memory_escapes(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzzing, "MEMORY", 200_000_000)
    file = tmp_path / "file"
    file.write_text("12")
    found = fuzz(Target([file], lambda: b"x" * 300_000_000), 2, "large")
    assert [said for _, _, said in found.escapes] == ["read with 300 MB"] * 2
    assert fuzz(Target([file], lambda: b"x" * 100_000_000), 2, "large").read == 2


def test_counts_are_written(tmp_path, monkeypatch, capsys):
    file = tmp_path / "file"
    file.write_bytes(bytes(1000))

    def read():
        content = file.read_bytes()
        if len(content) < 1000:
            raise CCRError("file: it is short.")
        if len(content) > 1000:
            raise ValueError

    planted = {"fair": Target([file], lambda: None), "unfair": Target([file], read)}
    monkeypatch.setattr(fuzzing, "train", lambda _: None)
    monkeypatch.setattr(fuzzing, "targets", lambda *_: planted)
    output, folder = tmp_path / "counts.json", tmp_path / "escaped"
    arguments = ["--inputs", "100", "--seed", "7", "--output", str(output), "--folder", str(folder)]
    monkeypatch.setattr(sys, "argv", ["fuzz.py", *arguments])
    assert fuzzing.run() == 1
    document = json.loads(output.read_text())
    fair, unfair = document["targets"].values()
    assert fair == {"inputs": 50, "read": 50, "refused": 0, "escapes": 0}
    assert unfair["read"] + unfair["refused"] + unfair["escapes"] == unfair["inputs"] == 50
    assert document["escapes"] == unfair["escapes"] > 0 < unfair["refused"]
    assert (document["inputs"], document["seed"], document["versions"]["torch"]) == (
        100,
        "7",
        metadata.version("torch"),
    )
    assert len(list(folder.glob("*.txt"))) == min(20, unfair["escapes"])
    assert "100 inputs, " in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["fuzz.py", *arguments, "--only", "fair"])
    assert fuzzing.run() == 0


def test_damage_is_a_function_of_the_seed():
    content = b'{"a": [1, {"b": "c"}]}'
    one, other = ([mutated(content, random.Random(f"{seed} {number}")) for number in range(50)] for seed in (1, 1))
    assert one == other
    assert len(set(one)) > 40
