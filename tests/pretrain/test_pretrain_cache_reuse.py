"""A new teacher cache links the files of a finished cache with the same outputs and rows.

It then needs no forward passes of the teacher. Files of another teacher or of other views, and
damaged files, are not linked.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdep_bench.features import cache
from kdep_bench.features.cache_origin import STAGE
from kdep_bench.features.cache_read import open_cache, shard_path
from kdep_bench.files import file_hash, read_strict, write_json
from tests.pretrain.conftest import IMAGES, TEACHER, silent

LEVELS = ["maps.s16", "maps.s32"]


def run_cache(work_dir: Path, name: str, **spec: Any) -> tuple[Path, dict[str, Any]]:
    """Runs a cache stage and writes the record of a finished stage; returns (folder, outputs)."""
    out = work_dir / f"cache-{name}"
    out.mkdir()
    spec = {"teacher": TEACHER, "batch": 16, **spec}
    inputs = {"prepare": work_dir / "prepare", "views": work_dir / "views"}
    outputs = cache.run(spec, inputs, out, silent)
    needs = {role: path.name for role, path in inputs.items()}
    write_json(out / STAGE, {"needs": needs, "spec": spec, "outputs": outputs})
    return out, outputs


@pytest.fixture
def work_dir(stages: dict[str, Path], tmp_path: Path) -> Path:
    """A work directory with the finished stages `prepare` and `views`."""
    for name in ("prepare", "views"):
        shutil.copytree(stages[name], tmp_path / name)
    return tmp_path


def count_forward_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list to which every forward pass of the teacher adds its number of images."""
    counts: list[int] = []
    original = cache.run_teacher

    def counted(teacher: Any, images: torch.Tensor) -> Any:
        """`run_teacher`, which also counts."""
        counts.append(len(images))
        return original(teacher, images)

    monkeypatch.setattr(cache, "run_teacher", counted)
    return counts


def test_a_linked_cache_has_the_same_values_and_reports_the_cost_of_the_original(
    work_dir: Path, stages: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    large, computed = run_cache(work_dir, "large", outputs=LEVELS)
    assert "reused" not in computed
    counts = count_forward_passes(monkeypatch)
    small, linked = run_cache(work_dir, "small", outputs=LEVELS[:1])
    assert linked["reused"] == large.name
    assert sum(counts) == 1  # one view, to find the shapes of the outputs
    assert (linked["forwards"], linked["fill_s"]) == (2 * IMAGES, computed["fill_s"])
    pooled, outputs = run_cache(work_dir, "pooled")  # a cache without maps
    assert outputs["reused"] == large.name
    rows = np.arange(2 * IMAGES)
    of_small, of_large = open_cache(small), open_cache(large)
    np.testing.assert_array_equal(of_small.rows(rows, "maps.s16"), of_large.rows(rows, "maps.s16"))
    assert set(of_small.extras) == {"maps.s16"}
    assert not open_cache(pooled).extras
    for folder in (small, pooled):  # equal to a cache that was computed and not linked
        features = open_cache(stages["cache"]).rows(rows)
        np.testing.assert_array_equal(open_cache(folder).rows(rows), features)
    # A chain of links names the cache that computed the arrays, also if that is gone.
    (work_dir / "cache-large").rename(work_dir / "moved")
    _, linked_again = run_cache(work_dir, "again", outputs=LEVELS[:1])
    assert linked_again["reused"] == large.name
    shutil.rmtree(work_dir / "moved")
    np.testing.assert_array_equal(open_cache(small).rows(rows), features)  # a hard link


def test_a_cache_that_lacks_an_output_or_has_other_rows_is_not_linked(work_dir: Path):
    run_cache(work_dir, "pooled")
    run_cache(work_dir, "half", outputs=LEVELS, share=0.5, share_seed=0)
    _, outputs = run_cache(work_dir, "maps", outputs=LEVELS[:1])
    assert "reused" not in outputs  # `pooled` has no maps, `half` has only half of the rows
    _, other_half = run_cache(work_dir, "other", outputs=LEVELS[:1], share=0.5, share_seed=1)
    assert "reused" not in other_half
    _, same_half = run_cache(work_dir, "same", outputs=LEVELS[:1], share=0.5, share_seed=0)
    assert same_half["reused"] == "cache-half"


@pytest.mark.parametrize("entry", ["checksum", "recipe", "views", "unfinished"])
def test_an_unfinished_cache_and_one_of_other_weights_or_views_are_not_linked(
    work_dir: Path, entry: str
):
    large, _ = run_cache(work_dir, "large", outputs=LEVELS)
    manifest, stage = read_strict(large / "cache.json"), read_strict(large / STAGE)
    if entry == "checksum":  # of the teacher's weights
        manifest["teacher"]["checksum"] = "0123456789abcdef"
    elif entry == "recipe":  # a hash of the crops
        manifest["recipe"] = "0123456789abcdef"
    elif entry == "views":
        stage["needs"]["views"] = "views-of-other-images"
    write_json(large / "cache.json", manifest)
    write_json(large / STAGE, stage)
    if entry == "unfinished":
        (large / STAGE).unlink()
    _, outputs = run_cache(work_dir, "small")
    assert "reused" not in outputs


def test_a_damaged_array_is_computed_again_and_the_damaged_file_is_not_changed(
    work_dir: Path, stages: dict[str, Path]
):
    large, _ = run_cache(work_dir, "large", outputs=LEVELS)
    damaged = shard_path(large, 0)
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1  # one bit
    damaged.write_bytes(content)
    small, _ = run_cache(work_dir, "small")
    rows = np.arange(2 * IMAGES)
    features = open_cache(stages["cache"]).rows(rows)
    np.testing.assert_array_equal(open_cache(small).rows(rows), features)
    assert damaged.read_bytes() == bytes(content)


def test_a_cache_of_values_that_the_teacher_no_longer_computes_is_not_linked(
    work_dir: Path, stages: dict[str, Path], capsys: pytest.CaptureFixture[str]
):
    """As if a newer version of the teacher's class had another normalisation."""
    large, _ = run_cache(work_dir, "large", outputs=LEVELS)
    path = shard_path(large, 0)
    np.save(path, np.load(path) + np.float16(1))
    record = read_strict(path.with_suffix(".json"))
    write_json(path.with_suffix(".json"), {**record, "sha256": file_hash(path)})
    small, outputs = run_cache(work_dir, "small")
    assert "reused" not in outputs
    assert "arrays of cache-large are not used: cached features differ" in capsys.readouterr().out
    rows = np.arange(2 * IMAGES)
    features = open_cache(stages["cache"]).rows(rows)
    np.testing.assert_array_equal(open_cache(small).rows(rows), features)
