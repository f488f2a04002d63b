"""Figures of rows, as they are shown."""

from types import SimpleNamespace

from tfx.bench.pages.figures import figure_table, figures_of, ratio_text, share_text, span_text

COLUMNS = (("ms", "took", ".2f"), ("MB", "memory", "+.0f"))


def test_a_figure_has_its_format_and_one_that_is_missing_a_dash():
    assert [*figures_of(SimpleNamespace(took=1.234, memory=None), COLUMNS)] == ["1.23", "-"]
    assert [*figures_of(SimpleNamespace(took=0, memory=7), COLUMNS)] == ["0.00", "+7"]


def test_the_table_has_names_and_figures_to_the_right():
    table = figure_table("what", COLUMNS)
    assert [column.header for column in table.columns] == ["", "ms", "MB"]
    assert [column.justify for column in table.columns] == ["left", "right", "right"]


def test_large_ratios_take_no_more_room_than_small_ones():
    texts = [ratio_text(value) for value in (0.975, 9.994, 10.05, 281.18, 1642.15)]
    assert texts == ["0.97", "9.99", "10.1", "281", "1642"]
    assert (share_text(0.664), share_text(None)) == ("66 %", "-")


def test_an_interval_has_both_ends_or_is_a_dash():
    assert span_text(0.971, 1.068, ".2f") == "0.97..1.07"
    assert span_text(None, None, ".2f") == "-"
