"""The search space: the parameters, their ranges, and the runs that they configure.

Parameters are a mapping from the dotted keys of a run's configuration to values. The study names
them by the same keys and stores lists as JSON. Where the backbone is searched too, the range of B
depends on it, and the study's name of B is ``model.split@BACKBONE``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import BaseTrial

from labn.config import Config, flatten, known_keys
from labn.config.messages import describe_unknown, shown
from labn.config.reading import resolve_base, set_key, validate
from labn.config.search import (
    Choices,
    Domain,
    EarlierSearch,
    FloatRange,
    IntRange,
    SearchConfig,
)
from labn.data.manifest import SubsetTable
from labn.errors import UserError
from labn.model.architectures import PLANS
from labn.runs.reporter import Reporter
from labn.runs.split_file import decides_subsets, share_split
from labn.sweeps.entry import SPLIT_FILE, folds_of, with_split
from labn.sweeps.search.summary_file import best_parameters

Parameters = dict[str, Any]
Distribution = CategoricalDistribution | FloatDistribution | IntDistribution

_BACKBONE, _SPLIT = "model.backbone", "model.split"
_GOLDEN = 0.381966
"""A fraction of a range at which there is mostly no whole number."""


class Space:
    """The space of a search, checked against the configuration of a run.

    Raises:
        UserError: a key is unknown, a range is empty or not accepted by a run, or a setting is both
            fixed and searched.
    """

    def __init__(self, search: SearchConfig, path: Path) -> None:
        self._search, self._path = search, path
        self._check_keys()
        self.base = resolve_base(search, path)
        self._check_objective()
        each_fold = search.trial.each_fold
        folds_of(self.base.data, f"{path}: trial.each_fold", each_fold=each_fold)
        self.domains: dict[str, Domain] = dict(search.space)
        if _SPLIT in self.domains and _BACKBONE in self.domains:
            # The backbone is drawn first: B depends on it.
            self.domains = {_BACKBONE: self.domains[_BACKBONE]} | self.domains
        for key, domain in self.domains.items():
            self._check_domain(key, domain)
            if isinstance(domain, Choices):
                choices = [self._as_read(key, choice) for choice in domain.choices]
                self.domains[key] = domain.model_copy(update={"choices": choices})

    def share_split(self, reporter: Reporter) -> SubsetTable:
        """Give all runs of the search one table of subsets, unless it searches those.

        Raises:
            UserError: the data cannot be used, or is not that of the search in the folder.
        """
        file = self._search.output_dir.absolute() / SPLIT_FILE
        table = share_split(self.base, file, reporter)
        if not any(map(decides_subsets, self.domains)):
            self.base = with_split(self.base, file)
        return table

    @property
    def is_conditional(self) -> bool:
        """Whether the range of a parameter depends on another one's value."""
        return _BACKBONE in self.domains and _SPLIT in self.domains

    def first_parameters(self) -> list[Parameters]:
        """Return the parameters to try first, encoded for the study."""
        settings = flatten(self.base.model_dump(mode="json"))
        own = {key: settings[key] for key in self.domains}
        if self._search.first is None:
            return [self._encoded(own)] if self._holds(own) else []
        encoded: list[Parameters] = []
        for number, given in enumerate(self._search.first):
            given = dict(given)
            if "study" in given:
                where = f"{self._path}: first[{number}]."
                encoded += self._best_of(validate(EarlierSearch, given, {"": where}), where)
                continue
            for key, value in given.items():
                where = f"{self._path}: first[{number}].{key} = {shown(value)}"
                if key not in self.domains:
                    raise UserError(f"{where}: is not searched; it must be a key of space")
                given[key] = self._as_read(key, value, where)
                if not self._holds(own | given, key):
                    raise UserError(f"{where}: lies outside its range in space")
            encoded.append(self._encoded(own | given))
        return encoded

    def _best_of(self, earlier: EarlierSearch, where: str) -> Iterator[Parameters]:
        """Yield the best parameters of another search, encoded for this study."""
        where = f"{where}study = {earlier.study}"
        for number, found in best_parameters(earlier.study, earlier.best).items():
            differing = sorted(found.keys() ^ self.domains.keys())
            if differing:
                raise UserError(
                    f"{where}: must search the keys of space, but only one of the two has"
                    f" {', '.join(differing)}; list its points under first instead"
                )
            for key, value in found.items():
                if not self._holds(found, key):
                    raise UserError(
                        f"{where}: its trial {number} has {key} = {shown(value)}, which lies"
                        " outside its range in space; widen it, or list other points under first"
                    )
            yield self._encoded(found)

    def draw(self, trial: BaseTrial) -> Parameters:
        """Return the parameters that a trial's sampler draws."""
        parameters: Parameters = {}
        for key in self.domains:
            parameters[key] = _decoded(_suggest(trial, *self._parameter(key, parameters)))
        return parameters

    def decode(self, encoded: Mapping[str, Any]) -> Parameters:
        """Return parameters as they were before they were encoded for the study."""
        return {name.partition("@")[0]: _decoded(value) for name, value in encoded.items()}

    def config(self, parameters: Parameters, **changes: Any) -> Config:
        """Return the configuration of a run with these parameters.

        Raises:
            UserError: its settings contradict each other.
        """
        tree = self.base.model_dump(mode="json")
        settings = parameters | {key.replace("__", "."): value for key, value in changes.items()}
        for key, value in settings.items():
            set_key(tree, key, value)
        return validate(Config, tree, {"": f"{self._path}: "})

    def _check_keys(self) -> None:
        search, path = self._search, self._path
        for section, keys in (("space", search.space), ("fixed", search.fixed)):
            for key, value in keys.items():
                if key not in known_keys():
                    given = "" if section == "space" else f" = {shown(value)}"
                    raise UserError(f"{path}: {section}.{key}{given}: {describe_unknown(key)}")
        for key in search.space.keys() & search.fixed.keys():
            raise UserError(
                f"{path}: fixed.{key} = {shown(search.fixed[key])}: is also searched; take it out"
                " of fixed or of space"
            )
        for key in search.space:
            if key == "output_dir" or key.startswith("tracking.") or key == "train.seed":
                raise UserError(f"{path}: space.{key}: is set by the search itself; leave it out")

    def _check_objective(self) -> None:
        metric = "val_pid_over_centre"
        if metric in self._search.objective.maximise and not self.base.validation.pid_centre:
            raise UserError(
                f"{self._path}: objective.maximise has {metric}: needs validation.pid_centre; add"
                " `validation.pid_centre: true` to fixed"
            )
        sizes, most = self._search.objective.patch_sizes or (), self.base.data.image_size
        if max(sizes, default=0) > most:
            raise UserError(
                f"{self._path}: objective.patch_sizes = {list(sizes)}: must be numbers from 1 to"
                f" data.image_size ({most}), such as [8, 16]"
            )

    def _as_read(self, key: str, value: Any, where: str | None = None) -> Any:
        """Return a value as a configuration reads it, in which 2 may become 2.0."""
        try:
            config = self.config({key: value})
        except UserError as error:
            # Its file, key and value are replaced by those of the search.
            rule = str(error).partition(": ")[2].partition(": ")[2]
            where = where or f"{self._path}: space.{key} reaches {shown(value)}"
            raise UserError(f"{where}: {rule}") from None
        return flatten(config.model_dump(mode="json"))[key]

    def _check_domain(self, key: str, domain: Domain) -> None:
        where = f"{self._path}: space.{key}"
        match domain:
            case Choices(choices=choices):
                if len({json.dumps(choice) for choice in choices}) < len(choices):
                    raise UserError(f"{where}.choices = {choices}: holds a value twice")
            case _ if domain.high is None and key != _SPLIT:
                raise UserError(f"{where}.high: required; only {_SPLIT} has a default")
            case FloatRange() | IntRange():
                if domain.high is not None and domain.low >= domain.high:
                    raise UserError(
                        f"{where}.low = {domain.low:g}, high = {domain.high:g}: the range is empty;"
                        " low must be below high (give a single value under fixed)"
                    )
                if domain.log and domain.low <= 0:
                    raise UserError(f"{where}.low = {domain.low:g}: must be above 0 with log: true")
        if key == _SPLIT and isinstance(domain, IntRange) and self.is_conditional:
            return  # limited to the blocks of each backbone when drawn
        for value in _probes(domain):
            self._as_read(key, value)

    def _parameter(self, key: str, parameters: Mapping[str, Any]) -> tuple[str, Distribution]:
        """Return a parameter's name and distribution, given the parameters drawn before."""
        domain = self.domains[key]
        match domain:
            case Choices():
                return key, CategoricalDistribution([_encode(c) for c in domain.choices])
            case FloatRange():
                return key, FloatDistribution(domain.low, domain.high, log=domain.log)
        if key != _SPLIT:
            assert domain.high is not None
            return key, IntDistribution(domain.low, domain.high, log=domain.log)
        backbone = parameters.get(_BACKBONE, self.base.model.backbone)
        most = PLANS[backbone].num_bottlenecks
        high = most if domain.high is None else min(domain.high, most)
        low = min(domain.low, high)
        name = f"{_SPLIT}@{backbone}" if self.is_conditional else _SPLIT
        return name, IntDistribution(low, high, log=domain.log)

    def _holds(self, parameters: Mapping[str, Any], only: str | None = None) -> bool:
        keys = self.domains if only is None else [only]
        return all(
            _contains(self._parameter(key, parameters)[1], _encode(parameters[key])) for key in keys
        )

    def _encoded(self, parameters: Mapping[str, Any]) -> Parameters:
        return {
            self._parameter(key, parameters)[0]: _encode(parameters[key]) for key in self.domains
        }


def _probes(domain: Domain) -> Iterator[Any]:
    """Yield values that are all valid if the whole domain is."""
    match domain:
        case Choices(choices=choices):
            yield from choices
        case FloatRange(low=low, high=high):
            yield from (low, low + _GOLDEN * (high - low), high)
        case IntRange(low=low, high=high):
            yield from (low, low if high is None else high)


def _suggest(trial: BaseTrial, name: str, distribution: Distribution) -> Any:
    match distribution:
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(name, choices)
        case FloatDistribution(low=low, high=high, log=log):
            return trial.suggest_float(name, low, high, log=log)
        case IntDistribution(low=low, high=high, log=log):
            return trial.suggest_int(name, low, high, log=log)


def _contains(distribution: Distribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    kinds = int if isinstance(distribution, IntDistribution) else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool):
        return False
    return bool(distribution.low <= value <= distribution.high)


def _encode(value: Any) -> Any:
    return json.dumps(list(value)) if isinstance(value, (list, tuple)) else value


def _decoded(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("["):
        return json.loads(value)
    return value
