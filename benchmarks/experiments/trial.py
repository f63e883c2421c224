"""One training of an experiment, as settings of ``ccr fit``, and what is kept of its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ccr_lightning.files import settings_sha256
from ccr_lightning.models.vision import ImageEncoder

CONFIGS = Path("configs/experiments")
OBJECTIVES = ("one_to_k", "one_to_one", "english_pivot")
SPLITS = ("composition", "family")
DIRECTIONS = ("image_to_text", "text_to_image")
_HERE = "benchmarks.experiments"
_RULES = 1  # to be raised when code changes such that what was found before counts no more


@dataclass(frozen=True)
class Trial:
    """A training: an objective's configuration, with other settings laid over it.

    Args:
        objective: Name of its file in ``configs/experiments``, which is laid over that of ``one_to_k``.
        split: The split scheme of the built-in pictures.
        seed: Of weights, order and draws; the data are the same for all.
        options: Dotted name to value, over the configuration.
        degraded: Arguments of :class:`~benchmarks.experiments.degraded.Degraded`, through which the data then come.
        callbacks: Name of a class of ``benchmarks.experiments.callbacks`` to its arguments, besides the meter.
        tested_on: Languages of the test, if not those of training.
        selects: Whether only the validation split is scored, to choose settings by.
    """

    objective: str
    split: str
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    degraded: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tested_on: Sequence[str] = ()
    selects: bool = False

    def settings(self, more: Sequence[Path] = ()) -> dict[str, Any]:
        """All settings, nested as in a configuration: those of the files, of ``more`` files, then its own."""
        settings: dict[str, Any] = {"seed_everything": self.seed}
        for file in (CONFIGS / "one_to_k.yaml", CONFIGS / f"{self.objective}.yaml", *more):
            _merge(settings, yaml.safe_load(file.read_text(encoding="utf-8")))
        lay(settings, "data.source.init_args.split_scheme", self.split)
        if self.degraded:
            arguments = {"source": settings["data"]["source"], **self.degraded}
            settings["data"]["source"] = {"class_path": f"{_HERE}.degraded.Degraded", "init_args": arguments}
        lay(
            settings,
            "trainer.callbacks",
            [
                {"class_path": f"{_HERE}.callbacks.{name}", "init_args": dict(arguments)}
                for name, arguments in {**self.callbacks, "Meter": {}}.items()
            ],
        )
        for name, value in self.options.items():
            lay(settings, name, value)
        retriever = settings["model"]["retriever"]["init_args"]
        if "fusion" in retriever:
            retriever["fusion"] = _fitting(retriever["fusion"], retriever)
        return settings

    def key(self, more: Sequence[Path] = ()) -> str:
        """What its result is found by again: it changes with any of its settings, and with the rules."""
        also = {"tested_on": list(self.tested_on), "selects": self.selects, "rules": _RULES}
        return settings_sha256({"settings": self.settings(more), **also})[:16]

    @property
    def described(self) -> dict[str, Any]:
        """What a record says of it, of settings only those that are not its objective's."""
        return {
            "objective": self.objective,
            "split": self.split,
            "seed": self.seed,
            "options": dict(self.options),
            "degraded": dict(self.degraded),
            "callbacks": {name: dict(arguments) for name, arguments in self.callbacks.items()},
            "tested_on": list(self.tested_on),
        }

    @property
    def title(self) -> str:
        """What is said of it while it runs."""
        over = {**self.options, **self.degraded, **{name: of for name, of in self.callbacks.items() if of}}
        said = [f"{name.rpartition('.')[2]} {value}" for name, value in over.items()]
        return ", ".join([self.objective, self.split, f"seed {self.seed}", *said])


def lay(settings: dict[str, Any], name: str, value: Any) -> None:
    """Set one dotted name of nested settings."""
    *folders, last = name.split(".")
    for folder in folders:
        settings = settings.setdefault(folder, {})
    settings[last] = value


def _fitting(fusion: Mapping[str, Any], retriever: Mapping[str, Any]) -> dict[str, Any]:
    """A fusion encoder of the sizes of both encoders."""
    text, image = (retriever[name]["init_args"] for name in ("text_encoder", "image_encoder"))
    sizes = {name: text[name] for name in ("hidden_size", "heads", "feed_forward_size")}
    sizes["image_width"] = ImageEncoder(**image).width
    return {**fusion, "init_args": {**fusion["init_args"], **sizes}}


def _merge(settings: dict[str, Any], over: Mapping[str, Any]) -> None:
    for name, value in over.items():
        if isinstance(value, dict) and isinstance(settings.get(name), dict):
            _merge(settings[name], value)
        else:
            settings[name] = value


def scores(document: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a ``results.json``: recalls in [0, 1], rounded to six digits, MRV and MRSD."""
    kept = {
        "recalls": {
            direction: {name: value for name, value in document["mean_recalls"][direction].items() if "@" in name}
            for direction in DIRECTIONS
        },
        "mean_recall": document["mean_recall"],
        "of_language": {name: of["mean_recall"] for name, of in document["language_means"].items()},
        "recall@1_of_language": {
            name: {direction: of[direction]["recall@1"] for direction in DIRECTIONS}
            for name, of in document["languages"].items()
        },
        "mrv": {name: document["mrv"][name] for name in (*DIRECTIONS, "mean")},
        "mrsd": {name: document["mrsd"][name] for name in (*DIRECTIONS, "mean")},
        "same_first": document["rank1_agreement"]["mean"],
    }
    rounded: dict[str, Any] = _rounded(kept)
    return rounded


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(of) for name, of in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value
