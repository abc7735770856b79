from __future__ import annotations

import gc
import weakref

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.contour import ContourSet
from matplotlib.text import Text
from PIL import Image

from labn.errors import UserError
from labn.report import (
    MethodCurves,
    attention_sheet,
    confusion_figure,
    examples_figure,
    history_figure,
    method_curves_figure,
    overlay,
    reliability_figure,
    save_figure,
)


def make_sheet(
    num_images, *, channels=3, height=12, width=16, titles=None, masks=None, threshold=None
):
    rng = np.random.default_rng(num_images)
    images = rng.integers(0, 256, (num_images, height, width, channels), dtype=np.uint8)
    maps = rng.random((num_images, height, width))
    titles = titles or [f"image {i}" for i in range(num_images)]
    return attention_sheet(images, maps, titles, masks, threshold=threshold)


def make_curves(seed=0, num_images=9, num_points=17):
    """Curves that cross, with their PID by the trapezoidal rule."""
    rng = np.random.default_rng(seed)
    fractions = np.linspace(0, 1, num_points) ** 1.5
    insertion = np.clip(fractions + rng.normal(0, 0.1, (num_images, num_points)), 0, 1)
    deletion = np.clip(0.7 - fractions / 2 + rng.normal(0, 0.1, (num_images, num_points)), 0, 1)
    pid = np.trapezoid(insertion - deletion, fractions, axis=1)
    return fractions, insertion, deletion, pid


def curve_figure(fractions, insertion, deletion, pid, num_methods=1):
    curves = MethodCurves(insertion, deletion, pid)
    methods = {f"method {i}": curves for i in range(num_methods)}
    return method_curves_figure(fractions, methods, "PID m=8", "demo, test subset")


def make_examples(num_images=3, *, masks=None, channels=3, scores=None, heading="word " * 30):
    rng = np.random.default_rng(num_images)
    images = rng.integers(0, 256, (num_images, 12, 16, channels), dtype=np.uint8)
    maps = {name: rng.random((num_images, 12, 16)) for name in ("LABN", "lambda attention 3")}
    scores = scores or {name: [f"PID {i}" for i in range(num_images)] for name in maps}
    return examples_figure(
        images, maps, scores, [f"i_{i}$" for i in range(num_images)], masks, heading
    )


def make_history(num_epochs=12):
    return [
        {
            "epoch": epoch,
            "train_loss": 2 / epoch,
            "val_loss": 1 + (epoch - 7) ** 2 / 50,
            "val_pid": 0.5 - 0.5 / epoch,
            "val_auroc": 0.9 - 0.3 / epoch,
            "val_accuracy": 0.8 - 0.3 / epoch,
            "learning_rate_head": 1e-3 / epoch,
            "learning_rate_backbone": 1e-4 / epoch,
        }
        for epoch in range(1, num_epochs + 1)
    ]


FIGURES = {
    "sheet": lambda: make_sheet(6, masks=[np.eye(12, 16, dtype=bool)] * 6, threshold=0.4),
    "curves": lambda: curve_figure(*make_curves()),
    "curves of several": lambda: curve_figure(*make_curves(), num_methods=6),
    "curves of two": lambda: curve_figure(*make_curves(), num_methods=2),
    "examples": lambda: make_examples(masks=[np.eye(12, 16, dtype=bool)] * 3),
    "confusion": lambda: confusion_figure(
        np.array([[25, 9], [13, 56]]), ["no retinopathy", "retinopathy"], "demo, test subset"
    ),
    "reliability": lambda: reliability_figure(
        np.linspace(0.05, 0.95, 10), np.linspace(0, 1, 10), np.arange(10), 0.05, "demo, test subset"
    ),
    "history": lambda: history_figure(make_history()),
}


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def lines_by_label(axes):
    return {line.get_label(): line for line in axes.get_lines()}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_nothing_is_cut_off_at_the_figures_edge(draw):
    figure = draw()
    figure.canvas.draw()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(box.x0, box.y0, width - box.x1, height - box.y1) > 0


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_figures_stay_out_of_global_state_and_are_freed(draw):
    figure = draw()
    assert plt.get_fignums() == []
    alive = weakref.ref(figure)
    del figure
    gc.collect()
    assert alive() is None


