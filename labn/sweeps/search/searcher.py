"""The study as Tune asks for trials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from labn.config.search import SearchConfig
from labn.sweeps.search.callback import TuneCallback
from labn.sweeps.search.optuna_study import SearchStudy
from labn.sweeps.search.search_outputs import SearchRecords
from labn.sweeps.search.space import Space
from labn.sweeps.search.trial import trial_configs, trial_folder
from labn.sweeps.search.unpickled import Unpickled


class StudySearcher(Unpickled, Searcher):
    """Gives Tune the study's trials: the interrupted first, then new ones.

    What becomes of them reaches the study by ``TuneCallback``: Tune tells a searcher neither that a
    trial was pruned, nor why it failed.
    """

    def __init__(
        self,
        search: SearchConfig,
        space: Space,
        study: SearchStudy,
        events: TuneCallback,
        records: SearchRecords,
    ) -> None:
        super().__init__(metric=search.objective.maximise[0], mode="max")
        self._search, self._space, self._study = search, space, study
        self._events, self._records = events, records

    def suggest(self, trial_id: str) -> Any:
        """Give the next trial."""
        drawn = None if self._events.must_stop() else self._study.next()
        if drawn is None:
            return Searcher.FINISHED
        number, point = drawn
        parent_run_id = self._records.entry.run_id
        runs = trial_configs(self._search, self._space, point, number, parent_run_id)
        configs = json.dumps([run.model_dump(mode="json") for run in runs])
        folder = str(trial_folder(self._search, number))
        return {"number": number, "folder": folder, "configs": configs}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Hear it elsewhere."""

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: the study does."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Need nothing."""
