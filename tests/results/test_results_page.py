"""The HTML report is offline, safe and usable by keyboard, and shows the values of the records."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from jinja2 import UndefinedError
from make_records import fields, grid, record
from markupsafe import Markup
from PIL import Image
from test_results_tables import HOSTILE, KDEP_BEATS_SCRATCH, SCORES, golden_records, hostile_records

from kdep_bench.results import build
from kdep_bench.results.records.record import make
from kdep_bench.results.report import markdown
from kdep_bench.results.report.charts import Dot, Line, dots, lines, png, standalone
from kdep_bench.results.report.constant_columns import SETTINGS
from kdep_bench.results.report.page.rendering import document
from kdep_bench.results.report.pareto import Mark, front, scatter
from kdep_bench.results.report.svg import tag

REPO = Path(__file__).resolve().parents[2]
TEMPLATES = REPO / "kdep_bench" / "results" / "report" / "templates"
PNG = base64.b64decode(  # an image of one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
VOID = {"meta", "img", "input", "br"}  # tags without an end tag


class PageParser(HTMLParser):
    """Collects tags and texts; asserts that tags are closed in order."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.stack, self.texts = [], [], []
        self.feed(source)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def page_of(folder, **kwargs):
    """Builds the report of a folder; returns the page's source."""
    build(folder, **kwargs)
    return (folder / "index.html").read_text()


def test_the_page_is_offline_and_satisfies_its_content_security_policy(results):
    source = page_of(results(golden_records()), claims=[KDEP_BEATS_SCRATCH])
    page = PageParser(source)
    names = [t for t, _ in page.tags]
    assert not {"link", "iframe", "object", "embed", "base", "form"} & set(names)
    assert names.count("script") == names.count("style") == 1
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "http" not in policy
    for name in ("script", "style"):
        (inner,) = re.findall(rf"<{name}>(.*?)</{name}>", source, re.S)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    for _, attrs in page.tags:
        assert not [k for k in attrs if k.startswith("on") or k == "style"]
        for key in ("src", "href", "data", "srcset", "xlink:href"):
            value = attrs.get(key)
            assert value is None or value.startswith(("#", "data:image/"))
    assert not re.search(
        r"url\(|@import|fetch\(|XMLHttp|https?://(?!www\.w3\.org/2000/svg)", source
    )


def test_the_page_can_be_used_by_keyboard_and_screen_reader(results):
    page = PageParser(page_of(results(golden_records()), claims=[KDEP_BEATS_SCRATCH]))
    names = [t for t, _ in page.tags]
    assert {"main", "header", "nav", "footer"} <= set(names)
    assert names.count("h1") == 1
    first_link = next(a for t, a in page.tags if t == "a")
    assert first_link["href"] == "#main"
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for _, a in page.tags:
        for key in ("href", "aria-labelledby"):
            if (a.get(key) or "").startswith("#") or (key == "aria-labelledby" and key in a):
                assert a[key].lstrip("#") in ids
    for tag_name, a in page.tags:
        if tag_name == "svg":
            assert a["role"] == "img"
        if tag_name == "img":
            assert a["alt"]
        if "scroll" in (a.get("class") or ""):
            assert a["tabindex"] == "0"
            assert a["aria-label"]
    html = next(a for t, a in page.tags if t == "html")
    assert html["lang"] == "en"


def test_the_page_shows_the_values_of_the_records(results):
    source = page_of(results(golden_records()), claims=[KDEP_BEATS_SCRATCH])
    for words in (
        "51.0 ± 1.0 (3)",
        "supported",
        "the loss became NaN",
        "1 failed",
        "missing",
        "kdep · 10 % data",
        "f0f0f0f0f0f0f0f0",
        "2.14.1",
        "--only kdep",
        "incomplete",
    ):
        assert words in source, words


