"""What the parser found wrong, in one sentence, with the setting that was probably meant."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from ccr_lightning.errors import CCRError

_KINDS = {
    "int": "an int",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "Sequence": "a list",
    "list": "a list",
    "Mapping": "a mapping such as {name: value}",
    "dict": "a mapping such as {name: value}",
    "NoneType": "null",
}
_CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
_MISSING = {
    "model.retriever": "pass --init_from RUN to take it from a run, or a configuration that has it, such as "
    "configs/pretrain.yaml.",
    "data.source": "pass a configuration that names the data, such as configs/own_data.yaml.",
}
_UNKNOWN = (
    re.compile(r"does not accept option '(?P<key>[^']+)'"),
    re.compile(r"unrecognized arguments: (?P<key>\S+)"),
    re.compile(r"Option '(?P<key>[^']+)' is not accepted"),
)


def explain_parse_error(message: str, parsers: Iterable[ArgumentParser], configs: Sequence[str] = ()) -> str:
    """Puts a parser's message into one sentence; for an unknown setting it names the closest known one.

    Args:
        message: The parser's message.
        parsers: The parsers, which know the settings.
        configs: The configuration files that were parsed.

    Example:
        >>> parser = ArgumentParser()
        >>> _ = parser.add_argument("--data.batch_size")
        >>> explain_parse_error("unrecognized arguments: --data.batchsize 3", [parser])
        "'data.batchsize' is not a setting: did you mean 'data.batch_size'?"
    """
    if nested := re.search(r"'[^']+' is not a setting: (?:[^?]+\?|.*lists all settings\.)", message):
        return nested[0]
    if missing := re.search(r"arguments are required: (?:\w+\.)?(?P<key>model\.retriever|data\.source)\b", message):
        return f"'{missing['key']}' is missing: {_MISSING[missing['key']]}"
    if explained := _explain_class(message, configs):
        return explained
    for pattern in _UNKNOWN:
        if found := pattern.search(message):
            key = found["key"].lstrip("-").split("=")[0]
            where = "".join(f"{place}." for place in re.findall(r'Parser key "([^"]+)"', message))
            hint = _suggestion(key, {*_dotted_settings(parsers), *_constructor_arguments(), *_CLASS_KEYS})
            return f"'{where}{key}' is not a setting: {hint}"
    return _explain_config(message, configs) or _explain_value(message) or " ".join(message.split())


def own_cause(error: BaseException) -> CCRError | None:
    """Return this package's own error, which the parser packs into one of its own for a part that may be null.

    Example:
        >>> try:
        ...     raise ValueError("does not validate") from CCRError("XTD has no captions in xx.")
        ... except ValueError as error:
        ...     str(own_cause(error))
        'XTD has no captions in xx.'
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, CCRError):
        cause = cause.__cause__
    return cause


def _explain_config(message: str, configs: Sequence[str]) -> str | None:
    """Names the file, which the parser does not, and the place in it."""
    if not message.startswith(("Problems parsing config", "Unexpected config")):
        return None
    for path in configs:
        try:
            load_config(path)
        except CCRError as error:
            return str(error)
    return None


