from __future__ import annotations

import copy
import math

import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler
from test_space import SEARCH

from labn.config import load_search
from labn.config.search import PruningConfig, SearchConfig
from labn.errors import UserError
from labn.sweeps.search.asha import AshaByEpoch
from labn.sweeps.search.optuna_study import (
    SearchStudy,
    epochs_of,
    is_feasible,
    metrics_of,
    reason_of,
)
from labn.sweeps.search.space import Space
from labn.sweeps.search.study_storage import storage_url
from labn.sweeps.search.trial import trial_configs
from labn.sweeps.worker import Outcome

SPACE = {
    "model.theta_alpha": {"type": "float", "low": 0.1, "high": 0.9},
    "loss.theta_b": {"type": "float", "low": 0.1, "high": 0.9},
}


def open_study(folder, **changes):
    tree = copy.deepcopy(SEARCH) | {"space": SPACE, "output_dir": str(folder / "search")}
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(tree | changes))
    search = load_search(path)
    return SearchStudy(search, Space(search, path))


def finish(study, number, pid, **more):
    study.conclude(number, Outcome(state="finished", metrics={"val_pid": pid, **more}))


def draw_all(study):
    drawn = []
    while (following := study.next()) is not None:
        drawn.append(following)
        finish(study, following[0], 0.1 * following[0])
    return drawn


def test_the_budget_is_used_once_from_the_first_trial_on(tmp_path):
    drawn = draw_all(open_study(tmp_path, trials=6))

    assert [number for number, _ in drawn] == [0, 1, 2, 3, 4, 5]
    assert drawn[0][1] == {"model.theta_alpha": 0.75, "loss.theta_b": 0.2}
    assert open_study(tmp_path, trials=6).next() is None
    more = draw_all(open_study(tmp_path, trials=8))
    assert [number for number, _ in more] == [6, 7]
    tried = [tuple(parameters.values()) for _, parameters in drawn + more]
    assert len(set(tried)) == 8


def test_a_trial_that_was_cut_off_comes_again_under_its_number(tmp_path):
    study = open_study(tmp_path, trials=4)
    first, second, third = study.next(), study.next(), study.next()
    study.record_epoch(0, {"epoch": 1.0, "val_pid": 0.2})
    finish(study, 1, 0.5)

    again = open_study(tmp_path, trials=4)

    assert again.interrupted == {0, 2}
    assert [again.next(), again.next()] == [first, third]
    fourth = again.next()
    assert fourth is not None
    assert fourth[0] == 3
    assert fourth[1] not in (first[1], second[1], third[1])
    assert again.next() is None
    # An epoch that is trained again changes nothing, and makes no noise.
    again.record_epoch(0, {"epoch": 1.0, "val_pid": 0.2})
    for number in (0, 2, 3):
        finish(again, number, 0.1)
    assert {t.state for t in again.trials} == {TrialState.COMPLETE}
    assert len(again.optuna.trials) == 4


def test_a_trial_cut_off_while_it_was_drawn_is_drawn_to_its_end(tmp_path):
    study = open_study(tmp_path)
    study.next()
    half = study.optuna.ask()
    half.suggest_float("model.theta_alpha", 0.1, 0.9)

    again = open_study(tmp_path)
    again.next()
    number, parameters = again.next()

    assert number == 1
    assert parameters["model.theta_alpha"] == half.params["model.theta_alpha"]
    assert 0.1 <= parameters["loss.theta_b"] <= 0.9


def test_a_restarted_search_draws_other_points_than_the_one_before(tmp_path):
    study = open_study(tmp_path, first=[], sampler={"name": "random", "seed": 3})
    drawn = [study.next()[1] for _ in range(3)]
    for number in range(3):
        finish(study, number, 0.1)

    again = open_study(tmp_path, first=[], sampler={"name": "random", "seed": 3})

    assert all(again.next()[1] not in drawn for _ in range(3))


def test_no_parameters_are_tried_twice_and_a_small_space_ends_the_search(tmp_path):
    space = {"loss.lambda_kl": {"type": "categorical", "choices": [0, 1, 2]}}
    settings = {"space": space, "trials": 10, "storage": f"journal:{tmp_path}/s.log"}
    drawn = draw_all(open_study(tmp_path, **settings))

    assert sorted(parameters["loss.lambda_kl"] for _, parameters in drawn) == [0, 1, 2]
    assert len(open_study(tmp_path, **settings).trials) == 3


