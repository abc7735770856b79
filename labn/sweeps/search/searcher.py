"""The adapter from the study to Tune's searchers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from labn.config.search import SearchConfig
from labn.sweeps.search.callback import TuneCallback
from labn.sweeps.search.optuna_study import SearchStudy
from labn.sweeps.search.search_outputs import SearchOutputs
from labn.sweeps.search.space import Space
from labn.sweeps.search.trial import trial_configs, trial_folder
from labn.sweeps.search.unpickled import Unpickled


class StudySearcher(Unpickled, Searcher):
    """A searcher that suggests the study's trials: the interrupted first, then new ones.

    Outcomes reach the study by ``TuneCallback``: Tune does not notify a searcher that a trial was
    pruned, nor why it failed.
    """

    def __init__(
        self,
        search: SearchConfig,
        space: Space,
        study: SearchStudy,
        callback: TuneCallback,
        outputs: SearchOutputs,
    ) -> None:
        super().__init__(metric=search.objective.maximise[0], mode="max")
        self._search, self._space, self._study = search, space, study
        self._callback, self._outputs = callback, outputs
        self._open: set[str] = set()

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial, None while as many run as may, or that there are no more.

        How many may run is counted each time, as nodes join and leave.
        """
        if self._callback.must_stop():
            return Searcher.FINISHED
        most = self._callback.most_at_once()
        if most is not None and len(self._open) >= most:
            return None
        drawn = self._study.next()
        if drawn is None:
            return Searcher.FINISHED
        number, parameters = drawn
        self._open.add(trial_id)
        parent_run_id = self._outputs.entry.run_id
        runs = trial_configs(self._search, self._space, parameters, number, parent_run_id)
        configs = json.dumps([run.model_dump(mode="json") for run in runs])
        folder = str(trial_folder(self._search, number))
        return {"number": number, "folder": folder, "configs": configs}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Make place for another trial; the callback records the outcome."""
        self._open.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Write an empty file: the study stores everything."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the study stores everything."""
