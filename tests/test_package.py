"""What the package says of itself."""

import tomllib
from pathlib import Path

import yaml

import ccr_lightning
from ccr_lightning import __version__


def test_the_citation_names_the_same_version():
    citation = yaml.safe_load((Path(__file__).parents[1] / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__


def test_files_beside_the_code_are_packaged():
    root = Path(ccr_lightning.__file__).parent
    settings = tomllib.loads((root.parent / "pyproject.toml").read_text(encoding="utf-8"))
    packaged = {
        path
        for package, patterns in settings["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for path in root.parent.joinpath(*package.split(".")).glob(pattern)
    }
    files = {path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path for path in files if path.suffix != ".py"} == packaged
