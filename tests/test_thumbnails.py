"""Pictures in the terminal, in real pseudo-terminals that can show images or cannot."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest
from PIL import Image
from tiny_models import save_tiny

from ccr_lightning.cli.thumbnails import can_show

COMMAND = [sys.executable, "-m", "ccr_lightning.cli.main"]
SEARCH = [*COMMAND, "search", "index", "a cat"]
ASKED, SIXEL = b"\x1b[c", b"\x1b[?62;4;22c"  # what a terminal is asked for its attributes; one that knows sixels


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    save_tiny("CLIP", home / "clip")
    for colour in ("red", "blue"):
        Image.new("RGB", (40, 40), colour).save(home / f"{colour}.png")
    command = [*COMMAND, "embed", "red.png", "blue.png", "-o", "index", "--ckpt_path", "clip"]
    subprocess.run(command, cwd=home, check=True, stdout=subprocess.DEVNULL)
    return home


def in_terminal(home, *command, answers=False, columns=100, **environment):
    """Everything that a command writes to a terminal of its own, which answers that it knows sixels or not at all."""
    process, terminal = pty.fork()
    if process == 0:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", columns and 40, columns, 8 * columns, 640))
        os.chdir(home)
        os.environ.pop("NO_COLOR", None)
        os.environ.update({"TERM": "xterm-256color", "COLORTERM": "truecolor", **environment})
        os.execv(sys.executable, command)
    written = b""
    try:
        while data := os.read(terminal, 2**16):
            written += data
            if ASKED in data and answers:
                os.write(terminal, SIXEL)
    except OSError:  # so the end looks on Linux
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    return written


def test_half_cells_have_the_colours_of_the_pictures(home):
    written = in_terminal(home, *SEARCH).decode()
    assert written.count("38;2;255;0;0;48;2;255;0;0m▀") == written.count("38;2;0;0;255;48;2;0;0;255m▀") > 60
    assert "red.png" in written


def test_sixels_where_the_terminal_knows_them(home):
    written = in_terminal(home, *SEARCH, answers=True)
    assert written.count(b"\x1bP") == 2
    assert b"2;100;0;0" in written  # red, in per cent
    assert "▀".encode() not in written


def test_none_where_nobody_wants_them(home):
    written = in_terminal(home, *SEARCH, "--no_thumbnails")
    assert b"\x1b" not in written
    assert b"\na cat\r\n    1 " in written


@pytest.mark.parametrize(
    ("terminal", "expected"),
    [({}, b"True"), ({"TERM": "dumb"}, b"False"), ({"NO_COLOR": "1"}, b"False"), ({"columns": 0}, b"False")],
)
def test_which_terminals_can_show_them(home, terminal, expected):
    asks = "from ccr_lightning.cli.thumbnails import can_show; print(can_show())"
    assert in_terminal(home, sys.executable, "-c", asks, **terminal).strip() == expected


def test_none_in_files_and_without_the_library(monkeypatch):
    assert not can_show()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(os, "get_terminal_size", lambda: os.terminal_size((80, 24)))
    monkeypatch.setitem(sys.modules, "textual_image", None)
    assert not can_show()