def test_the_overlay_blends_grey_and_colour_pixel_by_pixel():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    saliency = rng.random((5, 6))
    blend = overlay(image, saliency)
    assert blend.dtype == np.uint8
    for i, j in np.ndindex(5, 6):
        red, green, blue = (float(value) for value in image[i, j])
        grey = 0.299 * red + 0.587 * green + 0.114 * blue
        opacity = 0.25 + 0.55 * saliency[i, j]
        colour = colormaps["inferno"](saliency[i, j])[:3]
        expected = [(1 - opacity) * grey + opacity * 255 * channel for channel in colour]
        # Half a level of rounding.
        np.testing.assert_allclose(blend[i, j], expected, atol=0.5 + 1e-9)


def test_a_grey_image_is_overlaid_alike_with_one_channel_or_three():
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (5, 6, 1), dtype=np.uint8)
    saliency = rng.random((5, 6)).astype(np.float32)
    np.testing.assert_array_equal(
        overlay(image, saliency), overlay(np.repeat(image, 3, axis=2), saliency)
    )


def test_a_map_that_interpolation_pushed_past_one_by_a_rounding_error_is_taken():
    saliency = np.full((2, 2), 1 + 1e-7)
    image = np.zeros((2, 2, 1), dtype=np.uint8)
    np.testing.assert_array_equal(overlay(image, saliency), overlay(image, np.ones((2, 2))))


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan])
def test_a_map_outside_zero_to_one_is_refused(value):
    with pytest.raises(ValueError, match=r"saliency: got NaN or values outside \[0, 1\]"):
        overlay(np.zeros((2, 2, 1), dtype=np.uint8), np.array([[0.0, 0.5], [1.0, value]]))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.bool_, np.float16])
def test_a_map_of_any_type_is_overlaid_by_its_exact_numbers(dtype):
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    saliency = np.array([[0, 1], [1, 0]])
    np.testing.assert_array_equal(
        overlay(image, saliency.astype(dtype)), overlay(image, saliency.astype(np.float64))
    )


@pytest.mark.parametrize("image", [np.zeros((2, 2, 3)), np.zeros((2, 2), dtype=np.uint8)])
def test_an_image_that_is_not_of_bytes_with_channels_is_refused(image):
    with pytest.raises(ValueError, match=r"image: got \w+ of shape \(2, 2.*\), must be uint8"):
        overlay(image, np.zeros((2, 2)))


def test_a_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"saliency: got shape \(2, 3\), must be \(2, 2\)"):
        overlay(np.zeros((2, 2, 1), dtype=np.uint8), np.zeros((2, 3)))


@pytest.mark.parametrize("num_images", [1, 3, 5, 10])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_shows_each_image_once_beside_its_overlay(num_images, channels):
    figure = make_sheet(num_images, channels=channels)
    *panels, colour_bar = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == [f"image {i}" for i in range(num_images)]
    rng = np.random.default_rng(num_images)
    images = rng.integers(0, 256, (num_images, 12, 16, channels), dtype=np.uint8)
    maps = rng.random((num_images, 12, 16))
    for axes, image, saliency in zip(panels, images, maps, strict=True):
        shown, overlaid = (picture.get_array() for picture in axes.get_images())
        np.testing.assert_array_equal(shown, np.broadcast_to(image, (12, 16, 3)))
        np.testing.assert_array_equal(overlaid, overlay(image, saliency))
        assert all(picture.get_extent()[2:] == [12, 0] for picture in axes.get_images())
        assert axes.get_ylim() == (12, 0)
    assert colour_bar.get_ylim() == (0, 1)