@pytest.mark.parametrize(("timed", "count"), [(True, 0), (False, 1)])
def test_the_page_explains_dashes_in_cost_columns(results, timed, count):
    values = [fields(m, "probe", v) for m, v in (("kdep", 0.5), ("scratch", 0.2))]
    if not timed:
        values = [f | {"cost": {"device": "cpu", "threads": 1}} for f in values]
    source = page_of(results([make(f) for f in values]))
    # above the summary
    assert source.count("Times are not reported") == count


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_escaped(name, results):
    source = page_of(results(hostile_records(name)))
    page = PageParser(source)
    assert [t for t, _ in page.tags].count("script") == 1
    for _, attrs in page.tags:
        assert not [k for k in attrs if k.startswith("on")]
    assert len(source) < 400_000
    shown = "".join(page.texts)
    visible = re.sub("[\x00-\x1f\u202e]", " ", name).strip()
    if len(visible) < 100:
        assert visible in shown
    else:
        assert "(10000 characters)" in shown


def test_the_page_embeds_only_images_inside_the_results_folder(results, tmp_path):
    (tmp_path / "secret.png").write_bytes(PNG)
    names = [
        "pictures/a.png",
        "../secret.png",
        str(tmp_path / "secret.png"),
        "pictures/x.svg",
        "gone.png",
    ]
    folder = results([record(pictures=names)])
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(PNG)
    (folder / "pictures" / "x.svg").write_text("<svg onload='alert(1)'/>")
    source = page_of(folder)
    assert source.count("<img") == 1
    assert base64.b64encode(PNG).decode() in source
    assert "../secret.png" in source
    assert "Not shown" in source


def test_charts_of_flat_and_single_values_do_not_break():
    single_dot = dots([Dot("a", 0.0, None, None, 0)], "t", "u", 0.0, "chance")
    flat = lines([Line("a", [(1, 2.0), (1, 2.0)], 0), Line("b", [], 1)], "t", "x", "y")
    log = lines([Line("a", [(0, 1.0), (10, 1.0), (1000, 2.0)], 0)], "t", "x", "y", log_x=True)
    for svg in (single_dot, flat, log):
        assert svg.startswith("<svg")
        assert "nan" not in svg
        PageParser(svg)


def test_svg_escapes_every_string_except_markup():
    drawn = tag("text", "<b>", Markup("<i>"), class_='"<')
    assert drawn == '<text class="&#34;&lt;">&lt;b&gt;<i></text>'


def test_a_hostile_name_adds_no_tag_and_no_attribute(results):
    hostile = "m</td><script>alert(\"x\")</script>&amp;' onload='x"
    harmless = re.sub(r"\W", "x", hostile)
    tags = {}
    for name in (hostile, harmless):
        page = PageParser(page_of(results(hostile_records(name), f"folder {len(tags)}")))
        tags[name] = [(t, sorted(attrs)) for t, attrs in page.tags]
        assert name in "".join(page.texts)
    assert len(tags[harmless]) > 200
    assert tags[hostile] == tags[harmless]


def test_no_template_switches_escaping_off_and_a_missing_value_is_an_error():
    files = sorted(TEMPLATES.rglob("*.html.j2"))
    assert len(files) > 15
    for path in files:
        source = path.read_text()
        assert not re.search(r"\|\s*safe\b|autoescape|Markup", source), path
        assert not re.search(r"[\w-]+={{", source), f"{path}: an attribute without quotes"
    with pytest.raises(UndefinedError, match="question"):
        document("suite.html.j2", "title")


def test_templates_and_styles_are_in_the_wheel():
    patterns = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = patterns["package-data"]["kdep_bench"]
    files = {p for p in TEMPLATES.parent.rglob("*") if p.is_file() and p.suffix[:3] != ".py"}
    assert any(p.suffix == ".j2" for p in files)
    packaged = {p for pattern in patterns for p in (REPO / "kdep_bench").glob(pattern)}
    assert files <= packaged


def test_plot_files_are_written_and_outdated_plot_files_are_removed(results):
    records = grid(SCORES)
    records += grid({"kdep": {t: [v - 0.1 for v in vs] for t, vs in SCORES["kdep"].items()}}, 0.1)
    folder = results(records)
    source = page_of(folder)
    assert "Score against distinct images" in source
    plots = {p.name for p in (folder / "plots").iterdir()}
    assert {"efficiency-0-images.svg", "efficiency-0-images.png"} <= plots
    assert {p[:-4] for p in plots if p.endswith("svg")} == {
        p[:-4] for p in plots if p[-3:] == "png"
    }
    for name in ("scores-9-9.svg", "scores-9-9.png", "mine.svg"):
        (folder / "plots" / name).write_text("old")
    page_of(folder)
    assert {p.name for p in (folder / "plots").iterdir()} == plots | {"mine.svg"}


