"""The parser of all commands: its error for an unknown argument says what to write instead."""

from __future__ import annotations

import argparse
from typing import Any

from kdep_bench.errors import KdepError, unknown_name


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that suggests similar options for an unknown one.

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
            self.error(str(self._unknown(unknown[0])))
        return parsed

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
            return unknown_name("option", argument.partition("=")[0], names)
        return KdepError(
            f"unexpected argument {argument!r}",
            fix=self._if_unnamed or f"remove it; {self.prog} --help lists the arguments",
        )
