"""Print a script for completion with the Tab key in bash or zsh.

kdep-bench completion bash > ~/.local/share/bash-completion/completions/kdep-bench
kdep-bench completion zsh > ~/.zsh/completions/_kdep-bench        # a folder of $fpath
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import Any

from kdep_bench.cli.parser import Parser
from kdep_bench.errors import KdepError

SHELLS = ("bash", "zsh")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("shell", choices=SHELLS)
    return p


def main(argv: list[str] | None = None) -> int:
    """Prints the script; returns the exit code (2 for a KdepError, whose text is printed)."""
    args = parser().parse_args(argv)
    try:
        print(script(args.shell))
    except KdepError as e:
        print(f"kdep-bench completion: {e}", file=sys.stderr)
        return 2
    return 0


def script(shell: str) -> str:
    """The script for a shell; it needs no Python when a key is pressed.

    Raises:
        KdepError: the package shtab is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise KdepError(
            "completion needs the package shtab, which is not installed",
            fix="install it: pip install 'kdep_bench[completion]'",
        ) from None
    preamble = _suites_in_bash() if shell == "bash" else ""
    return shtab.complete(whole_parser(), shell, preamble=preamble)


def whole_parser() -> argparse.ArgumentParser:
    """All commands as sub-commands of one parser."""
    from kdep_bench.cli.main import ALIASES, COMMANDS, LISTS

    whole = argparse.ArgumentParser(prog="kdep-bench")
    commands = whole.add_subparsers(metavar="COMMAND")
    for name, (module, about) in COMMANDS.items():
        inner = import_module(f"kdep_bench.cli.{module}").parser()
        _add(commands, name, about, inner)
    for name, (command, _, about) in ALIASES.items():
        inner = import_module(f"kdep_bench.cli.{COMMANDS[command][0]}").parser()
        _add(commands, name, about, inner)
    for name in LISTS:
        commands.add_parser(name, help=f"list the {name}").add_argument(
            "--json", action="store_true", help="print the list as JSON"
        )
    return whole


def _add(commands: Any, name: str, about: str, inner: argparse.ArgumentParser) -> None:
    """Adds the parser of a command; shtab reads the attribute `complete` of its arguments."""
    inner.description = None
    # add_help=False: `inner` already has the option --help.
    parser = commands.add_parser(name, help=about, parents=[inner], add_help=False)
    for argument in parser._actions:
        takes_a_value = not isinstance(argument, argparse._StoreTrueAction)
        if argument.dest in ("suite", "suites") and takes_a_value:
            argument.complete = {"bash": "_kdep_bench_suites", "zsh": "_files"}


def _suites_in_bash() -> str:
    """A bash function that prints the names of suites and files that complete a word."""
    from kdep_bench.suite.config import names

    return (
        "_kdep_bench_suites() {\n"
        f'  compgen -W "{" ".join(sorted(names("suite")))}" -- "$1"\n'
        '  compgen -f -- "$1"\n'
        "}"
    )


if __name__ == "__main__":
    from kdep_bench.console import run_main

    run_main(main)
