"""What a command line says about an option, before the parser that takes seconds to build reads it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NoReturn

from ccr_lightning.errors import CCRError


class CommandArguments(argparse.ArgumentParser):
    """The arguments of a command without a trainer; a mistake is one sentence.

    Args:
        command: Its name.
    """

    def __init__(self, command: str) -> None:
        super().__init__(prog=f"ccr {command}", add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        raise CCRError(f"{self.prog}: {message}; '{self.prog} --help' explains.")

    def parse_with_settings(self, args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Return the command's own options, and settings of data, ``--data.NAME VALUE``.

        Raises:
            CCRError: An option is neither.
        """
        options, settings = self.parse_known_args(args)
        if others := [setting for setting in settings if _is_option(setting) and not setting.startswith("--data.")]:
            known = [option for action in self._actions for option in action.option_strings]
            close = get_close_matches(others[0].replace("-", "_").replace("__", "--", 1), known, n=1)
            self.error(f"unknown option {others[0]!r}" + (f", did you mean {close[0]!r}?" if close else ""))
        return options, settings


def option(name: str, value: object) -> list[str]:
    """Return an option as it is given on a command line.

    Example:
        >>> option("name", "mine"), option("name", "-2-")
        (['--name', 'mine'], ['--name=-2-'])
    """
    return [f"--{name}={value}"] if str(value).startswith("-") else [f"--{name}", str(value)]


def _is_option(argument: str) -> bool:
    return argument.startswith("-") and not argument[1:2].isdigit()


def values_of(args: Sequence[str], *options: str) -> list[str]:
    """Return the values that options are given, in order, as ``--option value`` or ``--option=value``.

    Example:
        >>> values_of(["fit", "--config", "a.yaml", "-c=b.yaml", "--config"], "-c", "--config")
        ['a.yaml', 'b.yaml']
    """
    values = []
    for place, arg in enumerate(args):
        option, is_given, value = arg.partition("=")
        if option in options and is_given:
            values.append(value)
        elif option in options and place + 1 < len(args):
            values.append(args[place + 1])
    return values


def last_value(args: Sequence[str], option: str) -> str | None:
    """Return the value that counts of an option, the last one; None if it is not given.

    Example:
        >>> last_value(["--name", "a", "--name=b"], "--name"), last_value(["--name"], "--runs_dir")
        ('b', None)
    """
    values = values_of(args, option)
    return values[-1] if values else None


def is_given(args: Sequence[str], option: str) -> bool:
    """Return whether an option is given, with or without a value."""
    return any(arg.partition("=")[0] == option for arg in args)


def without(args: Sequence[str], option: str) -> list[str]:
    """Return the arguments without an option and its values.

    Example:
        >>> without(["test", "--name", "a", "--x=1", "--name=b"], "--name")
        ['test', '--x=1']
    """
    kept: list[str] = []
    for place, arg in enumerate(args):
        is_value = place > 0 and args[place - 1] == option
        if not is_value and arg.partition("=")[0] != option:
            kept.append(arg)
    return kept


def given_configs(args: Sequence[str]) -> list[str]:
    """Return the configuration files that a command line names, in order."""
    return values_of(args, "-c", "--config")
