"""A study: conditions and seeds, resolved to runs and checked against a run's configuration."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from labn.config import Config, flatten, known_keys, load_study
from labn.config.ablation import StudyConfig
from labn.config.messages import describe_unknown, shown
from labn.config.reading import check_paths, resolve_base, set_key, validate
from labn.errors import UserError
from labn.runs.comparison.read_runs import condition_settings
from labn.runs.evaluation.options import EvaluationOptions, without_absent_methods
from labn.runs.reporter import Reporter
from labn.runs.split_file import decides_subsets, share_split
from labn.storage.files import write_atomically
from labn.sweeps.entry import SPLIT_FILE, folds_of, run_config, run_name, with_split
from labn.sweeps.worker import Outcome

STUDY_FILE = "study.yaml"

_BY_THE_STUDY = ("output_dir", "tracking.", "train.seed", "data.fold")


@dataclass(frozen=True)
class AblationRun:
    """A condition trained from one seed, on one fold if there are folds."""

    study: str
    """The title of the study."""
    condition: str
    seed: int
    fold: int | None
    config: Config

    @property
    def name(self) -> str:
        """The name of the run within its study, which is its folder's path below the study's."""
        return f"{self.condition}/{run_name(self.seed, self.fold)}"

    @property
    def tags(self) -> dict[str, str]:
        """The tags by which the run's entry is found in the tracker."""
        return {"study": self.study, "condition": self.condition, "seed": str(self.seed)}

    @property
    def outcome(self) -> Outcome | None:
        """The stored outcome of the run, if there is one."""
        return Outcome.read(self.config.output_dir)


@dataclass(frozen=True)
class AblationStudy:
    """A study of conditions, each a complete configuration; the first is the reference."""

    settings: StudyConfig
    base: Config
    conditions: Mapping[str, Config]

    def runs(self, parent_run_id: str | None = None) -> list[AblationRun]:
        """Return the runs, seed by seed, so that progress is balanced over the conditions."""
        return [
            self._run(condition, seed, fold, parent_run_id)
            for seed in self.settings.seeds
            for fold in self.folds
            for condition in self.conditions
        ]

    @property
    def folds(self) -> list[int] | list[None]:
        """The folds on which each condition is trained from each seed, or [None]."""
        each_fold = self.settings.each_fold
        return folds_of(self.base.data, "each_fold", each_fold=each_fold)

    def sharing_splits(self, reporter: Reporter) -> AblationStudy:
        """Return the study whose conditions share tables of subsets; draw those that are not there.

        Conditions have one table unless they differ in a setting that decides it.

        Raises:
            UserError: the data cannot be used, or is not that of the study in the folder.
        """
        files: dict[str, Path] = {}
        conditions = {}
        for name, config in self.conditions.items():
            settings = flatten(config.model_dump(mode="json"))
            drawn_by = shown({key: settings[key] for key in settings if decides_subsets(key)})
            file = SPLIT_FILE if not files else f"{name}-{SPLIT_FILE}"
            if drawn_by not in files:
                files[drawn_by] = self.settings.output_dir.absolute() / file
                share_split(config, files[drawn_by], reporter)
            conditions[name] = with_split(config, files[drawn_by])
        return replace(self, conditions=conditions)

    def is_finished(self, run: AblationRun) -> bool:
        """Return whether a run is trained, and scored with the study's evaluation settings."""
        outcome, terms = run.outcome, self.settings.evaluate.model_dump(mode="json")
        if outcome is None or outcome.state != "finished":
            return False
        # The first release had neither key.
        return {"protocol": "exact", "metrics": []} | outcome.terms == terms

    def differing(self) -> dict[str, dict[str, Any]]:
        """Return each condition's values of the settings that differ between conditions."""
        every = {name: condition_settings(config) for name, config in self.conditions.items()}
        keys = dict.fromkeys(key for one in every.values() for key in one)
        wanted = [key for key in keys if len({shown(one.get(key)) for one in every.values()}) > 1]
        return {name: {key: one.get(key) for key in wanted} for name, one in every.items()}

    def save(self) -> Path:
        """Write the resolved study to its folder, for ``read_study``; return the file."""
        tree = self.settings.model_dump(mode="json")
        tree |= {"base": self.base.model_dump(mode="json"), "fixed": {}}
        file = self.settings.output_dir / STUDY_FILE
        write_atomically(file, yaml.safe_dump(tree, sort_keys=False))
        return file

    def _run(
        self, condition: str, seed: int, fold: int | None, parent_run_id: str | None
    ) -> AblationRun:
        title = self.settings.title
        config = run_config(
            self.conditions[condition],
            condition,
            run_name(seed, fold),
            seed=seed,
            fold=fold,
            entry_name=f"{title}-{condition}-{seed}" + ("" if fold is None else f"-{fold}"),
            parent_run_id=parent_run_id,
        )
        return AblationRun(title, condition, seed, fold, config)


