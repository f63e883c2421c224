"""What the parser found wrong, in one sentence, with the setting that was probably meant."""

from __future__ import annotations

import inspect
import re
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

import yaml  # type: ignore[import-untyped]

_KINDS = {
    "int": "an int",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "Sequence": "a list",
    "list": "a list",
    "dict": "a mapping",
    "NoneType": "null",
}
_UNKNOWN = (
    re.compile(r"does not accept option '(?P<key>[^']+)'"),
    re.compile(r"unrecognized arguments: (?P<key>\S+)"),
    re.compile(r"Option '(?P<key>[^']+)' is not accepted"),
)


def explain_parse_error(message: str, parsers: Iterable[ArgumentParser]) -> str:
    """Puts a parser's message into one sentence; for an unknown setting it names the closest known one.

    Args:
        message: The parser's message.
        parsers: The parsers, which know the settings.

    Example:
        >>> parser = ArgumentParser()
        >>> _ = parser.add_argument("--data.batch_size")
        >>> explain_parse_error("unrecognized arguments: --data.batchsize 3", [parser])
        "'data.batchsize' is not a setting: did you mean 'data.batch_size'?"
    """
    if explained := re.search(r"'[^']+' is not a setting: [^?]+\?", message):  # of a nested parser
        return explained[0]
    for pattern in _UNKNOWN:
        if found := pattern.search(message):
            key = found["key"].lstrip("-").split("=")[0]
            where = "".join(f"{place}." for place in re.findall(r'Parser key "([^"]+)"', message))
            hint = _suggestion(key, {*_dotted_settings(parsers), *_constructor_arguments()})
            return f"'{where}{key}' is not a setting: {hint}"
    return _explain_config(message) or _explain_value(message) or " ".join(message.split())


def _explain_config(message: str) -> str | None:
    """Names the file, which the parser does not, and the place in it."""
    if not message.startswith(("Problems parsing config", "Unexpected config")):
        return None
    given = [arg.removeprefix("--config=") for arg in sys.argv if arg.startswith("--config=")]
    given += [path for arg, path in pairwise(sys.argv) if arg in ("-c", "--config")]
    for path in given:
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            return (
                f"{path}, line {mark.line + 1}, column {mark.column + 1}: this is no YAML ({error.problem}); mend it."
            )
        except yaml.reader.ReaderError as error:
            return f"{path}, character {error.position + 1}: this is no YAML ({error.reason}); mend it."
        if not isinstance(content, dict):
            return f"{path}: this is no configuration; it must have the keys model, data and trainer."
    return None


def _explain_value(message: str) -> str | None:
    """Says which setting has a wrong value, and what it takes."""
    found = re.match(r'Parser key "(?P<key>[^"]+)":\s*(?P<problem>.*)', message, re.DOTALL)
    if not found:
        return None
    key, problem = found["key"], found["problem"]
    if nested := re.search(r"'(?P<key>[^'\n]+)' (?P<says>is [^\n]*: (?:give|choose) [^\n]*\.)$", problem, re.MULTILINE):
        return f"'{key}.init_args.{nested['key']}' {nested['says']}"
    if missing := re.match(r"File does not exist: '([^']+)'", problem):
        return f"--{key} {missing[1]}: there is no such file; check the path."
    given = re.search(
        r"(?:Got value|Given value|import path string): (?P<value>.*)|class_path '(?P<path>[^']*)'", problem
    )
    if not given:
        return None
    value = given["value"] or given["path"]
    if re.search("protocol|[Ii]mport path|class_path", problem):
        return f"'{key}' is '{value}': give the class_path of a suitable class and its init_args."
    expected = re.findall(r"Expected an? (?:<class ')?(.+?)(?:'>)?(?:\. Got value.*)?$", problem, re.MULTILINE)
    kinds = [_KINDS.get(kind.split(".")[-1]) or _choices(kind) for kind in expected]
    return f"'{key}' is '{value}': {'choose' if kinds[0].startswith('one of') else 'give'} {' or '.join(kinds)}."


def _choices(kind: str) -> str:
    choices = re.findall(r"'([^']*)'", kind)
    return f"one of {', '.join(choices)}" if choices else f"a {kind}"


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
    for module in [module for name, module in sys.modules.items() if name.startswith("ccr_lightning.")]:
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__ == module.__name__ and "__init__" in vars(cls):
                yield from inspect.signature(cls).parameters
