"""The probe of other domains: known answers with a backbone whose feature is the mean colour."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kdep_bench.data.domains import to_domain
from kdep_bench.errors import KdepError
from kdep_bench.probes.base import Features, Inputs
from kdep_bench.probes.other_domain import OtherDomain
from kdep_bench.suite.config import build_suite, load_suite
from kdep_bench.suite.plan import build_plan

RED, GREEN, BLUE = (200, 60, 60), (60, 200, 60), (60, 60, 200)


def flat_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` flat images of each of three colours with noise, and their classes."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(3), count)
    colours = np.array([RED, GREEN, BLUE])[labels]
    noise = rng.integers(-20, 21, (len(labels), 16, 16, 3))
    return np.clip(colours[:, None, None] + noise, 0, 255).astype(np.uint8), labels


def mean_colour(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean colour minus the mean of its channels; the same before and after activation."""
    mean = images.reshape(len(images), -1, 3).mean(1).astype(np.float32) / 255
    x = mean - mean.mean(1, keepdims=True)
    return x, x


def inputs(read: list[str] | None = None, missing: int = 0) -> Inputs:
    """The probe's inputs; `read` receives the name of every split whose images the probe reads."""
    images = {split: flat_images(8, seed) for seed, split in enumerate(("train", "val", "test"))}
    splits = {
        split: Features(*mean_colour(x), labels, ("red", "green", "blue"))
        for split, (x, labels) in images.items()
    }

    def stream(split: str) -> Any:
        """The images in two batches, without the last `missing` ones."""
        (read if read is not None else []).append(split)
        pixels = images[split][0][: len(images[split][0]) - missing]
        yield pixels[:10]
        yield pixels[10:]

    return Inputs(splits, images=stream, extract=mean_colour)


def test_colours_survive_fog_and_are_lost_in_a_drawing():
    """Fog keeps the order of the colours. A drawing has no colour: every image has the feature 0,
    gets the same class, and one third is right."""
    read: list[str] = []
    measured = OtherDomain(domains=["sketch", "fog"], c_grid=[1.0], k=[1, 3]).measure(inputs(read))
    values = {name: v.value for name, v in measured.values.items()}
    assert read == ["test"]  # no image of another split is seen in a target domain
    for classifier in ("linear", "kNN"):
        assert values[f"top1, source, {classifier}"] == 1
        assert values[f"top1, fog, {classifier}"] == 1
        assert values[f"top1, sketch, {classifier}"] == pytest.approx(1 / 3)
        assert values[f"top1, mean of targets, {classifier}"] == pytest.approx(2 / 3)
    assert all(v.chance == pytest.approx(1 / 3) for v in measured.values.values())
    assert [note.partition(" chosen")[0] for note in measured.notes] == ["C = 1", "k = 1"]


def test_each_image_has_its_own_weather_whatever_the_size_of_a_batch():
    """The seed is the position in the split: scores would otherwise depend on the batch size."""
    seen: list[np.ndarray] = []

    def extract(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Records the images and returns their mean colours."""
        seen.append(images)
        return mean_colour(images)

    data = inputs()
    recording_data = Inputs(data.splits, images=data.images, extract=extract)
    OtherDomain(domains=["fog"], c_grid=[1.0], k=[1]).measure(recording_data)
    pixels, _ = flat_images(8, 2)
    expected = np.stack([to_domain(x, "fog", [i]) for i, x in enumerate(pixels)])
    np.testing.assert_array_equal(np.concatenate(seen), expected)


def test_images_that_are_not_those_of_the_features_are_refused():
    with pytest.raises(KdepError, match="has 23 images now, but its features are of 24"):
        OtherDomain(domains=["fog"], c_grid=[1.0]).measure(inputs(missing=1))


@pytest.mark.parametrize("domains", [[], ["snow"], ["fog", "rain"]])
def test_unknown_domains_and_an_empty_list_are_refused_when_planned(domains):
    pocket = load_suite("pocket")
    raw = dict(
        name="t",
        data="pocket",
        students=["resnet18_w32"],
        methods=["scratch"],
        tasks=["pocket_probe"],
        budget=pocket.budget.model_dump(),
        seeds=dict(pretrain=[0], transfer=[0]),
    )
    plan = build_plan(build_suite({**raw, "probes": ["other_domain"]}))
    assert [run.probe["name"] for run in plan.probes] == ["other_domain"]
    with pytest.raises(KdepError, match=r"domains(\[\d\])? = "):
        build_plan(build_suite({**raw, "probes": [dict(base="other_domain", domains=domains)]}))
