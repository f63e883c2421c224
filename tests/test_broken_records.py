"""``ccr fit`` on data that are broken in every way: it trains on the rest, and ends with the list."""

import json
import struct
import subprocess
import sys
import zlib

import pytest
import torch


def bomb():
    """A PNG of a kilobyte that says it has 3.6 thousand million pixels."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.fixture
def broken(tmp_path, tiny_jsonl, tiny_config):
    """60 images, the first six of which are broken, each in its own way."""
    config = tiny_config(tiny_jsonl(train=60), tmp_path / "cache")
    file, pictures = tmp_path / "tiny" / "train.jsonl", tmp_path / "tiny" / "pictures"
    (pictures / "0.png").write_bytes(b"no picture")
    (pictures / "1.png").unlink()
    (pictures / "2.png").write_bytes(bomb())
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[3] = lines[3][:20]
    for number, captions in ((4, ["  "]), (5, 7)):
        record = json.loads(lines[number])
        record["captions"]["en"] = captions
        lines[number] = json.dumps(record)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "tiny.yaml").write_text(json.dumps(config))
    return file


def fit(folder, *settings):
    command = [sys.executable, "-m", "ccr_lightning.cli.main", "fit", "--config", "tiny.yaml", *settings]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)


def test_the_rest_is_trained_on_and_the_run_ends_with_the_list(broken, tmp_path):
    done = fit(tmp_path, "--data.max_bad_fraction", "0.1")
    assert done.returncode == 0, done.stderr
    last = torch.load(tmp_path / "runs" / "tiny" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2 * (54 // 8)
    *_, heading, _, _, _, _, _, _ = done.stdout.splitlines()
    assert sorted(heading.removeprefix("left out of training: ").split(", ")) == [
        *("1 x blank caption", "1 x missing image", "2 x unreadable image", "2 x unreadable record")
    ]
    for number, line in enumerate(done.stdout.splitlines()[-6:], start=1):
        assert line.startswith(f"  {broken}:{number}: ")
    (listed,) = [path for path in (tmp_path / "cache").glob("*/left_out.jsonl") if path.stat().st_size]
    assert len(listed.read_text().splitlines()) == 6


def test_above_the_threshold_nothing_is_trained(broken, tmp_path):
    done = fit(tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {broken}:1: the image 0 is not a picture that Pillow can open; ")
    assert "one of 6 bad records of 60, more than the 1 % that max_bad_fraction allows" in line
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_pictures_that_vanish_while_training_are_not_missed(broken, tmp_path):
    """They are in the store by then."""
    assert fit(tmp_path, "--data.max_bad_fraction", "0.1", "--name", "first").returncode == 0
    for picture in (tmp_path / "tiny" / "pictures").iterdir():
        picture.unlink()
    assert fit(tmp_path, "--data.max_bad_fraction", "0.1", "--name", "again").returncode == 0
    first, again = (
        torch.load(tmp_path / "runs" / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("first", "again")
    )
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())
