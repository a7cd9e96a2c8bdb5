"""Texts that users read, and names in the code, use the field's standard terms.

The words are in `plain_words.txt`, with the term to use instead. `python -m tests.test_plain_words`
prints the counts that fell, to be lowered in that file.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

REPO = Path(__file__).resolve().parents[1]
WORDS = Path(__file__).with_name("plain_words.txt")
AREAS = ("docs", "errors", "headings", "names", "tests")
NAMES = ("names", "tests")  # areas of names, which are compared as a whole
DOCS = (
    "README.md",
    *sorted(p.relative_to(REPO).as_posix() for p in (REPO / "docs").glob("*.md")),
    "results/README.md",
    "GLOSSARY.md",
    "Makefile",
)
COMMANDS = (
    "tools/*.py",
    "kdep_bench/cli/*.py",
    "kdep_bench/engine/stage.py",
    "kdep_bench/benchmark/engine_cost.py",
    "kdep_bench/benchmark/data_hashing.py",
    "kdep_bench/benchmark/networks.py",
)
SHOWN_KEYS = {"about", "statement", "title"}  # keys of configs that tables and pages print


class Text(NamedTuple):
    """A text of one area, with the place where it begins."""

    area: str
    file: str
    line: int
    text: str


class Rule(NamedTuple):
    """A word (regular expression), the standard term, and the occurrences allowed per area."""

    word: str
    use: str
    limits: dict[str, int]  # area -> count; an area that is not checked is left out


def rules(text: str) -> list[Rule]:
    """The rules in the table `text`: word | term | counts per area ('-': not checked)."""
    out = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        word, use, *counts = (part.strip() for part in line.split(" | "))
        if len(counts) == len(AREAS) - 1:
            counts.append("-")
        assert len(counts) == len(AREAS), f"{WORDS.name}: {line!r} needs {len(AREAS)} counts"
        limits = {a: int(n) for a, n in zip(AREAS, counts, strict=True) if n != "-"}
        out.append(Rule(word, use, limits))
    return out


def occurrences(rule: Rule, texts: list[Text], area: str) -> list[str]:
    """'file:line: the occurrence' for every occurrence of the rule's word in an area."""
    # A space in the word is any white space; names are compared as a whole.
    body = rf"(?:{rule.word})".replace(" ", r"\s+")
    pattern = re.compile(body if area in NAMES else rf"(?<![\w-]){body}(?![\w-])", re.I)
    places = []
    for t in texts:
        if t.area != area:
            continue
        hits = (
            pattern.finditer(t.text)
            if area not in NAMES
            else [pattern.fullmatch(t.text.strip("_"))]
        )
        for hit in filter(None, hits):
            line = t.line + t.text.count("\n", 0, hit.start())
            places.append(f"{t.file}:{line}: {' '.join(hit[0].split())!r}")
    return places


# --- the texts -----------------------------------------------------------------------------------


def without_code(text: str) -> str:
    """The text with `code` blanked out; line numbers stay."""
    return re.sub(r"`[^`]*`", lambda m: re.sub(r"\S", ".", m[0]), text)


def without_terms(table: str) -> str:
    """A glossary without the terms of its first column, in the rows that define them."""
    rows = []
    for line in table.split("\n"):
        terms = re.findall(r"\w+", line.split("|")[1]) if line.startswith("|") else []
        pattern = "|".join(map(re.escape, terms)) or "$^"
        rows.append(re.sub(rf"\b(?:{pattern})s?\b", "...", line))
    return "\n".join(rows)


