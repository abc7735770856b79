from __future__ import annotations

import numpy as np

from labn.report.metrics_figure import metrics_figure

METRICS, METHODS = ("ROAD", "entropy"), ("LABN", "a $strange$ name", "random")
MEANS, TAU = np.array([[0.3, 0.2, 0.1], [0.2, 0.1, 0.3]]), np.array([[1.0, np.nan], [np.nan, 1.0]])


def test_each_cell_has_its_number_and_the_best_method_is_brightest():
    figure = metrics_figure(METRICS, METHODS, (True, False), MEANS, TAU, "all runs")

    left, right = figure.axes
    figure.canvas.draw()
    shown = [text.get_text() for text in left.texts]
    assert shown == ["0.30", "0.20", "0.10", "0.20", "0.10", "0.30"]
    assert [text.get_text() for text in right.texts] == ["1.00", "–", "–", "1.00"]
    assert [label.get_text() for label in left.get_yticklabels()] == ["ROAD ↑", "entropy ↓"]
    assert [label.get_text() for label in left.get_xticklabels()] == list(METHODS)
    colours = left.images[0].get_array()
    assert colours.tolist() == [[0, 0.5, 1], [0.5, 0, 1]]
    assert left.images[0].cmap(0.0)[:3] > left.images[0].cmap(1.0)[:3]
