"""Experiment tracking with MLflow: parameters, metrics, files and networks of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from labn.errors import UserError
from labn.tracking.mlflow_tracker import MlflowTracker
from labn.tracking.models import register_model
from labn.tracking.provenance import environment_tags, redact
from labn.tracking.resilient import ResilientTracker
from labn.tracking.servable import Preparation, export_program, save_servable
from labn.tracking.spool import Spool
from labn.tracking.store import resolve_uri
from labn.tracking.tracker import CallRefused, NoTracker, Status, Tracker
from labn.tracking.views import image_in_description

__all__ = [
    "CallRefused",
    "NoTracker",
    "Preparation",
    "Spool",
    "Status",
    "Tracker",
    "environment_tags",
    "export_program",
    "image_in_description",
    "open_tracker",
    "redact",
    "register_model",
    "resolve_uri",
    "save_servable",
]


def open_tracker(
    uri: str,
    *,
    experiment: str,
    run_name: str | None = None,
    run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    spool_dir: Path,
    resumes: bool = True,
    on_open: Callable[[str], None] = lambda run_id: None,
) -> Tracker:
    """Create a run at ``uri``, or open the run ``run_id``; ``none`` tracks nothing.

    The other parameters are those of ``MlflowTracker``.

    Once open, the tracker never stops a training run: records that cannot be delivered are kept
    in ``spool_dir``.

    Raises:
        UserError: the tracker cannot be reached, or has no such run, or ``spool_dir`` is used by
            another run.
    """
    if uri == "none":
        return NoTracker()
    spool = Spool(spool_dir)
    if spool and spool.run_id != run_id:
        raise UserError(
            f"{spool.log}: contains records of run {spool.run_id} that its tracker never received;"
            " resume that run, move the file away, or choose another output_dir"
        )
    tracker = MlflowTracker(
        uri,
        experiment=experiment,
        run_name=run_name,
        run_id=run_id,
        tags=tags,
        log_system_metrics=resumes,
        resumes=resumes,
        on_open=on_open,
    )
    return ResilientTracker(tracker, spool_dir, name=uri, resumes=resumes)
