"""Builds the leaderboard, the page and the plots of a results folder from its records."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.files import read_strict, write_atomic, write_json
from kdep_bench.paths import CONFIGS
from kdep_bench.results.board import ablation, families, teachers
from kdep_bench.results.board.board import Board, make_board
from kdep_bench.results.claims.judge import judge, make_claim
from kdep_bench.results.claims.verdict import Verdict
from kdep_bench.results.records import probe_record, store
from kdep_bench.results.report import (
    board_rows,
    csv_table,
    latex,
    markdown,
    pareto,
    plots,
    probe_tables,
)
from kdep_bench.results.report.charts import png, standalone
from kdep_bench.results.report.page.suite import html_page


def build(
    results_dir: Path,
    suite: str | None = None,
    claims: list[dict[str, Any]] | None = None,
    method_inputs: dict[str, dict[str, Any]] | None = None,
    require_records: bool = False,
    factors: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Rebuilds leaderboard.md, .csv, .tex and index.html of `results_dir` from its records.

    It also rebuilds the plots, and probes.csv if there are probe records or the file exists.

    Args:
        results_dir: the folder that contains records/.
        suite: use only records of this suite; None: all records.
        claims: claim configs to judge, which are written to claims.json; None: read that file.
        method_inputs: {method: {"reads": [...], "about": ...}}: the inputs of the method's losses
            and, if known, a sentence about the method. Written to methods.json if the tables show
            any of them; None: read that file.
        factors: factors of an ablation, as in `ablation.Grid`, written to factors.json; None: read
            that file, if there is one.
        require_records: raise instead of writing empty tables.

    Returns:
        the suite, numbers of records by status, verdicts on claims, remarks, and written files.

    Raises:
        KdepError: `results_dir` is not a folder, a claim is not valid, a file that is read instead
            of an argument is damaged, or with `require_records` no record can be read.
    """
    results_dir = Path(results_dir)
    stored = store.read(results_dir)
    board = make_board(stored, suite)
    probes, damaged_probes = probe_record.read(results_dir, suite)
    board.teacher_measures = teachers.measures_of(probes, board.remarks)
    if require_records and not (board.runs or probes):
        suites = {run.suite for run in stored.runs}
        raise _no_records(results_dir, suite, suites, [sentence for _, sentence in board.damaged])
    verdicts = judge(board, _claims(results_dir, claims))
    view = board_rows.make_view(board, verdicts, _method_inputs(results_dir, board, method_inputs))
    view.probes = probe_tables.make_section(probes, damaged_probes)
    view.grid = _grid(results_dir, factors)
    view.question = question(board.suite)
    _add_image_differences(view, results_dir)
    complete_records = store.load_records(results_dir, _runs_to_load(board.runs))
    drawn = plots.draw(view, complete_records) + pareto.draw(view)
    files = {
        "leaderboard.md": markdown.markdown(view),
        "leaderboard.csv": csv_table.csv_table(view),
        "leaderboard.tex": latex.latex(view),
        "index.html": html_page(view, results_dir, complete_records, drawn),
    }
    if probes or (results_dir / "probes.csv").is_file():
        files["probes.csv"] = probe_tables.csv_table(view.probes, probes)
    for name, content in files.items():
        _write_if_new(results_dir / name, content)
    _write_plots(store.own_folder(results_dir, "plots"), drawn)
    counts = Counter(r.status for r in board.runs)
    return {
        "suite": board.suite,
        "records": len(board.runs),
        **{s: counts[s] for s in ("ok", "failed", "missing")},
        "damaged": len(board.damaged),
        "not_read": [sentence for _, sentence in board.damaged],
        "claims": _rulings(verdicts),
        "remarks": board.remarks,
        "files": [str(results_dir / n) for n in files],
        "plots": len(drawn),
    }


def question(suite: str, configs: Path = CONFIGS / "suites") -> str:
    """The question that a suite answers: the first line of its config's docstring, or "".

    The config is not executed.
    """
    is_name = re.fullmatch(r"[\w-]+", suite)  # from a record, which is not trusted, into a path
    return docstring_line(configs / f"{suite}.py") if is_name else ""


def docstring_line(config: Path) -> str:
    """The first line of a config's docstring, or ""; the config is not executed."""
    try:
        docstring = ast.get_docstring(ast.parse(config.read_text(encoding="utf-8"))) or ""
    except (OSError, SyntaxError, ValueError):
        return ""
    return docstring.split("\n")[0].replace("`", "")


def _no_records(
    results_dir: Path, suite: str | None, suites: set[str], damaged: list[str]
) -> KdepError:
    """The error for a folder without a readable record, whose tables would be empty.

    `suites`: the suites of the records in the folder; `suite`: the one that was asked for.
    """
    if suite is not None and suites:
        return unknown_name("suite", suite, suites, place=f"the records of {results_dir}")
    of_suite = f" of suite {suite!r}" if suite else ""
    if damaged:  # each sentence has its own fix
        return KdepError(f"{results_dir} contains no readable record{of_suite}: {damaged[0]}")
    return KdepError(
        f"{results_dir} contains no record{of_suite}",
        expected="a results folder that a suite has written, such as results/pocket",
        fix="name another folder, or run the suite again",
    )


def _add_image_differences(view: board_rows.BoardView, results_dir: Path) -> None:
    """Adds the differences over test images, and remarks on files that cannot be used."""
    board = view.board
    if not any(run.samples for run in board.runs):
        return
    from kdep_bench.results.board import over_images

    for student in board.students:
        result = over_images.over_test_images(board, student, results_dir)
        view.image_differences += result.differences
        view.image_pairs += result.pairs
        view.image_left_out += result.left_out
        board.remarks += result.remarks