def fail(study, number):
    study.conclude(number, Outcome(state="failed", reason="no space left", kind="UserError"))


@pytest.mark.parametrize(("num_finished", "trials"), [(0, 2), (1, 4)])
def test_trials_at_whose_failure_a_search_ended_leave_the_budget(tmp_path, num_finished, trials):
    study = open_study(tmp_path, trials=trials)
    first = [study.next()[1] for _ in range(trials)]
    for number in range(trials):
        finish(study, number, 0.1) if number < num_finished else fail(study, number)
    assert study.next() is None

    again = open_study(tmp_path, trials=trials)

    drawn = draw_all(again)
    assert [number for number, _ in drawn] == [*range(trials, 2 * trials - num_finished)]
    assert (drawn[0][1] == first[0]) == (num_finished == 0)  # the first are tried again
    assert open_study(tmp_path, trials=trials).next() is None


def test_a_trial_that_failed_among_others_counts(tmp_path):
    study = open_study(tmp_path, trials=3)
    for number in range(3):
        study.next()
        fail(study, number) if number else finish(study, number, 0.1)

    assert open_study(tmp_path, trials=3).next() is None


def test_optuna_receives_the_outcomes(tmp_path):
    study = open_study(tmp_path, trials=4)
    for _ in range(4):
        study.next()
    study.record_epoch(0, {"epoch": 1.0, "val_pid": 0.3, "val_auroc": 0.9})
    study.conclude(0, Outcome(state="pruned", metrics={"val_pid": 0.3}, reason="not the best"))
    study.conclude(1, Outcome(state="failed", reason="val_pid is nan", kind="RunFailed"))
    finish(study, 2, 0.4)

    states = [trial.state for trial in study.optuna.trials]
    assert states == [TrialState.PRUNED, TrialState.FAIL, TrialState.COMPLETE, TrialState.RUNNING]
    pruned, failed, finished, _ = study.trials
    assert (pruned.value, pruned.intermediate_values) == (0.3, {1: 0.3})
    assert epochs_of(pruned) == {1: {"val_pid": 0.3, "val_auroc": 0.9}}
    assert (reason_of(failed), failed.value) == ("val_pid is nan", None)
    assert (finished.value, metrics_of(finished)) == (0.4, {"val_pid": 0.4})


def test_a_high_score_that_breaks_the_constraint_is_not_the_best(tmp_path):
    constraint = {"metric": "val_auroc", "at_least": 0.8}
    study = open_study(tmp_path, trials=3, objective={"constraint": constraint})
    for number, (pid, auroc) in enumerate([(0.3, 0.85), (0.9, 0.6), (0.2, 0.9)]):
        study.next()
        finish(study, number, pid, val_auroc=auroc)

    assert [is_feasible(trial) for trial in study.trials] == [True, False, True]
    assert study.best().number == 0
    assert study.optuna.best_trial.number == 0  # Optuna sees it alike


def test_two_objectives_have_a_front(tmp_path):
    study = open_study(tmp_path, trials=4, objective={"maximise": ["val_pid", "val_auroc"]})
    for number, (pid, auroc) in enumerate([(0.3, 0.8), (0.2, 0.9), (0.1, 0.7), (0.3, 0.7)]):
        study.next()
        study.record_epoch(number, {"epoch": 1.0, "val_pid": pid, "val_auroc": auroc})
        finish(study, number, pid, val_auroc=auroc)

    assert [trial.number for trial in study.front()] == [0, 1]
    assert [trial.number for trial in study.optuna.best_trials] == [0, 1]
    assert study.best().number == 0


@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes", "qmc", "random"])
@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_every_sampler_resumes_in_every_storage(tmp_path, name, storage):
    url = {"sqlite": f"sqlite:///{tmp_path}/a/s.db", "journal": f"journal:{tmp_path}/a/s.log"}
    settings = {"sampler": {"name": name, "startup_trials": 3}, "storage": url[storage]}

    numbers = [n for n, _ in draw_all(open_study(tmp_path, trials=6, **settings))]
    numbers += [n for n, _ in draw_all(open_study(tmp_path, trials=9, **settings))]

    assert len(numbers) == 9
    assert numbers == sorted(set(numbers))
    assert (tmp_path / "a").is_dir()


