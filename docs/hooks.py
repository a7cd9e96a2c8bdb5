"""Adds files from outside docs/ to the site: README, glossary, results, and a page per config kind.

mkdocs calls `on_files` and `on_page_markdown` (`hooks` in mkdocs.yml).
"""

from __future__ import annotations

import ast
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
COPIED = (
    "GLOSSARY.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "results/*.md",
    "results/index.html",
    "results/*/*.md",
    "results/*/index.html",
    "results/*/leaderboard.csv",
    "results/pocket/plots/*.svg",
)
# mkdocs makes index.html of README.md, and results/index.html is another page.
RENAMED = ("results/README.md", "results/how_to_read.md")
KINDS = ("methods", "suites", "searches", "tasks", "teachers", "students", "claims")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds README.md as the start page, the files of COPIED, and the reference pages."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text()))
    for pattern in COPIED:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix().replace(*RENAMED)
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for kind in KINDS:
        files.append(File.generated(config, f"reference/{kind}.md", content=_reference(kind)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Changes links that are valid in the repository to links in the site, whose root is docs/."""
    markdown = markdown.replace(*RENAMED)
    if page.file.src_uri in ("index.md", "CONTRIBUTING.md", "CHANGELOG.md", "GLOSSARY.md"):
        return markdown.replace("](docs/", "](")
    return markdown if "/" in page.file.src_uri else markdown.replace("](../", "](")


def _reference(kind: str) -> str:
    """One section per config of a kind: its name and docstring."""
    parts = [f"# {kind.capitalize()}\n"]
    for path in sorted((ROOT / "configs" / kind).glob("*.py")):
        doc = ast.get_docstring(ast.parse(path.read_text()))
        if path.stem.startswith("_") or not doc:
            continue
        first, _, rest = doc.partition("\n")
        parts.append(f"## {path.stem}\n\n{first}\n")
        if rest.strip():
            parts.append(f"```text\n{rest.strip()}\n```\n")
    return "\n".join(parts)