def test_outlines_run_around_the_lesion_on_the_image():
    mask = np.zeros((12, 16), dtype=bool)
    mask[2:5, 7:13] = True
    figure = make_sheet(2, masks=[None, mask])
    without, with_mask, _ = figure.axes
    assert not any(isinstance(artist, ContourSet) for artist in without.collections)
    (outline,) = [artist for artist in with_mask.collections if isinstance(artist, ContourSet)]
    corners = outline.get_paths()[0].get_extents()
    # The contour of a half runs midway between the centres of inner and outer pixels.
    np.testing.assert_allclose(corners.get_points(), [[7, 2], [13, 5]])
    assert "annotated lesion (on the image)" in texts(figure)


def test_the_map_and_its_colour_bar_show_where_attention_passes_theta_alpha():
    saliency = np.full((1, 12, 16), 0.1)
    saliency[0, 2:5, 7:13] = 0.7
    images = np.zeros((1, 12, 16, 1), dtype=np.uint8)
    figure = attention_sheet(images, saliency, ["one"], threshold=0.4)
    axes, colour_bar = figure.axes
    (line,) = [artist for artist in axes.collections if isinstance(artist, ContourSet)]
    overlay_left = axes.get_images()[1].get_extent()[0]
    corners = line.get_paths()[0].get_extents().get_points()
    np.testing.assert_allclose(corners, [[overlay_left + 7, 2], [overlay_left + 13, 5]])
    assert [one.get_ydata()[0] for one in colour_bar.get_lines()] == [0.4]
    assert "theta_alpha = 0.4 (on the map)" in texts(figure)


@pytest.mark.parametrize("num_images", range(1, 10))
def test_no_cell_of_a_sheet_is_empty(num_images):
    figure = make_sheet(num_images)
    rows, columns, *_ = figure.axes[0].get_subplotspec().get_geometry()
    assert rows * columns == num_images


def test_long_names_are_wrapped_and_whole():
    name = "a-very-long-name-of-a-file-" * 4
    figure = make_sheet(2, titles=[name, name])
    assert figure.axes[0].get_title().replace("\n", "") == name
    figure.canvas.draw()
    boxes = [axes.title.get_window_extent() for axes in figure.axes[:2]]
    assert not boxes[0].overlaps(boxes[1])


@pytest.mark.parametrize("value", [True, False])
def test_a_mask_without_an_edge_has_no_outline(value):
    figure = make_sheet(1, masks=[np.full((12, 16), value)])
    assert not any(isinstance(artist, ContourSet) for artist in figure.axes[0].collections)


def test_dollars_in_names_are_not_read_as_formulas(tmp_path):
    names = ["$\\undefined$", "a_b^c"]
    for figure in (
        make_sheet(2, titles=names),
        confusion_figure(np.eye(2, dtype=int), names, "run"),
    ):
        save_figure(figure, tmp_path / "figure.png")
        assert names[0] in texts(figure)


def test_a_sheet_needs_images_and_a_title_and_a_mask_for_each():
    with pytest.raises(ValueError, match="images: got none"):
        make_sheet(0)
    with pytest.raises(ValueError, match="shorter"):
        make_sheet(2, titles=["only one"])
    with pytest.raises(ValueError, match="shorter"):
        make_sheet(2, masks=[None])


def test_curves_show_the_mean_and_deviation_that_the_title_gives():
    fractions, insertion, deletion, pid = make_curves()
    (axes,) = curve_figure(fractions, insertion, deletion, pid).axes
    lines = lines_by_label(axes)
    for name, curve, band in zip(
        ("insertion", "deletion"), (insertion, deletion), axes.collections, strict=False
    ):
        line = lines[f"{name}, mean ± s.d."]
        np.testing.assert_allclose(line.get_ydata(), np.mean(curve, axis=0))
        heights = band.get_paths()[0].vertices
        for k, fraction in enumerate(fractions):
            mean, spread = curve[:, k].mean(), curve[:, k].std(ddof=1)
            expected = [max(mean - spread, 0), min(mean + spread, 1)]
            column = heights[np.isclose(heights[:, 0], fraction), 1]
            np.testing.assert_allclose([column.min(), column.max()], expected)
    deviation = pid.std(ddof=1)
    assert axes.get_title() == f"method 0\nPID m=8: {pid.mean():.3f} ± {deviation:.3f}"
    heading = axes.figure.get_suptitle().replace("\n", " ")
    assert "17 points of demo, test subset; n = 9 images, mean ± standard deviation" in heading


