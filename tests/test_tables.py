"""CSV: read back by Python's own reader, and no cell that a spreadsheet would run."""

import csv
import io

import pytest

from tfmuscle.tables import csv_text, defused


def test_a_table_has_the_columns_of_all_rows():
    text = csv_text([{"a": 1, "b": "x, y"}, {"c": -0.25, "a": None}])
    assert list(csv.reader(io.StringIO(text))) == [["a", "b", "c"], ["1", "x, y", ""], ["", "", "-0.25"]]
    assert csv_text([{"a": 1, "b": 2}], ["b"]) == "b\n2\n" and csv_text([], ["a"]) == "a\n"


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-1+2", "@SUM(A1)", "\t=1", "-muscle"])
def test_what_a_spreadsheet_would_run_is_text(text):
    assert defused(text) == f"'{text}"
    (header, row) = csv.reader(io.StringIO(csv_text([{text: text}])))
    assert header == row == [f"'{text}"]


@pytest.mark.parametrize("value", ["-0.5", "+3", "-inf", "soleus_left", "", "a=b", "–", -2, 1.5, None])
def test_numbers_and_other_text_stay(value):
    assert defused(value) == value
