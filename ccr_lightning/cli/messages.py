"""What the parser found wrong, in one sentence, with the setting that was probably meant."""

from __future__ import annotations

import inspect
import re
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from difflib import get_close_matches

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
    return " ".join(message.split()).replace('"<unicode string>"', "the configuration")


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
