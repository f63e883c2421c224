"""What is taken of settings that nobody has named: those of a run, or what results say of their data."""

from __future__ import annotations

import inspect
import os
import sys
import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ccr_lightning.errors import CCRError

VARIABLE = "CCR_TRUST"
_OWN = "ccr_lightning"
_DEEPEST = 50
_GROUPS = ("model", "data", "trainer")
_OF_SCORING = (
    *("accelerator", "devices", "strategy", "precision", "deterministic", "benchmark", "inference_mode"),
    *("enable_progress_bar", "enable_model_summary"),
)
_PLAIN = (None, type(None), ..., str, int, float, bool, Path)
_COLLECTIONS = (list, tuple, set, frozenset, dict, Collection, Iterable, Mapping, Sequence)


def trainer_for_scoring(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return those of a trainer's settings that scoring takes, and the names of what it would take if it were plain.

    Plain are numbers and texts that can name neither code nor a place. Any argument of a trainer or of its parts that
    takes a class or a function imports whatever a text names.

    Example:
        >>> strategy = {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"ddp_comm_hook": "a.b"}}
        >>> trainer_for_scoring({"devices": 2, "max_epochs": 9, "strategy": strategy, "fast_dev_run": True})
        ({'devices': 2}, ['strategy'])
    """
    taken = {name: settings[name] for name in _OF_SCORING if name in settings and _is_plain(settings[name])}
    return taken, [name for name in (*_OF_SCORING, "plugins") if name not in taken and settings.get(name)]


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(of, int) for of in value)
    return value is None or isinstance(value, int | float) or (isinstance(value, str) and not set("./\\") & set(value))


def known_groups(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what commands take of a run's configuration: its seed, model, data and trainer, and no other file.

    Args:
        config: What a file says.
        where: The file, for the message.

    Raises:
        CCRError: A name has a dot, with which the parser would reach into a group, or a group is no mapping.

    Example:
        >>> known_groups({"config": "other.yaml", "model": {"lr": 1.0}, "data": None}, "config.yaml")
        {'model': {'lr': 1.0}, 'data': {}, 'trainer': {}}
        >>> known_groups({"data.source": "my_module.MySource"}, "config.yaml")
        Traceback (most recent call last):
        ...
        ccr_lightning.errors.CCRError: config.yaml: 'data.source' has a dot, as no name of a run has; do not use it.
    """
    _refuse_dots(config, where)
    for name in _GROUPS:
        if not isinstance(config.get(name), Mapping | None):
            raise CCRError(f"{where}: {name!r} is no group of settings, as in every run; it is not read.")
    seed = {"seed_everything": config["seed_everything"]} if "seed_everything" in config else {}
    return seed | {name: dict(config.get(name) or {}) for name in _GROUPS}


def _refuse_dots(part: Any, where: str, depth: int = 0) -> None:
    if depth > _DEEPEST:
        raise CCRError(f"{where}: this is nested more deeply than any run; do not use this file.")
    for name in part if isinstance(part, Mapping) else ():
        if "." in str(name):
            raise CCRError(f"{where}: {str(name)!r} has a dot, as no name of a run has; do not use it.")
    for value in part.values() if isinstance(part, Mapping) else part if isinstance(part, list) else ():
        _refuse_dots(value, where, depth + 1)


def refuse_other_classes(settings: Mapping[str, Any], kinds: Mapping[str, Any], where: str) -> None:
    """Refuse to build classes of other packages, whose code could do anything, unless ``$CCR_TRUST`` names these.

    Where a class is expected, there is its ``class_path`` and ``init_args``, and never a text: it would be parsed once
    more, as YAML, as a class path or as the name of another file. Constructors say where that is.

    Args:
        settings: What a file says.
        kinds: The type of each setting.
        where: The file, for the message.

    Raises:
        CCRError: There is a class of another package, something else in the place of a class, or an unknown setting.

    Example:
        >>> from ccr_lightning.data.sources.protocol import Source
        >>> source = {"class_path": "my_module.MySource", "init_args": {}}
        >>> refuse_other_classes({"source": source}, {"source": Source}, "config.yaml")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ccr_lightning.errors.CCRError: config.yaml: it names 'my_module.MySource', which is not part of this package ...
    """
    _refuse_dots(settings, where)
    for name, value in settings.items():
        if name not in kinds:
            raise CCRError(f"{where}: {name!r} is no setting there in this version of the package; mend the file.")
        _check(value, {*_not_plain(kinds[name])}, name, where)


