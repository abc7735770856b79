"""Scores of several runs, as ``labn evaluate`` wrote them, checked to be comparable."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import pandas as pd
import yaml

from labn.config import Config, flatten
from labn.data.readers.reader import SubsetName
from labn.errors import UserError
from labn.explain.registry import LAMBDA_ATTENTION
from labn.runs.comparison.differences import label_conditions
from labn.runs.evaluation.outputs import MAP_METRICS
from labn.runs.evaluation.score_image import MATCHED
from labn.runs.folder import RunFolder

logger = logging.getLogger(__name__)

Content = TypeVar("Content")

_LOCALISATION = ("pointing_hit", "pointing_chance", "energy_inside", "area_share", "auroc")
_LONGEST_REASON = 160
_ACCURACY = "_accuracy"
_SCORE_COLUMNS = ("name", "method", "score", "baseline", "value", "num_points")

# Settings that do not change the trained network, and the seed, over which runs are averaged.
_NO_CONDITION = (
    "output_dir",
    "tracking.",
    "validation.",
    "data.root",
    "data.cache_dir",
    "data.split_file",
    "data.new_images",
    "data.allow_changed",
    "train.seed",
    "train.device",
    "train.checkpoint_steps",
    "train.keep_checkpoints",
    "train.log_steps",
    "train.storage",
)


_OPTIONS = {
    "methods": "methods", "patch_sizes": "patch-sizes", "protocol": "protocol",
    "num_points": "points", "tolerance": "tolerance", "baseline": "baseline",
    "num_masks": "num-masks", "max_images": "max-images",
}  # fmt: skip
"""The option of `labn evaluate` for each of an evaluation's settings."""


@dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """One run's scores on one subset of its data.

    ``settings`` define its condition, ``terms`` how it was scored. ``images`` has the name, label
    and digest of each image of the subset; ``manifest`` covers the whole data set. ``scores`` has
    one row per image, method and score; so has ``localisation``, if masks are known. ``metrics``
    begin with ``prefix``.
    """

    name: str
    path: Path
    scored_in: Path
    seed: int
    fold: int | None
    """The fold that validated, None without folds."""
    settings: dict[str, Any]
    terms: dict[str, Any]
    prefix: str
    metrics: dict[str, float]
    images: pd.DataFrame
    manifest: pd.DataFrame
    scores: pd.DataFrame
    localisation: pd.DataFrame | None
    lambda_layer: str | None
    map_metrics: pd.DataFrame | None = None
    """Metrics beside PID, one row per image, method and score, if they were computed."""

    @property
    def has_matched(self) -> bool:
        """Whether PID was scored at matched confidence too."""
        return bool(_is_matched(self.scores).any())


def _is_matched(scores: pd.DataFrame) -> pd.Series:
    return scores["score"].str.endswith(MATCHED)


def split_place(path: Path) -> tuple[Path, str | None]:
    """Return the run and the name of an evaluation's folder; (path, None) for that of a run."""
    path = path.expanduser()
    is_of_run = (
        path.parent.name == "evaluation" and RunFolder(path.parents[1]).config_file.is_file()
    )
    return (path.parents[1], path.name) if is_of_run else (path, None)


def scored_subset(paths: Sequence[Path], subset: SubsetName) -> SubsetName:
    """Return the subset of the first path that is an evaluation's folder, else the given one."""
    known: tuple[SubsetName, ...] = get_args(SubsetName)
    for path in paths:
        if (place := split_place(path)[1]) is None:
            continue
        name = place.partition("-")[0]
        # The folder may have been renamed. What is wrong with the file, read_runs says.
        with suppress(OSError, ValueError, LookupError, TypeError):
            file = path.expanduser() / "metrics.json"
            name = json.loads(file.read_text())["settings"]["split"]
        if name in known:
            return known[known.index(name)]
    return subset


def read_runs(paths: Sequence[Path], subset: SubsetName) -> list[ScoredRun]:
    """Read the scores of runs on one subset.

    A path is a run's, which has a plain evaluation, or that of one of its evaluations' folders.

    Raises:
        UserError: a folder is not a run or not scored, or the runs are not comparable.
    """
    places = [split_place(path)[0].resolve() for path in paths]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise UserError(f"{path}: the same run is given twice; name each run once")
    names = [place.name for place in places]
    are_distinct = len(set(names)) == len(names)
    runs = [
        _read_run(path, place.name if are_distinct else str(path), subset)
        for path, place in zip(paths, places, strict=True)
    ]
    if not all(run.has_matched for run in runs):
        # Runs that the first release scored lack them.
        runs = [replace(run, scores=run.scores[~_is_matched(run.scores)]) for run in runs]
    _check_comparable(runs, subset)
    return runs


