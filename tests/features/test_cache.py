"""Before a cache is filled, the teacher must classify photographs whose classes are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from kdep_bench.errors import KdepError
from kdep_bench.features.cache import known_images
from kdep_bench.features.cache_check import extra_outputs
from kdep_bench.files import write_json
from kdep_bench.teachers.base import Teacher, TeacherOutput


class Colours(Teacher):
    """Classifies the colour of an image: class 0 is red, 1 green, 2 blue."""

    name, width, input_px, has_logits, tap = "colours", 3, 8, True, "colour"

    def __init__(self) -> None:
        super().__init__((0.0,) * 3, (1.0,) * 3)
        self.eval()

    def features(self, x_B3HW: Tensor) -> TeacherOutput:
        colour = x_B3HW.mean((2, 3))
        return TeacherOutput(colour, colour)


def write_photographs(folder: Path, wrong: int) -> None:
    """Writes five images; the first `wrong` of them have a wrong class."""
    folder.mkdir(exist_ok=True)
    known = {}
    for k in range(5):
        pixels = np.zeros((12, 10, 3), np.uint8)
        pixels[..., k % 3] = 200
        Image.fromarray(pixels).save(folder / f"{k}.png")
        known[f"{k}.png"] = (k + 1) % 3 if k < wrong else k % 3
    write_json(folder / "known.json", known)


def test_a_teacher_that_misses_more_than_40_percent_of_known_photographs_is_refused(
    tmp_path: Path,
):
    teacher = Colours()
    assert known_images(teacher, tmp_path) is None
    for wrong in (0, 1, 2):
        write_photographs(tmp_path, wrong)
        assert known_images(teacher, tmp_path) == {"right": 5 - wrong, "of": 5}
    for wrong in (3, 5):
        write_photographs(tmp_path, wrong)
        with pytest.raises(KdepError, match=f"only {5 - wrong} of 5 test photographs"):
            known_images(teacher, tmp_path)


def test_a_request_for_an_output_that_the_teacher_lacks_is_refused():
    pooled, maps = torch.zeros(2, 3), {"s8": torch.zeros(2, 4, 2, 2)}
    teacher, tokens = Colours(), torch.zeros(2, 5, 3)
    full = TeacherOutput(pooled, torch.zeros(2, 7), maps, tokens)
    assert set(extra_outputs(teacher, full, ["logits", "tokens", "maps"])) == {
        "logits",
        "tokens",
        "maps.s8",
    }
    assert set(extra_outputs(teacher, full, ["maps.s8"])) == {"maps.s8"}
    assert extra_outputs(teacher, full, []) == {}
    only_pooled = TeacherOutput(pooled, None)
    for expected in ("logits", "tokens", "maps"):
        with pytest.raises(KdepError, match=f"has no {expected}"):
            extra_outputs(teacher, only_pooled, [expected])
    with pytest.raises(KdepError, match=r"has no maps\.s4"):
        extra_outputs(teacher, full, ["maps.s4"])
