"""The page in a real headless Chromium, offline: `make browser` runs this with everything it needs.

Skipped where there is no Chromium or no playwright. Accessibility is checked by axe-core where
KDEP_AXE names its axe.min.js. Screenshots go to KDEP_SCREENSHOTS, for a person to look at.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from make_records import fields, grid
from PIL import Image
from test_results_page import PNG
from test_results_tables import BEATS, HOSTILE, SCORES, golden_records, hostile_records

from kdep_bench.results import build
from kdep_bench.results.records import store
from kdep_bench.results.records.record import Record, make

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
    """A headless Chromium; `--no-sandbox` so that it also starts as root."""
    api = pytest.importorskip("playwright.sync_api", reason="no playwright here: make browser")
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page, what it said and what it asked for besides its own file."""

    def __init__(self, page: Any) -> None:
        self.page, self.said, self.asked = page, [], []
        page.on("console", lambda m: self.said.append(m.text))
        page.on("pageerror", lambda e: self.said.append(str(e)))
        page.on("dialog", lambda d: (self.said.append(f"dialog {d.message}"), d.dismiss()))
        page.on("request", lambda r: self.asked.append(r.url))
        page.on("requestfailed", self._stopped)

    def _stopped(self, request: Any) -> None:
        """A request that the policy stopped never left the browser."""
        if request.failure == "csp":
            self.asked.remove(request.url)


@contextmanager
def opening(chromium: Any, path: Path, theme: str = "light", screen: str = "desktop"):
    """The page at `path`, loaded offline, its CSP in force."""
    width, height = SCREENS[screen]
    context = chromium.new_context(
        viewport={"width": width, "height": height}, color_scheme=theme, offline=True
    )
    try:
        opened = Opened(context.new_page())
        opened.page.goto(path.as_uri())
        yield opened
        asked = [u for u in opened.asked if not u.startswith("data:image/")]
        assert [u.split("#")[0] for u in asked] == [path.as_uri()] * len(asked)
    finally:
        context.close()


def rich_records() -> list[Record]:
    """Records that give the page every section it can have, for two students."""
    tenth = {t: [v - 0.1 for v in vs] for t, vs in SCORES["kdep"].items()}
    found = [*golden_records(), *grid({"svd": tenth}, share=0.1)]
    found += [
        make(
            fields(r.arm.method, r.task.name, r.value, transfer=r.seed.transfer, share=r.data.share)
            | {"id": f"{r.id}-b", "student": {"name": "a_second_student", "width": 1280}}
            | {"pictures": ["pictures/a.png"]}
        )
        for r in [*grid(SCORES), *grid({"kdep": tenth}, share=0.1)]
    ]
    return found


@pytest.fixture(scope="module")
def rich(tmp_path_factory) -> Path:
    """The page of `rich_records`, with a damaged file and a picture."""
    folder = tmp_path_factory.mktemp("rich")
    for r in rich_records():
        store.write(folder, r)
    (folder / "records" / "hurt.json").write_text("{")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(PNG)
    build(folder, claims=[BEATS])
    return folder / "index.html"


def titles(page: Any) -> list[str]:
    return page.locator("h2").all_text_contents()


def column(page: Any, section: str, i: int) -> list[str]:
    """The visible cells of a column of a section's first table."""
    rows = page.locator(f"#{section} table").first.locator("tbody tr:not(.chance)")
    return [r.locator("td").nth(i).inner_text() for r in rows.all() if r.is_visible()]


