"""The stage that renders fixed views (crops and flips): boxes, pixels, disk space, errors."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from kdep_bench.data import views
from kdep_bench.data.official import tiny
from kdep_bench.errors import KdepError

SPEC = {"views": 3, "px": 16, "seed": 0, "scale": [0.3, 1.0], "ratio": [0.75, 4 / 3]}


@pytest.fixture
def prepared(tmp_path: Path) -> dict[str, Path]:
    """A finished stage `prepare` with two images."""
    for i in range(2):
        image = tiny.noise_image(np.random.default_rng(i))
        tiny.save(tmp_path / "p/data/pool/images" / f"{i}.png", image)
    return {"prepare": tmp_path / "p"}


def test_the_forecast_size_of_the_views_equals_the_written_size(
    prepared: dict[str, Path], tmp_path: Path
):
    outputs = views.run(SPEC, prepared, tmp_path, lambda *_: None)
    assert outputs["bytes"] == views.pixel_bytes(2, 3, 16) == 2 * 3 * 16 * 16 * 3


def test_a_full_disk_is_refused_before_a_byte_is_written(
    prepared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    out.mkdir()
    # The views need 2 x 3 x 16 x 16 x 3 = 4608 bytes.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4607))
    with pytest.raises(KdepError, match="2 images, 3 of each at 16 px, need"):
        views.run(SPEC, prepared, out, lambda *_: None)
    assert not list(out.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4608))
    assert views.run(SPEC, prepared, out, lambda *_: None)["rows"] == 6


def index_image(h: int, w: int) -> np.ndarray:
    """[h, w, 3]: channels 10 * row, 10 * column and 7."""
    rows, columns = np.mgrid[:h, :w]
    return np.stack([10 * rows, 10 * columns, np.full((h, w), 7)], 2).astype(np.uint8)


def test_a_view_has_exactly_the_pixels_of_its_box():
    image = index_image(8, 12)
    crop = views.render(image, np.array([0.25, 0.5, 0.25, 0.375]), False, 3)
    np.testing.assert_array_equal(crop, image[4:7, 3:6])
    np.testing.assert_array_equal(
        views.render(image, np.array([0.25, 0.5, 0.25, 0.375]), True, 3), image[4:7, 5:2:-1]
    )
    halved = views.render(image[:, :8], np.array([0, 0, 1, 1]), False, 4)  # means of 2 x 2 pixels
    np.testing.assert_array_equal(halved[..., 0], np.repeat([[5], [25], [45], [65]], 4, 1))
    np.testing.assert_array_equal(halved[..., 1], np.repeat([[5, 25, 45, 65]], 4, 0))
    # Enlarged: linear interpolation between the centres of pixels.
    enlarged = views.render(index_image(2, 2), np.array([0, 0, 1, 1]), False, 4)[0, :, 1]
    np.testing.assert_allclose(enlarged, [0, 2.5, 7.5, 10], atol=0.5)
    # Reduced: the mean of all source pixels, not the one in the middle.
    bright_pixel = np.zeros((12, 12, 3), np.uint8)
    bright_pixel[0, 0] = 90
    reduced = views.render(bright_pixel, np.array([0, 0, 1, 1]), False, 4)
    assert reduced[0, 0].tolist() == [10, 10, 10]
    assert not reduced[1:].any()
    # A box thinner than a pixel still has one pixel.
    assert views.render(image, np.array([0.99, 0.99, 0.001, 0.001]), False, 2).shape == (2, 2, 3)
    sliver = views.render(image, np.array([0.5, 0.0, 0.001, 1.0]), False, 8)
    assert set(sliver[..., 1].ravel()) == {60}


def test_boxes_have_the_requested_areas_and_aspect_ratios():
    box, flip = views.draw_recipe(images=4000, views=1, seed=0, scale=(0.2, 0.5), ratio=(0.5, 2.0))
    area, aspect = box[:, 2] * box[:, 3], box[:, 2] / box[:, 3]
    assert 0.2 - 1e-6 <= area.min() < 0.21
    assert 0.49 < area.max() <= 0.5 + 1e-6
    assert area.mean() == pytest.approx(0.35, abs=0.01)
    assert 0.5 - 1e-6 <= aspect.min() < 0.51
    assert 1.98 < aspect.max() <= 2 + 1e-6
    assert np.log(aspect).mean() == pytest.approx(0, abs=0.03)  # as often wide as high
    assert flip.mean() == pytest.approx(0.5, abs=0.03)
    relative_position = box[:, :2] / (1 - box[:, 2:])  # uniform over the possible positions
    assert np.allclose(relative_position.mean(0), 0.5, atol=0.02)
    assert relative_position.min() >= 0
    assert relative_position.max() <= 1
    wide, _ = views.draw_recipe(200, 1, 0, (1.0, 1.0), (2.0, 2.0))
    np.testing.assert_array_equal(wide[:, 2], 1)  # limited to the width of the image
    np.testing.assert_allclose(wide[:, 3], 0.5**0.5, rtol=1e-6)


def test_a_seed_gives_the_boxes_and_subsets_of_the_published_runs():
    """Published runs used these boxes, flips and subsets; others would change their results."""
    box, flip = views.draw_recipe(3, 2, 7, (0.4, 1), (0.75, 1.33))
    np.testing.assert_allclose(
        box[[0, 5]], [[0.0263, 0, 0.8629, 1], [0, 0.1110, 1, 0.8823]], atol=1e-4
    )
    assert flip.tolist() == [True, False, True, True, True, False]
    assert views.subset(40, 0.2).tolist() == [2, 6, 9, 15, 16, 24, 28, 39]
    assert views.subset(40, 0.2, 1).tolist() == [2, 3, 11, 21, 26, 30, 35, 38]


def test_a_run_renders_every_view_of_every_image_in_order(
    prepared: dict[str, Path], tmp_path: Path
):
    seen: list[int] = []
    outputs = views.run(SPEC, prepared, tmp_path, lambda done, total, *_: seen.append(done))
    assert seen[-1] == outputs["images"] == 2
    assert (outputs["rows"], outputs["views"], outputs["px"]) == (6, 3, 16)
    opened = views.open_views(tmp_path, prepared["prepare"])
    assert (opened.files, opened.views, opened.rows) == (["0.png", "1.png"], 3, 6)
    box, flip = views.draw_recipe(2, 3, 0, (0.3, 1.0), (0.75, 4 / 3))
    for row in range(6):
        image = cv2.imread(str(opened.root / opened.files[row // 3]))
        assert image is not None
        expected = views.render(image[:, :, ::-1], box[row], bool(flip[row]), 16)
        np.testing.assert_array_equal(opened.pixels[row], expected)
    second = tmp_path / "again"
    second.mkdir()
    assert views.run(SPEC, prepared, second, lambda *_: None) == outputs
    other_seed = views.run({**SPEC, "seed": 1}, prepared, second, lambda *_: None)
    assert other_seed["fingerprint"] != outputs["fingerprint"]


def test_views_that_lack_rows_are_refused(prepared: dict[str, Path], tmp_path: Path):
    views.run(SPEC, prepared, tmp_path, lambda *_: None)
    kept = np.load(tmp_path / views.PIXELS)
    np.save(tmp_path / views.PIXELS, kept[:5])
    with pytest.raises(KdepError, match="5 rendered, 6 drawn, 2 images"):
        views.open_views(tmp_path)
    np.save(tmp_path / views.PIXELS, kept)
    (tmp_path / views.LISTING).write_text('{"pool": "p", "files": ["a"], "views": 3}')
    with pytest.raises(KdepError, match="6 rendered, 6 drawn, 1 images"):
        views.open_views(tmp_path)


def test_data_fractions_without_an_image_or_above_1_are_refused():
    assert views.subset(10, 1.0).tolist() == list(range(10))
    assert len(views.subset(10, 0.05001)) == 1
    for fraction in (0.0, -0.5, 1.0001, 0.04):
        with pytest.raises(KdepError, match="a data fraction"):
            views.subset(10, fraction)


@pytest.mark.parametrize("name", [views.PIXELS, views.RECIPE, views.LISTING])
@pytest.mark.parametrize("content", [b"", b"PK\3\4 no zip", b"{}", b"[]", b"\x93NUMPY\x01", None])
def test_a_damaged_views_file_raises_kdep_error(
    prepared: dict[str, Path], tmp_path: Path, name: str, content: bytes | None
):
    views.run(SPEC, prepared, tmp_path, lambda *_: None)
    complete = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(complete[:-50] if content is None else content)
    with pytest.raises(KdepError, match=r"images\.json|the views in"):
        views.open_views(tmp_path)
