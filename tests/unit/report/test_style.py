from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from labn.report.style import COLOURS, description, looks, new_figure, save_figure

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
SIMULATIONS = {
    "full colour vision": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
WHITE = np.array([0.95047, 1.0, 1.08883])


def seen(colour, simulation):
    """A colour in CIELAB (D65), as it is seen."""
    values = np.array(to_rgb(colour))
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(SIMULATIONS[simulation] @ linear, 0, 1) / WHITE
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_the_measure_knows_the_confusion_of_red_and_green():
    red, green = "#ff0000", "#a07800"
    full, blind = (
        np.linalg.norm(seen(red, kind) - seen(green, kind))
        for kind in ("full colour vision", "deuteranopia")
    )
    assert full > 60
    assert blind < 15


@pytest.mark.parametrize("simulation", SIMULATIONS)
def test_any_two_colours_are_told_apart_and_none_is_lost_on_white(simulation):
    for one, other in combinations([*COLOURS, "white"], 2):
        distance = np.linalg.norm(seen(one, simulation) - seen(other, simulation))
        # About 2 can be just noticed; lines and points are small.
        assert distance > 15, (one, other)


def test_no_two_of_many_looks_are_alike_and_none_depends_on_colours_alone():
    for one, other in combinations(looks(30), 2):
        assert sum(one[key] != other[key] for key in one) >= 2
    every = {tuple(look.items()) for look in looks(100)}
    assert len(every) == 100


def test_a_figures_file_carries_what_it_shows_in_words(tmp_path):
    figure = new_figure(4, 3)
    left, right = figure.subplots(1, 2)
    figure.suptitle("Two\npanels")
    left.set(title="one", xlabel="epoch", ylabel="PID")
    right.set(title="other", xlabel="epoch")
    right.plot([1], [2], label="a line")
    right.legend()

    save_figure(figure, tmp_path / "figure.png")

    words = "Two panels. panels: one; other. horizontal: epoch. vertical: PID. legend: a line"
    assert description(figure) == words
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.info["Description"] == words