def _read_run(path: Path, name: str, subset: SubsetName) -> ScoredRun:
    run, place = split_place(path)
    folder = RunFolder(run)
    config = folder.load_config(needs=())
    scored = folder.evaluation(place or subset)
    fix = f"run `labn evaluate {run} --subset {subset}`"
    if not (scored / "scores.parquet").is_file():
        others = sorted(folder.evaluation("").glob(f"{subset}-*/scores.parquet"))
        given = f", or give {others[0].parent}, scored on other terms" if others else ""
        raise UserError(
            f"{path}: the {subset} subset is not scored (no {scored}/scores.parquet); {fix}{given}"
        )
    description = _read(scored / "metrics.json", lambda file: json.loads(file.read_text()), fix)
    if not {"settings", "metrics"} <= set(description) or not any(
        name.endswith(_ACCURACY) for name in description["metrics"]
    ):
        raise UserError(
            f"{scored / 'metrics.json'}: lacks its scores, or their settings; {fix} again"
        )
    scores = _read(scored / "scores.parquet", _read_scores, fix)
    localisation = None
    if (scored / "localisation.parquet").is_file():
        localisation = _read(scored / "localisation.parquet", _read_localisation, fix)
    map_metrics = None
    if (scored / MAP_METRICS).is_file():
        map_metrics = _read(scored / MAP_METRICS, pd.read_parquet, fix)
    manifest = _read(folder.manifest_file, _read_manifest, "train the run again")
    images = _read(scored / "images.csv", _read_images, fix)
    layer = None
    if choice := description.get("lambda_attention"):
        layer = f"{LAMBDA_ATTENTION} {choice['layer']}"
        # Each run chose a layer for itself; it is the same method in all of them.
        one_name = {"method": {layer: LAMBDA_ATTENTION}}
        scores = scores.replace(one_name)
        localisation = None if localisation is None else localisation.replace(one_name)
        map_metrics = None if map_metrics is None else map_metrics.replace(one_name)
    return ScoredRun(
        name=name,
        path=run,
        scored_in=scored,
        seed=config.train.seed,
        fold=config.data.fold if config.data.folds else None,
        settings=condition_settings(config),
        terms=_terms(description["settings"], scores, localisation),
        prefix=_prefix_of(description["metrics"]),
        metrics=description["metrics"],
        # Scored by consent, an image may be in no manifest.
        images=images.merge(manifest[["name", "sha256"]], on="name", how="left").fillna(""),
        manifest=manifest,
        scores=scores,
        localisation=localisation,
        lambda_layer=layer,
        map_metrics=map_metrics,
    )


def _prefix_of(metrics: dict[str, float]) -> str:
    """Return what an evaluation's metrics begin with; its folder may have been renamed."""
    return next(name for name in metrics if name.endswith(_ACCURACY)).removesuffix(_ACCURACY)


def _read(path: Path, read: Callable[[Path], Content], fix: str) -> Content:
    try:
        return read(path)
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        raise UserError(f"{path}: cannot be read ({reason}); {fix}") from error


def _read_scores(path: Path) -> pd.DataFrame:
    scores = pd.read_parquet(path, columns=list(_SCORE_COLUMNS))
    if scores.empty:
        raise ValueError("it has no scores")
    if not np.isfinite(scores["value"]).all():
        raise ValueError("it has scores that are not finite")
    return scores


def _read_localisation(path: Path) -> pd.DataFrame:
    wide = pd.read_parquet(path, columns=["name", "method", *_LOCALISATION])
    return wide.astype(dict.fromkeys(_LOCALISATION, float)).melt(
        ["name", "method"], var_name="score", value_name="value"
    )


def _read_manifest(path: Path) -> pd.DataFrame:
    # As text: the file is compared, and names such as 007 are preserved.
    return pd.read_csv(path, dtype=str, keep_default_na=False).drop(columns="path")


def _read_images(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)[["name", "label"]]


