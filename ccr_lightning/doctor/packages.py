"""Which packages are installed, in which versions, and whether they suit each other."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from ccr_lightning._version import __version__
from ccr_lightning.doctor.finding import Finding

_OURS, _TOPIC = "ccr-lightning", "packages"

EXTRAS = {  # what each is for
    "bench": "the comparisons of 'make bench'",
    "demo": "the built-in pictures, search pages and reports",
    "faiss": "ccr search --approximate",
    "lora": "adapters: --model.tuned lora",
    "mteb": "mteb's image-text tasks",
    "onnx": "ccr export --onnx",
    "open_clip": "models of open_clip",
    "report": "ccr report",
    "sentence_transformers": "models of sentence-transformers",
    "serve": "ccr serve",
    "siglip": "the tokeniser of the first SigLIP",
    "terminal": "pictures in the terminal, of ccr search",
    "test": "the tests of this package",
    "translate": "ccr data translate",
    "webdataset": "ccr data shards",
}


def examine() -> Iterator[Finding]:
    """Yield what is found about Python, this package, what it needs and what it can use."""
    yield Finding(_TOPIC, "Python", f"{platform.python_version()}, {sys.executable}")
    yield _command()
    try:
        requirements = [Requirement(text) for text in metadata.requires(_OURS) or ()]
    except metadata.PackageNotFoundError:
        remedy = "pip install -e . in its folder"
        yield Finding(_TOPIC, _OURS, f"{__version__}, which pip does not know of", "advice", remedy)
        return
    needed = [of for of in requirements if of.marker is None or of.marker.evaluate({"extra": ""})]
    for requirement in needed:
        yield _needed(requirement)
    yield from _disagreements(needed)
    for extra in metadata.metadata(_OURS).get_all("Provides-Extra") or ():
        yield _extra(extra, requirements)


def _command() -> Finding:
    beside, found = Path(sys.executable).parent, shutil.which("ccr")
    if found is None:
        remedy = f"activate the environment: . {beside / 'activate'}"
        return Finding(_TOPIC, "ccr", f"{__version__}, not in PATH", "advice", remedy)
    if Path(found).parent.resolve() != beside.resolve():
        remedy = f"another installation comes first in PATH; activate this one: . {beside / 'activate'}"
        return Finding(_TOPIC, "ccr", f"{__version__}, but PATH has {found}", "advice", remedy)
    return Finding(_TOPIC, "ccr", f"{__version__}, {found}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _suits(requirement: Requirement) -> bool:
    version = _version(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _needed(requirement: Requirement) -> Finding:
    version = _version(requirement.name)
    plain = f"{requirement.name}{requirement.specifier}"
    if _suits(requirement):
        return Finding(_TOPIC, requirement.name, str(version))
    found = "missing" if version is None else f"{version}, but {requirement.specifier} is needed"
    return Finding(_TOPIC, requirement.name, found, "problem", f"pip install '{plain}'")


def _disagreements(needed: list[Requirement]) -> Iterator[Finding]:
    """What installed packages ask of each other and do not get, such as torchvision of torch."""
    names = {requirement.name for requirement in needed}
    for requirement in needed:
        if _version(requirement.name) is None:
            continue
        for text in metadata.requires(requirement.name) or ():
            other = Requirement(text)
            if other.name not in names or (other.marker is not None and not other.marker.evaluate({"extra": ""})):
                continue
            if _version(other.name) is not None and not _suits(other):
                found = f"needs {other.name}{other.specifier}, and {_version(other.name)} is installed"
                remedy = f"pip install --upgrade {requirement.name} {other.name}"
                yield Finding(_TOPIC, requirement.name, found, "problem", remedy)


def _extra(extra: str, requirements: list[Requirement]) -> Finding:
    missing = sorted(_missing(extra, requirements))
    purpose = f": {EXTRAS[name]}" if (name := extra.replace("-", "_")) in EXTRAS else ""  # as pip writes it
    if not missing:
        return Finding("extras", extra, f"installed{purpose}")
    remedy = f"if you want it: pip install '{_OURS}[{extra}]'"
    return Finding("extras", extra, f"without {', '.join(missing)}{purpose}", "ok", remedy)


def _missing(extra: str, requirements: list[Requirement]) -> set[str]:
    """What an extra needs and is not there, also by way of other extras."""
    missing = set()
    for requirement in requirements:
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}) or not marker.evaluate({"extra": extra}):
            continue
        if requirement.name == _OURS:
            missing |= {name for other in requirement.extras for name in _missing(other, requirements)}
        elif not _suits(requirement):
            missing.add(requirement.name)
    return missing
