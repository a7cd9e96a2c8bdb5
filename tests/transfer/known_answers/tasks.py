"""A fine-tuning task whose head has fixed weights, which a recipe cannot express."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdep_bench.transfer.classification import FineTune
from tests.transfer.known_answers.pictures import head


class FixedFineTune(FineTune):
    """Fine-tuning whose linear head predicts the class `recipe["meaning"][code]` for a code.

    Records the learning rate of each step in `networks.RATES`.
    """

    recipe_keys = FineTune.recipe_keys | {"meaning"}

    def build_cfg(
        self, data_root: Path, student: Any, checkpoint: Path, seed: int, work_dir: Path
    ) -> Any:
        """The Config of FineTune, with the weights of the head and a hook for the rates."""
        cfg = super().build_cfg(data_root, student, checkpoint, seed, work_dir)
        meaning = {int(k): v for k, v in self.recipe["meaning"].items()}
        file = head(checkpoint.parent / "head.pth", meaning, len(set(meaning.values())), "fc")
        cfg.model.head.init_cfg = dict(type="Pretrained", checkpoint=str(file))
        cfg.custom_hooks.append(
            dict(type="tests.transfer.known_answers.networks.RecordLearningRate")
        )
        return cfg