def settings_of(cls: type) -> dict[str, Any]:
    """Return what a constructor takes, and the types of it; those that cannot be told are ``object``.

    Example:
        >>> settings_of(dict)
        {}
    """
    kinds: dict[str, Any] = {}
    for base in cls.__mro__[-2::-1]:
        if isinstance(init := vars(base).get("__init__"), types.FunctionType):
            names = [*inspect.signature(init).parameters][1:]
            try:
                hints = get_type_hints(init)
            except (NameError, TypeError, AttributeError):  # imported for type checkers only
                hints = dict.fromkeys(names, object)
            kinds |= {name: hints.get(name, Any) for name in names}
    return kinds


def _check(value: Any, expected: set[Any], name: str, where: str) -> None:
    """Refuse a value in whose place the parser would import something.

    Args:
        value: Of the setting, or in it.
        expected: What it can be beside plain values and collections of them.
        name: Of the setting.
        where: The file.
    """
    classes = expected - {Any}
    if isinstance(value, Mapping) and "class_path" in value:
        if not classes:
            raise CCRError(f"{where}: {name!r} names a class, where none is expected; do not use this file.")
        arguments = value.get("init_args")
        if not isinstance(arguments, Mapping | None) or set(value) - {"class_path", "init_args"}:
            raise CCRError(f"{where}: {name!r} has other things than class_path and init_args; do not use this file.")
        refuse_other_classes(arguments or {}, settings_of(_trusted_class(value["class_path"], where)), where)
    elif isinstance(value, Mapping) and len(classes) == 1 and all(map(is_dataclass, classes)):
        refuse_other_classes(value, settings_of(*classes), where)
    elif isinstance(value, Mapping) and classes:
        raise CCRError(f"{where}: {name!r} has no class_path, which every run writes; do not use this file.")
    elif isinstance(value, Mapping | list):
        for of in value.values() if isinstance(value, Mapping) else value:
            _check(of, expected, name, where)
    elif isinstance(value, str) and (classes or (expected and set(":{") & set(value))):
        raise CCRError(f"{where}: {name!r} is a text, where no run has one; it could name code, and is not read.")


def _not_plain(kind: Any) -> Iterator[Any]:
    """Of a type its parts for whose values the parser would import something."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType, *_COLLECTIONS):
        for of in get_args(kind):
            yield from _not_plain(of)
    elif origin is not Literal and kind not in (*_PLAIN, *_COLLECTIONS):
        yield kind


def _trusted_class(path: Any, where: str) -> type:
    """The class of a path, if both its name and the place where it is defined are trusted."""
    _refuse_package(path, path, where)
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CCRError(f"{where}: {path!r} cannot be imported ({error}); has the class another name now?") from error
    if not isinstance(cls, type):
        raise CCRError(f"{where}: {path!r} is no class; do not use this file.")
    _refuse_package(cls.__module__, f"{cls.__module__}.{cls.__qualname__}", where)
    return cls


def _refuse_package(path: Any, named: Any, where: str) -> None:
    package = str(path).partition(".")[0]
    if package not in (_OWN, *filter(None, os.environ.get(VARIABLE, "").split(","))):
        what = f"{where}: it names {named!r}, which is not part of this package and could do anything"
        if package in sys.stdlib_module_names:
            raise CCRError(f"{what}: no run needs that; do not use this file.")
        raise CCRError(f"{what}: if you trust it, export {VARIABLE}={package}.")
