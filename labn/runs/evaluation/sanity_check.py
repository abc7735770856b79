"""Sanity check of a run's explanations, as a table and a figure in its folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from labn.data.readers.reader import SubsetName
from labn.errors import UserError
from labn.explain.attention import lambda_attentions
from labn.explain.method import Method
from labn.explain.randomisation import SanityCheck, cascade
from labn.explain.registry import LAMBDA_ATTENTION, MethodContext, build_method
from labn.model.network import LABN
from labn.report import save_figure
from labn.report.randomisation_figure import sanity_figure
from labn.runs.build import build_network, require_subset
from labn.runs.evaluation.evaluation_figures import run_and_subset
from labn.runs.evaluation.options import NUM_MASKS, EvaluationOptions
from labn.runs.reporter import Reporter
from labn.runs.trained import TrainedRun
from labn.storage.files import write_json

_QUICK = ("LABN", LAMBDA_ATTENTION, "Grad-CAM", "input gradient", "edges")


@dataclass(frozen=True)
class SanityFiles:
    """The result of a sanity check, and its files."""

    check: SanityCheck
    table: Path
    picture: Path


def quick_methods(
    model: LABN, names: Sequence[str] | None = None, bias_image: Tensor | None = None
) -> Sequence[Method]:
    """Build the named methods; without names those of one or two passes, all but RISE.

    Lambda attention is that of the last layer before the attention branch, or of the first of all.
    """
    context = MethodContext(
        model=model,
        # Of the network itself, whose weights are replaced later.
        predict=lambda images: model(images).logits.softmax(dim=1),
        num_masks=NUM_MASKS,
        seed=0,
        lambda_layer=max(model.split - 1, 0),
        bias_image=bias_image,
    )
    absent = set() if model.has_branch else {"LABN"}
    if not lambda_attentions(model):
        absent.add(LAMBDA_ATTENTION)
    chosen = names or [name for name in _QUICK if name not in absent]
    return [build_method(name, context) for name in chosen]


def check_run(
    run: Path,
    subset: SubsetName,
    methods: Sequence[str] | None,
    num_images: int,
    seed: int,
    reporter: Reporter,
    overrides: Sequence[str] = (),
) -> SanityFiles:
    """Randomise a run's best network layer by layer, and compare its maps with the trained ones.

    ``methods`` are names, None for the quick ones. The maps are of the subset's first
    ``num_images`` positives and their true classes, in float32. ``seed`` is for the weights that
    replace the trained ones, and the classes of the random logit.

    Raises:
        UserError: there is no such run, no trained network in it, no positive in the subset, or the
            data differs from that of training; or the network has no such method.
    """
    trained = TrainedRun.open(run, overrides)
    if methods is not None:
        methods = EvaluationOptions.of(trained.config, {"methods": tuple(methods)}).methods
    images = require_subset(trained.load_dataset(reporter), subset)
    positives = np.flatnonzero(images.labels > 0)[:num_images]
    if not len(positives):
        raise UserError(f"{run}: the {subset} subset has no positive image; give another subset")
    chosen = images.select(positives)
    check = cascade(
        trained.model,
        _untrained_network(trained, seed),
        lambda model: quick_methods(model, methods, trained.statistics.bias_image),
        trained.prepare(chosen.pixels(np.arange(len(chosen)))),
        torch.from_numpy(chosen.labels).to(trained.device),
        chosen.names,
        on_stage=partial(reporter.advance, "randomising layers"),
        seed=seed,
    )
    folder = trained.folder.evaluation(subset)
    files = SanityFiles(check, folder / "sanity.json", folder / "sanity.png")
    write_json(files.table, _describe(check, chosen.names, seed))
    place = run_and_subset(trained, subset)
    save_figure(sanity_figure(check.as_rows(), len(chosen), place), files.picture)
    return files


def _untrained_network(trained: TrainedRun, seed: int) -> LABN:
    # Not the initial weights of training, which the trained ones still resemble.
    (network_seed,) = np.random.SeedSequence([trained.config.train.seed, seed, 1]).generate_state(1)
    best = trained.best
    return build_network(
        trained.config.model, best["num_channels"], len(best["class_names"]), seed=int(network_seed)
    )


def _describe(check: SanityCheck, names: Sequence[str], seed: int) -> dict[str, object]:
    return {
        "measure": "Spearman correlation of each map with the trained network's, cascading",
        "seed": seed,
        "images": list(names),
        "stages": list(check.stages),
        "rows": check.as_rows(),
        "correlations": {
            method: [_finite(row) for row in values]
            for method, values in check.correlations.items()
        },
        "figure_rows": check.as_figures(),
        "figures": {
            figure: {method: _finite(values) for method, values in by_method.items()}
            for figure, by_method in check.figures.items()
        },
    }


def _finite(values: Iterable[float]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
