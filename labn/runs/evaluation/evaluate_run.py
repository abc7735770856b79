"""Evaluation of a trained run on one subset of its data, as tables and figures in its folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from labn.data.dataset import Dataset, Subset
from labn.data.readers.reader import SubsetName
from labn.errors import UserError
from labn.metrics.calibration import fit_temperature
from labn.runs.build import build_objective, evaluation_batches, require_subset
from labn.runs.evaluation.evaluation_figures import (
    draw_attention,
    draw_confusion,
    draw_curves,
    draw_examples,
    draw_failures,
    draw_reliability,
    draw_spread,
    prediction,
    run_and_subset,
)
from labn.runs.evaluation.evaluation_tables import (
    Failures,
    explanation_metrics,
    find_failures,
    skill_metrics,
)
from labn.runs.evaluation.image_scores import (
    PerImageScores,
    build_scorer,
    choose_layer,
    chosen_positions,
    fingerprint,
    score_explanations,
)
from labn.runs.evaluation.options import (
    EvaluationOptions,
    changes_of,
    check_subsets_kept,
    prefix_of,
)
from labn.runs.evaluation.outputs import (
    ATTENTION,
    describe,
    describe_settings,
    remove_earlier,
    write_classification,
    write_per_image_scores,
)
from labn.runs.evaluation.score_image import pid_name
from labn.runs.out_of_memory import evaluation_memory
from labn.runs.reporter import Reporter
from labn.runs.tracked import reopened_entry
from labn.runs.trained import TrainedRun
from labn.storage.files import write_atomically, write_json
from labn.tracking import Tracker
from labn.training.evaluate import Evaluation, evaluate

_NUM_POSITIVES_SHOWN = 6
_NUM_NEGATIVES_SHOWN = 3


@dataclass(frozen=True)
class Scores:
    """The metrics of one subset, and the folder of its tables and figures."""

    folder: Path
    metrics: dict[str, float]

    @property
    def pictures(self) -> list[Path]:
        """The paths of the figures."""
        return sorted(self.folder.glob("*.png"))

    @property
    def tables(self) -> list[Path]:
        """The paths of the tables in Markdown."""
        return sorted(self.folder.glob("*.md"))


def evaluate_run(
    run: Path,
    subset: SubsetName,
    overrides: list[str],
    reporter: Reporter,
    choices: Mapping[str, Any] | None = None,
) -> Scores:
    """Evaluate a run's best epoch on one subset of its data, and log the scores to its tracker.

    ``choices`` override the defaults of ``EvaluationOptions``. An interrupted evaluation is resumed
    by the same call.

    Raises:
        UserError: there is no such run, no trained network in it, no such subset, no positive in
            it, or an option is invalid.
    """
    trained = TrainedRun.open(run, overrides)
    recorded = trained.folder.load_config(needs=())
    if trained.config.data.new_images != "assign":  # by the same settings
        check_subsets_kept(recorded, trained.config)
    changes = changes_of(recorded, trained.config)
    options = EvaluationOptions.of(trained.config, {**(choices or {}), "changes": changes})
    dataset = trained.load_dataset(reporter)
    if not (require_subset(dataset, subset).labels > 0).any():
        raise UserError(
            f"--subset {subset}: holds no positives, and explanations are scored on positives only;"
            " give another subset"
        )
    config, folder = trained.config, trained.folder
    # The tracker is opened first, so that a wrong address is reported before the work.
    with (
        folder.claimed_evaluation(options.place(subset)) as place,
        reopened_entry(config, folder) as tracker,
    ):
        evaluation = SubsetEvaluation(trained, dataset, subset, options, place, reporter)
        scores = evaluation.complete()
        tracker.log_metrics(scores.metrics, step=trained.best["epoch"])
        log_scores(tracker, scores)
    return scores


def log_scores(tracker: Tracker, scores: Scores) -> None:
    """Log the files of one subset's evaluation."""
    for path in sorted(scores.folder.glob("[!.]*")):  # without temporary files of a killed writer
        if path.is_file():
            tracker.log_artifact(path, f"evaluation/{scores.folder.name}")