@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes", "qmc", "random"])
def test_every_sampler_takes_two_objectives_or_is_refused(tmp_path, name):
    settings = {
        "sampler": {"name": name, "startup_trials": 3},
        "objective": {"maximise": ["val_pid", "val_auroc"]},
        "trials": 5,
    }
    if name == "cmaes":
        with pytest.raises(UserError, match="one objective only"):
            open_study(tmp_path, **settings)
        return
    study = open_study(tmp_path, **settings)
    while (drawn := study.next()) is not None:
        finish(study, drawn[0], drawn[1]["loss.theta_b"], val_auroc=drawn[1]["model.theta_alpha"])
    assert len(study.trials) == 5


def test_tpe_finds_more_than_random_draws_do(tmp_path):
    """Of a smooth hill: the mean of the last third, which random draws would leave near -0.33."""
    sampler = {"name": "tpe", "startup_trials": 10}
    study = open_study(tmp_path, trials=45, sampler=sampler, storage=f"journal:{tmp_path}/s.log")
    scores = []
    while (drawn := study.next()) is not None:
        scores.append(-math.dist(drawn[1].values(), (0.3, 0.6)))
        finish(study, drawn[0], scores[-1])

    assert sum(scores[-15:]) / 15 > -0.25


def test_another_search_in_the_same_study_is_refused(tmp_path):
    open_study(tmp_path)
    with pytest.raises(UserError, match=r"holds a search with other settings.*theta_b"):
        open_study(tmp_path, space=SPACE | {"loss.theta_b": {**SPACE["loss.theta_b"], "low": 0.2}})
    with pytest.raises(UserError, match=r"train.epochs is 100 there, 3 now"):
        open_study(tmp_path, fixed={"train.epochs": 3})


@pytest.mark.parametrize("url", ["sqlite:////proc/none/s.db", "mongo://x", "postgresql://u:pw@x/y"])
def test_a_storage_that_cannot_be_used_is_the_users_affair(tmp_path, url):
    with pytest.raises(UserError, match="storage = ") as caught:
        open_study(tmp_path, storage=url)
    assert "pw" not in str(caught.value)
    assert "\n" not in str(caught.value)


class TuneTrial:
    def __init__(self, number):
        self.config = {"number": number}


def rungs(pruned):
    settings = PruningConfig(grace_epochs=1, reduction=2)
    return AshaByEpoch(
        settings, metric="val_pid", num_epochs=4, on_prune=lambda number, why: pruned.append(number)
    )


def test_rungs_decide_alike_whichever_process_measured():
    scores = {0: [0.5, 0.6, 0.7, 0.8], 1: [0.4, 0.9], 2: [0.6, 0.5, 0.6, 0.1], 3: [0.55, 0.7]}
    whole, resumed = [], []
    one = rungs(whole)
    for number, epochs in scores.items():
        one.on_trial_add(None, TuneTrial(number))
        for epoch, score in enumerate(epochs, start=1):
            result = {"epoch": epoch, "val_pid": score}
            decision = one.on_trial_result(None, TuneTrial(number), result)
            assert decision == TrialScheduler.CONTINUE  # it is the trial that ends itself
    other = rungs(resumed)
    for number in (0, 1):
        known = {epoch: {"val_pid": s} for epoch, s in enumerate(scores[number], start=1)}
        other.remember(number, known, is_over=True)
    other.remember(2, {1: {"val_pid": 0.6}}, is_over=False)
    for number, first in ((2, 2), (3, 1)):
        other.on_trial_add(None, TuneTrial(number))
        for epoch, score in list(enumerate(scores[number], start=1))[first - 1 :]:
            other.on_trial_result(None, TuneTrial(number), {"epoch": epoch, "val_pid": score})

    assert 1 in whole
    assert resumed == [number for number in whole if number > 1]


