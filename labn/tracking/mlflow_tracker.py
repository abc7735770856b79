"""Tracking with MLflow: a SQLite file, or a server."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from labn.errors import UserError
from labn.tracking.provenance import redact
from labn.tracking.quiet import quiet
from labn.tracking.servable import Preparation, save_servable
from labn.tracking.store import artifact_root, opening, resolve_uri, store_url
from labn.tracking.tracker import CallRefused, Status, Tracker
from labn.tracking.views import view_of_all_runs

logger = logging.getLogger(__name__)

_ENVIRONMENT = {
    # MLflow would retry a request eight times, 128 s apart at most; ResilientTracker retries.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# ResilientTracker reports an outage once; these would repeat it.
_SILENCED = ("mlflow.store.db.utils", "mlflow.system_metrics", "mlflow.utils.autologging_utils")
_MODEL_NAME = "model"
_DIGEST_LENGTH = 36


class MlflowTracker(Tracker):
    """A run in an MLflow store.

    It uses no global state of MLflow: one process may have several, and no run becomes the active
    one. ``run_id`` opens an earlier run, whose status becomes RUNNING again if ``resumes``;
    ``experiment`` and ``run_name`` are then ignored. ``on_open`` is called with the run's id as
    soon as the store has the run. A tag ``mlflow.parentRunId`` names a parent run. A new experiment
    in a SQLite store keeps its files in ``mlruns`` beside the store, in every working directory.

    Raises:
        UserError: the store cannot be opened, or has no such run.
    """

    def __init__(
        self,
        uri: str,
        *,
        experiment: str,
        run_name: str | None = None,
        run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        log_system_metrics: bool = True,
        resumes: bool = True,
        on_open: Callable[[str], None] = lambda run_id: None,
    ) -> None:
        for variable, value in _ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        for name in _SILENCED:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._uri = resolve_uri(uri)
        self._log_system_metrics = log_system_metrics
        self._monitor: Any = None
        with unreachable_as_user_error(uri), opening(self._uri):
            from mlflow import MlflowClient

            self._client = MlflowClient(store_url(uri))
            if run_id is None:
                run = self._client.create_run(self._experiment_id(experiment), run_name=run_name)
            else:
                run = self._earlier_run(run_id, resumes=resumes)
        self.run_id: str = run.info.run_id
        self._experiment: str = run.info.experiment_id
        on_open(self.run_id)
        with unreachable_as_user_error(uri):
            self.set_tags(tags or {})
            self._watch_system()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log settings; MLflow never changes a value, so a new one becomes a tag ``changed.*``."""
        from mlflow.entities import Param

        texts = {key: redact(str(value)) for key, value in params.items()}
        with _refusals():
            known = self._client.get_run(self.run_id).data.params
            fresh = [Param(key, text) for key, text in texts.items() if key not in known]
            self._client.log_batch(self.run_id, params=fresh)
        changed = {key: text for key, text in texts.items() if known.get(key, text) != text}
        self.set_tags({f"changed.{key}": text for key, text in changed.items()})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; a later value replaces an earlier one."""
        from mlflow.entities import RunTag

        with _refusals():
            self._client.log_batch(
                self.run_id, tags=[RunTag(key, redact(text)) for key, text in tags.items()]
            )

    def log_metrics(
        self, metrics: Mapping[str, float], step: int, *, time_ms: int | None = None
    ) -> None:
        """Log metrics of one step, leaving out those that are not finite."""
        from mlflow.entities import Metric

        time_ms = time.time_ns() // 1_000_000 if time_ms is None else time_ms
        finite = {key: float(value) for key, value in metrics.items() if math.isfinite(value)}
        if left_out := metrics.keys() - finite.keys():
            logger.debug("step %d: not finite and not logged: %s", step, sorted(left_out))
        with _refusals():
            self._client.log_batch(
                self.run_id,
                metrics=[Metric(key, value, time_ms, step) for key, value in finite.items()],
            )
        self._watch_system()

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file, under its own name, to a folder of the run's artifacts."""
        with _refusals():
            self._client.log_artifact(self.run_id, str(path), folder)

    def log_dataset(self, manifest: pd.DataFrame, *, name: str, source: str, digest: str) -> None:
        """Log the manifest's columns and size as an input, with 36 characters of the digest."""
        import mlflow.data
        from mlflow.entities import Dataset, DatasetInput

        with quiet():
            dataset = mlflow.data.from_pandas(
                manifest, source=redact(source), name=name, digest=digest[:_DIGEST_LENGTH]
            )
            entity = Dataset(**dataset.to_dict())
        with _refusals():
            self._client.log_inputs(self.run_id, datasets=[DatasetInput(entity, tags=[])])

    def log_model(self, model: torch.nn.Module, preparation: Preparation) -> None:
        """Log the network as ``model``, to be loaded from ``runs:/{run_id}/model``."""
        with tempfile.TemporaryDirectory() as scratch:
            save_servable(model, preparation, Path(scratch, _MODEL_NAME))
            self.log_saved_model(Path(scratch, _MODEL_NAME))

    def log_saved_model(self, folder: Path) -> None:
        """Log a network that ``save_servable`` has written, and write its ids into it."""
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        with _refusals():
            logged = self._pending_model()
            description = Model.load(str(folder))
            description.model_id = description.model_uuid = logged.model_id
            description.artifact_path = logged.artifact_location
            description.run_id = self.run_id
            description.save(str(folder / "MLmodel"))
            self._client.log_model_artifacts(logged.model_id, str(folder))
            self._client.finalize_logged_model(logged.model_id, "READY")
            self._client.log_outputs(self.run_id, [LoggedModelOutput(logged.model_id, step=0)])

    def finish(self, status: Status | None) -> None:
        """Close the run; its status stays as it is if ``status`` is None."""
        if self._monitor is not None:
            self._monitor.finish()
        if status is not None:
            self._client.set_terminated(self.run_id, status)

    def _experiment_id(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                kind = {"mlflow.experimentKind": "custom_model_development"}  # selects its page
                root = artifact_root(self._uri)
                tags = kind | view_of_all_runs()
                return str(self._client.create_experiment(name, root, tags=tags))
            except MlflowException:
                # Another client of the same server may have created it first.
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise UserError(
                f"tracking.experiment = {name}: is deleted; restore it"
                f" (mlflow experiments restore -x {found.experiment_id}) or choose another name"
            )
        return str(found.experiment_id)

    def _earlier_run(self, run_id: str, *, resumes: bool) -> Any:
        from mlflow.exceptions import MlflowException

        where = f"tracking.uri = {redact(self._uri)}"
        others = "or pass tracking.uri=none to track nothing, or delete tracker.json in the run's"
        try:
            if self._client.get_run(run_id).info.lifecycle_stage != "active":
                raise UserError(
                    f"{where}: run {run_id} is deleted; restore it (mlflow runs restore --run-id"
                    f" {run_id}), {others} folder to start a new one"
                )
            if resumes:
                self._client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise UserError(
                f"{where}: has no run {run_id}; specify the address that the run was started with,"
                f" {others} folder to start a new one"
            ) from None
        return self._client.get_run(run_id)

    def _pending_model(self) -> Any:
        """Return a model whose upload was interrupted, or a new one."""
        same = f"name = '{_MODEL_NAME}' AND source_run_id = '{self.run_id}'"
        for logged in self._client.search_logged_models([self._experiment], same):
            if logged.status == "PENDING":
                return logged
        return self._client.create_logged_model(
            self._experiment, name=_MODEL_NAME, source_run_id=self.run_id
        )

    def _watch_system(self) -> None:
        """Start MLflow's monitor, or restart it after an outage, which ends its thread."""
        if not self._log_system_metrics:
            return
        if self._monitor is not None:
            thread = self._monitor._process
            if thread is not None and thread.is_alive():
                return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(
            self.run_id, resume_logging=True, tracking_uri=store_url(self._uri)
        )
        self._monitor.start()


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code == "INVALID_PARAMETER_VALUE":
            raise CallRefused(redact(" ".join(str(error).split()))) from error
        raise


@contextlib.contextmanager
def unreachable_as_user_error(uri: str) -> Iterator[None]:
    """Raise a UserError if a store cannot be opened."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError) as error:
        reason = redact(" ".join(str(error).split()))
        raise UserError(
            f"tracking.uri = {redact(uri)}: cannot be opened ({reason});"
            " start its server, fix the address, or pass tracking.uri=none to track nothing"
        ) from error
