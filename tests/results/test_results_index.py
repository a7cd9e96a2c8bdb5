"""results/index.html shows the summary sentences and scores of every published suite."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kdep_bench.errors import KdepError
from kdep_bench.results.report import report
from kdep_bench.results.report.index import write_index
from kdep_bench.results.report.report import docstring_line

REPO = Path(__file__).resolve().parents[2]
RESULTS, CONFIGS = REPO / "results", REPO / "configs" / "suites"
PUBLISHED = sorted(p.name for p in RESULTS.iterdir() if (p / "records").is_dir())


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A copy of the published folders with a new index."""
    root = tmp_path_factory.mktemp("index") / "results"
    ignored = shutil.ignore_patterns("pictures", "plots", "superseded")
    shutil.copytree(RESULTS, root, ignore=ignored)
    (root / "index.html").unlink(missing_ok=True)
    return write_index(root, CONFIGS)


class _Links(HTMLParser):
    """The links and the visible text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v for k, v in attrs if tag == "a" and k == "href" and v]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_published_index_equals_a_rebuilt_one(built):
    assert (RESULTS / "index.html").read_bytes() == built.read_bytes(), (
        "run: python tools/report.py --index results"
    )


def test_every_suite_is_listed_with_the_sentences_of_its_leaderboard(built):
    shown = " ".join(" ".join(_Links(built.read_text()).words).split())
    for name in PUBLISHED:
        assert docstring_line(CONFIGS / f"{name}.py").replace("`", "") in shown
        board = (RESULTS / name / "leaderboard.md").read_text()
        for line in re.findall(r"^- (.*)$", board.split("Scores are x100")[0], re.M):
            sentence = re.sub(r"\\(.)", r"\1", line)
            assert sentence in shown, f"{name}: {sentence}"


def test_the_scores_on_the_page_are_those_of_the_csv_files(built):
    expected: list[tuple[str, float]] = []
    for name in PUBLISHED:
        with (RESULTS / name / "leaderboard.csv").open() as file:
            means = [row["mean"] for row in csv.DictReader(file)]
        expected += [(name, float(mean)) for mean in means if mean]
    # A row of the table: the link to the suite, three cells of text, and the cell of the score.
    # The means are compared, not their texts: the CSV has fewer digits, so a text may be rounded
    # differently.
    score_rows = re.findall(
        r'<td class="l n"><a href="(\w+)/index\.html">(?:[^\n]*\n){4}<td class="[^"]*" '
        r'data-v="([^"]+)">[\d.-]+ ',
        built.read_text(),
    )
    shown = sorted((name, float(mean)) for name, mean in score_rows)
    assert [name for name, _ in shown] == [name for name, _ in sorted(expected)]
    assert [m for _, m in shown] == pytest.approx([m for _, m in sorted(expected)], abs=1e-5)


def test_every_link_leads_to_a_file(built):
    page = _Links(built.read_text())
    targets = {link for link in page.links if not link.startswith("#")}
    assert {f"{name}/index.html" for name in PUBLISHED} <= targets
    assert all((RESULTS / target).exists() for target in targets), targets


def test_the_page_is_offline_and_has_one_search_box(built):
    page = built.read_text()
    assert page.count('type="search"') == 1
    assert "default-src &#39;none&#39;" in page
    assert 'id="shown"' in page  # where page.js writes the number of rows
    assert "http:" not in page
    assert "https:" not in page


def test_a_hostile_folder_name_is_shown_as_text(built, tmp_path):
    root = tmp_path / "results"
    shutil.copytree(built.parent / "pocket", root / "<img src=x>")
    page = write_index(root, CONFIGS).read_text()
    assert "<img" not in page
    assert "&lt;img src=x&gt;" in page


def test_a_suite_without_a_config_has_no_docstring_and_an_empty_root_is_an_error(tmp_path):
    assert docstring_line(tmp_path / "none.py") == ""
    (tmp_path / "broken.py").write_text("def (")
    assert docstring_line(tmp_path / "broken.py") == ""
    with pytest.raises(KdepError, match="contains no results folder"):
        write_index(tmp_path, CONFIGS)


def test_the_command_writes_the_index(built, tmp_path):
    root = tmp_path / "results"
    shutil.copytree(built.parent / "pocket", root / "pocket")
    tool = REPO / "tools" / "report.py"
    done = subprocess.run(
        [sys.executable, str(tool), "--index", str(root)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (root / "index.html").is_file()
    command = [sys.executable, str(tool), "--index", str(root), str(root / "pocket")]
    # --index and a folder exclude each other.
    with_index_and_folder = subprocess.run(command, capture_output=True, text=True)
    assert with_index_and_folder.returncode == 2


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("kdep_anatomy_grid", "*data fraction* 10 % (none for scratch), "),
        ("pocket_lite0", "*data fraction* 100 % (none for imagenet, scratch), "),
    ],
)
def test_the_data_fraction_is_shown_for_a_failed_method_and_is_a_dash_for_published_weights(
    name, line, tmp_path
):
    for part in ("records", "claims.json"):
        source = RESULTS / name / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / part)
    report.build(tmp_path)
    assert line in (tmp_path / "leaderboard.md").read_text()