def test_a_last_epoch_and_a_last_report_prune_nobody():
    pruned = []
    scheduler = rungs(pruned)
    for number, score in ((0, 0.9), (1, 0.1)):
        scheduler.on_trial_add(None, TuneTrial(number))
        scheduler.on_trial_result(None, TuneTrial(number), {"epoch": 4, "val_pid": score})
        scheduler.on_trial_result(None, TuneTrial(number), {"outcome": {}})
        scheduler.on_trial_complete(None, TuneTrial(number), {"outcome": {}})

    assert pruned == []


def test_the_study_is_what_optunas_own_tools_open(tmp_path):
    study = open_study(tmp_path, trials=2)
    draw_all(study)
    storage = JournalStorage(JournalFileBackend(f"{tmp_path}/search/study.journal"))

    assert len(optuna.load_study(study_name=None, storage=storage).trials) == 2


def test_folders_of_one_name_have_studies_of_their_own_in_one_storage(tmp_path):
    folders = (tmp_path / "eyes", tmp_path / "suns")
    for folder in folders:
        folder.mkdir()
    shared = {"storage": f"sqlite:///{tmp_path}/shared.db", "trials": 2}

    draw_all(open_study(folders[0], **shared))

    assert open_study(folders[1], **shared).trials == []
    assert len(open_study(folders[0], **shared).trials) == 2


def test_an_earlier_study_named_as_its_folder_is_resumed(tmp_path):
    (tmp_path / "search").mkdir()
    earlier = optuna.create_study(
        study_name="search", storage=f"sqlite:///{tmp_path}/search/study.db", direction="maximize"
    )
    earlier.enqueue_trial({})
    earlier.tell(earlier.ask(), 0.5)

    assert [trial.value for trial in open_study(tmp_path).trials] == [0.5]
    assert [trial.value for trial in open_study(tmp_path).trials] == [0.5]


def test_a_search_knows_its_data(tmp_path):
    search = open_study(tmp_path)._search  # as earlier ones, it has no digest
    space = Space(search, tmp_path / "search.yaml")

    SearchStudy(search, space, "aa")

    SearchStudy(search, space, "aa")
    SearchStudy(search, space)
    with pytest.raises(UserError, match=r"data.digest is aa there, bb now"):
        SearchStudy(search, space, "bb")


def test_a_line_that_a_full_disk_cut_short_is_dropped_from_the_journal(tmp_path):
    draw_all(open_study(tmp_path, trials=2))
    journal = tmp_path / "search" / "study.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":5,"wor')

    study = open_study(tmp_path, trials=3)
    draw_all(study)

    assert len(open_study(tmp_path, trials=3).trials) == 3
    assert journal.read_bytes().startswith(whole)


def test_an_earlier_searchs_database_stays_its_study(tmp_path):
    search = SearchConfig.model_validate(
        {
            "base": {},
            "space": {"x": {"type": "float", "low": 0, "high": 1}},
            "output_dir": tmp_path,
        }
    )
    assert storage_url(search) == f"journal:{tmp_path}/study.journal"
    (tmp_path / "study.db").touch()
    assert storage_url(search) == f"sqlite:///{tmp_path}/study.db"


@pytest.mark.parametrize("seeds", [[""], ["/seed-0", "/seed-1"]])
def test_every_run_of_every_trial_has_its_own_place(tmp_path, seeds):
    tree = copy.deepcopy(SEARCH)
    tree["base"]["train"] = {"storage": "s3://bucket/search"}
    tree |= {"space": SPACE, "output_dir": str(tmp_path / "search")}
    tree["trial"] = {"seeds": len(seeds)}
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(tree))
    search = load_search(path)
    space = Space(search, path)
    parameters = {"model.theta_alpha": 0.5, "loss.theta_b": 0.2}

    configs = [
        config
        for number in (0, 1)
        for config in trial_configs(search, space, parameters, number, "parent")
    ]

    places = [f"search/trials/{number}{seed}" for number in (0, 1) for seed in seeds]
    assert [config.train.storage for config in configs] == [f"s3://bucket/{p}" for p in places]
    assert [config.output_dir for config in configs] == [tmp_path / place for place in places]
    assert [config.train.seed for config in configs] == [*range(len(seeds))] * 2
    assert {config.tracking.parent_run_id for config in configs} == {"parent"}
    names = [config.tracking.run_name for config in configs]
    assert names == ["search-0"] * len(seeds) + ["search-1"] * len(seeds)
