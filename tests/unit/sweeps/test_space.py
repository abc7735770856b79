from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import optuna
import pytest
import yaml

from labn.config import Config, ValidationConfig, load_config, load_search
from labn.config.search import PruningConfig, SamplerConfig
from labn.errors import UserError
from labn.runs.build import faithfulness
from labn.sweeps.search.asha import list_rungs
from labn.sweeps.search.samplers import make_sampler
from labn.sweeps.search.space import Space
from labn.sweeps.search.trial import trial_configs

ROOT = Path(__file__).parents[3]
RUN = {
    "data": {"name": "synthetic", "image_size": 32},
    "model": {"backbone": "lambda_resnet50", "split": 7, "theta_alpha": 0.75},
    "loss": {"theta_b": 0.2, "class_weights": [2, 1]},
    "tracking": {"uri": "none"},
}
SEARCH = {
    "base": RUN,
    "space": {
        "model.theta_alpha": {"type": "float", "low": 0.1, "high": 0.9},
        "loss.theta_b": {"type": "float", "low": 0.1, "high": 0.9},
        "model.split": {"type": "int", "low": 0},
        "loss.class_weights": {"type": "categorical", "choices": [[1, 1], [2, 1]]},
        "train.weight_decay": {"type": "float", "low": 1e-3, "high": 1.0, "log": True},
    },
    "output_dir": "runs/search",
}


def write(folder, **changes):
    tree = copy.deepcopy(SEARCH)
    for key, value in changes.items():
        section, _, rest = key.partition("__")
        if not rest:
            tree[section] = value
        elif value is None:
            del tree[section][rest.replace("__", ".")]
        else:
            tree.setdefault(section, {})[rest.replace("__", ".")] = value
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def space_of(folder, *overrides, **changes):
    path = write(folder, **changes)
    return Space(load_search(path, overrides), path)


def number(low, high, kind="float", **more):
    return {"type": kind, "low": low, "high": high, **more}


def test_the_parameters_tried_first_are_the_bases_own_which_are_the_papers(tmp_path):
    (first,) = space_of(tmp_path).first_parameters()

    assert first == {
        "model.theta_alpha": 0.75,
        "loss.theta_b": 0.2,
        "model.split": 7,
        "loss.class_weights": "[2.0, 1.0]",
        "train.weight_decay": 0.09,
    }


def _earlier_search(folder, trials, **changes):
    """Write the summary of a search in which trial i has the score trials[i], None if it failed."""
    point = {
        "model.theta_alpha": 0.3, "loss.theta_b": 0.2, "model.split": 3,
        "loss.class_weights": [1.0, 1.0], "train.weight_decay": 0.01,
    }  # fmt: skip
    rows = [
        {
            "number": number,
            "state": "failed" if score is None else "finished",
            "is_feasible": score != 0.9,
            "point": point | {"loss.theta_b": round(0.2 + number / 10, 1)} | changes,
            "metrics": {} if score is None else {"val_pid": score},
        }
        for number, score in enumerate(trials)
    ]
    content = {"counts": {}, "maximise": ["val_pid"], "trials": rows}
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(content))
    return str(folder)


def test_the_best_of_an_earlier_search_follow_the_bases_own(tmp_path):
    study = _earlier_search(tmp_path / "earlier", [0.1, None, 0.9, 0.3, 0.2])
    space = space_of(tmp_path, first={"study": study, "best": 2})

    own, *others = map(space.decode, space.first_parameters())

    assert own["model.theta_alpha"] == 0.75
    # Trial 2 of the best score does not satisfy the constraint.
    assert [one["loss.theta_b"] for one in others] == [0.5, 0.6]
    assert others[0]["loss.class_weights"] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("trials", "changes", "expected"),
    [
        ([None], {}, "no trial has finished"),
        ([0.1], {"model.split": 99}, "its trial 0 has model.split = 99, which lies outside"),
        ([0.1], {"loss.lambda_kl": 1.0}, "only one of the two has loss.lambda_kl"),
    ],
)
def test_an_earlier_search_that_does_not_fit_is_refused(tmp_path, trials, changes, expected):
    study = _earlier_search(tmp_path / "earlier", trials, **changes)
    with pytest.raises(UserError, match=re.escape(expected)):
        space_of(tmp_path, first={"study": study}).first_parameters()