def string(node: ast.AST | None) -> str:
    """The text of a string expression, with {} for every value; '' for other expressions."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(string(part) or "{}" for part in node.values)
    if isinstance(node, ast.BinOp):
        return string(node.left) + string(node.right)
    return ""


def called(node: ast.Call) -> str:
    """The name of the function or class that is called."""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def texts_of_docs(root: Path) -> Iterator[Text]:
    """Hand-written pages and the docstrings and shown texts of the configs."""
    for name in DOCS:
        if (root / name).is_file():
            text = without_code((root / name).read_text())
            yield Text("docs", name, 1, without_terms(text) if name == "GLOSSARY.md" else text)
    for path in sorted((root / "configs").rglob("*.py")):
        tree, name = ast.parse(path.read_text()), str(path.relative_to(root))
        yield Text("docs", name, 1, without_code(ast.get_docstring(tree, clean=False) or ""))
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg in SHOWN_KEYS:
                yield Text("docs", name, node.value.lineno, string(node.value))


def texts_of_commands(root: Path) -> Iterator[Text]:
    """The texts that commands print: docstrings and texts of `--help`, errors of the parser."""
    for path in sorted(p for pattern in COMMANDS for p in root.glob(pattern)):
        tree, name = ast.parse(path.read_text()), str(path.relative_to(root))
        yield Text("docs", name, 1, without_code(ast.get_docstring(tree, clean=False) or ""))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and called(node) in (
                "add_argument",
                "ArgumentParser",
                "Parser",
            ):
                for k in node.keywords:
                    if k.arg in ("help", "description", "epilog", "if_unnamed"):
                        yield Text("docs", name, k.value.lineno, string(k.value))
            if isinstance(node, ast.Call) and called(node) == "error":
                yield from (Text("docs", name, a.lineno, string(a)) for a in node.args)
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "EPILOG":
                yield Text("docs", name, node.lineno, string(node.value))


def texts_of_errors(root: Path) -> Iterator[Text]:
    """The texts of every KdepError."""
    for path in sorted((root / "kdep_bench").rglob("*.py")):
        name = str(path.relative_to(root))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and called(node) == "KdepError":
                for part in [*node.args, *(k.value for k in node.keywords)]:
                    yield Text("errors", name, part.lineno, string(part))


def texts_of_names(root: Path, folder: str, area: str) -> Iterator[Text]:
    """The names of functions, classes, arguments, variables and attributes in a folder."""
    for path in sorted((root / folder).rglob("*.py")):
        name = str(path.relative_to(root))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield Text(area, name, node.lineno, node.name)
            elif isinstance(node, ast.arg):
                yield Text(area, name, node.lineno, node.arg)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield Text(area, name, node.lineno, node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                yield Text(area, name, node.lineno, node.attr)


def texts_of_headings(root: Path) -> Iterator[Text]:
    """Headings and column names of the published leaderboards."""
    for path in sorted((root / "results").glob("*/leaderboard.md")):
        lines = path.read_text().splitlines()
        for number, (line, below) in enumerate(zip(lines, [*lines[1:], ""], strict=True), 1):
            if line.startswith("#") or (line.startswith("|") and below.startswith("| ---")):
                yield Text("headings", str(path.relative_to(root)), number, line)


@cache
def texts(root: Path = REPO) -> list[Text]:
    """Every text that is checked."""
    names = [*texts_of_names(root, "kdep_bench", "names"), *texts_of_names(root, "tests", "tests")]
    return [
        *texts_of_docs(root),
        *texts_of_commands(root),
        *texts_of_errors(root),
        *names,
        *texts_of_headings(root),
    ]


# --- the check -----------------------------------------------------------------------------------


@pytest.mark.parametrize("area", AREAS)
def test_texts_and_names_use_standard_terms(area: str):
    violations = []
    for rule in rules(WORDS.read_text()):
        limits = rule.limits.get(area)
        if limits is None:
            continue
        places = occurrences(rule, texts(), area)
        if len(places) > limits:
            allowed = f" ({len(places)} in all, {limits} at most)" if limits else ""
            violations += [f"{place}: write {rule.use!r}{allowed}" for place in places]
    assert not violations, "\n".join(["private words instead of standard terms:", *violations])


def test_a_private_word_is_reported_with_its_line_and_the_standard_term():
    (rule,) = rules("cannot be told | not significant | 0 | - | - | 0\n")
    assert rule.limits == {"docs": 0, "names": 0}
    page = Text("docs", "A.md", 1, without_code("fine\n`cannot be told`\nit cannot be\ntold yet"))
    assert occurrences(rule, [page], "docs") == ["A.md:3: 'cannot be told'"]
    assert occurrences(rule, [page], "errors") == []


def test_a_name_is_compared_as_a_whole():
    (rule,) = rules("one | the thing's name | - | - | - | 0\n")
    code = [Text("names", "a.py", n, name) for n, name in enumerate(("one", "one_hot", "none"), 1)]
    assert occurrences(rule, code, "names") == ["a.py:1: 'one'"]


def test_every_area_of_texts_is_read():
    """Otherwise an area whose texts are not found any more would pass unchecked."""
    per_area = {area: sum(t.area == area for t in texts()) for area in AREAS}
    assert per_area["docs"] > 300
    assert per_area["errors"] > 900
    assert per_area["headings"] > 100
    assert per_area["names"] > 5000
    assert per_area["tests"] > 5000
    assert any(
        "resume" in t.text for t in texts() if t.file == "kdep_bench/cli/run_suite_arguments.py"
    )


# Words that docstrings and comments of kdep_bench may not use -> the standard term.
COMMENT_WORDS = {
    "arms?": "method; row",
    "rooms?": "package; kind of config; folder; free space",
    "rivals?": "baseline, other method",
    "told|said": "given, returned, reported",
    "hears?|heard": "reads, receives",
    "fitting rows": "alignment samples",
    "data shares?": "data fraction",
    "mend(s|ed)?": "fix",
    "anew|afresh": "again",
    "whence|whom": "where from; which",
    "goes on|(is|was) cut": "continues; is interrupted",
}


def docstrings_and_comments(root: Path) -> Iterator[Text]:
    """The docstrings and comments of the package."""
    for path in sorted((root / "kdep_bench").rglob("*.py")):
        source, name = path.read_text(), str(path.relative_to(root))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = without_code(ast.get_docstring(node, clean=False) or "")
                yield Text("comments", name, getattr(node, "lineno", 1), text)
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                yield Text("comments", name, token.start[0], without_code(token.string))


def test_docstrings_and_comments_use_standard_terms():
    texts = list(docstrings_and_comments(REPO))
    assert len(texts) > 3000
    rules = [Rule(word, use, {}) for word, use in COMMENT_WORDS.items()]
    violations = [
        f"{place}: write {r.use!r}" for r in rules for place in occurrences(r, texts, "comments")
    ]
    assert not violations, "\n".join(violations)


# Classes that two modules define under one name. Paths of the first two are in configs, and so in
# the ids of finished stages. Score is a class of the Python interface and one of the search.
SAME_NAME = {"EfficientNetLite", "Linear", "Score"}


def test_no_two_modules_define_a_public_class_with_the_same_name():
    """Two public classes of one name could be confused by a reader or in a text search."""
    modules: dict[str, list[str]] = {}
    for path in sorted((REPO / "kdep_bench").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                modules.setdefault(node.name, []).append(str(path.relative_to(REPO)))
    assert {n: m for n, m in modules.items() if len(m) > 1 and n not in SAME_NAME} == {}


if __name__ == "__main__":
    for rule in rules(WORDS.read_text()):
        for area, limits in rule.limits.items():
            count = len(occurrences(rule, texts(), area))
            if count != limits:
                print(f"{rule.word}: {area} {limits} -> {count}")
