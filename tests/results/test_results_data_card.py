"""The data card: counts are shown in the report, and a damaged card is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdep_bench.errors import KdepError
from kdep_bench.results.report import data_card

ROW = {"images": 3, "width": [64, 64], "height": [32, 48], "equal_files": 0}
PREPARED: dict[str, Any] = {
    "fingerprint": "ab" * 32,
    "source": "own",
    "counts": {"images": {"pool": 4, "detect/test": 3}},
    "licences": {"Fotos|x": "CC0"},
    "task_notes": {"detect": ["test has no box of 'dog'"]},
    "card": {
        "pool": {"images": 4, "normalised": {"CMYK": 1}, **ROW, "by_class": {"a": 1, "b": 3}},
        "detect": {
            "classes": ["cat", "dog"],
            "splits": {
                "train": {**ROW, "boxes": {"cat": 1234, "dog": 1}, "crowds": 2},
                "test": {**ROW, "boxes": {"cat": 2, "dog": 0}, "crowds": 0},
            },
        },
    },
}


def test_tables_show_counts_by_class_and_split(tmp_path: Path) -> None:
    assert data_card.write(tmp_path, "mine", PREPARED)
    card = data_card.read(tmp_path)
    assert card is not None
    tables = {title: (head, rows) for title, head, rows in data_card.tables(card)}
    head, rows = tables["Boxes: classes"]
    assert head == ["class", "boxes, train", "boxes, test"]
    assert rows == [["cat", "1,234", "2"], ["dog", "1", "0"]]
    head, rows = tables["Boxes"]
    assert head == ["split", "images", "width, px", "height, px", "crowd boxes (COCO iscrowd)"]
    assert rows == [["train", "3", "64", "32 to 48", "2"], ["test", "3", "64", "32 to 48", "0"]]
    assert tables["Pool: classes"][1] == [["a", "1"], ["b", "3"]]
    assert "1 CMYK" in tables["Pool"][1][0]
    text = (tmp_path / "data_card.md").read_text()
    assert "| dog | 1 | 0 |" in text
    assert "Fotos\\|x" in text


def test_an_unchanged_card_is_not_rewritten(tmp_path: Path) -> None:
    assert data_card.write(tmp_path, "mine", PREPARED)
    assert not data_card.write(tmp_path, "mine", PREPARED)
    assert data_card.write(tmp_path, "mine", {**PREPARED, "fingerprint": "cd" * 32})


def test_image_counts_alone_give_a_data_card(tmp_path: Path) -> None:
    data_card.write(tmp_path, "pocket", {"counts": {"images": {"pool": 32000}}, "licences": None})
    card = data_card.read(tmp_path)
    assert card is not None
    assert data_card.tables(card) == [("Images", ["part", "images"], [["pool", "32,000"]])]
    assert data_card.read(tmp_path / "none") is None


@pytest.mark.parametrize("counts", [None, 3, {"images": 3}, {"images": {"pool": "many"}}])
def test_a_user_s_prepare_function_may_return_no_counts(tmp_path: Path, counts: Any) -> None:
    assert not data_card.write(tmp_path, "theirs", {"counts": counts, "licences": ["CC0"]})
    assert data_card.read(tmp_path) is None


@pytest.mark.parametrize(
    "change",
    [
        {"parts": 3},
        {"parts": {"detect": {"splits": {"test": [1]}}}},
        {"parts": {"pool": {"width": [1]}}},
        {"fingerprint": None},
        {"notes": ["x"]},
    ],
)
def test_a_damaged_card_is_reported_and_rewritten(tmp_path: Path, change: dict[str, Any]) -> None:
    data_card.write(tmp_path, "mine", PREPARED)
    path = tmp_path / data_card.NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(KdepError, match=r"data_card\.json is not a valid data card"):
        data_card.read(tmp_path)
    assert data_card.write(tmp_path, "mine", PREPARED)
    assert data_card.read(tmp_path) is not None


def test_the_page_shows_the_data_card_and_escapes_class_names(tmp_path: Path) -> None:
    from kdep_bench.results import build

    hostile = "<b>cat</b>"
    row = {**ROW, "boxes": {hostile: 3}}
    card = {"detect": {"classes": [hostile], "splits": {"test": row}}}
    data_card.write(tmp_path, "mine", {**PREPARED, "card": card})
    (tmp_path / "records").mkdir()
    build(tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert "Boxes: classes" in page
    assert "&lt;b&gt;cat&lt;/b&gt;" in page
    assert hostile not in page