def condition_settings(config: Config) -> dict[str, Any]:
    """Return the settings of a run's condition: all but the seed and fold that it depends on."""
    settings = flatten(config.model_dump(mode="json"))
    del settings["data.fold"]
    decides = "validation.pid_" if config.train.monitor == "val_pid" else "train.monitor"
    return {
        key: value
        for key, value in settings.items()
        if key.startswith(decides) or not key.startswith(_NO_CONDITION)
    }


def _terms(
    settings: dict[str, Any], scores: pd.DataFrame, localisation: pd.DataFrame | None
) -> dict[str, Any]:
    columns = ["score", "baseline", "num_points"]
    measured = scores.loc[~_is_matched(scores), columns].drop_duplicates()
    return (
        {"protocol": "exact"}
        | settings
        | {
            "scores": [
                f"{score} against {baseline} in {num_points} points"
                for score, baseline, num_points in measured.itertuples(index=False)
            ],
            "localisation": localisation is not None,
        }
    )


def _check_comparable(runs: Sequence[ScoredRun], subset: SubsetName) -> None:
    labels = label_conditions([run.settings for run in runs])
    folds = {run.fold: run for run in reversed(runs)}
    trainings: dict[tuple[str, int, int | None], ScoredRun] = {}
    conditions: dict[tuple[str, int | None], ScoredRun] = {}
    for run, label in zip(runs, labels, strict=True):
        first = folds[run.fold] if subset == "validation" else runs[0]
        _check_terms(runs[0], run, subset, besides=("methods",))
        _check_images(first, run, subset, columns=["name"])
        twin = trainings.setdefault((label, run.seed, run.fold), run)
        if twin is not run:
            raise UserError(
                f"{run.path}: the same training as {twin.path} (same settings, train.seed ="
                f" {run.seed}), so not another sample; give one of them"
            )
        # Another condition may be another network, which has other methods.
        other = conditions.setdefault((label, run.fold), run)
        _check_terms(other, run, subset)
        _check_images(other, run, subset, columns=["name", "method"])
        if not run.manifest.equals(other.manifest):
            raise UserError(
                f"{run.path}: other data than {other.path} (their data.csv differ, their settings"
                " do not); report on runs of one data set"
            )
    num_folds = runs[0].settings["data.folds"] or 1
    if subset == "validation" and len(folds) < num_folds:
        logger.warning(
            "only %d of the %d folds are compared; give the runs of all, to score every image",
            *(len(folds), num_folds),
        )
    for (label, seed, _), run in trainings.items():
        if lacking := [fold for fold in folds if (label, seed, fold) not in trainings]:
            raise UserError(
                f"{run.path}: there is no run of fold {lacking[0]} with its"
                f" settings and train.seed = {seed}; give the runs of all folds, or of the same one"
            )


def _check_terms(
    first: ScoredRun, run: ScoredRun, subset: SubsetName, besides: tuple[str, ...] = ()
) -> None:
    differing = [
        f"{key} is {run.terms.get(key)}, there {first.terms.get(key)}"
        for key in dict.fromkeys([*first.terms, *run.terms])
        if run.terms.get(key) != first.terms.get(key) and key not in besides
    ]
    if differing:
        kept = {key: run.terms.get(key) for key in besides}
        raise UserError(
            f"{run.path}: scored differently from {first.path} ({'; '.join(differing[:3])}"
            f"{'; ...' if len(differing) > 3 else ''}); score it as the other by"
            f" `{_command_like(first.terms | kept, run.path, subset)}`, and give the folder"
            " that it names"
        )


def _command_like(terms: dict[str, Any], path: Path, subset: SubsetName) -> str:
    """Return the command that scores a run on these terms."""
    words = ["labn", "evaluate", str(path), "--subset", subset]
    for name, option in _OPTIONS.items():
        value = terms.get(name)
        if value is not None:
            shown = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words += [f"--{option}", shown]
    return shlex.join(words)


def _check_images(first: ScoredRun, run: ScoredRun, subset: SubsetName, columns: list[str]) -> None:
    """Compare the subset's images, by name, label and content, and the scored ones."""
    for kind, one, other in (
        ("holds", first.images, run.images),
        ("scores", first.scores[columns], run.scores[columns]),
    ):
        rows, other_rows = (set(table.itertuples(index=False, name=None)) for table in (one, other))
        if rows != other_rows:
            name = min(rows ^ other_rows, key=str)[0]
            raise UserError(
                f"{run.path}: its {subset} subset {kind} other images than that of {first.path}"
                f" (such as {name}: missing, or of another label or content in one of them);"
                " report on runs over the same images"
            )
