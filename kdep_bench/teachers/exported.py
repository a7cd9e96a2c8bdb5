"""A student of the same suite used as a teacher: intermediate teachers (assistants)."""

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
    """A teacher with the backbone that a method's `export` stage wrote.

    `pooled` is the pooled feature before the last activation, as in KDEP. `logits` come from the
    linear head that pre-training trained on the feature after the last activation.

    Args:
        name: name in records.
        student: config of the student.
        has_logits: whether to load the head; set by the planner.
        backbone: path of the file `backbone.pth` of stage `export`.
        checkpoint: path of the file `student.pth` of stage `pretrain`, which has the head.

    Raises:
        KdepError: `backbone` is None, the weights do not fit, or a required head is missing.
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
                f"the intermediate teacher {name} has no weights",
                expected="the weights that its pre-training exported",
                fix="use it as `teacher` of a method in a suite; the suite then pre-trains it",
            )
        self.name, self.has_logits = name, has_logits
        self.width, self.input_px = int(student["width"]), int(student["input_px"])
        net = build_backbone(student)
        load_exactly(net, load_weights(backbone), str(backbone))
        self.backbone = freeze(net)
        self._tapped = [PreActivationTap(self.backbone, student["tap"])]
        self.classifier = freeze(read_head(name, self.width, checkpoint)) if has_logits else None
        # Checksum of the exported file, which records store to identify the student.
        self.source = file_hash(Path(backbone))

    def features(self, x_B3HW: Tensor) -> TeacherOutput:
        pre_activation, post_activation = self._tapped[0](x_B3HW)
        logits = None if self.classifier is None else self.classifier(pool(post_activation))
        return TeacherOutput(pool(pre_activation), logits)


def read_head(name: str, width: int, checkpoint: str | Path | None) -> nn.Module:
    """Loads the linear head of a pre-training checkpoint; raises KdepError if there is none.

    Args:
        name: name of the teacher, for errors.
        width: number of input features of the head.
        checkpoint: path of the file `student.pth`.
    """
    state = {} if checkpoint is None else load_weights(checkpoint)
    tensors = {k.removeprefix(HEAD): v for k, v in state.items() if k.startswith(HEAD)}
    if set(tensors) != {"weight", "bias"} or tensors["weight"].shape[1] != width:
        raise KdepError(
            f"the intermediate teacher {name} was trained without a linear classifier on its "
            "feature",
            expected=f"{HEAD}weight and {HEAD}bias in its checkpoint",
            fix="choose a method that reads features only, or an intermediate teacher that was "
            "trained on logits or labels",
        )
    head = nn.Linear(width, len(tensors["weight"]))
    load_exactly(head, tensors, str(checkpoint))
    return head
