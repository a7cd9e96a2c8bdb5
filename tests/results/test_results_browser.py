"""The HTML report in headless Chromium, offline: `make browser` installs what these tests need.

Skipped without Chromium or playwright. Accessibility is checked by axe-core if KDEP_AXE is the path
of its axe.min.js. Screenshots are written to KDEP_SCREENSHOTS.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from make_records import fields, grid
from PIL import Image
from test_results_page import PNG
from test_results_tables import HOSTILE, KDEP_BEATS_SCRATCH, SCORES, golden_records, hostile_records

from kdep_bench.results import build
from kdep_bench.results.records import store
from kdep_bench.results.records.record import Record, dump, make

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
RESULTS = Path(__file__).resolve().parents[2] / "results"
PUBLISHED = RESULTS / "pocket"
SCREENS = {"desktop": (1280, 900), "phone": (390, 844)}
THEMES = ("light", "dark")
AXE = os.environ.get("KDEP_AXE", "")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt install chromium)"),
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium; it needs `--no-sandbox` to start as root."""
    api = pytest.importorskip("playwright.sync_api", reason="no playwright here: make browser")
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class OpenPage:
    """An open page with its console messages and the addresses that it requested."""

    def __init__(self, page: Any) -> None:
        self.page, self.messages, self.requests = page, [], []
        page.on("console", lambda m: self.messages.append(m.text))
        page.on("pageerror", lambda e: self.messages.append(str(e)))
        page.on("dialog", lambda d: (self.messages.append(f"dialog {d.message}"), d.dismiss()))
        page.on("request", lambda r: self.requests.append(r.url))
        page.on("requestfailed", self.remove_blocked)

    def remove_blocked(self, request: Any) -> None:
        """Removes a request that the content security policy blocked in the browser."""
        if request.failure == "csp":
            self.requests.remove(request.url)


@contextmanager
def open_page(chromium: Any, path: Path, theme: str = "light", screen: str = "desktop"):
    """Opens the page at `path` offline; asserts that it requests no other file."""
    width, height = SCREENS[screen]
    context = chromium.new_context(
        viewport={"width": width, "height": height}, color_scheme=theme, offline=True
    )
    try:
        page_state = OpenPage(context.new_page())
        page_state.page.goto(path.as_uri())
        yield page_state
        requests = [u for u in page_state.requests if not u.startswith("data:image/")]
        assert [u.split("#")[0] for u in requests] == [path.as_uri()] * len(requests)
    finally:
        context.close()


def full_records() -> list[Record]:
    """Records of two students that give the page all its sections."""
    tenth = {t: [v - 0.1 for v in vs] for t, vs in SCORES["kdep"].items()}
    all_records = [*golden_records(), *grid({"svd": tenth}, share=0.1)]
    all_records += [
        make(
            fields(r.arm.method, r.task.name, r.value, transfer=r.seed.transfer, share=r.data.share)
            | {"id": f"{r.id}-b", "student": {"name": "a_second_student", "width": 1280}}
            | {"pictures": ["pictures/a.png"]}
        )
        for r in [*grid(SCORES), *grid({"kdep": tenth}, share=0.1)]
    ]
    return all_records


@pytest.fixture(scope="module")
def full_page(tmp_path_factory) -> Path:
    """The page of `full_records`, with a damaged record and a sample prediction."""
    folder = tmp_path_factory.mktemp("rich")
    for r in full_records():
        store.write(folder, r)
    (folder / "records" / "hurt.json").write_text("{")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(PNG)
    build(folder, claims=[KDEP_BEATS_SCRATCH])
    return folder / "index.html"


def titles(page: Any) -> list[str]:
    """The headings of the page's sections."""
    return page.locator("h2").all_text_contents()


def column(page: Any, section: str, i: int) -> list[str]:
    """The visible cells of a column of a section's first table."""
    rows = page.locator(f"#{section} table").first.locator("tbody tr:not(.chance)")
    return [r.locator("td").nth(i).inner_text() for r in rows.all() if r.is_visible()]


def heading(page: Any, section: str, name: str) -> tuple[Any, int]:
    """(the heading's cell, its index) in a section's first table."""
    heads = page.locator(f"#{section} table").first.locator("thead th")
    index = next(i for i, t in enumerate(heads.all_inner_texts()) if name in t)
    return heads.nth(index), index


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("page_name", ["full", "published"])
def test_the_page_opens_offline_fits_the_screen_and_logs_no_error(
    chromium, full_page, tmp_path, page_name, theme, screen
):
    path = full_page if page_name == "full" else PUBLISHED / "index.html"
    with open_page(chromium, path, theme, screen) as page_state:
        assert "Summary" in titles(page_state.page)
        # Tables and charts may scroll horizontally, the page may not.
        assert page_state.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page_state.page.evaluate(
            "[...document.images].every((i) => i.complete && i.naturalWidth)"
        )
        # The drawing area of a chart is 440 wide.
        wide_charts = (
            "[...document.querySelectorAll('svg.chart')].filter((s) => s.getBBox().width > 442)"
        )
        assert page_state.page.evaluate(f"{wide_charts}.map((s) => s.textContent)") == []
        folder = Path(os.environ.get("KDEP_SCREENSHOTS") or tmp_path)
        screenshot = folder / f"{page_name}-{theme}-{screen}.png"
        page_state.page.screenshot(path=screenshot, full_page=True)
        assert page_state.messages == []
    with Image.open(screenshot) as image:
        background = image.convert("L").getpixel((2, 2))
        assert isinstance(background, int)
        assert background < 60 if theme == "dark" else background > 200
        assert len(image.convert("RGB").getcolors(2**24) or []) > 50


