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

COMMAND = [sys.executable, "-m", "ccr_lightning.cli.main"]
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


def in_terminal(home, *options, answers=False, columns=100, **environment):
    """Everything that a search writes to a terminal of its own, which answers that it knows sixels or not at all."""
    process, terminal = pty.fork()
    if process == 0:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", columns and 40, columns, 8 * columns, 640))
        os.chdir(home)
        os.environ.pop("NO_COLOR", None)
        os.environ.update({"TERM": "xterm-256color", "COLORTERM": "truecolor", **environment})
        os.execv(sys.executable, [*COMMAND, "search", "index", "a cat", *options])
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
    written = in_terminal(home).decode()
    assert written.count("38;2;255;0;0;48;2;255;0;0m▀") == written.count("38;2;0;0;255;48;2;0;0;255m▀") > 60
    assert "red.png" in written


def test_sixels_where_the_terminal_knows_them(home):
    written = in_terminal(home, answers=True)
    assert written.count(b"\x1bP") == 2
    assert b"#0;2;100;0;0" in written or b"2;100;0;0" in written  # red, in per cent
    assert b"\xe2\x96\x80" not in written


@pytest.mark.parametrize(
    ("options", "terminal"), [(["--no_thumbnails"], {}), ([], {"TERM": "dumb"}), ([], {"columns": 0})]
)
def test_none_where_they_cannot_be_or_nobody_wants_them(home, options, terminal):
    written = in_terminal(home, *options, **terminal)
    assert b"\x1b" not in written
    assert b"\na cat\r\n    1 " in written
