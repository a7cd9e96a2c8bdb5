"""`report.py diff` names the verdicts that differ in the other folder."""

from __future__ import annotations

from make_records import fields, grid, record

from kdep_bench.results.records.record import make
from kdep_bench.results.report.diff import diff

OLD = {
    "kdep": {"probe": [0.50, 0.51, 0.52], "det": [0.30, 0.31, 0.32], "seg": [0.40, 0.41, 0.42]},
    "scratch": {"probe": [0.20, 0.21, 0.22], "det": [0.20, 0.21, 0.22], "seg": [0.60, 0.61, 0.62]},
}
# det: no longer significant; seg: the opposite; probe: the same verdict with other scores
NEW = {
    "kdep": {"probe": [0.55, 0.56, 0.57], "det": [0.30, 0.10, 0.31], "seg": [0.70, 0.71, 0.72]},
    "scratch": {"probe": [0.20, 0.21, 0.22], "det": [0.20, 0.21, 0.22], "seg": [0.60, 0.61, 0.62]},
}


def records_on(device: str, units: list[str], scores: dict) -> list:
    """Records measured on a processor with these units."""
    cost = fields()["cost"] | {"device": device, "processor_units": units}
    return grid(scores, cost=cost)


def test_diff_names_only_verdicts_that_changed(results):
    old = results(records_on("cpu: A", ["amx_bf16", "avx512f"], OLD), "old")
    new = results(records_on("cpu: B", ["avx2"], NEW), "new")
    text = diff(old, new)
    assert "Processors: cpu: A (amx_bf16, avx512f) -> cpu: B (avx2). The same seed" in text
    lines = {
        line.split("kdep - scratch, ")[1].split(":")[0]: line
        for line in text.splitlines()
        if "kdep - scratch, " in line
    }
    assert "probe" not in lines
    assert lines["det"].endswith("not significant")
    assert ": better -> " in lines["det"]
    assert ": worse -> " in lines["seg"]
    assert lines["seg"].endswith(": better")
    # Three tasks and the mean over tasks.
    assert "4 differences are tested in both: " in text
    assert "1 are opposite" in text


def test_a_folder_compared_with_itself_has_no_changed_verdict(results):
    old = results(records_on("cpu: A", [], OLD), "old")
    assert diff(old, old).strip() == "6 scores are in both folders, 6 are the same."


def test_methods_with_one_seed_have_no_verdict_to_compare(results):
    old = results([record("kdep", "probe", 0.5), record("scratch", "probe", 0.2)], "old")
    new = results([record("kdep", "probe", 0.6), record("scratch", "probe", 0.2)], "new")
    assert "tested in both" not in diff(old, new)


def test_records_from_two_processors_give_a_remark(results):
    from kdep_bench.results.board.board import make_board
    from kdep_bench.results.records.store import read

    runs = records_on("cpu: A", [], {"kdep": {"probe": [0.5, 0.6]}})
    cost = fields()["cost"] | {"device": "cpu: B"}
    runs.append(make(fields("kdep", "probe", 0.7, transfer=2) | {"cost": cost}))
    remarks = make_board(read(results(runs))).remarks
    assert any("the same seed gives different networks on them" in r for r in remarks)


def test_instruction_sets_are_read_from_the_flags_of_the_processor(tmp_path):
    from kdep_bench.engine.environment import processor_units

    listing = tmp_path / "cpuinfo"
    listing.write_text(
        "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu sse2 avx2 fma avx512f avx512_bf16\n"
    )
    assert processor_units(listing) == ["avx512_bf16", "avx512f", "avx2", "fma"]
    listing.write_text("flags\t: fpu amx_tile amx_bf16 amx_int8 avx2\n")
    assert processor_units(listing) == ["amx_bf16", "amx_int8", "avx2"]
    listing.write_text("Features\t: fp asimd sve2 bf16\n")
    assert processor_units(listing) == ["sve2", "bf16", "asimd"]
    assert processor_units(tmp_path / "none") == []