def test_a_page_of_all_kinds_of_records_has_every_section(chromium, full_page):
    with open_page(chromium, full_page) as page_state:
        families = ("classification", "detection", "segmentation")
        expected = ["Summary", "Claims", *(f"Task family: {f}" for f in families)]
        expected += [
            "Means over tasks, raw and normalised",
            "Paired differences",
            "Efficiency",
            "Alignment",
            "Variation between seeds",
        ]
        expected += ["Training curves", "Per class", "Sample predictions"]
        expected += ["Failed, missing, damaged", "Environment", "Reproduce", "Glossary"]
        assert titles(page_state.page) == expected
        assert page_state.page.locator("nav a").all_text_contents() == expected


def test_tables_sort_with_missing_results_last(chromium, full_page):
    with open_page(chromium, full_page) as page_state:
        head, index = heading(page_state.page, "summary", "mean rank")
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "ascending"
        ascending = column(page_state.page, "summary", index)
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        descending = column(page_state.page, "summary", index)
        ranks = [float(r) for r in ascending if r != "incomplete"]
        assert ranks == sorted(ranks)
        assert len(set(ranks)) > 2
        assert [float(r) for r in descending if r != "incomplete"] == sorted(ranks, reverse=True)
        assert ascending[-1] == descending[-1] == "incomplete"
        # Costs are sorted by seconds, not by their text.
        head, index = heading(page_state.page, "family-0", "pre-training cost")
        head.locator("button").click()
        costs = column(page_state.page, "family-0", index)
        assert sorted(set(costs), key=costs.index) == ["5.0 min", "6.7 min", "—"]
        assert page_state.page.locator("#family-0 table").first.locator("tr.chance").count() == 1
        assert page_state.messages == []


def test_rows_are_filtered_by_words_and_by_student(chromium, full_page):
    with open_page(chromium, full_page) as page_state:
        page = page_state.page
        page.get_by_label("Filter rows").fill("scratch")
        assert set(column(page, "summary", 1)) == {"scratch"}
        assert " of " in page.locator("#shown").inner_text()
        page.get_by_label("Filter rows").fill("")
        page.locator("#student").select_option("a_second_student")
        assert set(column(page, "summary", 0)) == {"a_second_student"}
        owners = page.locator("figure[data-student]:visible").evaluate_all(
            "(all) => [...new Set(all.map((f) => f.dataset.student))]"
        )
        assert owners == ["a_second_student"]
        assert page_state.messages == []


def test_the_page_of_100_000_records_opens_filters_and_sorts_in_under_10_s(chromium, tmp_path):
    """500 methods, 10 tasks and 20 seeds; 6 s on a busy machine with two threads of one core."""
    text = dump(make(fields("METHOD", "TASK", transfer=123456) | {"id": "IDENT"}))
    folder = store.records_dir(tmp_path)
    folder.mkdir()
    for method, task, seed in itertools.product(range(500), range(10), range(20)):
        ident, value = (
            f"{method}-{task}-{seed}",
            0.3 + method / 2000 + (seed * 37 + task) % 89 / 900,
        )
        record_text = text.replace("METHOD", f"m{method:03d}").replace("TASK", f"t{task}")
        record_text = record_text.replace("123456", str(seed)).replace("IDENT", ident)
        record_text = record_text.replace('"value": 0.5', f'"value": {value}')
        (folder / f"{ident}.json").write_text(record_text)
    build(tmp_path)
    start = time.perf_counter()
    with open_page(chromium, tmp_path / "index.html") as page_state:
        page = page_state.page
        page.get_by_label("Filter rows").fill("m499")
        heading(page, "summary", "mean rank")[0].locator("button").click()
        visible = page.locator("#summary table").first.locator("tbody tr:visible")
        assert visible.count() == 1
        assert "m499" in visible.inner_text()
        assert time.perf_counter() - start < 10
        assert page_state.messages == []


@pytest.mark.parametrize("theme", THEMES)
def test_the_theme_can_be_changed(chromium, full_page, theme):
    with open_page(chromium, full_page, theme) as page_state:
        background = "getComputedStyle(document.body).backgroundColor"
        text_colour = "getComputedStyle(document.querySelector('.chart text')).fill"
        button = page_state.page.get_by_role("button", name="Dark theme")
        before = page_state.page.evaluate(f"[{background}, {text_colour}]")
        assert button.get_attribute("aria-pressed") == str(theme == "dark").lower()
        button.click()
        after = page_state.page.evaluate(f"[{background}, {text_colour}]")
        assert button.get_attribute("aria-pressed") == str(theme != "dark").lower()
        assert before[0] != after[0]
        assert before[1] != after[1]
        button.click()
        assert page_state.page.evaluate(f"[{background}, {text_colour}]") == before


