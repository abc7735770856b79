"""The scores of a trained run over one part of its data, as tables and pictures in its folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labn.config import Config
from labn.data.batches import EvaluationBatches, standardise
from labn.data.dataset import Dataset, Split
from labn.data.records import Partition
from labn.errors import UserError
from labn.model.network import LABN, upsample_attention
from labn.runs.assessment import (
    Assessment,
    assessment_basis,
    default_patch_sizes,
    minimal_assessment,
)
from labn.runs.build import build_objective, require_part
from labn.runs.pictures import (
    draw_attention,
    draw_confusion,
    draw_curves,
    draw_examples,
    draw_failures,
    positive_probability,
)
from labn.runs.positives import (
    PositiveScores,
    build_scorer,
    choose_layer,
    chosen_positions,
    fingerprint,
    score_positives,
)
from labn.runs.reporting import Reporter
from labn.runs.results import find_failures, positive_metrics
from labn.runs.score_files import (
    describe,
    describe_settings,
    remove_earlier,
    write_part,
    write_positives,
)
from labn.runs.tracked import reopened_entry
from labn.runs.trained import TrainedRun
from labn.scoring import pid_name
from labn.storage.files import write_json
from labn.tracking import Tracker
from labn.training.evaluate import Evaluation, evaluate
from labn.training.optim import autocast

_NUM_POSITIVES_SHOWN = 6
_NUM_NEGATIVES_SHOWN = 2
PREFIXES: dict[Partition, str] = {"train": "train", "validation": "val", "test": "test"}
"""What the metrics of each part are called."""


@dataclass(frozen=True)
class Scores:
    """Where the scores of one part lie, and the figures themselves."""

    folder: Path
    metrics: dict[str, float]

    @property
    def pictures(self) -> list[Path]:
        """The pictures that were made."""
        return sorted(self.folder.glob("*.png"))

    @property
    def tables(self) -> list[Path]:
        """The tables that were made, as Markdown."""
        return sorted(self.folder.glob("*.md"))


def evaluate_run(
    run: Path,
    part: Partition,
    overrides: list[str],
    reporter: Reporter,
    choices: Mapping[str, Any] | None = None,
) -> Scores:
    """Score a run's best epoch over one part of its data, and log that to its tracker.

    ``choices`` are settings of ``Assessment`` other than its defaults. The same call again goes on
    where an earlier one stopped.

    Raises:
        UserError: there is no such run, no trained network in it, no such part, nothing positive
            in it, or a choice breaks its rule.
    """
    trained = TrainedRun.open(run, overrides)
    config, folder = trained.config, trained.folder
    sizes = {"patch_sizes": default_patch_sizes(config)}
    assessment = Assessment(**(assessment_basis(config) | sizes | dict(choices or {})))
    dataset = trained.load_dataset(reporter)
    if not (require_part(dataset, part).labels > 0).any():
        raise UserError(
            f"--split {part}: holds no positives, of which alone explanations are scored;"
            " give another part"
        )
    # The tracker is opened before the work, for an address that is wrong is better known now.
    with folder.claimed_evaluation(part) as place, reopened_entry(config, folder) as tracker:
        scores = score_part(config, dataset, trained.model, part, place, reporter, assessment)
        tracker.log_metrics(scores.metrics, step=trained.best["epoch"])
        log_scores(tracker, scores, part)
    return scores


def log_scores(tracker: Tracker, scores: Scores, part: Partition) -> None:
    """Log the tables and pictures of one part."""
    for path in sorted(scores.folder.glob("[!.]*")):  # not what a killed writer left
        if path.is_file():
            tracker.log_artifact(path, f"evaluation/{part}")


def score_part(
    config: Config,
    dataset: Dataset,
    model: LABN,
    part: Partition,
    folder: Path,
    reporter: Reporter,
    assessment: Assessment | None = None,
) -> Scores:
    """Score a network over one part; write figures, rows, tables and pictures to a folder.

    Without an assessment, explanations are scored as in validation, and fewer pictures made.
    """
    wanted = assessment or minimal_assessment(config)
    split = require_part(dataset, part)
    evaluation = _evaluate(config, dataset, model, part, reporter)
    metrics = evaluation.as_metrics(PREFIXES[part])
    parts = folder / f"parts-{fingerprint(config, dataset, model, wanted)}"
    positives = _score_positives(config, dataset, split, model, wanted, parts, reporter)
    failures = None
    remove_earlier(folder)
    if positives is not None:
        metrics |= positive_metrics(positives, wanted, PREFIXES[part])
        failures = find_failures(positives, evaluation, wanted)
        write_positives(positives, wanted, part, folder)
        if wanted.tolerance is None:  # otherwise each curve has points of its own
            draw_curves(positives, pid_name(wanted.headline_patch_size), folder / "curves.png")
    write_part(evaluation, failures, part, folder)
    draw_confusion(evaluation, dataset, folder / "confusion.png")
    _draw_sheet(config, model, dataset, split, evaluation, positives, wanted, folder)
    if assessment is not None and positives is not None:
        reporter.say("drawing examples")
        draw_examples(positives, pid_name(wanted.headline_patch_size), folder / "examples.png")
        if failures is not None:
            draw_failures(failures, positives, evaluation, folder)
    # Last: who finds it finds all that it speaks of.
    settings = describe_settings(wanted, part)
    description = describe(evaluation, dataset, settings, positives, failures, metrics)
    write_json(folder / "metrics.json", description)
    shutil.rmtree(parts, ignore_errors=True)
    return Scores(folder, metrics)


def _evaluate(
    config: Config, dataset: Dataset, model: LABN, part: Partition, reporter: Reporter
) -> Evaluation:
    device = next(model.parameters()).device
    batches = EvaluationBatches(
        dataset.splits[part], dataset.statistics, config.validation.batch_size, device
    )
    num_done = 0

    def advance() -> None:
        nonlocal num_done
        num_done += 1
        reporter.advance(f"classifying {part}", num_done, len(batches))

    objective = build_objective(config.loss, dataset.statistics, device)
    with autocast(config.train, device):
        return evaluate(model, batches, objective, None, on_batch=advance)


def _score_positives(
    config: Config,
    dataset: Dataset,
    split: Split,
    model: LABN,
    assessment: Assessment,
    parts: Path,
    reporter: Reporter,
) -> PositiveScores | None:
    positions = chosen_positions(split, assessment.max_images)
    if not positions:
        return None
    layer = choose_layer(config, dataset, model, assessment, parts, reporter)
    number = layer["layer"] if layer else None
    scorer = build_scorer(config, dataset, split, model, assessment, number)
    return score_positives(scorer, positions, layer, parts, reporter)


def _draw_sheet(
    config: Config,
    model: LABN,
    dataset: Dataset,
    split: Split,
    evaluation: Evaluation,
    positives: PositiveScores | None,
    assessment: Assessment,
    folder: Path,
) -> None:
    """Draw the attention of the first positives and negatives by name."""
    order = sorted(range(len(split)), key=split.names.__getitem__)
    positions = [p for p in order if split.labels[p] > 0][:_NUM_POSITIVES_SHOWN]
    positions += [p for p in order if split.labels[p] == 0][:_NUM_NEGATIVES_SHOWN]
    device = next(model.parameters()).device
    images = standardise(split.pixels(np.array(positions)), dataset.statistics, device)
    with autocast(config.train, device), torch.inference_mode():
        attention = model(images).attention.float()
    maps = upsample_attention(attention, (images.shape[2], images.shape[3])).cpu().numpy()
    score = pid_name(assessment.headline_patch_size)
    pids = positives.values("LABN", score) if positives else {}
    titles = []
    for position in positions:
        name, label = split.names[position], int(split.labels[position])
        pid = f", PID {pids[name]:.2f}" if name in pids else ""
        probability = positive_probability(evaluation, position)
        titles.append(f"{name} ({dataset.class_names[label]})\np(positive) {probability:.2f}{pid}")
    draw_attention(maps, positions, split, titles, folder / "attention.png")
