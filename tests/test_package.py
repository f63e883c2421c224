"""What the package says of itself."""

from pathlib import Path

import yaml

from ccr_lightning import __version__


def test_the_citation_names_the_same_version():
    citation = yaml.safe_load((Path(__file__).parents[1] / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
