"""Every method's loss on fixed networks and images equals the stored value.

The closed forms in the other files test the formulas. These values test that a method's default
weights, temperatures, levels, schedules and projectors are still those of the published scores.
After an intended change, `python -m tests.objectives.test_objectives_values` writes new values;
check the difference.
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
from tests.objectives.test_methods_train import BATCH, STEPS, TRAINED, TinyRun

STORED_VALUES = Path(__file__).with_name("objective_values.json")
STORED_STEPS = (0, 3, STEPS // 2, STEPS - 1)  # steps whose losses are stored


def values(name: str, folder: Path) -> dict[str, list[float]]:
    """{term: its mean over a batch at each of STORED_STEPS}.

    One step of SGD (stochastic gradient descent) follows each value.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about over-confident teachers
        run = TinyRun(name, folder)
        run.optimizer = torch.optim.SGD(run.model.parameters(), 1e-3)  # type: ignore[assignment]
        run.model.train()
        means: dict[str, list[float]] = {}
        for k, step in enumerate(STORED_STEPS):
            run.model.step = step
            terms = run.terms(tiny.batch(BATCH, k))
            for term, value in terms.items():
                assert value.ndim == 0
                means.setdefault(term, []).append(float(value))
            run.optimizer.zero_grad()
            torch.stack(list(terms.values())).sum().backward()
            torch.nn.utils.clip_grad_norm_(run.model.parameters(), 5.0)
            run.optimizer.step()
            run.model.objective.after_step()
    return means


@pytest.mark.parametrize("name", TRAINED)
def test_the_loss_of_a_method_equals_the_stored_value(name: str, tmp_path: Path):
    table = json.loads(STORED_VALUES.read_text())
    assert name in table, "a new method: python -m tests.objectives.test_objectives_values adds it"
    expected = table[name]
    computed = values(name, tmp_path)
    assert computed.keys() == expected.keys()
    for term, stored in expected.items():
        # The tolerance allows for float32 rounding of other processors.
        assert computed[term] == pytest.approx(stored, rel=2e-4, abs=2e-6), term


def write() -> None:
    """Writes the values of all methods to STORED_VALUES."""
    torch.set_num_threads(1)
    table = {}
    for name in TRAINED:
        with tempfile.TemporaryDirectory() as folder:
            computed = values(name, Path(folder))
        table[name] = {k: [float(f"{x:.6g}") for x in v] for k, v in computed.items()}
    # One line per term.
    text = json.dumps(table, indent=1).replace(",\n   ", ",").replace("[\n   ", "[")
    STORED_VALUES.write_text(text.replace("\n  ]", "]") + "\n")


if __name__ == "__main__":
    sys.exit(write())