def heading(page: Any, section: str, name: str) -> tuple[Any, int]:
    """(the heading's cell, its index) in a section's first table."""
    heads = page.locator(f"#{section} table").first.locator("thead th")
    at = next(i for i, t in enumerate(heads.all_inner_texts()) if name in t)
    return heads.nth(at), at


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("which", ["rich", "published"])
def test_the_page_opens_offline_fits_the_screen_and_logs_no_error(
    chromium, rich, tmp_path, which, theme, screen
):
    path = rich if which == "rich" else PUBLISHED / "index.html"
    with opening(chromium, path, theme, screen) as o:
        assert "Summary" in titles(o.page)
        # Tables and charts may scroll in their own boxes; the page itself never sideways.
        assert o.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert o.page.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth)")
        cut = "[...document.querySelectorAll('svg.chart')].filter((s) => s.getBBox().width > 442)"
        assert o.page.evaluate(f"{cut}.map((s) => s.textContent)") == []
        folder = Path(os.environ.get("KDEP_SCREENSHOTS") or tmp_path)
        shot = folder / f"{which}-{theme}-{screen}.png"
        o.page.screenshot(path=shot, full_page=True)
        assert o.said == []
    with Image.open(shot) as picture:
        corner = picture.convert("L").getpixel((2, 2))
        assert isinstance(corner, int)
        assert corner < 60 if theme == "dark" else corner > 200
        assert len(picture.convert("RGB").getcolors(2**24) or []) > 50


def test_a_rich_page_has_every_section(chromium, rich):
    with opening(chromium, rich) as o:
        families = ("classification", "detection", "segmentation")
        expected = ["Summary", "Claims", *(f"Task family: {f}" for f in families)]
        expected += [
            "Means over tasks, raw and normalised",
            "Paired differences",
            "Efficiency",
            "Alignment",
            "Seed noise (x100)",
        ]
        expected += ["Training curves", "Per class", "Sample predictions"]
        expected += ["Failed, missing, damaged", "Environment", "Reproduce", "Glossary"]
        assert titles(o.page) == expected
        assert o.page.locator("nav a").all_text_contents() == expected


def test_tables_sort_with_missing_results_last(chromium, rich):
    with opening(chromium, rich) as o:
        head, at = heading(o.page, "summary", "mean rank")
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "ascending"
        up = column(o.page, "summary", at)
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        down = column(o.page, "summary", at)
        ranks = [float(r) for r in up if r != "incomplete"]
        assert ranks == sorted(ranks)
        assert len(set(ranks)) > 2
        assert [float(r) for r in down if r != "incomplete"] == sorted(ranks, reverse=True)
        assert up[-1] == down[-1] == "incomplete"
        # Costs sort by seconds, not by what is written.
        head, at = heading(o.page, "family-0", "pre-training cost")
        head.locator("button").click()
        costs = column(o.page, "family-0", at)
        assert sorted(set(costs), key=costs.index) == ["5.0 min", "6.7 min", "—"]
        assert o.page.locator("#family-0 table").first.locator("tr.chance").count() == 1
        assert o.said == []


def test_it_filters_by_words_and_by_student(chromium, rich):
    with opening(chromium, rich) as o:
        page = o.page
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
        assert o.said == []


@pytest.mark.parametrize("theme", THEMES)
def test_the_theme_can_be_changed(chromium, rich, theme):
    with opening(chromium, rich, theme) as o:
        paint = "getComputedStyle(document.body).backgroundColor"
        ink = "getComputedStyle(document.querySelector('.chart text')).fill"
        button = o.page.get_by_role("button", name="Dark theme")
        before = o.page.evaluate(f"[{paint}, {ink}]")
        assert button.get_attribute("aria-pressed") == str(theme == "dark").lower()
        button.click()
        after = o.page.evaluate(f"[{paint}, {ink}]")
        assert button.get_attribute("aria-pressed") == str(theme != "dark").lower()
        assert before[0] != after[0]
        assert before[1] != after[1]
        button.click()
        assert o.page.evaluate(f"[{paint}, {ink}]") == before


