"""The layers of a teacher that follow one of its maps."""

from __future__ import annotations

import pytest
import torch

from kdep_bench.errors import KdepError
from kdep_bench.teachers.efficientnet_lite import EfficientNetLite


def test_the_layers_after_each_map_give_the_teacher_s_logits():
    teacher = EfficientNetLite("lite0", 0, 64)
    images = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    out, before = teacher(images), teacher.checksum()
    assert out.logits is not None
    for level in teacher.tails:
        tail = teacher.tail(level).eval()
        torch.testing.assert_close(tail(out.maps[level]), out.logits, atol=1e-4, rtol=1e-4)
        with torch.no_grad():  # the tail is a copy: changing it does not change the teacher
            for p in tail.parameters():
                p.zero_()
    assert teacher.checksum() == before
    with pytest.raises(KdepError, match=r"after the map 's32' .* expected one of s4, s8, s16"):
        teacher.tail("s32")
