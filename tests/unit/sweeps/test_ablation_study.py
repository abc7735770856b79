"""A study's file: what it resolves to, and what is refused in one line."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml

from labn.errors import UserError
from labn.explain.registry import METHODS, USUAL
from labn.metrics.map_metrics import METRICS
from labn.report.conditions import (
    ConditionCurves,
    ConditionDifference,
    condition_curves_figure,
    differences_figure,
    scores_figure,
    training_figure,
)
from labn.report.html import page
from labn.report.style import save_figure
from labn.report.tables import Column, Estimate, Table
from labn.runs.evaluation.options import EvaluationOptions, without_absent_methods
from labn.sweeps.ablation.ablation_study import read_study

ROOT = Path(__file__).parents[3]
STUDY = {
    "base": {
        "data": {"name": "synthetic", "image_size": 32},
        "model": {"backbone": "lambda_cnn", "split": 0},
        "tracking": {"uri": "none"},
        "output_dir": "elsewhere",
    },
    "conditions": {"full": {}, "no-kl": {"loss.lambda_kl": 0}},
    "seeds": [3, 5],
    "output_dir": "runs/study",
}


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Read the study above, changed by `section=value`, with overrides of the command line."""
    monkeypatch.chdir(tmp_path)

    def call(*overrides, **changes):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(copy.deepcopy(STUDY) | changes))
        return read_study(path, overrides)

    return call


def test_every_condition_is_crossed_with_every_seed(read, tmp_path):
    study = read()

    assert [run.name for run in study.runs()] == [
        "full/seed-3", "no-kl/seed-3", "full/seed-5", "no-kl/seed-5"
    ]  # fmt: skip
    run = study.runs("parent")[1]
    assert run.config.train.seed == 3
    assert run.config.loss.lambda_kl == 0
    assert run.config.output_dir == tmp_path / "runs/study/no-kl/seed-3"
    assert run.config.tracking.run_name == "study-no-kl-3"
    assert run.config.tracking.parent_run_id == "parent"


def test_table_2_is_a_study_of_three_networks_with_methods_of_their_own():
    study = read_study(ROOT / "configs/ablation/table2-idrid.yaml", needs_data=False)

    choices = study.settings.evaluate.choices()
    names = {
        condition: set(without_absent_methods(choices, config.model)["methods"])
        for condition, config in study.conditions.items()
    }
    assert names["LABN"] == set(USUAL)
    assert names["lambda-resnet50"] == set(USUAL) - {"LABN"}
    assert names["ABN"] == set(USUAL) - {"lambda attention"}


def test_every_condition_is_trained_on_every_fold_where_that_is_asked_for(read):
    base = STUDY["base"] | {"data": STUDY["base"]["data"] | {"folds": 3}}
    runs = read(base=base, each_fold=True, seeds=[3]).runs()

    assert [run.name for run in runs] == [
        f"{name}/seed-3-fold-{fold}" for fold in range(3) for name in ("full", "no-kl")
    ]
    assert [run.config.data.fold for run in runs] == [0, 0, 1, 1, 2, 2]
    assert len({run.config.tracking.run_name for run in runs}) == 6
    assert read(base=base).runs()[0].config.data.fold == 0
    with pytest.raises(UserError, match=r"each_fold = true: needs the number of folds"):
        read(each_fold=True)


@pytest.mark.parametrize(
    ("storage", "place"),
    [
        ("s3://bucket/study", "s3://bucket/study/no-kl/seed-5"),
        ("copies", "{here}/copies/no-kl/seed-5"),
    ],
)
def test_every_run_has_its_own_place_in_storage(read, tmp_path, storage, place):
    runs = read(base=STUDY["base"] | {"train": {"storage": storage}}).runs()

    places = [str(run.config.train.storage) for run in runs]
    assert len(set(places)) == 4
    assert places[3] == place.format(here=tmp_path)


