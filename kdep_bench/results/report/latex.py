"""leaderboard.tex of a board."""

from __future__ import annotations

from kdep_bench.results import text
from kdep_bench.results.board import compare
from kdep_bench.results.board.board import ArmKey
from kdep_bench.results.report import data_notes
from kdep_bench.results.report.board_rows import (
    MEAN_RANK,
    View,
    arm_name,
    column_names,
    command,
    labels_text,
    share_text,
)

_TEX_ENDS = ["labels", "data fraction", "images seen", "cost", "weights loaded"]


def _tex_ends(view: View, arm: ArmKey) -> list[str]:
    f = view.facts[arm]
    ends = [labels_text(f), share_text(view, arm), text.count(f.images_seen)]
    return [*ends, text.seconds(f.cost_s), text.ratio(f.coverage)]


def _tex_table(head: list[str], rows: list[list[str]], left: int, note: str) -> list[str]:
    """A booktabs table; the cells of `rows` are LaTeX already."""
    columns = "l" * left + "r" * (len(head) - left)
    lines = [f"% {text.tex(note)}", f"\\begin{{tabular}}{{{columns}}}", "\\toprule"]
    lines += [" & ".join(text.tex(h) for h in head) + r" \\", "\\midrule"]
    lines += [" & ".join(row) + r" \\" for row in rows]
    return [*lines, "\\bottomrule", "\\end{tabular}", ""]


def latex(view: View) -> str:
    """leaderboard.tex: booktabs tables to \\input, the summary and one per task family; each row's
    command in a comment."""
    lines = [
        "% Needs \\usepackage{booktabs}. Scores x100: mean, standard deviation, (number of seeds).",
        "",
    ]
    rows = []
    for student in view.board.students:
        ranks = compare.mean_ranks(view.board, student)
        arms = view.board.arms_of(student)
        for arm in sorted(arms, key=lambda a: (ranks.get(a, 1e9), a.order())):
            rank = f"{ranks[arm]:.2f}" if arm in ranks else "incomplete"
            cells = [student, arm_name(view, arm), rank, *_tex_ends(view, arm)]
            rows.append([text.tex(c) for c in cells])
    if rows:
        note = f"Summary. {MEAN_RANK}"
        lines += _tex_table(["student", "method", "mean rank", *_TEX_ENDS], rows, 2, note)
    for family in view.board.families:
        columns = view.board.columns_of(family)
        names = column_names(columns)
        rows = []
        for arm in view.rows(columns):
            row = [text.tex(arm.student), text.tex(arm_name(view, arm))]
            for c in columns:
                shown = text.tex(text.score(view.board.cell(arm, c)))
                shown = f"\\textbf{{{shown}}}" if view.is_bold(arm, c) else shown
                mark = view.mark(arm, c)
                row.append(f"{shown}\\textsuperscript{{{mark}}}" if mark else shown)
            rows.append([*row, *(text.tex(c) for c in _tex_ends(view, arm))])
        head = ["student", "method", *(names[c] for c in columns), *_TEX_ENDS]
        lines += _tex_table(head, rows, 2, f"Task family: {family}")
    for note in data_notes.legend(view.board, view.letters):
        words = f"{note.letter}: {', '.join(note.tasks)}: {note.sentence}."
        lines += [f"\\par\\footnotesize {text.tex(text.plain(words, 600))}", ""]
    for arm in view.board.arms:
        line = text.plain(f"{arm.student}, {view.labels[arm]}: {command(view.board, arm)}", 600)
        lines.append("% " + line.replace("\\", r"\textbackslash{}"))
    return "\n".join(lines).rstrip() + "\n"