def read_study(
    path: Path, overrides: Sequence[str] = (), *, needs_data: bool = True
) -> AblationStudy:
    """Return a study read from its file, with every condition resolved to a configuration.

    Raises:
        UserError: a key is unknown, a value breaks its rule, two conditions are the same.
    """
    given = [override.partition("=")[0] for override in overrides]
    return resolve_study(load_study(path, overrides), path, given=given, needs_data=needs_data)


def resolve_study(
    settings: StudyConfig, path: Path, *, given: Collection[str] = (), needs_data: bool = True
) -> AblationStudy:
    """Return a study with every condition resolved to a configuration; ``path`` is its file.

    ``given`` are the keys that the command line has set.

    Raises:
        UserError: a key is unknown, a value breaks its rule, two conditions are the same.
    """
    base = resolve_base(settings, path, needs_data=needs_data)
    conditions = {name: _resolve(name, settings, base, path) for name in settings.conditions}
    if needs_data:
        for name, config in conditions.items():
            check_paths(config, _sources(name, settings, path))
    _check_distinct(conditions, path)
    for name, config in conditions.items():
        _check_evaluation(settings, name, config, path, given)
    folds_of(base.data, _source("each_fold", path, given), each_fold=settings.each_fold)
    return AblationStudy(settings, base, conditions)


def _resolve(name: str, settings: StudyConfig, base: Config, path: Path) -> Config:
    tree = base.model_dump(mode="json")
    where = f"{path}: conditions.{name}"
    for key, value in settings.conditions[name].items():
        given = f"{where}.{key} = {shown(value)}"
        if key not in known_keys():
            raise UserError(f"{given}: {describe_unknown(key)}")
        if key.startswith(_BY_THE_STUDY):
            raise UserError(
                f"{given}: is the same for all conditions, or set by the study; take it out"
                " (seeds belong under seeds, other settings of all runs under fixed)"
            )
        set_key(tree, key, value)
    return validate(Config, tree, _sources(name, settings, path))


def _sources(name: str, settings: StudyConfig, path: Path) -> dict[str, str]:
    """Return the prefixes of a condition's keys in messages."""
    where = f"{path}: conditions.{name}"
    return {"": f"{where}: "} | dict.fromkeys(settings.conditions[name], f"{where}.")


def _check_distinct(conditions: Mapping[str, Config], path: Path) -> None:
    seen: dict[str, str] = {}
    for name, config in conditions.items():
        resolved = shown(sorted(condition_settings(config).items()))
        twin = seen.setdefault(resolved, name)
        if twin != name:
            raise UserError(
                f"{path}: conditions.{name}: trains the same network as conditions.{twin} once"
                " resolved; take one out, or change a setting that training depends on"
            )


def _source(key: str, path: Path, given: Collection[str]) -> str:
    return f"command line: {key}" if key in given else f"{path}: {key}"


def _check_evaluation(
    settings: StudyConfig, name: str, config: Config, path: Path, given: Collection[str]
) -> None:
    try:
        choices = without_absent_methods(settings.evaluate.choices(), config.model)
        if "methods" in choices and not choices["methods"]:
            raise UserError(
                f"--methods {','.join(settings.evaluate.methods or ())}: conditions.{name} has"
                " none of them; add one that it has, such as random"
            )
        EvaluationOptions.of(config, choices)
    except UserError as error:
        option = re.match(r"--([a-z-]+) ?", str(error))
        assert option is not None
        where = _source(_evaluate_key(option), path, given)
        rest = re.sub(r"--([a-z-]+)", _evaluate_key, str(error)[option.end() :])
        raise UserError(f"{where} = {rest}") from None


def _evaluate_key(option: re.Match[str]) -> str:
    return f"evaluate.{option[1].replace('-', '_')}"


def settings_as_text(settings: Mapping[str, Any]) -> str:
    """Return a condition's settings on one line."""
    return ", ".join(f"{key}={shown(value)}" for key, value in settings.items()) or "as the base"