def test_a_chart_s_svg_is_complete_and_its_png_shows_it(tmp_path):
    rows = [Dot("kdep", 50.0, 45.0, 55.0, 0, True), Dot("x" * 60, 20.0, 19.0, 21.0, 1)]
    drawing = standalone(dots(rows, "</title><script>", "u", 12.5, "chance"))
    assert not re.search(r"var\(|--|light-dark|@media|<script", drawing)
    PageParser(drawing)
    with Image.open(io.BytesIO(png(drawing))) as image:
        seen = image.convert("RGB")
    width, height = re.findall(r'(?:width|height)="([\d.]+)"', drawing)[:2]
    assert seen.size == (2 * int(width), 2 * round(float(height)))
    pixels = np.asarray(seen)
    # The background, the colours of both dots, and the text.
    for colour in ((255, 255, 255), (0x1B, 0x63, 0xC0), (0xB4, 0x54, 0x0A), (0x1B, 0x1F, 0x24)):
        assert (pixels == colour).all(-1).sum() > 20, colour
    # The label of the first row is drawn without a system font.
    assert (pixels[44:100, :300].sum(-1) < 200).sum() > 100


def test_a_missing_or_outdated_png_is_redrawn(results):
    folder = results(golden_records())
    page_of(folder)
    png_path = folder / "plots" / "scores-0-0.png"
    before = png_path.read_bytes()
    png_path.unlink()
    page_of(folder)
    assert png_path.read_bytes() == before
    (folder / "plots" / "scores-0-0.svg").write_text("another drawing")
    png_path.write_bytes(b"another picture")
    page_of(folder)
    assert png_path.read_bytes() == before


def test_rows_of_two_students_can_be_selected_by_student(results):
    other = [
        make(
            fields(r.arm.method, r.task.name, r.value, transfer=r.seed.transfer)
            | {"id": f"{r.id}-b", "student": {"name": "lite0", "width": 1280}}
        )
        for r in grid(SCORES)
    ]
    page = PageParser(page_of(results(grid(SCORES) + other)))
    assert any(t == "select" for t, _ in page.tags)
    assert {a["data-student"] for t, a in page.tags if t == "tr" and a.get("data-student")} == {
        "lite0",
        "resnet18_w32",
    }


def test_the_summary_sentences_come_first_then_their_chart_then_the_tables(results):
    source = page_of(results(golden_records()))
    parts_in_order = ["kdep · 100 % data scores higher than no pre-training", "<figure", "<table"]
    assert sorted(parts_in_order, key=source.index) == parts_in_order
    assert "<figcaption>kdep · 100 % data - no pre-training</figcaption>" in source
    chart = source[source.index("<figure") : source.index("</figure>")]
    assert chart.index("mean of 3 tasks") < chart.index(">probe<")


def headings_of(source, section):
    """(column headings, source) of a section of the page."""
    part = source[source.index(f'id="{section}"') :]
    part = part[: part.index("</section>")]
    return re.findall(r"<th [^>]*>([^<]*)</th>", part), part


def test_a_constant_column_becomes_a_sentence_unless_it_is_a_score(results):
    equal_scores = {m: {"probe": [0.5, 0.5]} for m in ("kdep", "svd", "scratch")}
    source = page_of(results(grid(equal_scores)))
    heads, part = headings_of(source, "summary")
    assert "weights loaded" not in heads
    assert re.search(r"The same in every row: .*weights loaded</span> 1.00", part, re.S)
    assert "data fraction</span> 100 % (none for scratch)" in part
    assert re.search(r"images seen</span> [\d,]+ \(none for scratch\)", part)
    heads, part = headings_of(source, "family-0")
    assert "probe (top1)" in heads
    assert part.count("50.0 ± 0.0 (2)") == 3


def test_a_table_of_one_row_has_all_columns(results):
    heads, _ = headings_of(page_of(results(grid({"kdep": {"probe": [0.5, 0.6]}}))), "summary")
    assert "weights loaded" in heads


