"""Teacher maps stored as int8: values, sizes and checks, with the real cache stage."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdep_bench.data.views import open_views
from kdep_bench.errors import KdepError
from kdep_bench.features import cache, cache_check
from kdep_bench.features.cache_read import bytes_of_view, open_cache
from kdep_bench.features.int8_maps import MIN_SCALE, Int8Shard, quantise
from kdep_bench.features.map_moments import open_map_moments
from kdep_bench.forecast.work import _bytes
from kdep_bench.suite.config import load_config
from tests.pretrain.conftest import BUDGET, IMAGES, TEACHER, silent
from tests.pretrain.test_pretrain import pretrain
from tests.pretrain.test_pretrain_context import R18
from tests.suite.test_suite_methods import plan

LEVELS = ["s16", "s32"]
# Bytes per view. With images of 32 pixels the teacher's maps are [112, 2, 2] and [320, 1, 1]; int8
# maps have one float16 scale per channel.
HALF_BYTES = {"s16": 2 * 112 * 4, "s32": 2 * 320}
INT8_BYTES = {"s16": 112 * (4 + 2), "s32": 320 * (1 + 2)}
KDEP_MAPS: dict[str, Any] = load_config("method", "kdep_maps")


def test_codes_and_scales_of_two_views_are_those_computed_by_hand():
    """The scale of a channel is its largest magnitude / 127: 254 / 127 = 2, 0.127 / 127 = 0.001.

    The codes are the values divided by the scale and rounded; the second view is 0.
    """
    maps = torch.zeros(2, 2, 1, 3)
    maps[0, 0, 0] = torch.tensor([-254.0, 127.9, 0.6])
    maps[0, 1, 0] = torch.tensor([0.127, 0.0625, 0.0])
    codes, scales = quantise(maps)
    torch.testing.assert_close(scales[0], torch.tensor([2.0, 0.001]).half())
    assert codes[0].flatten(1).tolist() == [[-127, 64, 0], [127, 62, 0]]
    shard = Int8Shard(codes.numpy(), scales.numpy())
    assert (shard.shape, len(shard)) == ((2, 2, 1, 3), 2)
    restored = shard[np.array([1, 0])]
    assert restored.dtype == np.float16
    np.testing.assert_allclose(restored[1, 0, 0], [-254.0, 128.0, 0.0])
    np.testing.assert_allclose(restored[1, 1, 0], [0.127, 0.062, 0.0], rtol=1e-3)
    assert not restored[0].any()


@given(st.integers(0, 10_000), st.floats(-12, 4))
def test_the_quantisation_error_is_at_most_half_a_step(seed: int, exponent: float):
    maps = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(seed)) * 10**exponent
    codes, scales = quantise(maps)
    restored = codes.double() * scales[:, :, None, None].double()
    # A step is 1/127 of the largest value, half a step 1/254; 1/253 allows for the rounded scale.
    half_step = maps.abs().amax((2, 3), keepdim=True) / 253
    assert bool(((restored - maps).abs() <= half_step.clamp(min=MIN_SCALE / 2)).all())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 70_000.0])
def test_a_value_that_float16_cannot_hold_has_no_finite_scale(value: float):
    _, scales = quantise(torch.tensor([1.0, value]).reshape(1, 2, 1, 1))
    assert torch.isfinite(scales).tolist() == [[True, False]]


@pytest.fixture(scope="module")
def caches(stages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Caches of the same maps in float16 ("maps") and int8 ("int8_maps")."""
    folders = {}
    for kind in ("maps", "int8_maps"):
        folders[kind] = tmp_path_factory.mktemp(kind)
        names = [f"{kind}.{level}" for level in LEVELS]
        spec = {"teacher": TEACHER, "batch": 16, "outputs": names}
        outputs = cache.run(spec, stages, folders[kind], silent)
        map_bytes = HALF_BYTES if kind == "maps" else INT8_BYTES
        assert outputs["bytes_per_view"] == 2 * 1280 + sum(map_bytes.values())
        stored = sum(np.load(p).nbytes for p in folders[kind].glob("*-00000.npy"))
        assert stored == outputs["bytes"] == 2 * IMAGES * outputs["bytes_per_view"]
    return folders


def test_int8_maps_have_the_names_shapes_and_nearly_the_values_of_float16_maps(
    caches: dict[str, Path],
):
    half, int8 = (open_cache(caches[kind]) for kind in ("maps", "int8_maps"))
    assert sorted(half.extras) == sorted(int8.extras) == ["maps.s16", "maps.s32"]
    assert half.extra_names(frozenset({"maps"})) == int8.extra_names(frozenset({"maps"}))
    rows = np.array([90, 3, 41])
    np.testing.assert_array_equal(half.rows(rows), int8.rows(rows))
    for name in half.extras:
        from_half, from_int8 = half.rows(rows, name), int8.rows(rows, name)
        assert (from_half.shape, from_half.dtype) == (from_int8.shape, from_int8.dtype)
        largest = np.abs(from_half).max((2, 3), keepdims=True).astype(np.float32)
        error = np.abs(from_half.astype(np.float32) - from_int8.astype(np.float32))
        # Half a step of int8 (1/254), and the rounding of both to float16.
        assert (error <= np.maximum(largest / 200, MIN_SCALE)).all()
        assert error.max() > 0


