"""The benchmark: its arithmetic, its report, and the conditions under which it refuses to run."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import torch

from kdep_bench.benchmark import (
    lightly,
    lightly_run,
    machine,
    memory,
    report,
    steps,
    teacher_passes,
)
from kdep_bench.cli import benchmark
from kdep_bench.errors import KdepError
from kdep_bench.files import read_json, write_json
from kdep_bench.suite.config import resolve

REPO = Path(__file__).resolve().parents[2]

# --- the machine ---------------------------------------------------------------------------------

# Lines of /proc/stat: ticks in user, nice, system, idle, iowait, ...; then those of one core.
STAT = "cpu  {user} 20 30 {idle} 50 6 7 8 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"


def test_a_core_is_in_use_unless_idle_or_waiting_for_a_disk():
    ticks = machine.busy_seconds(STAT.format(user=100, idle=4000)) * machine.os.sysconf(
        "SC_CLK_TCK"
    )
    assert ticks == 100 + 20 + 30 + 6 + 7 + 8  # without 4000 (idle) and 50 (waiting for a disk)


def test_busy_cores_are_measured_between_two_readings(tmp_path):
    stat = tmp_path / "stat"
    stat.write_text(STAT.format(user=100, idle=4000))
    assert machine.busy_cores(0.01, stat) == 0


def test_other_work_on_the_machine_is_an_error():
    machine.check_idle(machine.MAX_BUSY_CORES)
    with pytest.raises(KdepError, match=r"other processes use 1\.5 cores.*--allow-busy"):
        machine.check_idle(1.5)


def test_former_flag_names_still_work_and_are_not_in_the_help():
    parser = benchmark.parser()
    assert parser.parse_args(["--busy"]) == parser.parse_args(["--allow-busy"])
    new = parser.parse_args(["--count-teacher-forwards", "results/pocket"])
    assert parser.parse_args(["--count", "results/pocket"]) == new
    assert new.count_teacher_forwards == Path("results/pocket")
    shown = parser.format_help()
    assert "--allow-busy" in shown
    assert "--busy" not in shown
    assert "--count " not in shown


# --- teacher forward passes of a suite -----------------------------------------------------------


def test_pocket_full_ran_its_teacher_once_per_image_and_view(tmp_path):
    results = REPO / "results/pocket_full"
    stage_record = {"outputs": {"forwards": 64000, "rows": 64000}}
    write_json(tmp_path / "cache-efficientnet_lite0-e9bc3a364d84/stage.json", stage_record)
    counts = teacher_passes.count(results, tmp_path)
    assert counts == {
        "suite": "pocket_full",
        "records": 75,
        "pretrainings": 6,  # three seeds on all images, three on a tenth
        "caches": 1,
        "forwards": 64000,
        "rows": 64000,
        "samples": 3 * (512000 + 51200),  # seeds x images seen with all data and with a tenth
    }
    with pytest.raises(KdepError, match="does not exist"):
        teacher_passes.count(results, tmp_path / "elsewhere")
    del stage_record["outputs"]["forwards"]
    write_json(tmp_path / "cache-efficientnet_lite0-e9bc3a364d84/stage.json", stage_record)
    with pytest.raises(KdepError, match="does not report its number of forward passes"):
        teacher_passes.count(results, tmp_path)


def test_the_forward_passes_of_a_linked_cache_are_counted_once(tmp_path):
    computed, linked = (
        f"cache-efficientnet_lite0.0.1-{k}" for k in ("7c54a79bedc0", "fc2e7c35d33b")
    )
    cost = {"forwards": 6400, "rows": 6400}
    write_json(tmp_path / computed / "stage.json", {"outputs": cost})
    write_json(tmp_path / linked / "stage.json", {"outputs": cost | {"reused": computed}})
    counts = teacher_passes.count(REPO / "results/kdep_maps_int8", tmp_path)
    assert [counts[k] for k in ("caches", "forwards", "rows")] == [1, 6400, 6400]
    # An earlier version stored the id of the cache whose arrays were linked; here that cache has
    # itself linked the arrays of `computed`.
    write_json(tmp_path / "cache-middle/stage.json", {"outputs": cost | {"reused": computed}})
    write_json(tmp_path / linked / "stage.json", {"outputs": cost | {"reused": "cache-middle"}})
    assert teacher_passes.count(REPO / "results/kdep_maps_int8", tmp_path) == counts


def test_a_suite_without_a_record_has_no_count(tmp_path):
    with pytest.raises(KdepError, match="no finished record"):
        teacher_passes.count(tmp_path, tmp_path)


# --- the report ----------------------------------------------------------------------------------


def results_with(**change):
    """Results of a full benchmark on a CPU, with some entries replaced."""
    ratios = dict.fromkeys(report.TARGETS, 1.0) | {"throughput against the paper's live loop": 3.0}
    seconds = {"student": 1.0, "kdep": 1.0, "teacher": 2.0, "live": 3.3}
    results = {
        "quick": False,
        "device": "cpu: some",
        "threads": 1,
        "steps": {
            "batch": 64,
            "rounds": 3,
            "step_s": seconds,
            "wait_s": dict.fromkeys(seconds, 0.0),
            "cpu_s": seconds,
            "floors": {
                "student_step_flops": 4e9,
                "target_flops": 1e9,
                "teacher_forward_flops": 8e9,
            },
            "flops_per_s": 1e10,
            "ratios": ratios,
        },
        "memory": {
            "svd_width": 8,
            "svd": [
                {"rows": 10, "pass_s": 1.0, "extra_bytes": 1e6},
                {"rows": 100, "pass_s": 11.0, "extra_bytes": 299e6},
            ],
            "svd_agreement": 1.0,
            "reads": [{"rows": 10, "grown_bytes": 0.0}, {"rows": 100, "grown_bytes": 2e6}],
        },
        "forwards": {
            "suite": "s",
            "records": 9,
            "pretrainings": 4,
            "caches": 1,
            "forwards": 10,
            "rows": 10,
            "samples": 80,
        },
        "rival": {
            "rival": "lightly-train",
            "version": "1.0",
            "images": 64,
            "epochs": 2,
            "ours": {"seconds": 10.0, "cpu_s": 8.0, "train_s": 5.0},
            "other": {"seconds": 20.0, "cpu_s": 20.0},
            "task": "probe",
            "seeds": 3,
            "scores": {"kdep": 0.25, "lightly-train": 0.2, "scratch": 0.1},
        },
    }
    return results | change


def row(page: str, start: str) -> str:
    """The first table row of the report that begins with `start`."""
    return next(line for line in page.splitlines() if line.startswith(f"| {start}"))


@pytest.mark.parametrize(
    ("value", "sign", "met"),
    [
        (1.0, "<=", True),
        (1.01, "<=", False),
        (0.99, "<", True),
        (1.0, "<", False),
        (1.0, ">=", True),
        (0.99, ">=", False),
    ],
)
def test_a_measured_value_is_compared_with_its_target(value, sign, met):
    assert report.meets_target(value, sign, 1.0) is met


def test_every_measure_is_compared_with_its_target():
    page = report.table(results_with())
    assert row(page, "KDEP step") == (
        "| KDEP step with a filled cache / step of the student alone | <= 1.05 | 1.000 | yes |"
    )
    assert row(page, "waiting for data").endswith("| < 0.05 | 1.000 | no |")
    assert row(page, "throughput / that of a live").endswith("| >= 2 | 3.000 | yes |")
    assert row(page, "teacher forward passes").endswith(
        "| 10 (a live teacher would need 80) | yes |"
    )
    assert row(page, "throughput / that of lightly").endswith(
        "| >= 1.5 | 2.00 (2.50 in CPU time) | yes |"
    )
    assert row(page, "the same, only training").endswith("| 4.00 |  |")
    assert row(page, "top-1").endswith("| kdep 25.0, lightly-train 20.0, scratch 10.0 |  |")
    assert row(page, "streaming SVD").endswith("| < 300 MB | 299 MB | yes |")
    assert row(page, "streaming SVD: time at N=100 / time at N=10,").endswith("| 1.10 |  |")
    assert "the step with a live teacher takes 1.100 times as long" in page
    assert "(10 GFLOP/s): student 2.50, kdep 2.00, teacher 2.50." in page
    assert report.NOT_MEASURED not in page


def test_more_forward_passes_than_cached_views_miss_the_target():
    one_too_many = results_with()["forwards"] | {"forwards": 11}
    page = report.table(results_with(forwards=one_too_many))
    assert row(page, "teacher forward passes").endswith("| no |")


def test_a_part_without_measurement_is_shown_as_not_measured():
    page = report.table({"quick": False, "device": "cpu", "threads": 1})
    rows = [row for row in page.splitlines() if row.startswith("| ")][1:]  # without the heading
    # One more row each for the teacher's forward passes, lightly-train and the SVD.
    assert len(rows) == len(report.TARGETS) + 3
    assert all(row.endswith("| not measured |  |") for row in rows)


def test_a_partial_run_keeps_other_parts_of_an_earlier_run(tmp_path):
    report.write(results_with(), tmp_path)
    kept_names = ("quick", "device", "threads", "steps")
    only_steps = {k: v for k, v in results_with().items() if k in kept_names}
    report.write(only_steps | {"device": "cpu: other", "busy": {"steps": 1.5}}, tmp_path)
    written = read_json(tmp_path / "benchmark.json")
    assert written["memory"] == results_with()["memory"]
    assert written["device"] == "cpu: other"
    page = (tmp_path / "benchmark.md").read_text()
    assert "Not valid, because other work used 1.5 cores: steps" in page
    report.write(only_steps, tmp_path)  # measured again, on an idle machine
    assert "other work" not in (tmp_path / "benchmark.md").read_text()
    report.write(only_steps | {"quick": True}, tmp_path)
    assert "memory" not in read_json(tmp_path / "benchmark.json")
    assert "its figures mean nothing" in (tmp_path / "benchmark.md").read_text()


# --- clocks and single measurements --------------------------------------------------------------


def test_a_step_time_has_the_seconds_of_waiting_of_work_and_of_cpu_time(monkeypatch):
    wall, cpu = iter([0.0, 2.0, 7.0]), iter([1.0, 4.0])
    monkeypatch.setattr(steps.time, "perf_counter", lambda: next(wall))
    monkeypatch.setattr(steps.time, "process_time", lambda: next(cpu))
    assert steps.time_step(lambda: "batch", len) == steps.StepTime(2.0, 5.0, 3.0)


def test_the_gpu_is_synchronised_before_a_time_is_read(monkeypatch):
    calls, tick = [], itertools.count()
    for owner, name in (
        (steps, "synchronise"),
        (steps.time, "perf_counter"),
        (steps.time, "process_time"),
    ):
        monkeypatch.setattr(owner, name, lambda name=name: calls.append(name) or next(tick))
    steps.time_step(lambda: calls.append("load"), lambda _: calls.append("work"))
    sync, wall, cpu = "synchronise", "perf_counter", "process_time"
    assert calls == [sync, wall, "load", sync, wall, cpu, "work", sync, wall, cpu]
    calls.clear()
    steps.peak_throughput(side=8, times=2)
    assert calls == [sync, wall, sync, wall] * 2


def test_the_loss_of_the_student_without_a_teacher_is_the_mean_square_of_its_feature():
    class Ctx:
        pre_activation = torch.tensor([[3.0, 4.0], [0.0, 2.0]])

    size = steps.StudentAlone().terms(Ctx())["size"]  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(size, torch.tensor([12.5, 2.0]))


def test_the_streaming_svd_finds_the_directions_of_the_full_svd():
    assert memory.agreement(rows=400, width=16, n_directions=4) > 1 - 1e-9


def test_the_peak_throughput_is_positive():
    assert steps.peak_throughput(side=64, times=2) > 0


def test_random_reads_of_a_file_are_timed_and_the_file_is_deleted(tmp_path):
    result = memory.reads(str(tmp_path), 1000, 4, batches=2)
    assert result["rows"] == 1000
    assert result["read_s"] > 0
    assert not list(tmp_path.iterdir())


def test_resident_memory_is_read_by_name():
    assert 0 < memory.resident("RssAnon") <= memory.resident("VmRSS") <= memory.peak()
    with pytest.raises(RuntimeError, match="no Rubbish"):
        memory.resident("Rubbish")


# --- comparison with lightly-train ---------------------------------------------------------------


def test_the_unknown_time_of_the_last_step_is_taken_to_be_the_mean_of_the_others():
    # (wall, CPU) seconds; the end of the third step is unknown.
    starts = [(100.0, 10.0), (103.0, 11.0), (108.0, 14.0)]
    # The first two steps take 8 s and 4 s CPU time, so three take 12 s and 6 s.
    assert lightly_run.step_seconds(starts) == (12.0, 6.0)


def test_the_wrapped_teacher_returns_the_teacher_s_features():
    config = resolve("teacher", "efficientnet_lite0") | {"input_px": 64}
    wrapped = lightly_run.WrappedTeacher(config)
    images = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (lightly_run.MEAN, lightly_run.STD))
    features = wrapped.forward_features((images.float() - mean) / std)
    pooled = wrapped.forward_pool(features)["pooled_features"].flatten(1)
    torch.testing.assert_close(pooled, wrapped.teacher(images).pooled, rtol=1e-3, atol=1e-4)
    assert wrapped.feature_dim() == 1280
    assert len(wrapped.start_times) == 1


def test_the_wrapped_student_receives_images_of_its_input_size():
    config = resolve("student", "resnet18_w32")
    wrapped = lightly_run.WrappedStudent(config, 128)
    input_shapes = []
    wrapped.net.register_forward_pre_hook(lambda _, args: input_shapes.append(tuple(args[0].shape)))
    out = wrapped.forward_features(torch.zeros(2, 3, 128, 128))["features"]
    assert input_shapes == [(2, 3, 64, 64)]
    assert tuple(out.shape) == (2, 256, 2, 2)
    with pytest.raises(KdepError, match="a multiple of the student's 64 px"):
        lightly_run.WrappedStudent(config, 96)


def test_the_images_for_lightly_train_are_links_spread_over_the_pool(tmp_path):
    pool = tmp_path / "prepare" / lightly.POOL
    for i in range(130):
        (pool / f"{i % 2}").mkdir(parents=True, exist_ok=True)
        (pool / f"{i % 2}" / f"{i:03d}.jpg").write_bytes(b"x")
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/python").touch()
    lightly.check(tmp_path / "venv", tmp_path / "prepare", 64)
    links = sorted(
        (lightly.link_images(tmp_path / "prepare", 64, tmp_path / "some")).rglob("*.jpg")
    )
    assert len(links) == 64
    assert all(p.is_symlink() and p.read_bytes() == b"x" for p in links)
    assert {p.parent.name for p in links} == {"0", "1"}
    for images, message in ((100, "a multiple of 64"), (192, "is 192, and .* has 130 images")):
        with pytest.raises(KdepError, match=message):
            lightly.check(tmp_path / "venv", tmp_path / "prepare", images)
    with pytest.raises(KdepError, match="make lightly"):
        lightly.check(tmp_path, tmp_path / "prepare", 64)
    with pytest.raises(KdepError, match="no folder data/pool/images"):
        lightly.check(tmp_path / "venv", tmp_path, 64)


def test_the_command_refuses_a_busy_machine_and_a_comparison_without_data(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "busy_cores", lambda: 1.9)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"other processes use 1\.9 cores"):
        benchmark.main()
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--against", "lightly-train"])
    with pytest.raises(SystemExit, match="--prepared"):
        benchmark.main()
    assert not list(tmp_path.iterdir())
