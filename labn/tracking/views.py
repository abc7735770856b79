"""What MLflow's page of an experiment shows first: a saved view of it, which a link opens."""

from __future__ import annotations

import json
import time
import urllib.parse
from collections.abc import Iterable, Sequence
from typing import Any

_TAG = "mlflow.sharedViewState."
_ALL_RUNS = "labn"
_SCORES = ("test_pid", "test_auroc", "test_accuracy", "best_val_pid", "best_val_auroc",
           "best_val_accuracy")  # fmt: skip
_TAGS = ("condition", "seed", "trial", "trial_state")
_SECTIONS = {
    "By epoch": ("LINE", ("val_pid", "val_auroc", "val_loss", "train_loss")),
    "Best epoch and test": ("BAR", ("best_val_pid", "best_val_auroc", "test_pid", "test_auroc")),
}
"""The first charts; MLflow lists those of all other metrics below them."""
_MAX_SETTINGS = 8


def link(experiment_id: str, run_id: str | None = None, *, view: str | None = None) -> str:
    """Return the page of an experiment or a run in MLflow's mode for training models.

    By default MLflow opens its mode for language models, which shows no scores.
    """
    where = f"/#/experiments/{experiment_id}/runs" + (f"/{run_id}" if run_id else "")
    query = {"workflowType": "machine_learning"} | ({"viewStateShareKey": view} if view else {})
    return f"{where}?{urllib.parse.urlencode(query)}"


def image_in_description(title: str, run_id: str, path: str) -> str:
    """Return Markdown that shows one of a run's pictures in a description on MLflow's page."""
    query = urllib.parse.urlencode({"path": path, "run_uuid": run_id})
    return f"![{title}](get-artifact?{query})"


def view_of_all_runs() -> dict[str, str]:
    """Return the tag of an experiment that holds the view of all its runs."""
    columns = _columns(_SCORES, _TAGS, ())
    return {f"{_TAG}{_ALL_RUNS}": _saved_view("labn: scores", columns, "best_val_pid")}


def links(client: Any, run_id: str) -> dict[str, str]:
    """Return links to a run, by what they show: its own page, and a table of its child runs.

    The table has the settings in which the child runs differ; its view is saved under the run's id.
    """
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}  # deleted for good; the other runs can be shown
        raise
    experiment, name = run.info.experiment_id, run.info.run_name
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'")
    own = {name: link(experiment, run_id)}
    if not children:
        return own
    metrics = _present(_SCORES, (one.data.metrics for one in children))
    tags = _present(_TAGS, (one.data.tags for one in children))
    columns = _columns(metrics, tags, _differing([one.data.params for one in children]))
    best = metrics[0] if metrics else "val_pid"
    view = _saved_view(f"runs of {name}", columns, best, f"tags.`mlflow.parentRunId` = '{run_id}'")
    client.set_experiment_tag(experiment, f"{_TAG}{run_id}", view)
    return {f"runs of {name}": link(experiment, view=run_id)} | own


def link_to_all_runs(client: Any, experiment: Any) -> str:
    """Return a link to the view of all runs of an experiment, which is saved if it is not yet."""
    (tag, view), *_ = view_of_all_runs().items()
    if tag not in experiment.tags:
        client.set_experiment_tag(experiment.experiment_id, tag, view)
    return link(experiment.experiment_id, view=_ALL_RUNS)


def _saved_view(name: str, columns: Sequence[str], best: str, search_filter: str = "") -> str:
    """Return a view as MLflow's page saves one: a list of runs, those with the best score first.

    Sorted by time, the page would hide child runs below their parents.
    """
    now_ms = time.time_ns() // 1_000_000
    sections, charts = [], []
    for number, (title, (kind, metrics)) in enumerate(_SECTIONS.items()):
        section = f"labn-{number}"
        sections.append({"uuid": section, "name": title, "display": True, "isReordered": True})
        charts += [_chart(kind, metric, section) for metric in metrics]
    state = {
        "searchFilter": search_filter,
        "orderByKey": f"metrics.`{best}`",
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": columns,
        "compareRunSections": sections,
        "compareRunCharts": charts,
        "isAccordionReordered": True,
    }
    saved = {"name": name, "createdAt": now_ms, "updatedAt": now_ms, "state": json.dumps(state)}
    return json.dumps(saved)


def _chart(kind: str, metric: str, section: str) -> dict[str, Any]:
    chart = {
        "uuid": f"{section}-{metric}",
        "type": kind,
        "metricKey": metric,
        "displayName": metric,
        "metricSectionId": section,
        "runsCountToCompare": 10,
        "deleted": False,
        "isGenerated": True,
    }
    if kind == "BAR":
        return chart
    return chart | {
        "lineSmoothness": 0,
        "scaleType": "linear",
        "xAxisScaleType": "linear",
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "range": {},
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def _columns(metrics: Iterable[str], tags: Iterable[str], params: Iterable[str]) -> list[str]:
    # Scores first: a narrow window shows two or three columns beside a run's name.
    kinds = (("metrics", metrics), ("params", params), ("tags", tags))
    return [f"{kind}.`{name}`" for kind, names in kinds for name in names]


def _present(names: Iterable[str], rows: Iterable[Any]) -> list[str]:
    known = {name for row in rows for name in row}
    return [name for name in names if name in known]


def _differing(rows: Sequence[dict[str, str]]) -> list[str]:
    """Return the settings, but the seed's, that have more than one value."""
    names = dict.fromkeys(name for row in rows for name in row)
    values = {name: {row.get(name) for row in rows} for name in names if name != "train.seed"}
    return [name for name, found in values.items() if len(found) > 1][:_MAX_SETTINGS]
