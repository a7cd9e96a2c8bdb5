"""Scores and intervals in README and docs/results.md equal those of the leaderboards."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SCORE = re.compile(r"\d+\.\d ± \d+\.\d")
INTERVAL = re.compile(r"[+-]?\d+\.\d \[[+-]?\d+\.\d, [+-]?\d+\.\d\]")
SUITE = re.compile(r"results/(\w+)/leaderboard\.md|`(\w+)`")


def sections(path: Path) -> list[tuple[str, str]]:
    """(heading, text) of each second-level section."""
    parts = re.split(r"(?m)^## ", path.read_text())
    return [(p.split("\n", 1)[0], p) for p in parts]


def leaderboards(text: str) -> str:
    """The leaderboards of all suites that `text` names, without Markdown's backslashes."""
    names = {a or b for a, b in SUITE.findall(text)}
    paths = [REPO / "results" / name / "leaderboard.md" for name in sorted(names)]
    return "\n".join(p.read_text().replace("\\", "") for p in paths if p.is_file())


def reversed_difference(difference: str) -> str:
    """The difference with the opposite sign: "-6.0 [-8.3, -3.6]" -> "+6.0 [+3.6, +8.3]"."""
    mean, low, high = (-float(v) for v in re.findall(r"[+-]?\d+\.\d", difference))
    return f"{mean:+.1f} [{high:+.1f}, {low:+.1f}]"


def wrong_numbers(path: Path) -> list[str]:
    """Numbers of `path` that no leaderboard named in their section contains."""
    faults = []
    for heading, text in sections(path):
        plain = re.sub(r"\s+", " ", text)
        published = leaderboards(text)
        scores = {n for n in SCORE.findall(plain) if n not in published}
        differences = {
            n
            for n in INTERVAL.findall(plain)
            if n not in published and reversed_difference(n) not in published
        }
        faults += [f"{heading}: {n}" for n in sorted(scores | differences)]
    return faults


@pytest.mark.parametrize("name", ["README.md", "docs/results.md"])
def test_no_score_or_interval_differs_from_its_leaderboard(name):
    assert wrong_numbers(REPO / name) == []


def test_a_changed_score_is_detected(tmp_path):
    text = (REPO / "docs/results.md").read_text()
    assert "26.3 ± 1.1" in text
    changed = tmp_path / "results.md"
    changed.write_text(text.replace("26.3 ± 1.1", "26.8 ± 1.1"))
    assert {f.rpartition(": ")[2] for f in wrong_numbers(changed)} == {"26.8 ± 1.1"}


def report(*arguments: str) -> str:
    """The output of `kdep-bench report` for published folders."""
    command = [sys.executable, "tools/report.py", *arguments]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout


def test_the_verdicts_on_the_second_processor_are_those_in_the_text():
    """The counts that docs/results.md and README state."""
    text = report("diff", "results/methods_pocket", "results/pocket_probes")
    assert "10 scores are in both folders, 1 are the same." in text
    assert "6 are significant in one folder only, 0 are opposite. 11 of the 11 significant" in text
    assert "yes, all 11 |" in (REPO / "README.md").read_text()


def test_the_numbers_of_seeds_needed_are_those_in_the_text():
    """Pairs of methods for which the probes need fewer, as many and more seeds than the task."""
    summary = report("results/pocket_probes", "--seeds-needed").split("\n## ")[0]
    rows = re.findall(r"\| (\w+ - \w+) \| (\d+) \| (\d+) \|", summary)
    tasks_probes = {pair: (int(task), int(probes)) for pair, task, probes in rows}
    differences = [probes - task for task, probes in tasks_probes.values()]
    fewer, equal = sum(d < 0 for d in differences), sum(d == 0 for d in differences)
    assert (fewer, equal, len(differences) - fewer - equal) == (10, 9, 4)
    assert tasks_probes["mean_teacher - supervised"] == (15, 7)
    assert tasks_probes["logit_kd - kdep"] == (270, 11)
