"""Every column heading is in the glossary or is a textbook term; no project jargon is shown."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from make_records import grid
from markupsafe import escape
from test_results_probes import VALUE_NAMES
from test_results_tables import KDEP_BEATS_SCRATCH, SCORES

from kdep_bench.results import build
from kdep_bench.results.report import (
    glossary,
    image_tables,
    markdown,
    probe_tables,
    teacher_tables,
    transfer_rows,
)
from kdep_bench.results.teacher_measures import MEASURES

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = sorted(p.parent for p in (ROOT / "results").glob("*/records"))
TEXTBOOK = {
    *("metric", "split", "version", "direction", "mean", "sd", "command"),
    *("learning rate", "learning_rate", "reason", "item", "value", "suite"),
    *("mean top-1", "training time", "data_notes"),
}
# Headings of tables that no published suite has.
UNPUBLISHED = {
    *("run", "status", "teacher used labels", "teacher's score", "transfer time"),
    *teacher_tables.CHOICE_HEAD,
    *MEASURES,
    *("extra forward passes", "weight bits", "megabytes", "bit-operations"),
}
# {words that no table, heading, note or caption may contain: the standard term}
PRIVATE = {
    r"cannot be told|told from": "not significant",
    r"\bhole": "failed or missing seed",
    r"energy.kept": "explained variance ratio",
    r"key.coverage": "weights loaded",
    r"of it teacher|of what\b": "of which teacher cache; budget",
    r"\barms?\b": "method, row",
    r"data share|% share": "data fraction",
    r"no costs|speaks? of|truly best|tinted|left its course|passes a sample": "see the glossary",
    r"seeds that would decide|smallest gap|an arm\b": "seeds needed; minimum detectable difference",
}


def md_headings(text: str) -> Iterator[str]:
    """The headings of all tables of a Markdown text."""
    lines = text.splitlines()
    for line, rule in itertools.pairwise(lines):
        if re.fullmatch(r"\|( -+:? \|)+", rule):
            yield from (h.strip() for h in line.strip("| ").split(" | "))


def headings(folder: Path) -> set[str]:
    """Column headings of leaderboard.md and leaderboard.csv, without those of task scores."""
    with (folder / "leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    tasks = {f"{r['task']} ({r['metric']})" for r in rows}
    text = (folder / "leaderboard.md").read_text().replace("\\", "")
    return {*md_headings(text), *rows[0]} - tasks


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda f: f.name)
def test_every_heading_is_explained(folder: Path):
    unknown = {h for h in headings(folder) if glossary.term_of(h) is None}
    plain = {re.sub(r" x100|, approx\.", "", h) for h in unknown}
    assert plain <= TEXTBOOK


def test_every_heading_in_the_glossary_is_used():
    used_headings = {h for folder in PUBLISHED for h in headings(folder)}
    tex = "\n".join((f / "leaderboard.tex").read_text() for f in PUBLISHED)
    used_headings |= {h.strip(" \\") for line in re.findall(r"^student &.*$", tex, re.M)
              for h in line.split("&")}  # fmt: skip
    used_headings |= {*VALUE_NAMES, *probe_tables.CSV_HEAD, *UNPUBLISHED}
    for folder in PUBLISHED:
        with (folder / "leaderboard.csv").open() as file:
            used_headings |= {row["task"] for row in csv.DictReader(file)}
    used_headings |= {*image_tables.HEAD, *image_tables.PAIRS_HEAD}
    # The published tables leave out columns without a value, and settings with one value.
    used_headings |= {*markdown.SUMMARY_HEAD, *markdown.DIFFERENCE_HEAD, *markdown.COST_HEAD}
    used_headings |= {*markdown.ALIGNMENT_HEAD, *markdown.NOISE_HEAD, *markdown.FAMILY_HEAD}
    used_headings |= {*markdown.CLAIM_HEAD, *markdown.REDUCTION_HEAD, *transfer_rows.HEAD}
    used = {t.name for h in used_headings if (t := glossary.term_of(h))}
    assert used == {t.name for t in glossary.TERMS if t.headings}
    shown = {glossary.plain_heading(h) for h in used_headings}
    assert {h for t in glossary.TERMS for h in t.headings} <= shown


def test_glossary_md_equals_the_terms_in_the_code():
    text = (ROOT / "GLOSSARY.md").read_text()
    assert text == glossary.markdown(), "python -m kdep_bench.results.report.glossary > GLOSSARY.md"


def test_the_page_explains_its_headings(results):
    folder = results(grid(SCORES))
    build(folder, "golden", [KDEP_BEATS_SCRATCH])
    page = (folder / "index.html").read_text()
    term = next(t for t in glossary.TERMS if "mean rank" in t.headings)
    hover = re.escape(str(escape(term.meaning)))
    assert re.search(rf'<th scope="col" title="{hover}">mean rank</th>', page)
    assert page.count("<dt>") >= len(glossary.TERMS)
    assert 'href="#glossary"' in page
    assert "../../GLOSSARY.md" in (folder / "leaderboard.md").read_text()


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda f: f.name)
@pytest.mark.parametrize("name", ["leaderboard.md", "leaderboard.csv", "index.html"])
def test_no_private_word_is_published(folder: Path, name: str):
    text = (folder / name).read_text()
    text = re.sub(r"<style>.*?</style>|<script>.*?</script>|base64,[\w+/=]+", "", text, flags=re.S)
    text = text.split('id="glossary"')[0].split("## Environment")[0]
    text = re.sub(r"<[^>]*>", " ", text)
    private_words = {w: fix for w, fix in PRIVATE.items() if re.search(w, text, re.I)}
    assert not private_words, f"{folder.name}/{name}: write the standard term"


def test_the_count_of_extra_forward_passes_states_that_it_has_passes_of_the_student():
    """`ssda`, `ota` and `tst` run the student more than once per image; see their counts' tests."""
    term = glossary.term_of("extra forward passes")
    assert term is not None
    assert term.meaning.count("additional passes of the student") == 2
    assert "passes of the student in addition" in transfer_rows.COSTS
