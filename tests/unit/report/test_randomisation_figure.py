from __future__ import annotations

import numpy as np
import pytest

from labn.report import save_figure
from labn.report.randomisation_figure import sanity_figure

ROWS = [
    {"method": method, "stage": stage, "mean": mean, "std": std}
    for method, values in {
        "LABN": [(1.0, 0.0), (0.25, 0.1)],
        "edges $_": [(1.0, 0.0), (1.0, None)],
        "flat": [(None, None), (0.5, 0.2)],
    }.items()
    for stage, (mean, std) in zip(("linear", "stem"), values, strict=True)
]


def test_each_method_has_a_line_that_starts_at_the_trained_network(tmp_path):
    figure = sanity_figure(ROWS, 12, "demo, test subset")
    (axes,) = figure.axes
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    np.testing.assert_array_equal(lines["LABN"], [1, 1, 0.25])
    np.testing.assert_array_equal(lines["edges $_"], [1, 1, 1])
    np.testing.assert_array_equal(lines["flat"], [1, np.nan, 0.5])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["none", "linear", "stem"]
    heading = figure.get_suptitle().replace("\n", " ")
    assert "of demo, test subset; n = 12 images, mean ± standard deviation" in heading
    save_figure(figure, tmp_path / "sanity.png")
    assert (tmp_path / "sanity.png").stat().st_size > 1000


def test_methods_beyond_the_palette_still_look_different():
    rows = [{"method": str(n), "stage": "stem", "mean": 0.1, "std": 0.0} for n in range(9)]
    lines = sanity_figure(rows, 12, "demo").axes[0].lines[1:]
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}
    assert len(looks) == len(lines) == 9


def test_a_cascade_of_a_deep_network_leaves_room_for_its_labels():
    rows = [{"method": "LABN", "stage": f"LPB {n}", "mean": 0.1, "std": 0.0} for n in range(19)]
    figure = sanity_figure(rows, 12, "demo")
    assert figure.get_figwidth() > 8
    assert figure.axes[0].get_xticklabels()[0].get_rotation() == 60


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="rows: got none"):
        sanity_figure([], 1, "demo")
