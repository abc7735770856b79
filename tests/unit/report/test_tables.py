from __future__ import annotations

import json
import math

import pytest

from labn.report.tables import Column, Estimate, Table, as_json, as_latex, as_markdown, estimate

TABLE = Table(
    columns=(Column("Method"), Column("ID", True), Column("m=2 & 50 %", True), Column("n")),
    rows=(
        ("LABN", Estimate(0.431, 0.213), Estimate(-0.1234, None), 5),
        ("lambda_attention", Estimate(-0.101, 0.074), Estimate(0.5, 0.25), 60),
        ("a|b", None, Estimate(0.5001, 0.25), 7),
    ),
    caption="Mean ± s.d. over n = 3, ≥ M\\X {~^}#$",
)


def test_markdown_shows_headings_cells_caption_and_the_best_of_each_column_in_bold():
    assert as_markdown(TABLE).splitlines() == [
        "| Method | ID ↑ | m=2 & 50 % ↑ | n |",
        "| :-- | --: | --: | --: |",
        "| LABN | **0.431 ± 0.213** | -0.123 | 5 |",
        "| lambda_attention | -0.101 ± 0.074 | **0.500 ± 0.250** | 60 |",
        r"| a\|b | – | **0.500 ± 0.250** | 7 |",
        "",
        TABLE.caption,
    ]


def test_latex_is_a_booktabs_table_with_all_text_escaped():
    lines = as_latex(TABLE).splitlines()

    assert lines[:2] == [r"\begin{table}", r"\centering"]
    assert lines[2] == (
        r"\caption{Mean $\pm$ s.d. over n = 3, $\geq$ M\textbackslash{}X"
        r" \{\textasciitilde{}\textasciicircum{}\}\#\$}"
    )
    assert lines[3:] == [
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r"Method & ID $\uparrow$ & m=2 \& 50 \% $\uparrow$ & n \\",
        r"\midrule",
        r"LABN & $\mathbf{0.431 \pm 0.213}$ & $-0.123$ & 5 \\",
        r"lambda\_attention & $-0.101 \pm 0.074$ & $\mathbf{0.500 \pm 0.250}$ & 60 \\",
        r"a|b & -- & $\mathbf{0.500 \pm 0.250}$ & 7 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def test_json_keeps_the_numbers_as_they_are():
    content = json.loads(json.dumps(as_json(TABLE)))

    assert content["caption"] == TABLE.caption
    assert content["columns"] == ["Method", "ID", "m=2 & 50 %", "n"]
    assert content["rows"][0] == {
        "Method": "LABN",
        "ID": {"mean": 0.431, "std": 0.213},
        "m=2 & 50 %": {"mean": -0.1234, "std": None},
        "n": 5,
    }
    assert content["rows"][2]["ID"] is None


def test_nothing_is_bold_where_there_is_nothing_to_compare_or_no_better():
    single = Table(
        columns=(Column("score", True), Column("any")),
        rows=((Estimate(0.5, None), Estimate(0.1, None)), (None, Estimate(0.2, None))),
        caption="",
    )
    assert "**" not in as_markdown(single)
    assert "mathbf" not in as_latex(single)


def test_an_estimate_is_the_mean_and_the_deviation_of_a_sample():
    values = [0.25, 0.5, 1.0]
    mean = sum(values) / 3
    std = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)

    found = estimate(values)

    assert found.mean == pytest.approx(mean, abs=1e-15)
    assert found.std == pytest.approx(std, abs=1e-15)
    assert str(found) == "0.583 ± 0.382"
    assert estimate([0.25]) == Estimate(0.25, None)
    assert str(estimate([0.25])) == "0.250"


def test_no_values_and_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match="values: got none"):
        estimate([])
    with pytest.raises(ValueError, match="rows: got 1 cells in row 1, must be 2"):
        Table(columns=(Column("a"), Column("b")), rows=((1, 2), (3,)), caption="")
