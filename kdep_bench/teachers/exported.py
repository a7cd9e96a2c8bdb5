"""An earlier arm's student as a teacher: assistants, chains, early-stopped teachers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdep_bench.data.normalisation import MEAN, STD
from kdep_bench.errors import KdepError
from kdep_bench.files import file_hash
from kdep_bench.networks.backbone import PreActivationTap, build_backbone, pool
from kdep_bench.openmmlab import load_weights
from kdep_bench.teachers.base import Teacher, TeacherOutput, freeze, load_exactly

HEAD = "objective.head."


class Exported(Teacher):
    """The backbone that the `export` stage of an arm wrote, tapped where a student is.

    `pooled` is the feature before the last activation, KDEP's place; `logits` those of the head
    that the arm trained on the activated feature, which its pre-training checkpoint still has.

    Args:
        name: name in records.
        student: config page of that student.
        has_logits: whether to look for the head; the plan knows from the arm's method.
        backbone: `backbone.pth` of its export.
        checkpoint: `student.pth` of its pre-training, for the head.
    """

    tap = "before the last activation"

    def __init__(
        self,
        name: str,
        student: Mapping[str, Any],
        has_logits: bool,
        backbone: str | Path | None = None,
        checkpoint: str | Path | None = None,
    ) -> None:
        super().__init__(tuple(MEAN), tuple(STD))
        if backbone is None:
            raise KdepError(
                f"the teacher assistant {name} has no weights",
                expected="the exported weights of its method",
                fix="set it as `teacher` of a method, so that its stages are planned",
            )
        self.name, self.has_logits = name, has_logits
        self.width, self.input_px = int(student["width"]), int(student["input_px"])
        net = build_backbone(student)
        load_exactly(net, load_weights(backbone), str(backbone))
        self.backbone = freeze(net)
        self._tapped = [PreActivationTap(self.backbone, student["tap"])]
        self.classifier = freeze(read_head(name, self.width, checkpoint)) if has_logits else None
        # The very file that the arm exported: what its own records call the student.
        self.source = file_hash(Path(backbone))

    def features(self, x_B3HW: Tensor) -> TeacherOutput:
        before, after = self._tapped[0](x_B3HW)
        logits = None if self.classifier is None else self.classifier(pool(after))
        return TeacherOutput(pool(before), logits)


def read_head(name: str, width: int, checkpoint: str | Path | None) -> nn.Module:
    """The linear head of a pre-training checkpoint; KdepError where there is not one."""
    state = {} if checkpoint is None else load_weights(checkpoint)
    found = {k.removeprefix(HEAD): v for k, v in state.items() if k.startswith(HEAD)}
    if set(found) != {"weight", "bias"} or found["weight"].shape[1] != width:
        raise KdepError(
            f"the teacher assistant {name} was trained without a linear classifier on its feature",
            expected=f"{HEAD}weight and {HEAD}bias in its checkpoint",
            fix="choose a feature method, or an assistant that was trained on logits or labels",
        )
    head = nn.Linear(width, len(found["weight"]))
    load_exactly(head, found, str(checkpoint))
    return head
