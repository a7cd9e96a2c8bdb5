"""Compares two results folders: which scores changed, and whether significantly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdep_bench.errors import KdepError
from kdep_bench.results import text
from kdep_bench.results.board.board import Board, Column, Result, RowKey, make_board
from kdep_bench.results.records.store import read
from kdep_bench.results.report import verdict_diff
from kdep_bench.results.statistics import intervals as st

# (student, method, teacher, data fraction, epochs, task family, task)
Place = tuple[str, str, str, float, float | None, str, str]


@dataclass(frozen=True, slots=True)
class Change:
    """A result that is in both folders.

    `est`: new score minus old score; positive if the new score is better, None if they are not
    compared. `verdict`: a text such as "better" or "same".
    """

    place: Place
    old: Result
    new: Result
    est: st.Estimate | None
    verdict: str


def _place(row: RowKey, column: Column) -> Place:
    # Without version, split, metric and data: `_change` compares them.
    return (*tuple(row), column.family, column.task)  # pyright: ignore[reportReturnType]


def _results(board: Board) -> dict[Place, tuple[Column, Result]]:
    return {_place(a, c): (c, result) for (a, c), result in board.results.items()}


def _unpaired(a: st.Values, b: st.Values) -> st.Estimate | None:
    """Welch's t interval of mean(a) - mean(b), for folders without a common seed pair."""
    x, y = st.estimate(a), st.estimate(b)
    if x.se is None or y.se is None or x.df is None or y.df is None:
        return None
    variance = x.se**2 + y.se**2
    mean = x.mean - y.mean
    if variance == 0:
        return st.Estimate(mean, 0.0, x.n + y.n, 0.0, None, mean, mean, "welch", "unpaired")
    df = variance**2 / (x.se**4 / x.df + y.se**4 / y.df)
    half_width = st.t_quantile(df) * variance**0.5
    return st.Estimate(
        mean,
        None,
        x.n + y.n,
        variance**0.5,
        df,
        mean - half_width,
        mean + half_width,
        "welch",
        "unpaired",
    )


def _definition(column: Column) -> tuple[int, str, str, str]:
    """What must be equal in two folders so that their scores can be compared."""
    return column.version, column.split, column.metric, column.direction


def _change(place: Place, old: tuple[Column, Result], new: tuple[Column, Result]) -> Change:
    (old_column, a), (new_column, b) = old, new
    if _definition(old_column) != _definition(new_column):
        return Change(place, a, b, None, "not compared: different version, split or metric")
    if bool(a.values) != bool(b.values):
        return Change(place, a, b, None, "scores in one folder only")
    if not a.values:
        differ = len(a.failed) != len(b.failed)
        verdict = "no scores, and different numbers of failed runs" if differ else "same: no scores"
        return Change(place, a, b, None, verdict)
    sign = new_column.sign
    gaps = {k: sign * v for k, v in st.differences(b.values, a.values).items()}
    est = st.estimate(gaps) if gaps else None
    if est is None or est.low is None:
        new_values = {k: sign * v for k, v in b.values.items()}
        old_values = {k: sign * v for k, v in a.values.items()}
        est = _unpaired(new_values, old_values) or est
    note = "" if old_column.fingerprint == new_column.fingerprint else " (other data)"
    if gaps and all(v == 0 for v in gaps.values()):
        verdict = "same" if a.values == b.values else "same for the common seeds"
    elif est is None or est.low is None:
        verdict = "too few seeds"
    elif est.excludes_zero:
        verdict = "better" if est.mean > 0 else "worse"
    else:
        verdict = "not significant"
    return Change(place, a, b, est, verdict + note)


def changes(old: Board, new: Board) -> tuple[list[Change], list[Place], list[Place]]:
    """(results in both folders, results only in the old, results only in the new)."""
    a, b = _results(old), _results(new)
    both = [_change(p, a[p], b[p]) for p in sorted(a.keys() & b.keys(), key=repr)]
    return both, sorted(a.keys() - b.keys(), key=repr), sorted(b.keys() - a.keys(), key=repr)


def _place_text(place: Place) -> str:
    student, method, teacher, fraction, epochs, _, task = place
    extra = [teacher] if teacher else []
    extra += [f"{100 * fraction:g} % data"]
    extra += [] if epochs is None else [f"{epochs:g} epochs"]
    return text.plain(f"{student}, {method} ({', '.join(extra)}), {task}", 160)


def diff(old_dir: Path, new_dir: Path, suite: str | None = None) -> str:
    """The changes of scores and verdicts from `old_dir` to `new_dir`, as text.

    Results with two or more common seed pairs are compared in pairs, others by Welch's t. The 95 %
    intervals are not corrected for multiple comparisons: of 100 scores that differ only by chance,
    about 5 are reported as better or worse.

    Raises:
        KdepError: one of the two is not a results folder, or has no records (of the suite).
    """
    old, new = make_board(read(old_dir), suite), make_board(read(new_dir), suite)
    for folder, board in ((old_dir, old), (new_dir, new)):
        if not board.runs and not board.damaged:
            named = f" of the suite {suite}" if suite else ""
            raise KdepError(
                f"the folder {folder} contains no records{named}",
                expected="a results folder with records/*.json",
                fix="give the results folder of a suite, such as results/pocket",
            )
    both, only_old, only_new = changes(old, new)
    changed = [c for c in both if not c.verdict.startswith("same")]
    with_scores = [c for c in both if c.old.values and c.new.values]
    n_same = sum(c.verdict.startswith("same") for c in with_scores)
    lines = [f"{len(with_scores)} scores are in both folders, {n_same} are the same."]
    for c in changed:
        gap = f": {text.gap(c.est)} x100" if c.est else ""
        lines.append(f"  {_place_text(c.place)}{gap}: {c.verdict}")
        lines.append(f"    {text.score(c.old)} -> {text.score(c.new)}")
    lines += verdict_diff.lines(old, new) if changed else []
    for title, places in (
        ("Only in the old folder", only_old),
        ("Only in the new folder", only_new),
    ):
        if places:
            lines.append(f"{title} ({len(places)}):")
            lines += [f"  {_place_text(p)}" for p in places]
    for name, board in (("old", old), ("new", new)):
        lines += [f"Damaged in the {name} folder: {sentence}" for _, sentence in board.damaged]
        lines += [f"Remark on the {name} folder: {text.plain(r, 400)}" for r in board.remarks]
    return "\n".join(lines)