def test_each_method_has_a_panel_and_the_legend_names_each_line_once():
    figure = curve_figure(*make_curves(), num_methods=5)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title().split("\n")[0] for axes in shown] == [f"method {i}" for i in range(5)]
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert len(labels) == len(set(labels)) == 4


def test_one_image_has_curves_but_no_deviation():
    fractions, insertion, deletion, pid = make_curves(num_images=1)
    (axes,) = curve_figure(fractions, insertion, deletion, pid).axes
    assert axes.get_title() == f"method 0\nPID m=8: {pid[0]:.3f}"


def enclosed_area(collection):
    """The area of polygons, by the shoelace rule."""
    total = 0.0
    for path in collection.get_paths():
        x, y = path.vertices.T
        total += abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    return total


def test_the_filled_area_less_the_hatched_is_the_mean_pid():
    fractions, insertion, deletion, pid = make_curves()
    (axes,) = curve_figure(fractions, insertion, deletion, pid).axes
    areas = {area.get_label(): enclosed_area(area) for area in axes.collections}
    assert areas["lowers PID"] > 0.05
    assert areas["adds to PID"] - areas["lowers PID"] == pytest.approx(pid.mean(), abs=1e-12)


def test_no_area_is_hatched_where_insertion_stays_above():
    fractions = np.linspace(0, 1, 5)
    figure = curve_figure(fractions, np.full((1, 5), 0.9), np.full((1, 5), 0.2), np.array([0.7]))
    assert "lowers PID" not in texts(figure)
    assert "adds to PID" in texts(figure)


def test_curves_need_an_image():
    with pytest.raises(ValueError, match="methods: got no images"):
        curve_figure(np.linspace(0, 1, 5), np.zeros((0, 5)), np.zeros((0, 5)), np.zeros(0))


def test_examples_show_a_row_an_image_and_a_column_a_method_with_its_score():
    figure = make_examples(masks=[np.eye(12, 16, dtype=bool), None, np.zeros((12, 16), bool)])
    panels = [axes for axes in figure.axes if axes.get_images()]
    assert len(panels) == 9
    assert [axes.get_title() for axes in panels[:3]] == ["image", "LABN", "lambda attention 3"]
    assert [axes.get_xlabel() for axes in panels[3:6]] == ["i_1$", "PID 1", "PID 1"]
    outlined = [bool(axes.findobj(ContourSet)) for axes in panels]
    assert outlined == [True] + [False] * 8  # on the image alone, where it hides no map
    assert "annotated lesion (on the image)" in texts(figure)


def test_examples_of_one_channel_are_drawn_and_none_are_refused():
    assert not make_examples(1, channels=1).legends
    with pytest.raises(ValueError, match="images: got none"):
        make_examples(0, scores={"LABN": []})


def test_a_sheet_may_have_a_heading():
    images = np.zeros((1, 12, 16, 3), dtype=np.uint8)
    figure = attention_sheet(images, np.zeros((1, 12, 16)), ["one"], heading="IP: wrong class")
    assert figure.get_suptitle() == "IP: wrong class"


def test_a_confusion_matrix_shows_counts_and_shares_of_the_true_class():
    confusion = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    figure = confusion_figure(confusion, ["O", "C", "M"], "demo, test subset")
    axes, colour_bar = figure.axes
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    # Positions are (column, row).
    assert cells[0, 0] == "6\n75.0%"
    assert cells[1, 0] == "2\n25.0%"
    assert cells[0, 1] == "1\n25.0%"
    assert cells[2, 2] == "0\n–"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["O", "C", "M"]
    assert axes.get_ylabel() == "true class"
    assert colour_bar.get_ylabel() == "share of the true class"
    heading = figure.get_suptitle().replace("\n", " ")
    assert heading == "Confusion matrix of demo, test subset, n = 12 images"


def test_a_confusion_matrix_needs_a_name_for_each_class():
    with pytest.raises(ValueError, match="class_names: got 1, must be 2"):
        confusion_figure(np.eye(2, dtype=int), ["one"], "run")


