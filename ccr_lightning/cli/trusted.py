"""Which classes a configuration may name that nobody has named: that of a run, or what results say of their data."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ccr_lightning.errors import CCRError

VARIABLE = "CCR_TRUST"
_OWN = "ccr_lightning"
_OF_A_CLASS = ("retriever", "image_encoder", "text_encoder", "fusion", "source", "tokenizer", "transform")
_GROUPS = ("model", "data", "trainer")


def trainer_for_scoring(settings: Any) -> Any:
    """Return of the trainer's settings what can name neither code nor a place: numbers, and names without dots.

    Any argument of a trainer or of its parts that takes a class or a function imports whatever a text names.

    Example:
        >>> strategy = {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"ddp_comm_hook": "a.b"}}
        >>> trainer_for_scoring({"devices": 2, "precision": "32-true", "accelerator": "a.B", "strategy": strategy})
        {'devices': 2, 'precision': '32-true'}
    """
    if not isinstance(settings, Mapping):
        return settings
    return {name: value for name, value in settings.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(of, int) for of in value)
    return value is None or isinstance(value, int | float) or (isinstance(value, str) and not set("./\\") & set(value))


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
    trusted = (_OWN, *filter(None, os.environ.get(VARIABLE, "").split(",")))
    for path in _class_paths(config):
        package = str(path).partition(".")[0]
        if package not in trusted:
            what = f"{where}: it names {path!r}, which is not part of this package and could do anything"
            if package in sys.stdlib_module_names:
                raise CCRError(f"{what}: no run needs that; do not use this file.")
            raise CCRError(f"{what}: if you trust it, export {VARIABLE}={package}.")


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
