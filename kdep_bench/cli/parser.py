"""The parser of all commands: its errors for wrong arguments say what to write instead."""

from __future__ import annotations

import argparse
import ast
import re
from typing import Any, NoReturn

from kdep_bench.errors import MAX_NAMES, KdepError, first_of, similar_names, unknown_name
from kdep_bench.faults import Faults

_TYPES = {"int": "an integer", "float": "a number"}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors say what is expected, with similar options and values.

    Args:
        if_unnamed: what to do about a value that no argument takes, such as "pass a suite as
            --suite NAME". None: to remove it.
        options: arguments of argparse.ArgumentParser.
    """

    def __init__(self, *, if_unnamed: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._if_unnamed = if_unnamed

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse; prints an error and exits with 2 if an argument is wrong."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            # A value after an unknown option belongs to this option, and is no fault of its own.
            options = [argument for argument in unknown if argument.startswith("-")]
            faults = Faults()
            for argument in options or unknown:
                faults.add(self._unknown(argument))
            self.error(str(faults.error("the command")))
        return parsed

    def error(self, message: str) -> NoReturn:
        """Prints the usage and the error, and exits with 2; `message`: by argparse or a command."""
        super().error(str(self._explained(message) or message))

    def _explained(self, message: str) -> KdepError | None:
        """The error for a message of argparse; None for another message."""
        see_help = f"{self.prog} --help explains the arguments"
        if match := re.fullmatch(
            r"argument (.+): invalid choice: (.+) \(choose from (.+)\)", message
        ):
            name, value, choices = match[1], match[2], ast.literal_eval(f"[{match[3]}]")
            near = unknown_name("value", value.strip("'"), choices, otherwise="choose one of these")
            return KdepError(
                f"{_named(name)} is {value}",
                expected=f"one of: {', '.join(map(str, choices))}",
                fix=near.fix,
            )
        if match := re.fullmatch(r"argument (.+): invalid (int|float) value: (.+)", message):
            expected = _TYPES[match[2]]
            return KdepError(
                f"{match[1]} is {match[3]}", expected=expected, fix=f"correct {match[1]}"
            )
        if match := re.fullmatch(r"argument (.+): expected (one|at least one) argument", message):
            fix = f"write a value after it; {see_help}"
            return KdepError(f"the option {match[1]} has no value", fix=fix)
        if match := re.fullmatch(r"the following arguments are required: (.+)", message):
            return KdepError(f"the command lacks {_named(match[1])}", fix=f"add it; {see_help}")
        return None

    def _unknown(self, argument: str) -> KdepError:
        """The error for an option that does not exist, or a value that no argument takes."""
        if argument.startswith("-"):
            names = [
                name
                for action in self._actions
                if action.help != argparse.SUPPRESS
                for name in action.option_strings
                if name.startswith("--")
            ]
            option = argument.partition("=")[0]
            # The common "--" would make every option similar to every other.
            near = similar_names(option.lstrip("-"), [name[2:] for name in names])
            fix = f"did you mean {' or '.join(f'--{name}' for name in near)}?" if near else None
            otherwise = f"choose one of: {first_of(sorted(names), MAX_NAMES)}"
            return KdepError(f"unknown option {option!r}", fix=fix or otherwise)
        return KdepError(
            f"unexpected argument {argument!r}",
            fix=self._if_unnamed or f"remove it; {self.prog} --help lists the arguments",
        )


def _named(argument: str) -> str:
    """An option, or an argument without a name, as an error calls it."""
    return argument if argument.startswith("-") else f"the argument {argument}"
