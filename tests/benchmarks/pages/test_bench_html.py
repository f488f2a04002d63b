"""The HTML report: whole by itself, true to its report, and there for those who do not see it."""

import dataclasses
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from support.reports import made_up

from tfx.bench.measuring.report import Status
from tfx.bench.pages.html import page_of
from tfx.bench.pages.plot import (
    Curve,
    Point,
    Scale,
    curves,
    even_scale,
    log_scale,
    number_text,
    pareto,
    scatter,
    strip,
)

VOID = {"meta", "br"}


class Tree(HTMLParser):
    """Checks that every element is closed, and notes elements and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page():
    return page_of(made_up(failed=[("minilm-sst2", "tensorrt")]))


@pytest.fixture(scope="module")
def tree(page):
    return Tree(page)


def test_it_needs_nothing_from_outside(page, tree):
    assert not tree.all("script")
    assert not tree.all("link")
    assert not tree.all("img")
    assert not re.search(r"(https?:)?//|url\(|@import|@font-face", page)


def test_it_is_made_for_phones_and_for_the_dark(page, tree):
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in tree.all(
        "meta"
    )
    assert "@media (prefers-color-scheme: dark)" in page
    assert "color-scheme: light dark" in page
    scrolled = [one for one in tree.all("div") if one.get("class") == "scroll"]
    assert len(scrolled) == len(tree.all("table")) == 2
    assert all(one["tabindex"] == "0" and one["aria-label"] for one in scrolled)


def test_every_drawing_says_what_it_shows(tree):
    drawings = [one for one in tree.all("svg") if one.get("width") == "100%"]
    assert drawings
    for one in drawings:
        assert one.get("aria-label") or one.get("aria-hidden") == "true"
    (first, *_) = (one["aria-label"] for one in drawings if "plot" in one["class"])
    assert first.startswith("accuracy against latency, batch 1, sequence 128. ")
    assert "minilm-sst2-int8 on openvino: 3.3" in first


def test_it_holds_every_number_of_the_table(page):
    report = made_up()
    for row in report.rows:
        assert f"{row.measurement.latency.median_ms:.3g}" in page or (
            f"{row.measurement.latency.median_ms:.2f}" in page
        )
        assert f"{row.accuracy.value:.4f}" in page


def test_what_comes_from_outside_is_escaped(page, tree):
    assert "tensorrt &lt;is&gt; not installed &amp; more" in page
    assert "<is>" not in page
    assert "minilm-sst2 on tensorrt (not run): tensorrt <is> not installed & more" in tree.words


def test_a_sure_loss_is_marked_and_the_best_without_one_is_named(page):
    assert '<span class="bad">-0.0097 ±0.006</span>' in page
    assert '<span class="soft">-0.0017 ±0.006</span>' in page
    card = page[page.index("without a sure loss") :]
    assert card[: card.index("</li>")].count("<b>minilm-sst2-bf16 on openvino</b>") == 1


def test_rows_are_numbered_by_latency_and_backends_have_a_shape_each(page):
    table = page[page.index("<tbody>") : page.index("</tbody>")]
    assert re.findall(r"</svg> (\d+) (\S+) on (\S+)</th>", table)[:2] == [
        ("1", "minilm-sst2-int8", "openvino"),
        ("2", "minilm-sst2-bf16", "openvino"),
    ]
    shapes = dict(re.findall(r'class="key (s\d)".*?d="([^"]+)"', page))
    assert len(set(shapes.values())) == len(shapes) == 4


def test_curves_are_drawn_where_an_axis_has_two_sizes(page):
    assert "<h2>Latency by batch</h2>" in page
    assert "<h2>Latency by sequence</h2>" not in page
    lengths = made_up(shapes=[{"batch": 1, "sequence": size} for size in (32, 128)])
    assert "<h2>Latency by sequence</h2>" in page_of(lengths)
    one = made_up(shapes=[{"batch": 1, "sequence": 32}])
    assert "<h2>Latency by" not in page_of(one)


def test_without_accuracy_there_is_no_plot_of_it():
    text = page_of(made_up(with_accuracy=False))
    assert "against latency" not in text
    assert "<title>minilm-sst2 and 3 more: speed</title>" in text
    Tree(text)


def test_nothing_measured_is_still_a_page():
    text = page_of(made_up({}, failed=[("a", "torch")]))
    assert '<h2 id="not-measured">Not measured</h2>' in text
    Tree(text)


def test_rows_without_numbers_are_said_at_the_top(page):
    assert "2 of 18 rows did not run: <a href=" in page
    wrong = dataclasses.replace(made_up().rows[0], status=Status.WRONG, measurement=None)
    report = dataclasses.replace(made_up(), rows=(wrong, *made_up().rows[1:]))
    assert "1 of 16 rows gave wrong outputs: <a href=" in page_of(report)
    assert "see why" not in page_of(made_up())


def test_many_rows_leave_a_plot_readable():
    speeds = {(f"b{at}", "torch" if at == 30 else "onnxruntime"): 3.0 + at for at in range(31)}
    text = page_of(made_up(speeds, right={"b5": 0.95}))
    Tree(text)
    plot = text[text.index("accuracy against latency") : text.index("Numbered are those rows")]
    # The fastest, the most accurate and the baseline, which is the first of the report.
    labels = set(re.findall(r'text-anchor="(?:start|end)">(\d+)</text></svg>', plot))
    assert labels == {"1", "6"}
    assert plot.count("<title>") == 31
    assert text.count("The 12 fastest of 31 rows.") == 1
    curve = text[text.index("<h2>Latency by batch</h2>") :]
    assert curve.count('class="curve') == 12


def test_a_scale_puts_equal_ratios_equally_far_apart():
    scale = Scale(1, 100, log=True)
    assert [scale.at(value) for value in (1, 10, 100, 1000, 0.1)] == [0, 0.5, 1, 1, 0]
    assert Scale(0, 4).at(1) == 0.25


@pytest.mark.parametrize("values", [(1, 1), (0.3, 0.31), (1e-3, 9e4), (7.1, 29.4), (99.5, 100.5)])
def test_axes_have_a_few_round_ticks_within_them(values):
    for scale in (log_scale(values), even_scale(values)):
        ticks = scale.ticks()
        assert 2 <= len(ticks) <= 9
        assert all(scale.low <= tick <= scale.high for tick in ticks)
        assert ticks == sorted(ticks)
        assert len({number_text(tick) for tick in ticks}) == len(ticks)


def test_the_front_is_what_no_other_beats():
    points = [Point(x, y, "", "", 0) for x, y in ((1, 5), (2, 4), (3, 7), (3, 8), (4, 8), (5, 9))]
    assert [(point.x, point.y) for point in pareto(points)] == [(1, 5), (3, 8), (5, 9)]


def test_drawings_are_well_formed_and_text_keeps_its_size():
    points = [Point(1.5, 0.9, "<1>", "a & b", 0, 0.88, 0.92), Point(1.5, 0.9, "2", "c", 7)]
    drawn = scatter(points, x_name="ms", y_name="a", title='"t"', text="x", front=True)
    lines = curves(
        [Curve((1.0, 8.0), (3.0, 5.0), "1", "t", 0)], x_name="b", y_name="ms", title="t", text="x"
    )
    spread = strip([float(value) for value in range(1, 102)], Scale(1, 200, log=True), 0, "s")
    for text in (drawn, lines, spread):
        root = ET.fromstring(text)
        assert "viewBox" not in root.attrib
        for value in re.findall(r'[xy][12]?="(-?[\d.]+)%"', text):
            assert 0 <= float(value) <= 100
