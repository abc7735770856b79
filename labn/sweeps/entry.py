"""The tracker entries of a sweep: its own, and those of its runs, listed under it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labn.config import Config, DataConfig
from labn.errors import UserError
from labn.runs.folder import RunFolder
from labn.runs.tracked import open_entry
from labn.storage.remote import absolute, subfolder
from labn.tracking import Tracker, environment_tags, resolve_uri

SPLIT_FILE = "split.csv"
"""The file in a sweep's folder with the subsets that its runs share."""


def folds_of(data: DataConfig, key: str, *, each_fold: bool) -> list[int] | list[None]:
    """Return the folds on which each run of a sweep is repeated, or [None] for no folds.

    Raises:
        UserError: each fold is requested (by ``key``), and there are none.
    """
    if not each_fold:
        return [None]
    if data.folds is None:
        raise UserError(f"{key} = true: needs the number of folds; set data.folds, such as to 5")
    return list(range(data.folds))


def run_name(seed: int, fold: int | None) -> str:
    """Return the name of the folder of one run of several."""
    return f"seed-{seed}" if fold is None else f"seed-{seed}-fold-{fold}"


def with_split(config: Config, file: Path) -> Config:
    """Return a configuration whose subsets are those of a table."""
    data = config.data.model_copy(update={"split_file": file})
    return config.model_copy(update={"data": data})


def open_sweep_entry(
    base: Config, title: str, settings: Mapping[str, Any], tags: Mapping[str, str] | None = None
) -> Tracker:
    """Open the entry of a sweep, whose runs build on ``base``, and log its settings.

    Opened before any run, it creates a tracker's SQLite store before the runs share it.

    Raises:
        UserError: the tracker cannot be reached.
    """
    entry = open_entry(base, RunFolder(base.output_dir), name=title)
    entry.set_tags(environment_tags() | dict(tags or {}))
    entry.log_params(settings)
    return entry


def run_config(
    config: Config,
    *names: str,
    seed: int,
    fold: int | None,
    entry_name: str,
    parent_run_id: str | None,
) -> Config:
    """Return the configuration of one run of a sweep.

    ``config`` is the sweep's, with this run's settings; without a ``fold`` it keeps its own.
    ``names`` is the path of the run's folder
    below the sweep's folder, and below its storage. Paths are absolute, so that any node can use
    them.
    """
    data, model, train, tracking = config.data, config.model, config.train, config.tracking
    own_data: dict[str, Any] = {
        "root": absolute(data.root),
        "cache_dir": absolute(data.cache_dir),
        "split_file": absolute(data.split_file),
        "fold": data.fold if fold is None else fold,
    }
    storage = subfolder(absolute(train.storage), *names)
    entry = {
        "uri": resolve_uri(tracking.uri),
        "run_name": entry_name,
        "parent_run_id": parent_run_id,
    }
    return config.model_copy(
        update={
            "data": data.model_copy(update=own_data),
            "model": model.model_copy(update={"pretrained": absolute(model.pretrained)}),
            "train": train.model_copy(update={"seed": seed, "storage": storage}),
            "tracking": tracking.model_copy(update=entry),
            "output_dir": config.output_dir.joinpath(*names),
        }
    )
