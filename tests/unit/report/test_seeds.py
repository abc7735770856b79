from __future__ import annotations

from itertools import product
from statistics import fmean, stdev

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

from labn.report.seeds import seeds_figure

CONDITIONS = {"loss.lambda_kl=1.0": 3, "loss.lambda_kl=0.0": 1}
METHODS, SCORES = ("LABN", "RISE", "a $strange$ name"), ("ID", "PID m=16")


@pytest.fixture
def seeds():
    rng = np.random.default_rng(30)
    return {
        (condition, method, score): rng.normal(0.3, 0.1, num_runs).tolist()
        for (condition, num_runs), method, score in product(CONDITIONS.items(), METHODS, SCORES)
    }


def test_every_run_is_a_point_in_the_row_of_its_method(seeds):
    panels = seeds_figure(seeds).axes

    assert [axes.get_title() for axes in panels] == list(SCORES)
    assert [label.get_text() for label in panels[0].get_yticklabels()] == list(METHODS)
    for axes in panels:
        clouds = [line for line in axes.get_lines() if line.get_marker() in "os"]
        for condition, cloud in zip(CONDITIONS, clouds, strict=True):
            points = [(round(row), value) for value, row in zip(*cloud.get_data(), strict=True)]
            assert points == [
                (row, value)
                for row, method in enumerate(METHODS)
                for value in seeds[condition, method, axes.get_title()]
            ]


def test_bars_are_one_deviation_to_each_side_and_one_run_has_none(seeds):
    axes = seeds_figure(seeds).axes[0]

    bars = [one for one in axes.containers if isinstance(one, ErrorbarContainer)]
    for condition, bar in zip(CONDITIONS, bars, strict=True):
        values = [seeds[condition, method, "ID"] for method in METHODS]
        # Float64 sums in another order.
        assert bar.lines[0].get_xdata() == pytest.approx([fmean(v) for v in values], abs=1e-12)
        for segment, of_method in zip(bar.lines[2][0].get_segments(), values, strict=True):
            if len(of_method) == 1:
                assert not np.isfinite(np.ravel(segment)[::2]).any()
            else:
                ends = [fmean(of_method) - stdev(of_method), fmean(of_method) + stdev(of_method)]
                assert segment[:, 0] == pytest.approx(ends, abs=1e-12)


def test_conditions_are_named_where_there_are_several(seeds):
    (legend,) = seeds_figure(seeds).legends
    assert [text.get_text() for text in legend.get_texts()] == list(CONDITIONS)

    one = {key: values for key, values in seeds.items() if key[0] == "loss.lambda_kl=1.0"}
    assert seeds_figure(one).legends == []


def test_nothing_is_cut_off_or_overlaps_the_legend(seeds):
    figure = seeds_figure(seeds)
    figure.canvas.draw()

    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    # A hundredth of an inch is a pixel.
    assert box.x0 >= -0.01
    assert box.y0 >= -0.01
    assert box.x1 <= width + 0.01
    assert box.y1 <= height + 0.01
    (legend,) = figure.legends
    others = [axes.get_tightbbox() for axes in figure.axes]
    others += [text.get_window_extent() for text in figure.texts]
    assert not any(legend.get_window_extent().overlaps(other) for other in others)


@pytest.mark.parametrize("seeds", [{}, {("all runs", "LABN", "ID"): []}], ids=["none", "empty"])
def test_no_runs_are_refused(seeds):
    with pytest.raises(ValueError, match="got no runs"):
        seeds_figure(seeds)