def view_of(results_dir: Path) -> board_rows.BoardView:
    """The view of a results folder, from its records and its claims.json.

    Raises:
        KdepError: as in `build`.
    """
    board = make_board(store.read(results_dir))
    board.teacher_measures = teachers.measures_of(probe_record.read(results_dir)[0], board.remarks)
    verdicts = judge(board, _claims(results_dir, None))
    view = board_rows.make_view(board, verdicts, _method_inputs(results_dir, board, None))
    view.grid = _grid(results_dir, None)
    return view


def _stored(path: Path) -> Any:
    """The content of a JSON file that a suite wrote into its results folder."""
    try:
        return read_strict(path, follow=False)
    except KdepError as e:
        raise KdepError(
            e.problem,
            expected=e.expected or None,
            fix="move it to another folder; running the suite with --report then writes it again",
        ) from None


def _claims(results_dir: Path, claims: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Writes `claims` to claims.json and returns them; None: reads and returns that file."""
    path = results_dir / "claims.json"
    if claims is None:
        stored = _stored(path) if path.is_file() else []
        if not isinstance(stored, list) or not all(isinstance(c, dict) for c in stored):
            raise KdepError(
                f"the file {path} does not contain a list of claims",
                fix="run the suite with --report, which writes the file again",
            )
        return stored
    for claim in claims:
        make_claim(claim)  # raises an error for an invalid claim before the file is written
    write_json(path, claims)
    return claims


def _method_inputs(
    results_dir: Path, board: Board, method_inputs: dict[str, dict[str, Any]] | None
) -> dict[str, dict[str, Any]]:
    """Writes `method_inputs` to methods.json and returns them; None: reads and returns that file.

    They are not written if no table shows them.
    """
    path = results_dir / "methods.json"
    if method_inputs is None:
        return _checked(_stored(path), path) if path.is_file() else {}
    if families.has_costs(board) or any("about" in entry for entry in method_inputs.values()):
        write_json(path, method_inputs)
    return method_inputs


def _checked(method_inputs: Any, path: Path) -> dict[str, dict[str, Any]]:
    """`method_inputs`; KdepError unless it is {method: {"reads": [text, ...], "about": text}}."""
    is_valid = isinstance(method_inputs, dict) and all(
        isinstance(entry, dict)
        and isinstance(entry.get("reads"), list)
        and all(isinstance(name, str) for name in entry["reads"])
        and isinstance(entry.get("about", ""), str)
        for entry in method_inputs.values()
    )
    if not is_valid:
        raise KdepError(
            f"the file {path} has the wrong structure",
            expected='{method: {"reads": [...], "about": "..."}}',
            fix="move it to another folder; running the suite with --report then writes it again",
        )
    return method_inputs


def _grid(results_dir: Path, factors: dict[str, Any] | None) -> ablation.Grid | None:
    """Writes `factors` to factors.json and returns their grid.

    With None it reads that file, and returns None if there is none.
    """
    path = results_dir / "factors.json"
    if factors is not None:
        write_json(path, factors)
    elif not path.is_file():
        return None
    try:
        return ablation.Grid.model_validate(factors or _stored(path))
    except ValidationError:
        raise KdepError(
            f"the file {path} has the wrong structure",
            expected='{"levels": {factor: [level, ...]}, "methods": {name: {factor: level}}, '
            '"students": {name: {factor: level}}}',
            fix="move it to another folder and run the suite with --report, which writes it again",
        ) from None


def _rulings(verdicts: list[Verdict]) -> dict[str, dict[str, str]]:
    """Name of the claim -> "student: scope" -> verdict."""
    by_claim: dict[str, dict[str, str]] = {}
    for v in verdicts:
        by_claim.setdefault(v.name, {})[f"{v.student or 'no student'}: {v.scope}"] = v.verdict
    return by_claim


MAX_LOADED_RUNS = 3000  # runs; the complete records of more would take too long to read


def _runs_to_load(runs: list[store.Run]) -> list[store.Run]:
    """The runs whose curves, images and per-class scores are shown.

    These are all runs, or the MAX_LOADED_RUNS runs with the first seeds.
    """
    if len(runs) <= MAX_LOADED_RUNS:
        return runs
    return sorted(runs, key=lambda r: (r.pretrain_seed, r.transfer_seed, r.id))[:MAX_LOADED_RUNS]


def _contains(path: Path, content: str) -> bool:
    return path.is_file() and path.read_bytes() == content.encode()


def _write_if_new(path: Path, content: str) -> None:
    """Writes the file atomically, unless it has this content already."""
    if not _contains(path, content):
        write_atomic(path, content)


def _write_plots(folder: Path, drawn: list[plots.Plot]) -> None:
    """Writes every chart as SVG and PNG, and deletes the charts of earlier reports."""
    for plot in drawn:
        drawing = standalone(plot.svg)
        path, png_path = folder / f"{plot.name}.svg", folder / f"{plot.name}.png"
        # The PNG is written first, so an SVG with the right content means that its PNG is current.
        if not _contains(path, drawing) or not png_path.is_file():
            write_atomic(png_path, png(drawing))
        _write_if_new(path, drawing)
    current = {p.name for p in drawn}
    generated = re.compile(
        r"(scores|difference|claims|efficiency|pareto|training)-[0-9a-z_-]+[.](svg|png)"
    )
    for path in folder.glob("*.*"):
        if path.stem not in current and generated.fullmatch(path.name):
            path.unlink()
