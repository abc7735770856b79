"""The scores of a trained run over one part of its data, as tables and pictures in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from labn.config import Config
from labn.data.batches import standardise
from labn.data.dataset import Dataset, Split
from labn.data.records import Partition
from labn.evaluate import Evaluation, evaluate, random_map
from labn.model.network import LABN, upsample_attention
from labn.report import attention_sheet, confusion_figure, curve_figure, save_figure
from labn.runs.build import (
    autocast,
    build_objective,
    choose_device,
    evaluation_batches,
    faithfulness,
    load_dataset,
    place_network,
    require_part,
    restore_network,
)
from labn.runs.folder import RunFolder, write_atomically, write_json
from labn.runs.reporting import Reporter
from labn.tracking import Tracker, open_tracker

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


def evaluate_run(run: Path, part: Partition, overrides: list[str], reporter: Reporter) -> Scores:
    """Score a run's best epoch over one part of its data, and log that to its tracker.

    Raises:
        UserError: there is no such run, no trained network in it, or no such part.
    """
    folder = RunFolder(run)
    config = folder.load_config(overrides)
    best = folder.load_best()
    device = choose_device(config)
    dataset = load_dataset(config, reporter)
    require_part(dataset, part)
    model = place_network(restore_network(best, config), config, device)
    scores = score_part(config, dataset, model, part, folder.evaluation(part), reporter)
    tracker = open_run_tracker(config, folder)
    tracker.log_metrics(scores.metrics, step=best["epoch"])
    log_scores(tracker, scores, part)
    tracker.finish("FINISHED")
    return scores


def open_run_tracker(config: Config, folder: RunFolder) -> Tracker:
    """Open the run's entry in its tracker, a new one where it has none."""
    tracker = open_tracker(
        config.tracking.uri,
        experiment=config.tracking.experiment or f"labn/{config.data.name}",
        run_name=config.tracking.run_name or folder.path.name,
        run_id=folder.tracker_run_id,
        tags={},
        spool_dir=folder.spool,
    )
    if tracker.run_id is not None:
        folder.keep_tracker_run_id(config.tracking.uri, tracker.run_id)
    return tracker


def log_scores(tracker: Tracker, scores: Scores, part: Partition) -> None:
    """Log the tables and pictures of one part."""
    for path in sorted(scores.folder.glob("[!.]*")):  # not what a killed writer left
        tracker.log_artifact(path, f"evaluation/{part}")


def score_part(
    config: Config,
    dataset: Dataset,
    model: LABN,
    part: Partition,
    folder: Path,
    reporter: Reporter,
) -> Scores:
    """Score a network over one part; write figures, a row an image, and pictures to a folder."""
    split = require_part(dataset, part)
    device = next(model.parameters()).device
    batches = evaluation_batches(config, split, dataset.statistics, device)
    num_done = 0

    def advance() -> None:
        nonlocal num_done
        num_done += 1
        reporter.advance(f"scoring {part}", num_done, len(batches))

    with autocast(config, device):
        evaluation = evaluate(
            model,
            batches,
            build_objective(config, dataset.statistics, device),
            faithfulness(config, controls={"random": random_map(seed=config.train.seed)}),
            on_batch=advance,
        )
        maps = _shown_maps(model, dataset, split, device)
    metrics = evaluation.as_metrics(PREFIXES[part])
    write_json(folder / "metrics.json", _describe(config, evaluation, metrics))
    write_atomically(folder / "images.csv", _image_table(evaluation).to_csv(index=False))
    _draw(evaluation, dataset, split, maps, folder)
    return Scores(folder, metrics)


def _describe(config: Config, evaluation: Evaluation, metrics: dict[str, float]) -> dict[str, Any]:
    """Say what was measured and how, so that a figure can be quoted with its terms."""
    pids = {"attention": evaluation.pid, **evaluation.control_pids}
    return {
        "metrics": metrics,
        "num_images": len(evaluation.names),
        "confusion": evaluation.classification.confusion.tolist(),
        "pid": {
            "patch_size": config.validation.pid_patch_size,
            "baseline": "bias image",
            "order": "most important first, ties row by row",
            "num_positives": len(evaluation.pid_names),
            "methods": {
                name: {
                    "mean": scores.pid.mean().item(),
                    "std": scores.pid.std(unbiased=True).item() if len(scores.pid) > 1 else None,
                    "num_points": len(scores.fractions),
                }
                for name, scores in pids.items()
                if scores is not None
            },
        },
    }


def _image_table(evaluation: Evaluation) -> pd.DataFrame:
    table = pd.DataFrame({"name": evaluation.names, "label": evaluation.labels.numpy()})
    table["predicted"] = evaluation.probabilities.argmax(dim=1).numpy()
    for index, column in enumerate(evaluation.probabilities.T.numpy()):
        table[f"probability_{index}"] = column
    pids = {"pid": evaluation.pid}
    pids |= {f"pid_{name}": scores for name, scores in evaluation.control_pids.items()}
    for name, scores in pids.items():
        if scores is not None:
            by_name = dict(zip(evaluation.pid_names, scores.pid.tolist(), strict=True))
            table[name] = table["name"].map(by_name)
    return table


@dataclass(frozen=True)
class _ShownMaps:
    positions: np.ndarray
    maps: np.ndarray


def _shown_maps(model: LABN, dataset: Dataset, split: Split, device: torch.device) -> _ShownMaps:
    """Explain the images that the sheet shows: the first positives and negatives by name."""
    positives = np.flatnonzero(split.labels > 0)[:_NUM_POSITIVES_SHOWN]
    negatives = np.flatnonzero(split.labels == 0)[:_NUM_NEGATIVES_SHOWN]
    positions = np.concatenate([positives, negatives])
    images = standardise(split.pixels(positions), dataset.statistics, device)
    with torch.inference_mode():
        attention = model(images).attention.float()
    maps = upsample_attention(attention, (images.shape[2], images.shape[3]))
    return _ShownMaps(positions, maps.cpu().numpy())


def _draw(
    evaluation: Evaluation, dataset: Dataset, split: Split, shown: _ShownMaps, folder: Path
) -> None:
    pids = {}
    if evaluation.pid is not None:
        pids = dict(zip(evaluation.pid_names, evaluation.pid.pid.tolist(), strict=True))
        figure = curve_figure(
            evaluation.pid.fractions.numpy(),
            evaluation.pid.insertion_curve.numpy(),
            evaluation.pid.deletion_curve.numpy(),
            evaluation.pid.pid.numpy(),
        )
        save_figure(figure, folder / "curves.png")
    confusion = evaluation.classification.confusion.numpy()
    save_figure(confusion_figure(confusion, dataset.class_names), folder / "confusion.png")
    titles = []
    for position in shown.positions:
        name, label = split.names[position], int(split.labels[position])
        probability = evaluation.probabilities[position, 1:].sum().item()
        score = f", PID {pids[name]:.2f}" if name in pids else ""
        titles.append(
            f"{name} ({dataset.class_names[label]})\np(positive) {probability:.2f}{score}"
        )
    masks = None
    if split.masks is not None:
        masks = [
            split.masks[split.indices[position]] if split.has_mask[position] else None
            for position in shown.positions
        ]
    sheet = attention_sheet(split.pixels(shown.positions), shown.maps, titles, masks)
    save_figure(sheet, folder / "attention.png")
