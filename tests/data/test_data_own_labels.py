"""Labels of a user's class folders, read back with their images' pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import own_fixture as own
import pytest
from PIL import Image

from kdep_bench.data import views
from kdep_bench.data.fractions import labels_file
from kdep_bench.data.official import stage as official
from kdep_bench.data.official import tiny
from kdep_bench.files import read_json
from kdep_bench.pretrain.stream import ViewStream

# Class -> its images: different numbers, not in the order of the folders, some in subfolders.
CLASSES = {
    "walnut": ["z.png"],
    "Acorn": ["1.png", "10.png", "2.png"],
    "hazel": ["deep/er/9.png", "0.png", "deep/1.png", "a.png"],
    "beech 2": ["b.png", "c.png"],
}
# Red value of the images of a class.
COLOUR = {name: 40 * k + 20 for k, name in enumerate(CLASSES)}


def write_pool(pool: Path) -> None:
    """Writes images whose red value is that of their class; all images differ."""
    rng = np.random.default_rng(0)
    for name, files in CLASSES.items():
        for file in files:
            image = tiny.noise_image(rng, (48, 48))
            image[..., 0] = COLOUR[name]
            path = pool / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)


@pytest.mark.parametrize("source", ["own", "official"])
def test_each_image_has_the_label_of_its_class_folder(source: str, tmp_path: Path) -> None:
    """The red value of an image shows its class; the label must be the index of that class."""
    write_pool(tmp_path / "pool")
    out = tmp_path / "prepare"
    if source == "own":
        spec = own.make(tmp_path / "mine")
        own.run(spec | {"pool": str(tmp_path / "pool"), "pool_labels": True}, out)
    else:  # stage `prepare` lists the pool of an official set with this function
        official._link_pool(tmp_path / "pool", out / "data" / "pool", out)
    stages = {"prepare": out}
    (tmp_path / "views").mkdir()
    recipe = dict(views=2, px=16, seed=0, scale=[0.5, 1.0], ratio=[1.0, 1.0])
    views.run(recipe, stages, tmp_path / "views", lambda *_: None)
    names = read_json(labels_file(stages))["classes"]
    assert names == sorted(CLASSES)
    count = 2 * sum(map(len, CLASSES.values()))
    stream = ViewStream(
        tmp_path / "views",
        length=count,
        share=1.0,
        share_seed=0,
        seed=1,
        labels=labels_file(stages),
        together=True,  # the views of an image follow each other
    )
    batch = stream.__getitems__(list(range(count)))
    red = batch["images"][:, 0].float().mean((1, 2)).round().int().tolist()
    assert [COLOUR[names[k]] for k in batch["labels"].tolist()] == red
    assert {n: red.count(c) // 2 for n, c in COLOUR.items()} == {
        name: len(files) for name, files in CLASSES.items()
    }
