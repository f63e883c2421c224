"""Files that are whole or as they were before."""

import os

import pytest

from ccr_lightning.errors import CCRError
from ccr_lightning.files import atomic_write


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half():
        with atomic_write(path, "the example") as file:
            file.write(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_the_error_says_what_where_and_what_to_do(tmp_path):
    (tmp_path / "no folder").write_text("")
    path = tmp_path / "no folder" / "a.txt"
    with (
        pytest.raises(
            CCRError,
            match=r"no folder/a.txt: the example could not be written \(.+\); move what is in its way, or stand up\.$",
        ),
        atomic_write(path, "the example", "stand up"),
    ):
        pass
