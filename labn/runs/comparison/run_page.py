"""The page of one run: what it is, how it was trained, its scores, maps and failures."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from labn.metrics.failures import FAILURES
from labn.metrics.skill import skill_by_threshold
from labn.report.html import page
from labn.report.tables import Column, Table
from labn.report.threshold import AttentionMap
from labn.runs.comparison.compare import CLASSIFICATION, Comparison
from labn.runs.comparison.comparison_tables import tables
from labn.runs.comparison.read_runs import ScoredRun
from labn.runs.description import data_source, parameters_and_places
from labn.runs.evaluation.outputs import ATTENTION
from labn.runs.folder import RunFolder
from labn.tracking.provenance import package_commit

_Arrays = Mapping[str, np.ndarray]
_NUM_MAPS = 8
_THRESHOLDS = tuple(number / 10 for number in range(1, 10))
_FIGURES = {
    "Confusion matrix": "confusion.png",
    "Reliability": "reliability.png",
    "Insertion and deletion curves": "curves.png",
    "Attention": "attention.png",
    "Spread of the attention over flips and shifts": "spread.png",
    "Every method": "examples.png",
    **{f"Failures: {text} ({code})": f"failures-{code}.png" for code, text in FAILURES.items()},
    "Sanity check": "sanity.png",
}


def run_page(comparison: Comparison, pictures: Mapping[str, Path]) -> str:
    """Return the page of a comparison's only run, with the ``pictures`` of its scores.

    Pictures, maps and failures are those that its evaluation wrote; what is missing is left out.
    """
    (run,) = comparison.runs
    described = json.loads((run.scored_in / "metrics.json").read_text(encoding="utf-8"))
    folder = RunFolder(run.path)
    config = folder.load_config(needs=())
    figures = {"Training": folder.history_picture}
    figures |= {name: run.scored_in / file for name, file in _FIGURES.items()}
    figures |= pictures
    kept = _read_kept(run.scored_in / ATTENTION)
    settings, places = parameters_and_places(config)
    rows = tuple((key, str(value)) for key, value in (settings | places).items())
    columns = (Column("Setting"), Column("Value"))
    own = Table(columns=columns, rows=rows, caption="The settings of the run.")
    data = dict.fromkeys((config.data.name, data_source(config)))
    facts = [
        ("Data set", ", ".join(data)),
        ("Network", f"{config.model.backbone}, B = {config.model.split},"
         f" theta_alpha = {config.model.theta_alpha:g}"),
        ("Folder", str(run.path)),
        ("Commit", package_commit() or "not known: the program was built without git"),
        ("Written", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, labn {version('labn')}"),
    ]  # fmt: skip
    return page(
        f"{run.name}, {comparison.subset} subset",
        _conclude(run, comparison, described, kept),
        facts,
        {name: path for name, path in figures.items() if path.is_file()},
        [
            *_classification_tables(described),
            *_skill(run),
            *tables(comparison),
            ("Training settings", own),
        ],
        _maps(kept),
        config.model.theta_alpha,
    )


def _conclude(
    run: ScoredRun, comparison: Comparison, described: dict[str, Any], kept: _Arrays
) -> list[str]:
    values = {key.removeprefix(f"{run.prefix}_"): value for key, value in run.metrics.items()}
    named = CLASSIFICATION | {"bss": "BSS", "gmgs": "GMGS"}
    found = [f"{name} {values[key]:.3f}" for key, name in named.items() if key in values]
    on = f"On the {comparison.num_images} images of the {comparison.subset} subset"
    lines = [f"{on}: {', '.join(found)}."] if found else []
    if {"pid", "pid_random"} <= values.keys():
        lines.append(
            f"PID {values['pid']:.3f}, that of random maps {values['pid_random']:.3f}; a PID"
            " depends on how sure the network is, and maps should be looked at too."
        )
    if failures := described.get("failures"):
        lines.append(
            f"{failures['num_failed']} of {failures['num_scored']} maps of positive images fail"
            f" (PID m={failures['patch_size']} below {failures['thresholds']['pid']:g})."
        )
    if "spread" in kept:
        spread, attention = kept["spread"], kept["attention"]
        lines.append(
            "Flips and small shifts of an image move its attention by"
            f" {spread.mean(dtype=np.float64):.3f} (standard deviation; the mean attention is"
            f" {attention.mean(dtype=np.float64):.3f}, {len(spread)} images)."
        )
    return lines


def _classification_tables(described: dict[str, Any]) -> Iterator[tuple[str, Table]]:
    names, failures = described.get("class_names"), described.get("failures")
    if names:
        yield (
            "Confusion",
            Table(
                columns=tuple(map(Column, ("True class", *names))),
                rows=tuple(
                    (name, *row) for name, row in zip(names, described["confusion"], strict=True)
                ),
                caption="Number of images; columns are the predicted classes.",
            ),
        )
    if failures:
        yield (
            "Failures by kind",
            Table(
                columns=tuple(map(Column, ("Kind", "Meaning", "Images"))),
                rows=tuple((code, text, failures[code]) for code, text in FAILURES.items()),
                caption="The maps that fail; the first kind that applies counts.",
            ),
        )


def _skill(run: ScoredRun) -> Iterator[tuple[str, Table]]:
    """Yield the skill at each threshold of the positive classes' probability, if it was kept."""
    images = pd.read_csv(run.scored_in / "images.csv")
    if "probability_0" not in images:
        return
    positive, is_positive = 1 - images["probability_0"].to_numpy(), images["label"].to_numpy() > 0
    rows = [
        (f"{row.threshold:g}", *(f"{value:.3f}" for value in row[1:]))
        for row in skill_by_threshold(positive, is_positive, _THRESHOLDS)
    ]
    if rows:
        columns = ("Threshold", "True positive rate", "False positive rate", "TSS")
        caption = (
            "An image is called positive if the probability of a positive class reaches the"
            " threshold. A threshold chosen here must be tested on other images."
        )
        table = Table(columns=tuple(map(Column, columns)), rows=tuple(rows), caption=caption)
        yield "Skill by threshold", table


def _maps(kept: _Arrays) -> list[AttentionMap]:
    names = ("images", "attention", "titles")
    if not kept.keys() >= {*names}:
        return []
    arrays = (kept[name][:_NUM_MAPS] for name in names)
    return [
        AttentionMap(image=image, attention=attention, title="; ".join(str(title).split("\n")))
        for image, attention, title in zip(*arrays, strict=True)
    ]


def _read_kept(path: Path) -> _Arrays:
    """Return the arrays that an evaluation kept, by name; earlier releases kept fewer or none."""
    try:
        with np.load(path) as kept:
            return dict(kept)
    except (OSError, ValueError, zipfile.BadZipFile):
        return {}