def test_the_keyboard_is_enough(chromium, rich):
    with opening(chromium, rich, screen="phone") as o:
        keys = o.page.keyboard
        focus = "document.activeElement"
        keys.press("Tab")
        assert o.page.evaluate(f"{focus}.textContent") == "Skip to the results"
        keys.press("Enter")
        keys.press("Tab")
        assert o.page.evaluate(f"{focus}.id") == "filter"
        keys.type("kdep")
        assert set(column(o.page, "summary", 1)) == {"kdep · 100 % data", "kdep · 10 % data"}
        for _ in range(20):
            keys.press("Tab")
            if o.page.evaluate(f"{focus}.className") == "scroll":
                break
        assert o.page.evaluate(f"{focus}.getAttribute('aria-label')") == "Summary"
        keys.press("End")
        keys.press("Tab")
        keys.press("Enter")
        head, _ = heading(o.page, "summary", "student")
        assert head.get_attribute("aria-sort") == "ascending"


def test_two_rows_are_compared_side_by_side(chromium, rich):
    with opening(chromium, PUBLISHED / "index.html") as o:
        box = o.page.locator("#compare")
        box.locator("summary").click()
        first, second = box.locator("select").all()
        first.select_option(label="supervised")
        second.select_option(label="kdep")
        rows = box.locator("tr").all_inner_texts()
        assert "pocket_det (bbox_mAP_50)\t10.5 ± 0.6 (3)\t7.6 ± 0.7 (3)" in rows
        tested = [r for r in rows if r.startswith("kdep - supervised")]
        assert len(tested) == 6
        assert tested[-1].endswith("not significant")
        assert o.said == []


def test_a_command_is_copied_and_an_address_leads_to_its_row(chromium, rich):
    with opening(chromium, PUBLISHED / "index.html") as o:
        o.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        button = o.page.locator("#reproduce button.copy").first
        command = o.page.locator("#reproduce code").first.inner_text()
        button.click()
        o.page.wait_for_function("document.querySelector('button.copy').textContent != 'Copy'")
        assert button.inner_text() == "Copied"
        assert o.page.evaluate("navigator.clipboard.readText()") == command
        link = o.page.get_by_role("link", name="Link to scratch")
        link.click()
        target = o.page.locator("tr:target")
        assert target.locator("td").first.inner_text().startswith("scratch")
        assert o.said == []


@pytest.mark.parametrize(
    "intruder",
    [
        "<script>document.title = 'mine'</script>",
        "<img src=x onerror=\"document.title = 'mine'\">",
        "<img src='https://example.com/x.png'>",
        "<style>body{display:none}</style>",
    ],
)
def test_the_policy_blocks_injected_content(chromium, rich, tmp_path, intruder):
    page = tmp_path / "index.html"
    page.write_text(rich.read_text().replace("</body>", f"{intruder}</body>"))
    with opening(chromium, page) as o:
        o.page.wait_for_timeout(100)
        assert o.page.title() != "mine"
        assert o.page.locator("h1").is_visible()
        assert any("Content Security Policy" in s for s in o.said)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_shown_as_text(chromium, results, name):
    folder = results(hostile_records(name))
    build(folder)
    with opening(chromium, folder / "index.html", screen="phone") as o:
        page = o.page
        assert page.evaluate("document.scripts.length") == 1
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        text = page.locator("body").text_content()
        shown = name.replace("\u202e", " ").replace("\n", " ").strip()
        assert ("(10000 characters)" if len(name) > 120 else shown) in text
        page.get_by_label("Filter rows").fill(name[:40].strip())
        assert o.said == []


@pytest.mark.skipif(not Path(AXE).is_file(), reason="KDEP_AXE names no axe.min.js: make browser")
@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("which", ["rich", "published", "index"])
def test_axe_finds_no_barrier(chromium, rich, which, theme, screen):
    paths = {"rich": rich, "published": PUBLISHED, "index": RESULTS}
    path = paths[which]
    path = path if path.is_file() else path / "index.html"
    with opening(chromium, path, theme, screen) as o:
        o.page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
        o.page.evaluate(Path(AXE).read_text())
        violations_report = o.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        faults = [
            (v["id"], v["help"], [n["html"][:160] for n in v["nodes"][:3]])
            for v in violations_report["violations"]
        ]
        assert faults == []
        assert len(violations_report["passes"]) > 20