def test_first_points_are_completed_by_the_base(tmp_path):
    points = space_of(
        tmp_path, first=[{"loss.theta_b": 0.5}, {"model.split": 16}]
    ).first_parameters()

    assert [(p["loss.theta_b"], p["model.split"]) for p in points] == [(0.5, 7), (0.2, 16)]


def test_drawn_parameters_are_in_their_ranges_and_become_a_run(tmp_path):
    space = space_of(tmp_path)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    splits = set()
    for _ in range(100):
        trial = study.ask()
        parameters = space.draw(trial)
        config = space.config(parameters, output_dir="elsewhere")
        assert isinstance(config, Config)
        assert config.model.theta_alpha == parameters["model.theta_alpha"]
        assert 0.1 <= config.model.theta_alpha <= 0.9
        assert 1e-3 <= config.train.weight_decay <= 1
        assert config.loss.class_weights in ((1, 1), (2, 1))
        assert space.decode(trial.params) == parameters
        splits.add(config.model.split)
    assert splits <= set(range(17))
    assert {0, 16} <= splits


def test_the_range_of_b_follows_the_backbone_that_was_drawn(tmp_path):
    backbones = {"type": "categorical", "choices": ["lambda_resnet26", "lambda_resnet101"]}
    space = space_of(tmp_path, space__model__backbone=backbones)
    sampler = make_sampler(SamplerConfig(), num_known=0, is_conditional=True, num_objectives=1)
    study = optuna.create_study(sampler=sampler)
    most = {"lambda_resnet26": 0, "lambda_resnet101": 0}
    for _ in range(80):
        trial = study.ask()
        parameters = space.draw(trial)
        space.config(parameters)  # B fits, or this would refuse it
        most[parameters["model.backbone"]] = max(
            most[parameters["model.backbone"]], parameters["model.split"]
        )
        assert space.decode(trial.params) == parameters
        study.tell(trial, parameters["model.theta_alpha"])

    assert most["lambda_resnet26"] == 8
    assert 8 < most["lambda_resnet101"] <= 33


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"space__loss__thetab": number(0, 1)}, ["space.loss.thetab", 'mean "loss.theta_b"']),
        ({"space__loss__theta_b": number(0.5, 0.5)}, ["space.loss.theta_b", "range is empty"]),
        ({"space__loss__theta_b": number(0.5, 0.2)}, ["space.loss.theta_b", "range is empty"]),
        ({"space__loss__theta_b": number(0.5, 1.2)}, ["theta_b reaches 1.2", "less than or equal"]),
        ({"space__model__split": number(0, 17, "int")}, ["model.split reaches 17", "0 to 16"]),
        ({"space__model__split": number(-1, 9, "int")}, ["model.split reaches -1"]),
        ({"space__train__batch_size": number(8, 64)}, ["batch_size reaches", "integer"]),
        ({"space__train__batch_size": {"type": "int", "low": 2}}, ["batch_size.high", "required"]),
        ({"space__loss__lambda_kl": number(0, 1, log=True)}, ["lambda_kl.low", "above 0"]),
        ({"space__loss__lambda_kl": number(0, 1, lg=True)}, ["lambda_kl.lg", 'mean "log"']),
        ({"space__model__backbone": {"type": "categorical", "choices": ["resnet"]}}, ["resnet"]),
        (
            {"space__model__backbone": {"type": "categorical", "choices": []}},
            ["space.model.backbone.choices"],
        ),
        ({"fixed": {"loss.theta_b": 0.3}}, ["fixed.loss.theta_b = 0.3", "also searched"]),
        ({"fixed": {"loss.theta": 0.3}}, ["fixed.loss.theta = 0.3", "unknown key"]),
        ({"space__train__seed": number(0, 9, "int")}, ["space.train.seed", "by the search"]),
        ({"first": [{"loss.theta_b": 0.95}]}, ["first[0].loss.theta_b = 0.95", "outside"]),
        ({"first": [{"loss.lambda_kl": 1}]}, ["first[0].loss.lambda_kl = 1", "is not searched"]),
        ({"trails": 3}, ["trails = 3", 'mean "trials"']),
        ({"trials": 0}, ["trials = 0", "greater than or equal to 1"]),
        ({"objective": {"maximise": ["val_pid_over_centre"]}}, ["validation.pid_centre"]),
        ({"objective": {"patch_sizes": [8, 64]}}, ["patch_sizes = [8, 64]", "image_size (32)"]),
        ({"sampler": {"nam": "tpe"}}, ["sampler.nam", 'mean "sampler.name"']),
        ({"sampler": {"name": "tep"}}, ["sampler.name = tep", "must be one of tpe, gp"]),
        ({"base": "nowhere.yaml"}, ["nowhere.yaml", "no such configuration file"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(tmp_path, changes, parts):
    with pytest.raises(UserError) as caught:
        space_of(tmp_path, **changes).first_parameters()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_overrides_set_the_search_or_fix_its_runs(tmp_path):
    path = write(tmp_path)
    search = load_search(path, ["trials=5", "sampler.name=random", "train.epochs=3"])

    assert (search.trials, search.sampler.name) == (5, "random")
    assert Space(search, path).base.train.epochs == 3
    with pytest.raises(UserError, match=r'command line: trails = 5: unknown key.* mean "trials"'):
        load_search(path, ["trails=5"])
    with pytest.raises(UserError, match="is also searched"):
        space_of(tmp_path, "loss.theta_b=0.4")


def test_a_trial_is_run_on_every_fold_from_every_seed(tmp_path):
    path = write(tmp_path, trial={"seeds": 2, "each_fold": True})
    search = load_search(path, ["data.folds=3"])
    space = Space(search, path)
    parameters = space.decode(space.first_parameters()[0])
    configs = trial_configs(search, space, parameters, 4, None)

    runs = [(config.train.seed, config.data.fold) for config in configs]
    assert runs == [(seed, fold) for seed in range(2) for fold in range(3)]
    assert configs[4].output_dir == search.output_dir / "trials/4/seed-1-fold-1"
    with pytest.raises(UserError, match=r"trial.each_fold = true: needs the number of folds"):
        Space(load_search(path), path)


def test_a_base_is_named_as_seen_from_the_searchs_file(tmp_path, monkeypatch):
    (tmp_path / "run.yaml").write_text(json.dumps(RUN | {"output_dir": "run"}))
    (tmp_path / "search").mkdir()
    path = write(tmp_path / "search", base="../run.yaml")
    monkeypatch.chdir("/")

    assert Space(load_search(path), path).base.model.split == 7


@pytest.mark.parametrize("name", ["demo", "idrid"])
def test_the_searches_in_configs_are_sound(name, tmp_path):
    path = ROOT / "configs" / "search" / f"{name}.yaml"
    space = Space(load_search(path, [f"data.root={tmp_path}"] if name == "idrid" else []), path)

    assert space.first_parameters()
    if name == "idrid":
        paper = load_config(ROOT / "configs/idrid.yaml", [f"data.root={tmp_path}"])
        assert space.config(space.decode(space.first_parameters()[0])).loss == paper.loss


def test_early_epochs_are_measured_on_fewer_points():
    growing = ValidationConfig(pid_num_points=17, pid_growth_epochs=(3, 7))

    points = [faithfulness(growing, n).num_points for n in range(1, 9)]

    few = ValidationConfig(pid_num_points=3, pid_growth_epochs=(3, 7))
    assert faithfulness(few, 1).num_points == 3
    assert points == [5, 5, 9, 9, 9, 9, 17, 17]
    assert faithfulness(ValidationConfig(pid_num_points=17), 1).num_points == 17
    assert list_rungs(PruningConfig(grace_epochs=2, reduction=3), 18) == (2, 6)
