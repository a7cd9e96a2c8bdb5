"""The faults of the mutation tests: which faults a source can have, and which are sampled."""

from __future__ import annotations

import pytest

from tests.mutation import calls, report
from tests.mutation.faults import faults_of, sample

SOURCE = '''"""Text with 1 number."""

LIMIT = 3


def score(folders: list[str], seed: int = 0) -> float:
    """Not 2."""
    if LIMIT < len(folders):
        raise ValueError(f"{LIMIT + 1} folders")
    rows = read(sorted(folders), split="test", seed=seed)
    return mean(rows[1:], weights=None) * 100.0
'''


def planted_sources(source: str) -> dict[str, str]:
    """{"before -> after" of a fault: the source with this fault}."""
    return {f"{f.before} -> {f.after}": f.plant(source) for f in faults_of("m.py", source)}


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("3 -> 4", "LIMIT = 4"),
        ("LIMIT < len(folders) -> (LIMIT <= len(folders))", "if (LIMIT <= len(folders)):"),
        ("sorted(folders) -> folders", 'rows = read(folders, split="test", seed=seed)'),
        ("\"test\" -> 'train'", "split='train'"),
        ("rows[1:] -> rows", "mean(rows, weights=None)"),
        ("1 -> 2", "rows[2:]"),
        (
            "mean(rows[1:], weights=None) * 100.0 -> (mean(rows[1:], weights=None) / 100.0)",
            "return (mean(rows[1:], weights=None) / 100.0)",
        ),
        (
            "return mean(rows[1:], weights=None) * 100.0 -> return None",
            "    return None\n",
        ),
        (
            'read(sorted(folders), split="test", seed=seed)'
            " -> read(sorted(folders), split='test', seed=0)",
            "seed=0)",
        ),
    ],
)
def test_a_planted_fault_changes_one_line_only(fault: str, line: str) -> None:
    changed = planted_sources(SOURCE)[fault]
    assert line in changed
    differ = [
        old
        for old, new in zip(SOURCE.splitlines(), changed.splitlines(), strict=True)
        if old != new
    ]
    assert len(differ) == 1


def test_no_fault_is_planted_in_texts_hints_and_errors() -> None:
    lines = {f.line for f in faults_of("m.py", SOURCE)}
    assert lines == {3, 6, 8, 10, 11}
    assert not any("str" in f.before and f.line == 6 for f in faults_of("m.py", SOURCE))


def test_an_edit_elsewhere_changes_no_fault_of_the_sample() -> None:
    first = {f.key for f in sample({"m.py": SOURCE}, 4, seed=1)}
    moved = SOURCE.replace("LIMIT = 3", "LIMIT = 3\n\n\ndef other(): pass")
    assert {f.key for f in sample({"m.py": moved}, 4, seed=1)} == first
    assert {f.key for f in sample({"m.py": SOURCE}, 4, seed=2)} != first


def test_a_result_stays_valid_while_only_texts_change() -> None:
    def contents(source: str) -> dict[int, str]:
        """{line: the hash of the function or statement that contains the line}."""
        return {f.line: f.content for f in faults_of("m.py", source)}

    before = contents(SOURCE)
    assert len(set(before.values())) == 2  # LIMIT, and the function
    for old, new in (
        ('raise ValueError(f"{LIMIT + 1} folders")', 'raise ValueError("too few")'),
        ('"""Not 2."""', '"""Not 3."""'),
        ("rows[1:], weights", "rows[1:],  weights"),
    ):
        assert contents(SOURCE.replace(old, new)) == before
    for old, new in (("LIMIT < len", "LIMIT > len"), ("rows[1:]", "rows[2:]"), ("= 3", "= 4")):
        after = contents(SOURCE.replace(old, new))
        # The line of LIMIT, or all lines of the function.
        assert sum(after[line] != before[line] for line in after) in (1, len(before) - 1)


def test_a_test_makes_the_calls_of_the_shared_fixtures_it_uses(tmp_path) -> None:
    log = tmp_path / "calls"
    log.write_text(
        "T+ t.py::a\tt.py::data\nF+ t.py::data\nC k/x.py make\nF- t.py::data\nC k/x.py own\n"
        "T- 0.5\nT+ t.py::b\tt.py::data\nR failed\nT- 0.1\nT+ t.py::c\nT- 0.2\n"
    )
    first, second, third = calls.read(log)
    assert first == ("t.py::a", 0.5, True, {"k/x.py make", "k/x.py own"})
    assert second == ("t.py::b", 0.1, False, {"k/x.py make"})
    assert third.calls == set()
    calls.save([first, second, third], tmp_path / "map.json")
    assert calls.load(tmp_path / "map.json") == [first, second, third]


def test_every_fault_called_equivalent_has_a_reason() -> None:
    assert all(reason for reason in report.equivalent().values())
