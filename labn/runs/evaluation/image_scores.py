"""Per-image scores of explanations, saved one by one: a killed process loses at most one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from labn.data.dataset import Subset
from labn.errors import UserError
from labn.explain.attention import lambda_attentions
from labn.explain.method import Method
from labn.explain.registry import LAMBDA_ATTENTION, MethodContext, build_method
from labn.metrics.faithfulness import Predict
from labn.runs.evaluation.measure_maps import PassCounter, explain_counted, measure_maps
from labn.runs.evaluation.options import EvaluationOptions
from labn.runs.evaluation.score_image import (
    ImageScores,
    Measure,
    Sample,
    explain,
    measures,
    pid_name,
    score_image,
)
from labn.runs.reporter import Reporter
from labn.runs.trained import TrainedRun
from labn.storage.files import write_atomically
from labn.training.evaluate import predictor

_NUM_IMAGES_TO_CHOOSE_BY = 16


@dataclass(frozen=True, eq=False)
class Scorer:
    """A scorer of one subset's images by position; it builds the methods and ``predict`` once."""

    trained: TrainedRun
    subset: Subset
    options: EvaluationOptions
    methods: tuple[Method, ...]
    measures: tuple[Measure, ...]
    predict: Predict
    temperature: float | None = None
    counter: PassCounter = field(default_factory=PassCounter)

    def only(self, name: str) -> Scorer:
        """Return a scorer with one of the methods only."""
        return replace(self, methods=tuple(m for m in self.methods if m.name == name))

    def sample(self, position: int) -> Sample:
        """Read the image at one position of the subset."""
        subset = self.subset
        mask = None
        if subset.masks is not None and subset.has_mask[position]:
            mask = subset.masks[subset.indices[position]]
        return Sample(
            name=subset.names[position],
            label=int(subset.labels[position]),
            image=self.trained.prepare(subset.pixels(np.array([position])))[0],
            mask=mask,
        )

    def maps(self, position: int) -> dict[str, Float[np.ndarray, "h w"]]:
        """Return each method's map of the image at one position, by the method's name."""
        with self.trained.autocast():
            maps = explain(self.sample(position), self.methods).cpu().numpy()
        return {method.name: single for method, single in zip(self.methods, maps, strict=True)}

    def score(self, position: int) -> ImageScores:
        """Score the image at one position of the subset."""
        trained, sample = self.trained, self.sample(position)
        with trained.autocast():
            maps, costs = explain_counted(sample, self.methods, trained.model, self.counter)
            scores = score_image(
                self.predict,
                sample,
                self.methods,
                self.measures,
                trained.statistics,
                num_points=self.options.num_points,
                tolerance=self.options.tolerance,
                batch_size=trained.config.validation.batch_size,
                temperature=self.temperature,
                protocol=self.options.protocol,
                maps=maps,
            )
            if not self.options.metrics:
                return scores
            rows = measure_maps(sample, maps, self.methods, self.predict, trained, self.options)
        return replace(scores, metrics=[*rows, *costs])


def build_scorer(
    trained: TrainedRun,
    subset: Subset,
    options: EvaluationOptions,
    layer: int | None,
    temperature: float | None = None,
) -> Scorer:
    """Build the scorer of a subset; ``layer`` is that of the method "lambda attention".

    PID is scored at matched confidence too if there is a ``temperature``.
    """
    counter, predict = PassCounter(), predictor(trained.model)
    context = MethodContext(
        model=trained.model,
        predict=counter.counting(predict),
        num_masks=options.num_masks,
        seed=options.seed,
        lambda_layer=layer,
        bias_image=trained.statistics.bias_image,
        patch_size=options.headline_patch_size,
    )
    built = (build_method(name, context) for name in options.methods)
    # By name: the layer that was chosen may have been named as well.
    methods = tuple({method.name: method for method in built}.values())
    has_matched = temperature is not None and options.tolerance is None
    wanted = measures(options.patch_sizes, options.baseline, has_matched=has_matched)
    return Scorer(trained, subset, options, methods, wanted, predict, temperature, counter)


def chosen_positions(subset: Subset, max_images: int | None) -> list[int]:
    """List the positions of at most ``max_images`` positives, sorted by name."""
    positions = np.flatnonzero(subset.labels > 0).tolist()
    return sorted(positions, key=subset.names.__getitem__)[:max_images]


