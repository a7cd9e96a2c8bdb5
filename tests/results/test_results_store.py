"""The store of records: reading, writing by several processes, and damaged files."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys

import pytest
from make_records import fields, record

from kdep_bench.errors import KdepError
from kdep_bench.results.records import store
from kdep_bench.results.records.record import dump, make


def write_many(folder, writer):
    """Writes 40 records with different ids, which begin with the number of the writer."""
    for i in range(40):
        store.write(folder, make(fields(transfer=i) | {"id": f"t-{writer}-{i}"}))


def test_concurrent_writers_lose_no_record(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(write_many, [(tmp_path, 0), (tmp_path, 1)])
    stored = store.read(tmp_path)
    assert len(stored.runs) == 80
    assert not stored.damaged
    assert len({r.id for r in stored.runs}) == 80


def test_a_record_is_replaced_by_its_rerun_and_never_by_another_run(tmp_path):
    store.write(tmp_path, record(value=0.1))
    store.write(tmp_path, record(value=0.2))
    assert [r.value for r in store.read(tmp_path).runs] == [0.2]
    with pytest.raises(KdepError, match="of another run with the same id"):
        store.write(tmp_path, make(fields(task="det") | {"id": record().id}))


def test_an_id_that_leaves_the_folder_is_refused(tmp_path):
    with pytest.raises(KdepError, match="cannot be used as a file name"):
        store.write(tmp_path, make(fields() | {"id": "../../etc/x"}))


def test_damaged_files_are_listed_and_unfinished_files_are_ignored(tmp_path):
    store.write(tmp_path, record())
    folder = store.records_dir(tmp_path)
    (folder / "cut.json").write_text(dump(record())[:200])
    (folder / "deep.json").mkdir()
    (folder / ".x.json.abc.tmp").write_text("half")
    stored = store.read(tmp_path)
    assert len(stored.runs) == 1
    assert [d.file for d in stored.damaged] == ["cut.json", "deep.json"]
    assert "cut.json" in stored.damaged[0].sentence


def test_a_missing_folder_raises_kdep_error_and_an_empty_one_has_no_records(tmp_path):
    with pytest.raises(KdepError, match="does not exist"):
        store.read(tmp_path / "nowhere")
    assert store.read(tmp_path).runs == []


def test_parallel_reading_gives_the_same_records(tmp_path, monkeypatch):
    write_many(tmp_path, 0)
    (store.records_dir(tmp_path) / "cut.json").write_text("{")
    alone = store.read(tmp_path)
    monkeypatch.setattr(store, "_PARALLEL_FROM", 1)
    monkeypatch.setattr(store, "_can_fork", lambda: True)
    together = store.read(tmp_path)
    assert together == alone


MEASURE_LARGE_FOLDER = """
import resource, sys, time
from pathlib import Path
from kdep_bench.results.records import store
from kdep_bench.results.report import board_rows, csv_table, latex, markdown
from kdep_bench.results.board.board import make_board
start = time.perf_counter()
view = board_rows.make_view(make_board(store.read(Path(sys.argv[1]))))
size = len(markdown.markdown(view)) + len(csv_table.csv_table(view)) \
    + len(latex.latex(view))
assert len(view.board.runs) == 100_000 and size > 10_000
# VmHWM, because ru_maxrss also includes the peak of the process that called exec.
own_peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
child_peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
# Two processes read records: each uses half of the children's CPU time, and ru_maxrss is the memory
# of the larger one.
cpu = [sum(resource.getrusage(w)[:2]) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(time.perf_counter() - start, cpu[0] + cpu[1] / 2, (own_peak + 2 * child_peak) * 1024)
"""


@pytest.mark.slow
def test_100_000_records_and_all_tables_take_under_10_s_and_1_gb(tmp_path):
    folder = store.records_dir(tmp_path)
    folder.mkdir()
    text = dump(make(fields(method="METHOD", task="TASK", transfer=123456) | {"id": "IDENT"}))
    n = 0
    for method in range(20):
        for task in range(10):
            for seed in range(500):
                n += 1
                value = 0.3 + 0.01 * method + (seed * 7919 % 97) / 1000
                record_text = text.replace("METHOD", f"m{method}").replace("TASK", f"t{task}")
                record_text = record_text.replace("123456", str(seed)).replace("IDENT", f"r{n:06d}")
                record_text = record_text.replace('"value": 0.5', f'"value": {value}')
                (folder / f"r{n:06d}.json").write_text(record_text)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE_LARGE_FOLDER, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    wall, two_cores, size = map(float, done.stdout.split())
    print(f"{wall:.1f} s, {two_cores:.1f} s on two idle cores, {size / 1e6:.0f} MB")
    assert size < 1e9
    # `two_cores` estimates the time on two idle cores from the CPU time, so that other work on the
    # machine does not fail the test. Strict checks of each record are included.
    assert min(wall, two_cores) < 10


def test_a_copy_of_a_record_under_another_name_is_not_counted_twice(tmp_path):
    path = store.write(tmp_path, record())
    path.with_name("copy.json").write_bytes(path.read_bytes())
    os.mkfifo(path.with_name("pipe.json"))
    stored = store.read(tmp_path)
    assert [r.file for r in stored.runs] == [path.name]
    assert [d.file for d in stored.damaged] == ["copy.json", "pipe.json"]
    sentence = stored.damaged[0].sentence
    assert "contains the record" in sentence
    assert (
        f"move it to another folder if it is a copy, otherwise rename it to {path.name}" in sentence
    )
    path.with_name("copy.json").rename(tmp_path / "copy.json")
    assert [d.file for d in store.read(tmp_path).damaged] == ["pipe.json"]