def test_every_setting_is_the_heading_of_a_table():
    """SETTINGS: headings of the columns that a sentence replaces if all rows have one value."""
    heads = {
        *markdown.SUMMARY_HEAD,
        *markdown.DIFFERENCE_HEAD,
        *markdown.COST_HEAD,
        *markdown.ALIGNMENT_HEAD,
        *markdown.NOISE_HEAD,
        *markdown.FAMILY_HEAD,
    }
    assert heads >= SETTINGS


def test_task_tables_are_sorted_by_score(results):
    _, part = headings_of(page_of(results(grid(SCORES))), "family-0")
    # A method's name follows the marker of its colour, an svg.
    order = re.findall(r"</svg>(?:<span[^>]*>)?(\w+)(?:</span>)?</td>", part)
    assert order == ["kdep", "svd", "supervised", "scratch"]


def test_methods_of_a_family_have_the_same_colour_and_each_reference_has_a_different_one(results):
    methods = ("kdep", "svd", "fitnets", "supervised", "scratch", "tf_nkd")
    records = grid({m: {"probe": [0.5, 0.6]} for m in methods})
    families = {"fitnets": "feature", "tf_nkd": "logit"}
    records = [
        make(r.model_dump() | {"arm": r.arm.model_dump() | {"family": families[r.arm.method]}})
        if r.arm.method in families
        else r
        for r in records
    ]
    _, part = headings_of(page_of(results(records)), "family-0")
    # (number of the colour, name of the method) from the markers in front of the names
    drawn = re.findall(r'c(\d)" cx="5"[^>]*></svg>(?:<span[^>]*>)?(\w+)', part)
    colour = {name: int(n) for n, name in drawn}
    assert (colour["kdep"], colour["supervised"], colour["scratch"]) == (0, 1, 2)
    assert colour["svd"] == colour["fitnets"] == 4
    assert colour["tf_nkd"] == 5


def test_training_charts_always_show_kdep_and_the_references(results):
    records = []
    for method in ("kdep", "supervised", "scratch", *(f"a{i}" for i in range(10))):
        record_fields = fields(method, "probe", 0.5)
        record_fields["curves"] = {
            "loss": [[0, 1.0], [1, 0.5]],
            "val": [[0, 0.1], [1, 0.3], [2, 0.2]],
        }
        records.append(make(record_fields))
    folder = results(records)
    page_of(folder)
    charts = [(folder / "plots" / f"training-{i}.svg").read_text() for i in range(2)]
    for chart in charts:
        assert {">kdep<", ">scratch<", ">supervised<"} <= set(re.findall(r">\w+<", chart))
    loss, val = charts
    assert len(re.findall(r'class="line', loss)) == 16  # at most 8 lines, and 8 in the legend
    # Scores are drawn as points; the only lines are those of the legend.
    assert len(re.findall(r'class="line', val)) == 8
    assert len(re.findall(r'class="dot', val)) == 24  # 8 methods x 3 scores


def test_a_row_that_is_worse_and_more_expensive_than_another_row_is_not_on_the_pareto_front():
    marks = [Mark(n, x, y, 0) for n, x, y in
             (("a", 1, 5), ("b", 2, 4), ("c", 2, 7), ("d", 3, 7), ("e", 9, 8))]  # fmt: skip
    assert [m.label for m in front(marks)] == ["a", "c", "e"]
    drawn = scatter(marks, "t", "x", "y")
    PageParser(drawn)
    assert re.findall(r">\d  (\w)<", drawn) == ["a", "c", "e"]


def test_scores_are_charted_against_cost_and_against_the_size_of_several_students(results):
    records = grid(SCORES)
    for r in grid(SCORES):
        record_fields = fields(r.arm.method, r.task.name, r.value, transfer=r.seed.transfer)
        student = {"name": "lite0", "width": 1280, "params": 4_000_000, "flops": 4e8}
        records.append(make(record_fields | {"id": f"{r.id}-b", "student": student}))
    folder = results(records)
    source = page_of(folder)
    assert "Score against parameters of the student" in source
    chart = (folder / "plots" / "pareto-params.svg").read_text()
    assert len(re.findall(r'class="dot', chart)) == 8  # four methods of each student
    # scratch has no cost; supervised is the cheapest of the three others.
    chart = (folder / "plots" / "pareto-0-seconds.svg").read_text()
    assert len(re.findall(r'class="dot', chart)) == 3
    assert re.findall(r">\d  (\w+)<", chart) == ["supervised", "kdep"]