def choose_layer(
    trained: TrainedRun,
    validation: Subset,
    options: EvaluationOptions,
    parts: Path,
    reporter: Reporter,
) -> dict[str, Any] | None:
    """Choose the lambda layer whose maps have the best PID on validation positives.

    At the largest patch size, over at most 16 images (Iida 2022, 5.2, names no rule). Return the
    ``layer`` and how it was chosen; None if no method requires a choice.

    Raises:
        UserError: there are several layers, but no validation positives to choose by.
    """
    if LAMBDA_ATTENTION not in options.methods:
        return None
    candidates = lambda_attentions(trained.model)
    if len(candidates) == 1:
        return {"layer": 0, "chosen_by": "the only one"}
    path = parts / "layer.json"
    if not path.is_file():
        positions = chosen_positions(validation, _NUM_IMAGES_TO_CHOOSE_BY)
        if not positions:
            raise UserError(
                f"--methods {LAMBDA_ATTENTION}: its layer is chosen by the PID of validation"
                " positives, and there are none; name a layer, such as"
                f' "{LAMBDA_ATTENTION} 0", or leave it out'
            )
        size = options.patch_sizes[-1]
        wanted = (Measure(pid_name(size), size, options.baseline),)
        exact = replace(options, tolerance=None)
        predict = predictor(trained.model)
        scorer = Scorer(trained, validation, exact, tuple(candidates), wanted, predict)
        sums = np.zeros(len(candidates))
        for done, position in enumerate(positions, start=1):
            sums += [row["value"] for row in scorer.score(position).scores]
            reporter.advance("choosing the lambda layer", done, len(positions))
        means = sums / len(positions)
        choice = {
            "layer": int(means.argmax()),
            "chosen_by": f"mean validation {pid_name(size)}, {options.baseline} baseline",
            "num_images": len(positions),
            "means_by_layer": means.tolist(),
        }
        write_atomically(path, json.dumps(choice))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def fingerprint(trained: TrainedRun, data_digest: str, options: EvaluationOptions) -> str:
    """Return a digest of the settings, weights and data that scores depend on."""
    digest = hashlib.sha256()
    score_options = asdict(options)
    for name in ("thresholds", "usual_points", "changes"):  # no score depends on these alone
        del score_options[name]
    if not options.metrics:  # as before there were any
        del score_options["metrics"]
    config = trained.config
    settings = [score_options, config.model.theta_alpha, trained.precision, data_digest]
    digest.update(json.dumps(settings).encode())
    tensors = (*trained.model.state_dict().values(), *trained.statistics.tensors().values())
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class PerImageScores:
    """Scores of the positives at these positions of a subset.

    ``scores``, ``localisation`` and ``metrics`` have the rows of ``ImageScores``; ``layer`` is the
    chosen lambda layer, and how it was chosen.
    """

    scorer: Scorer
    positions: list[int]
    scores: pd.DataFrame
    localisation: pd.DataFrame
    layer: dict[str, Any] | None
    metrics: pd.DataFrame = field(default_factory=pd.DataFrame)

    def rows(self, method: str, score: str) -> pd.DataFrame:
        """Return the rows of one method and score, one per image in the order of positions."""
        scores = self.scores
        return scores[(scores["method"] == method) & (scores["score"] == score)]

    def values(self, method: str, score: str) -> dict[str, float]:
        """Return one method's values of one score, by the image's name."""
        rows = self.rows(method, score)
        return dict(zip(rows["name"], rows["value"], strict=True))


def score_explanations(
    scorer: Scorer,
    positions: list[int],
    layer: dict[str, Any] | None,
    parts: Path,
    reporter: Reporter,
) -> PerImageScores:
    """Score the explanations of images, resuming where an earlier process stopped."""
    images = score_positions(scorer, positions, parts, reporter)
    return PerImageScores(
        scorer,
        positions,
        pd.DataFrame([row for image in images for row in image.scores]),
        pd.DataFrame([row for image in images for row in image.localisation]),
        layer,
        pd.DataFrame([row for image in images for row in image.metrics]),
    )


def score_positions(
    scorer: Scorer, positions: Sequence[int], parts: Path, reporter: Reporter
) -> list[ImageScores]:
    """Score images, each saved as a file; reuse the files of earlier processes.

    Processes that share a folder may each score a subset of the positions.
    """
    files = [parts / f"image-{position:06d}.json" for position in positions]
    num_kept = sum(file.is_file() for file in files)
    if num_kept:
        reporter.message(f"resuming: {num_kept} of {len(files)} images are scored already")
    for done, (position, file) in enumerate(zip(positions, files, strict=True), start=1):
        if not file.is_file():
            write_atomically(file, json.dumps(vars(scorer.score(position))))
        reporter.advance("scoring explanations", done, len(files))
    return [ImageScores(**json.loads(file.read_text())) for file in files]
