"""A student whose config does not fit its network is refused before the first stage of a run."""

from __future__ import annotations

import pytest

from kdep_bench.engine.fork_server import ForkServer
from kdep_bench.engine.local_pool import PRELOAD
from kdep_bench.engine.student_check import check_students
from kdep_bench.errors import KdepError
from tests.suite.test_suite_methods import plan


def test_a_wrong_width_or_tap_is_found_in_a_fork_before_any_stage():
    stages = list(plan("kdep").stages.values())
    student = next(s.spec["student"] for s in stages if s.kind == "pretrain")
    server = ForkServer(PRELOAD, lambda: False, lambda: None)
    server.start()
    check_students(server, stages, lambda: False)  # raises nothing
    right = dict(student)
    for key, value, problem in (
        ("width", 17, "expected 17, the `width` of its config"),
        ("tap", "layer5", "layer5"),
    ):
        student.clear()
        student.update(right, **{key: value})
        with pytest.raises(KdepError, match=f"the student .* cannot be pre-trained: .*{problem}"):
            check_students(server, stages, lambda: False)