def test_only_what_differs_between_conditions_is_shown(read):
    study = read(fixed={"train.epochs": 7})

    assert study.differing() == {"full": {"loss.lambda_kl": 1.0}, "no-kl": {"loss.lambda_kl": 0.0}}
    assert {run.config.train.epochs for run in study.runs()} == {7}


def test_the_command_line_sets_keys_of_the_study_and_of_its_runs(read, tmp_path):
    study = read("seeds=[0]", "evaluate.points=5", "train.epochs=2", "output_dir=other")

    assert [run.seed for run in study.runs()] == [0, 0]
    assert study.settings.evaluate.points == 5
    assert study.base.train.epochs == 2
    assert study.settings.output_dir == tmp_path / "other"


def test_a_base_is_a_file_as_seen_from_the_study(read, tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(STUDY["base"]))

    assert read(base="base.yaml").base == read().base


def test_a_saved_study_is_read_back_the_same(read):
    study = read("train.epochs=2")

    again = read_study(study.save())

    assert again.runs() == study.runs()
    assert again.settings.evaluate == study.settings.evaluate


def test_one_command_measures_every_metric_of_every_method_over_seeds():
    study = read_study(ROOT / "configs/ablation/metrics-demo.yaml", needs_data=False)

    (config,) = study.conditions.values()
    options = EvaluationOptions.of(config, study.settings.evaluate.choices())
    assert options.methods == tuple(METHODS)
    assert options.metrics == tuple(METRICS)
    assert len(study.runs()) == 3


