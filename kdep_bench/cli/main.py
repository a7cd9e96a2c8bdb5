"""The program `kdep-bench`: runs the command that its first argument names.

kdep-bench run pocket --dry-run        what would run, in which order, at what cost
kdep-bench run smoke                   every stage in a minute, on tiny data
kdep-bench report results/pocket       rebuild tables and page from records
kdep-bench methods                     one line per method
"""

from __future__ import annotations

import sys
from importlib import import_module

# Command -> (module of kdep_bench.cli with a `main(argv)`, what the command does).
COMMANDS = {
    "run": ("run_suite", "run a suite; finished stages are skipped"),
    "init": ("init", "write a suite for a folder of your images"),
    "status": ("status", "show which stages are done, running, failed and left"),
    "logs": ("logs", "print the path and the end of a stage's log"),
    "why": ("why", "explain why a stage would run or is skipped"),
    "report": ("report", "rebuild tables and page from records, or compare results folders"),
    "pick": ("pick", "rank teachers by their features of a few images, before a long run"),
    "search": ("search", "search for a student and settings within size limits"),
    "doctor": ("doctor", "check this machine, and what a suite needs"),
    "data": ("prepare_data", "prepare or verify an official data set or the pocket data"),
    "student": ("make_student", "write a student config from a model name"),
    "publish": ("publish", "export finished students with model cards"),
    "work-dir": ("work_dir", "list stages with their sizes; delete those that nothing needs"),
    "benchmark": ("benchmark", "measure speed and memory of the pre-training code"),
    "gpu-check": ("gpu_check", "check that everything works on this machine's GPU"),
    "completion": ("completion", "print a script for completion with Tab in bash or zsh"),
}
# Short name -> (command, its first arguments, what the command does).
ALIASES = {
    "clean": (
        "work-dir",
        ("--gc",),
        "list stages that neither the suites nor a results folder uses; --delete removes them",
    )
}
# Commands that list configs. `data-sets` runs `run --list data`, the others `run --list NAME`.
LISTS = (
    "suites",
    "methods",
    "teachers",
    "students",
    "tasks",
    "probes",
    "claims",
    "data-sets",
    "searches",
)


def usage() -> str:
    """The text of `kdep-bench --help`."""
    lines = ["usage: kdep-bench COMMAND [--help]", "", "commands:"]
    lines += [f"  {name:10s} {about}" for name, (_, about) in COMMANDS.items()]
    lines += [f"  {name:10s} {about}" for name, (_, _, about) in ALIASES.items()]
    lists = "lists of configs (--json for programs):"
    lines += ["", lists, "  " + " ".join(LISTS), "", "kdep-bench --version"]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code, or 2 if there is no such command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    command, *rest = arguments
    if command == "--version":
        from importlib.metadata import version

        print(f"kdep-bench {version('kdep_bench')}")
        return 0
    if command in LISTS:
        command, rest = "run", ["--list", command.removesuffix("-sets"), *rest]
    if command in ALIASES:
        command, first_arguments, _ = ALIASES[command]
        rest = [*first_arguments, *rest]
    if command not in COMMANDS:
        from kdep_bench.errors import unknown_name

        known = [*COMMANDS, *ALIASES, *LISTS, "--help", "--version"]
        print(unknown_name("command", command, known), file=sys.stderr)
        return 2
    module = import_module(f"kdep_bench.cli.{COMMANDS[command][0]}")
    sys.argv[0] = f"kdep-bench {arguments[0]}"
    return int(module.main(rest) or 0)


def console() -> None:
    """The entry point of the installed command."""
    from kdep_bench.console import run_main

    run_main(main)


if __name__ == "__main__":
    console()