@dataclass(frozen=True, eq=False)
class SubsetEvaluation:
    """The evaluation of a trained run on one subset of its data, written to a folder.

    With ``draws_maps``, every method's maps and the network's failures are drawn as well.
    """

    trained: TrainedRun
    dataset: Dataset
    subset: SubsetName
    options: EvaluationOptions
    folder: Path
    reporter: Reporter
    draws_maps: bool = True

    def complete(self) -> Scores:
        """Classify and explain; write metrics, tables and figures."""
        subset, folder, class_names = self.subset, self.folder, self.dataset.class_names
        prefix = prefix_of(self.options.place(subset))
        parts = folder / f"parts-{fingerprint(self.trained, self.dataset.digest, self.options)}"
        with evaluation_memory(self.trained.config):
            evaluation = self._classify()
            temperature = self._temperature(evaluation)
            per_image = self._score_explanations(parts, temperature)
        metrics = evaluation.as_metrics(prefix) | skill_metrics(evaluation, prefix)
        failures = None
        remove_earlier(folder)
        if per_image is not None:
            metrics |= explanation_metrics(per_image, evaluation, prefix)
            failures = find_failures(per_image, evaluation)
            write_per_image_scores(per_image, evaluation, subset, folder)
        write_classification(evaluation, failures, subset, folder)
        if temperature is not None:
            metrics[f"{prefix}_temperature"] = temperature
        self._draw(evaluation, per_image, failures)
        # Last: its presence means that all other files are complete.
        settings = describe_settings(self.options, subset)
        description = describe(
            evaluation, class_names, settings, per_image, failures, metrics, temperature
        )
        write_json(folder / "metrics.json", description)
        shutil.rmtree(parts, ignore_errors=True)
        return Scores(folder, metrics)

    @property
    def _images(self) -> Subset:
        return require_subset(self.dataset, self.subset)

    def _temperature(self, evaluation: Evaluation) -> float | None:
        """Return the network's temperature, fitted on the validation subset; None without one."""
        if not len(self.dataset.subsets["validation"]):
            return None
        if self.subset != "validation":
            evaluation = replace(self, subset="validation")._classify(with_divergence=False)
        return fit_temperature(evaluation.probabilities, evaluation.labels)

    def _classify(self, *, with_divergence: bool = True) -> Evaluation:
        trained, num_done = self.trained, 0
        config, statistics, device = trained.config, trained.statistics, trained.device
        batches = evaluation_batches(self._images, statistics, config, device)

        def advance() -> None:
            nonlocal num_done
            num_done += 1
            self.reporter.advance(f"classifying {self.subset}", num_done, len(batches))

        has_branch = trained.model.has_branch
        objective = build_objective(config.loss, statistics, device, has_branch=has_branch)
        if not with_divergence:
            objective = replace(objective, lambda_kl=0.0)  # which saves a pass
        with trained.autocast():
            return evaluate(trained.model, batches, objective, None, on_batch=advance)

    def _score_explanations(self, parts: Path, temperature: float | None) -> PerImageScores | None:
        """Score the explanations of positives, each stored in ``parts``; None without positives."""
        images, trained, options = self._images, self.trained, self.options
        positions = chosen_positions(images, options.max_images)
        if not positions:
            return None
        validation = self.dataset.subsets["validation"]
        layer = choose_layer(trained, validation, options, parts, self.reporter)
        scorer = build_scorer(
            trained, images, options, layer["layer"] if layer else None, temperature
        )
        return score_explanations(scorer, positions, layer, parts, self.reporter)

    def _draw(
        self, evaluation: Evaluation, per_image: PerImageScores | None, failures: Failures | None
    ) -> None:
        folder, score = self.folder, pid_name(self.options.headline_patch_size)
        place = run_and_subset(self.trained, self.subset)
        draw_confusion(evaluation, self.dataset.class_names, place, folder / "confusion.png")
        draw_reliability(evaluation, place, folder / "reliability.png")
        if self.trained.model.has_branch:
            self._draw_sheet(evaluation, per_image.values("LABN", score) if per_image else {})
        if per_image is None:
            return
        if self.options.tolerance is None:  # otherwise each curve has its own points
            draw_curves(per_image, score, place, folder / "curves.png")
        if self.draws_maps:
            self.reporter.message("drawing examples")
            draw_examples(per_image, evaluation, score, place, folder / "examples.png")
            if failures is not None:
                draw_failures(failures, per_image, evaluation, folder)

    def _draw_sheet(self, evaluation: Evaluation, pids: Mapping[str, float]) -> None:
        """Draw the attention of the first positives and negatives, sorted by name."""
        images = self._images
        order = sorted(range(len(images)), key=images.names.__getitem__)
        positions = [p for p in order if images.labels[p] > 0][:_NUM_POSITIVES_SHOWN]
        positions += [p for p in order if images.labels[p] == 0][:_NUM_NEGATIVES_SHOWN]
        pixels = images.pixels(np.array(positions))
        views = self.trained.attention_over_views(pixels)
        maps = views[0]
        titles = []
        for position in positions:
            name, label = images.names[position], self.dataset.class_names[images.labels[position]]
            pid = f", PID {pids[name]:z.2f}" if name in pids else ""
            found = prediction(self.dataset.class_names, evaluation, position)
            titles.append(f"{name} ({label}){pid}\n{found}")
        place = run_and_subset(self.trained, self.subset)
        heading = (
            f"Attention of {place}, first by name"
            + (f"; PID with m = {self.options.headline_patch_size}" if pids else "")
            + ". Right or wrong: the class predicted, and its probability"
        )
        kept: dict[str, Any] = {
            "images": pixels,
            "attention": maps.astype(np.float16),
            "spread": views.std(axis=0).astype(np.float16),
            "names": [images.names[position] for position in positions],
            "titles": titles,
        }
        write_atomically(self.folder / ATTENTION, lambda file: np.savez_compressed(file, **kept))
        path, theta_alpha = self.folder / "attention.png", self.trained.model.theta_alpha
        draw_attention(maps, positions, images, titles, path, heading, theta_alpha)
        draw_spread(maps, views, positions, images, self.folder / "spread.png", place)
