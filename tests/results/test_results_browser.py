"""The page in a real headless Chromium, where one is installed."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from make_records import grid
from test_results_tables import BEATS, SCORES, golden_records

from kdep_bench.results import build

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"),
]

ACT = """
<script>
const table = document.querySelector("#summary table");
const heads = [...table.tHead.rows[0].cells];
const column = (i) => [...table.tBodies[0].rows].filter((r) => !r.hidden)
  .map((r) => r.cells[i].textContent).join(",");
const rank = heads.findIndex((h) => h.textContent.includes("rank"));
const say = (key, value) => document.body.setAttribute("data-" + key, value);
heads[rank].querySelector("button").click();
say("first", column(rank)); say("one", heads[rank].getAttribute("aria-sort"));
heads[rank].querySelector("button").click();
say("second", column(rank)); say("two", heads[rank].getAttribute("aria-sort"));
const word = document.getElementById("filter");
word.value = "scratch"; word.dispatchEvent(new Event("input"));
say("left", column(1)); say("said", document.getElementById("shown").textContent);
</script>
"""


def dump(path, tmp_path) -> tuple[str, str]:
    """(the page's DOM after its script ran, what the browser logged)."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--dump-dom",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout, done.stderr


def test_the_policy_lets_the_page_work_and_nothing_complains(results, tmp_path):
    folder = results(golden_records())
    build(folder, claims=[BEATS])
    dom, log = dump(folder / "index.html", tmp_path)
    assert dom.count('<button type="button">') > 10
    assert re.search(r'id="tools" class="tools" role="search">', dom)  # no longer hidden
    assert not re.findall(r"CONSOLE.*|Refused to.*|Uncaught.*", log)


def test_a_script_that_is_not_ours_does_not_run(results, tmp_path):
    folder = results(grid(SCORES))
    build(folder)
    page = folder / "index.html"
    page.write_text(page.read_text().replace("</body>", ACT + "</body>"))
    dom, log = dump(page, tmp_path)
    assert "data-first" not in dom
    assert "Content Security Policy" in log


def test_tables_sort_and_filter(results, tmp_path):
    folder = results(golden_records())
    build(folder)
    page = folder / "index.html"
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    page.write_text(free.replace("</body>", ACT + "</body>"))
    dom, _ = dump(page, tmp_path)
    said = dict(re.findall(r'data-(first|one|second|two|left|said)="([^"]*)"', dom))
    # Rows without a rank stay last both ways.
    assert said["first"] == "1.00,2.00,3.00,incomplete,incomplete"
    assert said["second"] == "3.00,2.00,1.00,incomplete,incomplete"
    assert (said["one"], said["two"]) == ("ascending", "descending")
    assert said["left"] == "scratch"
    assert re.match(r"\d+ of \d+ rows", said["said"])