def test_the_page_can_be_used_by_keyboard_only(chromium, full_page):
    with open_page(chromium, full_page, screen="phone") as page_state:
        keys = page_state.page.keyboard
        focus = "document.activeElement"
        keys.press("Tab")
        assert page_state.page.evaluate(f"{focus}.textContent") == "Skip to the results"
        keys.press("Enter")
        keys.press("Tab")
        assert page_state.page.evaluate(f"{focus}.id") == "filter"
        keys.type("kdep")
        assert set(column(page_state.page, "summary", 1)) == {
            "kdep · 100 % data",
            "kdep · 10 % data",
        }
        for _ in range(20):
            keys.press("Tab")
            if page_state.page.evaluate(f"{focus}.className") == "scroll":
                break
        assert page_state.page.evaluate(f"{focus}.getAttribute('aria-label')") == "Summary"
        keys.press("End")
        keys.press("Tab")
        keys.press("Enter")
        head, _ = heading(page_state.page, "summary", "student")
        assert head.get_attribute("aria-sort") == "ascending"


def test_two_rows_are_compared_side_by_side(chromium, full_page):
    with open_page(chromium, PUBLISHED / "index.html") as page_state:
        box = page_state.page.locator("#compare")
        box.locator("summary").click()
        first, second = box.locator("select").all()
        first.select_option(label="supervised")
        second.select_option(label="kdep")
        rows = box.locator("tr").all_inner_texts()
        assert "pocket_det (bbox_mAP_50)\t10.5 ± 0.6 (3)\t7.6 ± 0.7 (3)" in rows
        tested = [r for r in rows if r.startswith("kdep - supervised")]
        assert len(tested) == 6
        assert tested[-1].endswith("not significant")
        assert page_state.messages == []


def test_a_command_can_be_copied_and_a_row_has_a_link(chromium, full_page):
    with open_page(chromium, PUBLISHED / "index.html") as page_state:
        page_state.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        button = page_state.page.locator("#reproduce button.copy").first
        command = page_state.page.locator("#reproduce code").first.inner_text()
        button.click()
        page_state.page.wait_for_function(
            "document.querySelector('button.copy').textContent != 'Copy'"
        )
        assert button.inner_text() == "Copied"
        assert page_state.page.evaluate("navigator.clipboard.readText()") == command
        link = page_state.page.get_by_role("link", name="Link to scratch")
        link.click()
        target = page_state.page.locator("tr:target")
        assert target.locator("td").first.inner_text().startswith("scratch")
        assert page_state.messages == []


@pytest.mark.parametrize(
    "injected",
    [
        "<script>document.title = 'mine'</script>",
        "<img src=x onerror=\"document.title = 'mine'\">",
        "<img src='https://example.com/x.png'>",
        "<style>body{display:none}</style>",
    ],
)
def test_the_policy_blocks_injected_content(chromium, full_page, tmp_path, injected):
    page = tmp_path / "index.html"
    page.write_text(full_page.read_text().replace("</body>", f"{injected}</body>"))
    with open_page(chromium, page) as page_state:
        page_state.page.wait_for_timeout(100)
        assert page_state.page.title() != "mine"
        assert page_state.page.locator("h1").is_visible()
        assert any("Content Security Policy" in s for s in page_state.messages)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_shown_as_text(chromium, results, name):
    folder = results(hostile_records(name))
    build(folder)
    with open_page(chromium, folder / "index.html", screen="phone") as page_state:
        page = page_state.page
        assert page.evaluate("document.scripts.length") == 1
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        text = page.locator("body").text_content()
        shown = name.replace("\u202e", " ").replace("\n", " ").strip()
        assert ("(10000 characters)" if len(name) > 120 else shown) in text
        page.get_by_label("Filter rows").fill(name[:40].strip())
        assert page_state.messages == []


@pytest.mark.skipif(not Path(AXE).is_file(), reason="KDEP_AXE names no axe.min.js: make browser")
@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("page_name", ["full", "published", "index"])
def test_axe_finds_no_accessibility_fault(chromium, full_page, page_name, theme, screen):
    paths = {"full": full_page, "published": PUBLISHED, "index": RESULTS}
    path = paths[page_name]
    path = path if path.is_file() else path / "index.html"
    with open_page(chromium, path, theme, screen) as page_state:
        page_state.page.evaluate(
            "for (const d of document.querySelectorAll('details')) d.open = true"
        )
        page_state.page.evaluate(Path(AXE).read_text())
        violations_report = page_state.page.evaluate(
            "axe.run(document, {resultTypes: ['violations']})"
        )
        faults = [
            (v["id"], v["help"], [n["html"][:160] for n in v["nodes"][:3]])
            for v in violations_report["violations"]
        ]
        assert faults == []
        assert len(violations_report["passes"]) > 20