def test_a_history_draws_every_series_over_its_epochs():
    history = make_history()
    panels = {axes.get_title(): lines_by_label(axes) for axes in history_figure(history).axes}
    for title, label, key in (
        ("Loss", "training", "train_loss"),
        ("Loss", "validation", "val_loss"),
        ("PID", "validation", "val_pid"),
        ("Classification", "AUROC", "val_auroc"),
        ("Classification", "accuracy", "val_accuracy"),
        ("Learning rate", "head", "learning_rate_head"),
        ("Learning rate", "backbone", "learning_rate_backbone"),
    ):
        line = panels[title][label]
        np.testing.assert_array_equal(line.get_xdata(), range(1, 13))
        np.testing.assert_array_equal(line.get_ydata(), [entry[key] for entry in history])


def test_a_history_marks_the_best_epoch():
    figure = history_figure(make_history(), 7, "lowest validation loss")
    assert figure.get_suptitle() == "Best epoch: 7 (lowest validation loss, dotted)"
    drawn = [axes for axes in figure.axes if axes.get_lines()]
    assert len(drawn) == 4
    assert all(axes.get_lines()[-1].get_xdata() == [7, 7] for axes in drawn)


def test_learning_rates_that_coincide_are_both_named():
    figure = history_figure([{"learning_rate_head": 1e-3, "learning_rate_backbone": 1e-3}] * 3)
    (line,) = figure.axes[-1].get_lines()
    assert line.get_label() == "backbone and head"


def test_a_history_shows_the_parts_of_the_losses_and_the_levels_of_chance():
    history = [{**entry, "train_loss_kl": 0.1, "val_loss_lpb": 0.7} for entry in make_history()]
    panels = {axes.get_title(): axes for axes in history_figure(history, random_pid=0.04).axes}
    assert list(lines_by_label(panels["Parts of the training loss"])) == ["KL"]
    assert list(lines_by_label(panels["Parts of the validation loss"])) == ["CE of the LPB"]
    chance = lines_by_label(panels["Classification"])["AUROC by chance"]
    assert chance.get_ydata() == [0.5, 0.5]
    random = lines_by_label(panels["PID"])["random maps, best epoch"]
    assert random.get_ydata() == [0.04, 0.04]


def test_a_history_of_one_epoch_names_what_was_not_measured():
    figure = history_figure([{"train_loss": 1.0, "learning_rate": 1e-3}])
    loss, pid, classification, *parts, rate = figure.axes
    assert list(lines_by_label(loss)) == ["training"]
    assert list(lines_by_label(rate)) == ["all layers"]
    for axes in (pid, classification, *parts):
        assert [text.get_text() for text in axes.texts] == ["not measured"]
    assert figure.get_suptitle() == ""


def test_epochs_that_lack_a_metric_leave_a_gap():
    history = [{"val_loss": 2.0}, {"val_loss": 1.0, "val_pid": 0.3}, {"val_pid": 0.4}]
    figure = history_figure(history)
    np.testing.assert_array_equal(figure.axes[1].get_lines()[0].get_ydata(), [np.nan, 0.3, 0.4])


def test_any_number_of_learning_rates_is_drawn():
    figure = history_figure([{f"learning_rate_{i}": 1e-3 / (i + 1) for i in range(6)}])
    assert list(lines_by_label(figure.axes[-1])) == [str(i) for i in range(6)]


def test_an_empty_history_is_refused():
    with pytest.raises(ValueError, match="history: got no epochs"):
        history_figure([])


def test_a_figure_is_saved_whole_at_its_resolution(tmp_path):
    figure = history_figure(make_history())
    path = tmp_path / "new" / "history.png"
    save_figure(figure, path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == (1800, 960)
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_save_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "history.png"
    path.write_text("the old figure")
    figure = history_figure(make_history())

    def write_half(target, **_):
        target.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", write_half)
    with pytest.raises(UserError, match="disk full"):
        save_figure(figure, path)
    assert path.read_text() == "the old figure"
    assert list(tmp_path.iterdir()) == [path]
