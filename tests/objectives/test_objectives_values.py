"""Every method's loss on fixed networks and pictures, to the kept digits.

The closed forms of the other files say that a formula is right; this says that a method's default
weights, temperatures, levels, schedules and projectors, on which published scores rest, are still
the same. A change that is meant: `python -m tests.objectives.test_objectives_values` writes the
values anew, to be looked at in the diff.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import torch

from tests.objectives import tiny
from tests.objectives.test_methods_train import BATCH, STEPS, TRAINED, Arm

KEPT = Path(__file__).with_name("objective_values.json")
AT = (0, 3, STEPS // 2, STEPS - 1)  # steps of the run whose loss is kept


def values(name: str, folder: Path) -> dict[str, list[float]]:
    """{term: its mean over a batch in the steps AT}, one step of training after each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of over-confident teachers
        arm = Arm(name, folder)
        arm.optimizer = torch.optim.SGD(arm.model.parameters(), 1e-3)  # type: ignore[assignment]
        arm.model.train()
        out: dict[str, list[float]] = {}
        for k, step in enumerate(AT):
            arm.model.step = step
            terms = arm.terms(tiny.batch(BATCH, k))
            for term, value in terms.items():
                assert value.ndim == 0
                out.setdefault(term, []).append(float(value))
            arm.optimizer.zero_grad()
            torch.stack(list(terms.values())).sum().backward()
            torch.nn.utils.clip_grad_norm_(arm.model.parameters(), 5.0)
            arm.optimizer.step()
            arm.model.objective.after_step()
    return out


@pytest.mark.parametrize("name", TRAINED)
def test_the_loss_of_a_method_is_that_of_the_published_runs(name: str, tmp_path: Path):
    table = json.loads(KEPT.read_text())
    assert name in table, "a new method: python -m tests.objectives.test_objectives_values adds it"
    kept = table[name]
    got = values(name, tmp_path)
    assert got.keys() == kept.keys()
    for term, numbers in kept.items():
        assert got[term] == pytest.approx(numbers, rel=2e-4, abs=2e-6), term


def write() -> None:
    """Writes the file of values."""
    torch.set_num_threads(1)
    table = {}
    for name in TRAINED:
        with tempfile.TemporaryDirectory() as folder:
            computed = values(name, Path(folder))
        table[name] = {k: [float(f"{x:.6g}") for x in v] for k, v in computed.items()}
    text = json.dumps(table, indent=1).replace(",\n   ", ",").replace("[\n   ", "[")
    KEPT.write_text(text.replace("\n  ]", "]") + "\n")


if __name__ == "__main__":
    sys.exit(write())
