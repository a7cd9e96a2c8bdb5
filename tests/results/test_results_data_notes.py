"""Every table shows a note about the data (shared images, training data of the teacher) with the
scores that it concerns."""

from __future__ import annotations

import csv
import io
import re

from make_records import record
from test_results_tables import SCORES, board_of, golden_records

from kdep_bench.results import build
from kdep_bench.results.records.record import Record
from kdep_bench.results.report import board_rows, csv_table, data_notes, latex, markdown

LEAK = (
    "3 of 400 images of test are also in train (3 equal files), such as test/a.png and train/b.png"
)
TEACHER = "lite0 was trained on coco, and this task is evaluated on coco"


def records_with_notes() -> list[Record]:
    """Every score on `det` has a note on shared images, kdep's also one on its teacher's data."""
    records = []
    for method, tasks in SCORES.items():
        for task, values in tasks.items():
            for seed, value in enumerate(values):
                notes = [data_notes.NOTE + LEAK] if task == "det" else ["C = 0.1 chosen on val"]
                if task == "det" and method == "kdep":
                    notes.append(data_notes.NOTE + TEACHER)
                records.append(record(method, task, value, transfer=seed, notes=notes))
    return records


def tables(records: list[Record]) -> tuple[str, str, str]:
    """leaderboard.md, leaderboard.csv and leaderboard.tex of the records."""
    view = board_rows.make_view(board_of(records))
    return markdown.markdown(view), csv_table.csv_table(view), latex.latex(view)


def test_the_leaderboard_marks_the_scores_and_explains_the_marks() -> None:
    md, _, _ = tables(records_with_notes())
    det = md.split("## Task family: detection")[1].split("##")[0]
    rows = {line.split("|")[1].strip(): line for line in det.splitlines() if line.startswith("| ")}
    assert re.search(r"31\.0 ± 1\.0 \(3\)\*?\*? \(a, b\) \|", rows["kdep"])
    assert re.search(r"11\.0 ± 1\.0 \(3\) \(a\) † \|", rows["scratch"])
    head = md.split("## Summary")[0]
    assert f"- (a) det: {LEAK}." in head
    assert "- (b) det: lite0 was trained on coco" in head
    assert "(a" not in md.split("## Task family: classification")[1].split("##")[0]
    assert "chosen on val" not in md


def test_the_csv_and_the_latex_contain_the_notes() -> None:
    _, text, tex = tables(records_with_notes())
    rows = {(r["method"], r["task"]): r for r in csv.DictReader(io.StringIO(text))}
    assert rows["kdep", "det"]["data_notes"] == f"{LEAK}; {TEACHER}"
    assert rows["scratch", "det"]["data_notes"] == LEAK
    assert rows["kdep", "probe"]["data_notes"] == ""
    assert "\\textsuperscript{a, b}" in tex
    assert "b: det: lite0 was trained on coco" in tex


def test_the_page_shows_the_notes(results) -> None:
    folder = results(records_with_notes())
    build(folder, "golden", [])
    html = (folder / "index.html").read_text()
    assert '<section id="data-notes"' in html
    assert LEAK in html
    assert html.count('<a href="#data-notes">(a)</a>') == 3  # svd, supervised and scratch
    assert html.count('<a href="#data-notes">(a, b)</a>') == 1


def test_tables_without_notes_have_no_marks() -> None:
    md, text, tex = tables(golden_records())
    assert data_notes.HEADING not in md
    assert "data_notes" not in text
    assert "\\textsuperscript{a" not in tex


def test_letters_after_z_have_two_characters() -> None:
    assert [data_notes._letter(i) for i in (0, 25, 26, 27, 52)] == ["a", "z", "aa", "ab", "ba"]