def load_config(path: str) -> dict[str, Any]:
    """Return the content of a configuration file.

    Raises:
        CCRError: It cannot be read, or is no configuration; the message names the file and the place in it.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CCRError(f"{path}: there is no such file; check the path.") from error
    except OSError as error:
        raise CCRError(f"{path}: cannot be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise CCRError(f"{path}, byte {error.start + 1}: this is no UTF-8; save the file as UTF-8.") from error
    except RecursionError as error:
        raise CCRError(f"{path}: this is no YAML that can be read (nested too deeply); mend it.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise CCRError(
            f"{path}, line {mark.line + 1}, column {mark.column + 1}: this is no YAML ({error.problem}); mend it."
        ) from error
    except yaml.reader.ReaderError as error:
        raise CCRError(f"{path}, character {error.position + 1}: this is no YAML ({error.reason}); mend it.") from error
    if not isinstance(content, dict):
        raise CCRError(f"{path}: this is no configuration; it must have the keys model, data and trainer.")
    return content


def _explain_class(message: str, configs: Sequence[str]) -> str | None:
    """Finds a misspelt ``class_path`` or ``init_args`` in the files, of which the parser says all sorts of things."""
    if message.startswith(("Problems parsing config", "Unexpected config")):
        return None
    for path in configs:
        with suppress(OSError, ValueError, yaml.YAMLError):
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            for key, meant in _misspelt_keys(content):
                return f"'{key}' is not a setting: did you mean '{meant}'?"
    return None


def _misspelt_keys(tree: Any, place: str = "") -> Iterator[tuple[str, str]]:
    if not isinstance(tree, dict):
        return
    for key, value in tree.items():
        missing = {"class_path", "init_args"} - tree.keys()
        if len(missing) == 1 and key not in _CLASS_KEYS and (close := get_close_matches(str(key), missing)):
            yield f"{place}{key}", close[0]
        yield from _misspelt_keys(value, f"{place}{key}.")


def _explain_value(message: str) -> str | None:
    """Says which setting has a wrong value, and what it takes."""
    found = re.match(r'Parser key "(?P<key>[^"]+)":\s*(?P<problem>.*)', message, re.DOTALL)
    if not found:
        return None
    key, problem = found["key"], found["problem"]
    if nested := re.search(
        r"'(?P<key>[^'\n]+)' (?P<says>is [^\n]*: (?:give|choose|did you mean) [^\n]*[.?])$", problem, re.MULTILINE
    ):
        return f"'{key}.init_args.{nested['key']}' {nested['says']}"
    if missing := re.match(r"File does not exist: '([^']+)'", problem):
        return f"--{key} {missing[1]}: there is no such file; check the path."
    if path := re.search(r"(?:class_path '|import path string: |Import path )(?P<path>[^'\s]*)", problem):
        return f"'{key}' is '{path['path']}': {_class_hint(path['path'])}"
    given = re.search(r"(?:Got value|Given value): (?P<value>.*)", problem)
    if not given:
        return None
    value = given["value"]
    if re.search("protocol|[Ii]mport path|class_path", problem):
        return f"'{key}' is '{value}': {_class_hint(value)}"
    expected = re.findall(r"Expected an? (?:<class ')?(.+?)(?:'>)?(?:\. Got value.*)?$", problem, re.MULTILINE)
    kinds = [_KINDS.get(kind.split(".")[-1]) or _choices(kind) for kind in expected]
    return f"'{key}' is '{value}': {'choose' if kinds[0].startswith('one of') else 'give'} {' or '.join(kinds)}."


def _choices(kind: str) -> str:
    choices = re.findall(r"'([^']*)'", kind)
    return f"one of {', '.join(choices)}" if choices else f"a {kind.split('.')[-1]}"


def _class_hint(path: str) -> str:
    name = path.rpartition(".")[2]
    known = {cls.__name__: f"{cls.__module__}.{cls.__name__}" for cls in _classes()}
    close = get_close_matches(name, known, n=1, cutoff=0.75)
    if close and known[close[0]] != path:
        return f"did you mean '{known[close[0]]}'?"
    return "give the class_path of a suitable class and its init_args."


def _suggestion(key: str, known: set[str]) -> str:
    whole = sorted(name for name in known if name.endswith(f".{key}"))
    if close := whole or get_close_matches(key, known - {key}, n=1, cutoff=0.75):
        return f"did you mean '{close[0]}'?"
    if key.endswith((".yaml", ".yml")):
        return "pass a configuration with --config."
    first = key.split(".")[0]
    groups = {name.split(".")[0] for name in known if "." in name}
    if first != key and first not in groups and (close := get_close_matches(first, groups, n=1)):
        return f"did you mean '{close[0]}' instead of '{first}'?"
    return "'ccr COMMAND --help_all' lists all settings."


def _dotted_settings(parsers: Iterable[ArgumentParser]) -> Iterator[str]:
    for parser in parsers:
        yield from (option.lstrip("-") for action in parser._actions for option in action.option_strings)


def _constructor_arguments() -> Iterator[str]:
    """Settings below ``init_args``: what the constructors of the package's classes take."""
    for cls in _classes():
        if "__init__" in vars(cls):
            yield from inspect.signature(cls).parameters


def _classes() -> Iterator[type]:
    """The package's public classes that can be built, also of modules that have not been imported yet."""
    for info in pkgutil.walk_packages([str(Path(__file__).parents[1])], "ccr_lightning."):
        with suppress(ImportError):  # of an extra that is not installed
            module = importlib.import_module(info.name)
            for name, cls in inspect.getmembers(module, inspect.isclass):
                if cls.__module__ == module.__name__ and not (
                    name.startswith("_") or getattr(cls, "_is_protocol", False)
                ):
                    yield cls
