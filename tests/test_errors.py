"""KdepError prints one line with the problem, what was expected and the fix, and can be pickled."""

from __future__ import annotations

import pickle

import pytest

from kdep_bench.errors import KdepError, first_of, unknown_name
from kdep_bench.faults import Faults


@pytest.mark.parametrize(
    ("expected", "fix", "text"),
    [
        (None, None, "the file a.json is empty."),
        ("", "", "the file a.json is empty."),
        ("a list", None, "the file a.json is empty; expected a list."),
        (None, "copy it again", "the file a.json is empty. Fix: copy it again."),
        ("a list", "copy it again", "the file a.json is empty; expected a list. "
         "Fix: copy it again."),
    ],
)  # fmt: skip
def test_the_text_has_only_the_parts_that_were_given(expected, fix, text):
    assert str(KdepError("the file a.json is empty", expected=expected, fix=fix)) == text


def test_an_error_has_no_double_full_stop():
    error = KdepError("no file.", expected="a file.", fix="copy it.")
    assert str(error) == "no file; expected a file. Fix: copy it."
    assert str(KdepError("no file.", fix="did you mean b?")) == "no file. Fix: did you mean b?"


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        ("its names are a, b, ...", "its names are a, b, ... Fix: copy it..."),
        ("its sum is 80a3f12...", "its sum is 80a3f12... Fix: copy it..."),
        ("there is nothing in ..", "there is nothing in .. Fix: copy it..."),
        ("there is nothing in a/.", "there is nothing in a/. Fix: copy it..."),
        ("it failed..", "it failed. Fix: copy it..."),  # neither of the two: one full stop is left
    ],
)
def test_an_ellipsis_and_the_path_of_a_folder_are_not_cut(problem, text):
    assert str(KdepError(problem, fix="copy it...")) == text
    bare = "it failed" if problem == "it failed.." else problem
    assert str(KdepError(problem, expected="b")) == f"{bare}; expected b."


def test_a_shortened_list_says_how_many_items_are_left_out():
    assert first_of(["a", 2], 2) == "a, 2"
    assert first_of(iter("abcd"), 2) == "a, b and 2 more"
    assert first_of(iter("abc"), 2, "; ") == "a; b and 1 more"
    assert first_of([], 1) == ""
    with pytest.raises(ValueError, match="limit is 0"):
        first_of("ab", 0)


def test_expected_and_fix_are_keyword_only_arguments():
    parts = ("a", "b", "c")
    with pytest.raises(TypeError):
        KdepError(*parts)  # pyright: ignore[reportCallIssue]


def test_control_characters_of_a_file_name_do_not_reach_the_terminal():
    error = KdepError("the file \x1b[31ma\r is bad", expected="\x00", fix="see \udcff\ttab\nline")
    assert str(error) == (
        "the file \\x1b[31ma\\x0d is bad; expected \\x00. Fix: see \\xff\ttab\nline."
    )
    assert error.problem == "the file \x1b[31ma\r is bad"  # unchanged


@pytest.mark.parametrize("expected", ["", "b"])
@pytest.mark.parametrize("fix", ["", "c"])
def test_an_error_of_another_process_keeps_its_parts(expected, fix):
    error = KdepError("a", expected=expected, fix=fix)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is KdepError
    assert str(copy) == str(error)
    assert (copy.problem, copy.expected, copy.fix) == ("a", expected, fix)


def test_the_error_for_an_unknown_name_offers_similar_names_or_all():
    with_similar_name = unknown_name("method", "kdpe", ["kdep", "fitnets", "at"])
    assert with_similar_name.fix == "did you mean kdep?"
    assert str(with_similar_name) == ("unknown method 'kdpe'. Fix: did you mean kdep?")
    without_similar_name = unknown_name("method", "zzz", ["kdep", "at"])
    assert str(without_similar_name) == "unknown method 'zzz'. Fix: choose one of: at, kdep."
    assert unknown_name("method", "zzz", ["at"], fix="run --list").fix == "run --list"
    assert unknown_name("method", "zzz", ["at"], otherwise="run --list").fix == "run --list"
    assert unknown_name("method", "att", ["at"], otherwise="run --list").fix == "did you mean at?"
    many = unknown_name("model", "zzz", [f"net{i}" for i in range(1000)])
    assert many.fix.endswith(" and 960 more")


def test_an_error_of_several_faults_keeps_each_of_them():
    inner, outer = Faults(), Faults()
    for problem in ("a", "b"):
        inner.add(KdepError(problem))
    outer.add(KdepError("c"))
    with outer.collect():
        inner.raise_any("x")
    error = outer.error("the suite")
    assert error is not None
    assert str(error) == "the suite has 3 faults:\n  1. c.\n  2. a.\n  3. b."
    assert [fault.problem for fault in error.faults] == ["c", "a", "b"]