def test_training_from_int8_maps_has_nearly_the_losses_of_float16_maps(
    stages: dict[str, Path], caches: dict[str, Path], tmp_path: Path
):
    curves = []
    for kind, folder in caches.items():
        inputs = {k: v for k, v in stages.items() if k != "align"} | {"cache": folder}
        outputs, _ = pretrain(tmp_path / kind, inputs, KDEP_MAPS, budget=BUDGET, student=R18)
        assert outputs["cache_check"]["rows"] == 8
        curves.append(np.array(outputs["curves"]["pretrain_loss"])[:, 1])
    # Training amplifies the differences of the first steps.
    np.testing.assert_allclose(curves[0][:2], curves[1][:2], rtol=1e-3)
    np.testing.assert_allclose(*curves, rtol=0.05)
    assert not np.array_equal(*curves)


@pytest.mark.parametrize("array", ["int8_maps.s16", "int8_scales.s32"])
def test_a_wrong_stored_array_is_detected_before_training(
    stages: dict[str, Path], caches: dict[str, Path], tmp_path: Path, array: str
):
    shutil.copytree(caches["int8_maps"], tmp_path / "c")
    path = tmp_path / "c" / f"{array}-00000.npy"
    np.save(path, np.roll(np.load(path), 1, axis=0))
    with pytest.raises(KdepError, match=r"cached maps\.s\d+ differ from the live teacher"):
        cache_check.verify_cache(tmp_path / "c", open_views(stages["views"], stages["prepare"]))


def outputs_of_caches(*methods: Any) -> list[list[str]]:
    """The outputs stored by each cache that is planned for these methods."""
    specs = [s.spec for s in plan(*methods).stages.values() if s.kind == "cache"]
    return sorted(spec.get("outputs", []) for spec in specs)


def test_int8_maps_get_a_separate_cache_and_other_caches_stay_the_same():
    int8 = dict(base="kdep_maps", name="kdep_maps_int8", stored_maps="int8")
    assert outputs_of_caches("kdep", int8) == [[], ["int8_maps.s16", "int8_maps.s32"]]
    stages = plan("kdep_maps", int8, "fitnets").stages
    assert plan("kdep_maps", "fitnets").stages.keys() <= stages.keys()
    methods = [s.spec["method"] for s in stages.values() if s.kind == "pretrain"]
    assert not any("stored_maps" in method for method in methods)
    # Another stored type gives another id to the cache and to the pre-training.
    pretrainings = [s for s in stages.values() if s.kind == "pretrain" and "kdep_maps" in s.name]
    assert len(pretrainings) == 2


def test_int8_maps_are_refused_for_methods_that_store_no_maps():
    with pytest.raises(KdepError, match="it reads no maps of the teacher"):
        plan(dict(base="kdep", name="k", stored_maps="int8"))
    live = dict(base="kdep_maps", name="k", stored_maps="int8", teacher_source="live")
    with pytest.raises(KdepError, match="its teacher is live"):
        plan(live)
    with pytest.raises(KdepError, match="stored_maps"):
        plan(dict(base="kdep_maps", name="k", stored_maps="int4"))


def test_bytes_per_view_are_summed_over_the_stored_arrays():
    shapes = {"maps.a": [3, 2, 2], "int8_maps.b": [3, 2, 2], "int8_scales.b": [3], "logits": [10]}
    # A float16 feature of 5 channels, float16 maps, int8 maps, float16 scales, float16 logits.
    assert bytes_of_view(5, shapes) == 10 + 24 + 12 + 6 + 20
    # The forecast of disk space knows only the number of elements, and returns an upper bound of 2
    # bytes each.
    assert _bytes({"maps.b": 12, "maps.c": 5}, "int8_maps.b") == 24
    assert _bytes({"maps.b": 12, "maps.c": 5}, "int8_maps") == 34
    assert _bytes({"maps.b": 12}, "int8_maps.x") is None


def test_a_live_teacher_gives_the_maps_and_their_moments_without_a_cache(
    stages: dict[str, Path], caches: dict[str, Path], tmp_path: Path
):
    cached = {k: v for k, v in stages.items() if k != "align"} | {"cache": caches["maps"]}
    live = {k: stages[k] for k in ("prepare", "views")} | {"images": stages["prepare"]}
    curves, moments = [], []
    for name, inputs, options in (("cached", cached, {}), ("live", live, {"teacher": TEACHER})):
        out = tmp_path / name
        outputs, _ = pretrain(out, inputs, KDEP_MAPS, budget=BUDGET, student=R18, **options)
        curves.append(np.array(outputs["curves"]["pretrain_loss"])[:, 1])
        moments.append(open_map_moments(out / "map_moments" / "0", "s16", 2))
    assert moments[0].n == moments[1].n == 2 * IMAGES * 4  # every position of every view
    torch.testing.assert_close(moments[0].mean, moments[1].mean, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(curves[0][:2], curves[1][:2], rtol=1e-3)
    np.testing.assert_allclose(*curves, rtol=0.05)


def test_the_plan_refuses_a_live_teacher_for_a_method_that_needs_statistics_of_a_cache():
    assert plan(dict(base="kdep_maps", name="k", teacher_source="live")).runs
    with pytest.raises(KdepError, match="reads layer_distances, which are computed from a teach"):
        plan(dict(base="pursuhint", name="k", teacher_source="live"))
