"""Which classes a configuration may name that nobody has named: that of a run, or what results say of their data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from ccr_lightning.errors import CCRError

VARIABLE = "CCR_TRUST"
_OWN = ("ccr_lightning", "lightning")
_OF_A_CLASS = ("retriever", "image_encoder", "text_encoder", "fusion", "source", "tokenizer", "transform", "strategy")
_GROUPS = ("model", "data", "trainer")

# Of the trainer, what scoring does without: writing elsewhere, being watched, and plugins of any kind.
NOT_FOR_SCORING = ("logger", "callbacks", "plugins", "profiler")


def refuse_other_classes(config: Mapping[str, Any], where: str) -> None:
    """Refuse to build classes of other packages, whose code could do anything, unless ``$CCR_TRUST`` names these.

    Args:
        config: What a file says.
        where: The file, for the message.

    Raises:
        CCRError: There is a class of another package, or another file in the place of settings.

    Example:
        >>> source = {"class_path": "my_module.MySource", "init_args": {}}
        >>> refuse_other_classes({"data": {"source": source}}, "config.yaml")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ccr_lightning.errors.CCRError: config.yaml: it names 'my_module.MySource', which is not part of this package ...
    """
    for name in _GROUPS:
        if isinstance(config.get(name), str):
            raise CCRError(f"{where}: {name!r} is the name of another file, which no run has; it is not read.")
    trusted = (*_OWN, *filter(None, os.environ.get(VARIABLE, "").split(",")))
    for path in _class_paths(config):
        package = str(path).partition(".")[0]
        if package not in trusted:
            raise CCRError(
                f"{where}: it names {path!r}, which is not part of this package and could do anything: if you trust "
                f"it, export {VARIABLE}={package}."
            )


def _class_paths(part: Any) -> Iterator[Any]:
    """All that would be imported and called: class paths, and texts where a class is expected."""
    if isinstance(part, Mapping):
        for key, value in part.items():
            if key == "class_path" or (
                key in _OF_A_CLASS and isinstance(value, str) and ("." in value or "/" in value)
            ):
                yield value
            yield from _class_paths(value)
    elif isinstance(part, list):
        for value in part:
            yield from _class_paths(value)