@pytest.mark.parametrize("name", ["demo", "idrid"])
def test_the_shipped_studies_are_table_4(name):
    study = read_study(ROOT / f"configs/ablation/{name}.yaml", needs_data=False)

    found = {
        name: (config.loss.lambda_kl > 0, config.data.bias_copies > 0)
        for name, config in study.conditions.items()
        if config.loss.mask_rule == "share"
    }
    assert found == {
        "full": (True, True),
        "no-kl": (False, True),
        "no-bias-image": (True, False),
        "neither": (False, False),
    }
    assert next(iter(found)) == "full"


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {"conditions": {"full": {}, "x": {"loss.lamda_kl": 0}}},
            ["conditions.x.loss.lamda_kl = 0: unknown key", "loss.lambda_kl"],
        ),
        (
            {"conditions": {"full": {}, "x": {"loss.lambda_kl": -1}}},
            ["conditions.x.loss.lambda_kl = -1: must be", "greater than or equal to 0"],
        ),
        (
            {"conditions": {"full": {}, "x": {"train.seed": 1}}},
            ["conditions.x.train.seed = 1: is the same for all conditions, or set by the study"],
        ),
        (
            {"conditions": {"full": {}, "same": {"loss.lambda_kl": 1.0}}},
            ["conditions.same: trains the same network as conditions.full once resolved"],
        ),
        (
            {"conditions": {"full": {}, "seen": {"validation.pid_patch_size": 4}}},
            ["conditions.seen: trains the same network as conditions.full"],
        ),
        ({"conditions": {"a/b": {}}}, ["conditions = ", "'a/b' must be letters, digits"]),
        ({"conditions": {}}, ["conditions = {}:"]),
        ({"conditions": {"full": None}}, ["conditions.full = null: must be a mapping", "{}"]),
        ({"seeds": [1, 1]}, ["seeds = [1, 1]: holds a seed twice"]),
        ({"seeds": [-1]}, ["seeds = [-1]: must be greater than or equal to 0"]),
        ({"sedes": [1]}, ['sedes = [1]: unknown key. Did you mean "seeds"?']),
        (
            {"evaluate": {"pints": 5}},
            ["evaluate.pints = 5: unknown key.", 'mean "evaluate.points"?'],
        ),
        ({"evaluate": {"methods": ["RICE"]}}, ["evaluate.methods = RICE", 'Did you mean "RISE"?']),
        ({"evaluate": {"metrics": ["rode"]}}, ["evaluate.metrics = rode", 'Did you mean "ROAD"?']),
        (
            {"evaluate": {"metrics": ["quantus:MPRT"]}},
            ["evaluate.metrics = quantus:MPRT: needs maps of another class", "`labn sanity`"],
        ),
        (
            {"evaluate": {"patch_sizes": [64]}},
            ["evaluate.patch_sizes = 64", "image_size (32)", "such as evaluate.patch_sizes 2,4"],
        ),
        (
            {
                "evaluate": {"methods": ["LABN"]},
                "conditions": {"a": {}, "b": {"model.branch": "none"}},
            },
            ["evaluate.methods = LABN: conditions.b has none of them"],
        ),
        ({"fixed": {"train.epoch": 3}}, ["fixed.train.epoch = 3: unknown key", "train.epochs"]),
        ({"fixed": {"train.epochs": 0}}, ["fixed.train.epochs = 0: must be"]),
        ({"base": "nowhere.yaml"}, ["nowhere.yaml: no such configuration file"]),
    ],
)
def test_a_mistake_is_named_with_its_key_rule_and_fix(read, changes, parts):
    with pytest.raises(UserError) as caught:
        read(**changes)

    message = str(caught.value)
    assert "\n" not in message
    assert ".yaml" in message
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("seeds", "overrides are written key=value"),
        ("seedz=[1]", 'seedz = [1]: unknown key. Did you mean "seeds"?'),
        ("train.epochz=1", 'Did you mean "train.epochs"?'),
        ("seeds=[-1]", "must be greater"),
        ("data.root=nowhere", "data.root = nowhere: no such folder"),
        ("evaluate.methods=[RICE]", "command line: evaluate.methods = RICE: must be"),
        ("each_fold=true", "command line: each_fold = true: needs the number of folds"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(read, override, part):
    with pytest.raises(UserError) as caught:
        read(override)

    assert part in str(caught.value)


class _References(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for key, value in attrs if key in ("src", "href", "srcset", "data")]


def test_a_page_holds_its_figures_and_refers_to_nothing_else(tmp_path):
    scores = {"PID": {"full": [0.5, 0.6, 0.7], "x": [0.1, 0.2]}, "ID": {"full": [0.0], "x": [0.1]}}
    save_figure(scores_figure(scores, "LABN"), tmp_path / "a.png")
    table = Table(
        columns=(Column("Condition"), Column("PID", is_better_high=True), Column("p")),
        rows=(("<b>full</b>", Estimate(0.5, 0.1), "0.031"), ("x" * 99, None, None)),
        caption="Of 3 & 2 seeds.",
    )

    figures, facts = {"Scores": tmp_path / "a.png"}, [("Commit", "<0123>")]
    html = page("A study", ["x < y"], facts, figures, [("Table", table)])

    references = _References()
    references.feed(html)
    icon, *contents, picture = references.found
    assert (icon, contents) == ("data:,", ["#section-0", "#section-1"])
    assert picture.startswith("data:image/png;base64,")
    assert html.index("x &lt; y") < html.index("&lt;0123&gt;") < html.index("#section-0")
    assert html.count('id="section-1"') == 1
    assert not re.search(r"https?://|url\(|@import|<script", html)
    assert "<td>0.500 ± 0.100</td><td>0.031</td>" in html  # numbers are aligned, text is not
    assert '<td class="text long">xxx' in html
    assert 'alt="Scores. Scores by condition; ID and PID are of LABN. panels: PID; ID.' in html
    assert "&lt;b&gt;full&lt;/b&gt;" in html
    assert "x &lt; y" in html


def drawn_points(axes):
    """The figures that are drawn as points, row by row."""
    return [line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "o"]


def test_every_seed_is_a_point_and_an_interval_needs_three():
    figure = scores_figure({"PID": {"full": [0.4, 0.5, 0.6], "x": [0.1, 0.3]}}, "LABN")

    (axes,) = figure.axes
    assert drawn_points(axes) == [[0.4, 0.5, 0.6], [0.1, 0.3]]
    segments = [segment for bars in axes.collections for segment in bars.get_segments()]
    widths = [segment[1, 0] - segment[0, 0] for segment in segments if len(segment)]
    # Student's t for 2 degrees of freedom is 4.3027; the standard deviation 0.1.
    assert widths[0] == pytest.approx(2 * 4.30265 * 0.1 / 3**0.5, rel=1e-5)
    assert not any(width > 0 for width in widths[1:])


def test_differences_are_drawn_by_seed_about_zero():
    one = ConditionDifference("x", -0.2, -0.3, -0.1, [-0.25, -0.15])

    (axes,) = differences_figure({"PID": [one]}, "full").axes

    assert drawn_points(axes) == [[-0.25, -0.15]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["x"]


def test_the_mean_of_training_goes_as_far_as_all_runs_do():
    figure = training_figure({"val_pid": {"full": [[0.0, 0.2, 0.9], [0.2, 0.4]]}})

    mean = figure.axes[0].lines[-1].get_ydata()
    assert mean == pytest.approx([0.1, 0.3])


def test_an_interval_ends_where_the_score_does():
    values = [1.0, 0.8, 1.0]
    figure = scores_figure({name: {"full": values} for name in ("AUROC", "PID m=8")}, "LABN")
    for axes, least in zip(figure.axes, (0, -1), strict=True):
        (segment,) = axes.collections[0].get_segments()
        assert segment[1, 0] == pytest.approx(1)
        assert segment[0, 0] > least
    (axes,) = scores_figure({"accuracy": {"full": [0.0, 0.1, 0.0]}}, "LABN").axes
    assert axes.collections[0].get_segments()[0][0, 0] == pytest.approx(0)


def test_seeds_that_coincide_are_points_side_by_side():
    (axes,) = scores_figure({"PID": {"full": [0.5, 0.5, 0.5]}}, "LABN").axes
    heights = axes.lines[0].get_ydata()
    assert min(abs(a - b) for a, b in combinations(heights, 2)) > 0.1
    assert all(abs(height) < 0.5 for height in heights)


def test_a_condition_has_one_colour_in_all_figures_and_epochs_are_whole():
    names = ["full", "a", "b", "c", "d"]
    scores = scores_figure({"PID": {name: [0.1, 0.2] for name in names}}, "LABN").axes[0]
    colours = [line.get_color() for line in scores.lines if line.get_marker() == "o"]
    assert len(set(colours)) == 5

    differences = differences_figure(
        {"PID": [ConditionDifference(name, 0.1, 0.0, 0.2, [0.1]) for name in names[1:]]}, "full"
    ).axes[0]
    points = [line for line in differences.lines if line.get_marker() == "o"]
    assert [line.get_color() for line in points] == colours[1:]

    training = training_figure({"val_pid": {name: [[0.1, 0.2]] for name in names}}).axes[0]
    means = [line for line in training.lines if line.get_label() in names]
    assert [line.get_color() for line in means] == colours
    assert all(tick == round(tick) for tick in training.get_xticks())

    one = np.zeros((1, 3))
    curves = {name: ConditionCurves(np.linspace(0, 1, 3), one, one) for name in names}
    panels = condition_curves_figure(curves, "LABN", "PID").axes[:5]
    assert [{line.get_color() for line in axes.lines} for axes in panels] == [
        {colour} for colour in colours
    ]


def test_the_numbers_below_a_panel_do_not_overlap_however_small_the_scores():
    values = {"full": [-0.000795, -0.00065], "no-kl": [-0.00071, -0.00066]}
    figure = scores_figure({f"PID m={size} matched": values for size in (2, 4, 8, 16)}, "LABN")

    figure.canvas.draw()
    for axes in figure.axes:
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
        boxes = [tick.label1.get_window_extent() for tick in ticks]
        assert len(boxes) > 1
        assert all(a.x1 < b.x0 for a, b in pairwise(boxes))
