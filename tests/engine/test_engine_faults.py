"""The quick faults of engine_faults.py, injected into a toy suite with stages of 0.2 s.

`make faults` injects all faults into the smoke suite.
"""

from __future__ import annotations

import contextlib
import os

import engine_faults as faults
import pytest

from kdep_bench.engine.cited_stages import register


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> faults.World:
    """An undisturbed run of the toy suite: a real graph, quick stages, real processes."""
    return faults.World(tmp_path_factory.mktemp("faults"), toy=True)


@pytest.fixture
def rng() -> faults.Random:
    """The random moments and positions of the faults."""
    return faults.Random(0)


def test_the_comparison_with_the_undisturbed_run_counts_wrong_stages_and_records(world):
    case = world.copy()
    case.settle(1)
    assert case.wrong() == 0
    record = next((case.results / "records").glob("*.json"))
    record.write_text(record.read_text().replace('"value": 0.2', '"value": 0.3'))
    (case.work / world.id_of("cache-") / "state.bin").write_text("other")
    assert case.wrong() == 2


def test_stages_killed_at_random_moments_give_no_wrong_result(world, rng):
    row = faults.kill_stages(world, rng, 4)
    assert (row.times, row.wrong) == (4, 0)


@pytest.mark.parametrize(
    ("kind", "part", "file_kind"),
    [
        ("with a flipped bit", "cache-", "state.bin"),
        ("truncated", "pretrain-resnet18_w32.kdep", "state.bin"),
        ("with a flipped bit", "export-resnet18_w32.kdep", "stage.json"),
    ],
)
def test_a_damaged_file_is_never_used(world, rng, kind, part, file_kind):
    assert faults.damage(world, rng, kind, part, file_kind, file_kind).wrong == 0


@pytest.mark.parametrize("kind", list(faults.DAMAGE))
def test_damaged_records_are_rewritten(world, rng, kind):
    assert faults.damaged_record(world, rng, kind).wrong == 0


@pytest.mark.parametrize("what", faults.PLANTED)
def test_links_and_fifos_in_place_of_engine_files_change_no_result_or_target(world, rng, what):
    assert faults.planted(world, rng, what).wrong == 0


def test_a_stopped_process_that_continues_after_another_took_its_stage_changes_no_result(
    world, rng
):
    assert faults.woken_owner(world, rng, 2).wrong == 0


def test_a_changed_result_without_its_checksum_is_not_used(world, rng):
    assert faults.missing_checksum(world, rng).wrong == 0


def test_pruning_keeps_stages_of_records_in_another_folder(world, rng):
    assert faults.pruned(world, rng).wrong == 0


def test_two_runners_at_once_run_each_stage_once(world, rng):
    assert faults.two_runners(world, rng, 1).wrong == 0


def test_a_stage_out_of_memory_gives_no_wrong_result(world, rng):
    assert faults.out_of_memory(world, rng, "rlimit").wrong == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_a_full_disk_of_the_results_gives_no_wrong_result(world, rng, tmp_path):
    try:
        with faults.small_disk(tmp_path / "probe", 1):
            pass
    except faults.subprocess.CalledProcessError:
        pytest.skip("no mount here")
    assert faults.full_results(world, rng).wrong == 0


@pytest.mark.parametrize("what", faults.cli.DAMAGE)
def test_a_damaged_archive_is_not_unpacked_and_an_intact_one_is_unpacked_completely(tmp_path, what):
    assert faults.cli.archive(tmp_path, what) == []


def test_command_errors_reports_a_wrong_code_a_traceback_and_a_missing_sentence():
    fails = "$PYTHON -c 'raise ValueError'"
    assert len(faults.cli.command_errors(fails, 0, "a sentence")) == 3
    assert len(faults.cli.command_errors(fails, 1, "ValueError")) == 1


def test_more_seeds_than_can_be_planned_are_refused_at_once(tmp_path):
    assert faults.cli.many_seeds(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_a_disk_without_free_inodes_is_not_reported_as_a_permission_error(tmp_path):
    """Otherwise the error would advise the user to correct access rights."""
    disk = contextlib.ExitStack()
    try:
        work = disk.enter_context(faults.cli.few_inodes(tmp_path / "disk", 2))
    except faults.subprocess.CalledProcessError:
        pytest.skip("no mount here")
    with disk, pytest.raises(OSError, match="No space left"):
        register(work, tmp_path / "results")


def test_a_clock_that_goes_backwards_gives_no_wrong_result(world, rng):
    if not faults.shutil.which("cc"):
        pytest.skip("no C compiler for the clock shim")
    assert faults.clock_backwards(world, rng, 3).wrong == 0


FAULTS = (  # beginnings of the rows in the table
    "kill -9 of a stage", "kill -9 of the runner", "kill -9 of a DDP rank",
    "death of a slurmd node", "SIGTERM to the runner", "two runners at once",
    "disk full while a checkpoint", "disk full while a cache shard", "disk full while records",
    *(f"{what} {kind}" for kind in faults.DAMAGE
      for what in ("checkpoint", "cache shard", "record", "stage.json")),
    "out of memory", "hung stage", "clock going backwards",
    "a config that calls sys.exit(0)", "export cut by one byte",
    *(f"archive with {what}" for what in faults.cli.DAMAGE),
    *(fault for _, fault, _ in faults.ENVIRONMENT),
    "no inodes left",
)  # fmt: skip


def test_the_published_table_has_every_fault_and_no_wrong_result():
    """results/faults.md is the last output of `make faults`."""
    path = faults.REPO / "results" / "faults.md"
    rows = [
        [c.strip() for c in line.split("|")[1:-1]]
        for line in path.read_text().splitlines()
        if line.startswith("| ") and "times injected" not in line
    ]
    # Columns: fault, injected into, times injected, lost work, wrong results.
    assert {r[4] for r in rows} == {"0"}
    injected = [r[0] for r in rows if int(r[2]) > 0]
    assert [f for f in FAULTS if not any(i.startswith(f) for i in injected)] == []
    assert int(next(r for r in rows if r[0] == "kill -9 of a stage")[2]) >= 50
