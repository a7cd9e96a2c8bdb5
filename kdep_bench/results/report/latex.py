"""Builds the text of leaderboard.tex from a board, which contains all results of a folder."""

from __future__ import annotations

from kdep_bench.results import text
from kdep_bench.results.board import compare
from kdep_bench.results.board.board import RowKey
from kdep_bench.results.report import data_notes
from kdep_bench.results.report.board_rows import (
    MEAN_RANK,
    BoardView,
    column_names,
    command,
    fraction_text,
    labels_text,
    row_name,
    rows_by_rank,
)

_ROW_END = ["labels used", "data fraction", "images seen", "pre-training cost", "weights loaded"]
DAGGER = r"\textsuperscript{\dag}"


def _row_end(view: BoardView, row: RowKey) -> list[str]:
    """The entries under _ROW_END."""
    summary = view.summaries[row]
    entries = [labels_text(summary), fraction_text(view, row), text.count(summary.images_seen)]
    return [*entries, text.seconds(summary.cost_s), text.ratio(summary.coverage)]


def _tex_table(head: list[str], rows: list[list[str]], left: int, note: str) -> list[str]:
    """The lines of a booktabs table; `rows` contain LaTeX, `head` and `note` plain text."""
    columns = "l" * left + "r" * (len(head) - left)
    lines = [f"% {text.tex(note, 600)}", f"\\begin{{tabular}}{{{columns}}}", "\\toprule"]
    lines += [" & ".join(text.tex(h) for h in head) + r" \\", "\\midrule"]
    lines += [" & ".join(row) + r" \\" for row in rows]
    return [*lines, "\\bottomrule", "\\end{tabular}", ""]


def latex(view: BoardView) -> str:
    """The text of leaderboard.tex, which a LaTeX document includes by \\input.

    It has booktabs tables: the summary and one per task family. Comments contain the command of
    each row.
    """
    lines = [
        "% Needs \\usepackage{booktabs}. Scores x100: mean, standard deviation (number of seeds).",
        "% Bold: among the best. Dagger: the mean is below chance or below the mean of scratch.",
        "",
    ]
    table = []
    for student in view.board.students:
        ranks = compare.mean_ranks(view.board, student)
        for row in rows_by_rank(view, student):
            rank = f"{ranks[row]:.2f}" if row in ranks else "incomplete"
            entries = [student, row_name(view, row), rank, *_row_end(view, row)]
            table.append([text.tex(c) for c in entries])
    if table:
        note = " ".join(["Summary.", *MEAN_RANK[:1]])
        lines += _tex_table(["student", "method", "mean rank", *_ROW_END], table, 2, note)
    for family in view.board.families:
        columns = view.board.columns_of(family)
        names = column_names(columns)
        table = []
        for row in view.rows(columns):
            entries = [text.tex(row.student), text.tex(row_name(view, row))]
            for c in columns:
                shown = text.tex(text.score(view.board.result(row, c)))
                shown = f"\\textbf{{{shown}}}" if view.is_bold(row, c) else shown
                mark = view.mark(row, c)
                shown = f"{shown}\\textsuperscript{{{mark}}}" if mark else shown
                is_low = compare.is_below_chance_or_scratch(view.board, row, c)
                entries.append(shown + (DAGGER if is_low else ""))
            table.append([*entries, *(text.tex(c) for c in _row_end(view, row))])
        head = ["student", "method", *(names[c] for c in columns), *_ROW_END]
        lines += _tex_table(head, table, 2, f"Task family: {family}")
    for note in data_notes.legend(view.board, view.letters):
        words = f"{note.letter}: {', '.join(note.tasks)}: {note.sentence}."
        lines += [f"\\par\\footnotesize {text.tex(text.plain(words, 600))}", ""]
    for row in view.board.rows:
        line = text.plain(f"{row.student}, {view.labels[row]}: {command(view.board, row)}", 600)
        lines.append("% " + line.replace("\\", r"\textbackslash{}"))
    return "\n".join(lines).rstrip() + "\n"
