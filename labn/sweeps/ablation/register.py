"""Registration of the best condition's network in the tracker, with a model card.

Conditions are ranked by validation, not by the subset of the report: the test scores of a network
chosen on test images would be biased.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from labn.errors import RunFailed
from labn.runs.folder import RunFolder
from labn.runs.reporter import Reporter
from labn.runs.tracked import reopened_entry
from labn.runs.trained import TrainedRun, without_data
from labn.storage.files import write_atomically
from labn.sweeps.ablation.ablation_study import AblationRun, AblationStudy, settings_as_text
from labn.sweeps.worker import describe_error, validation_metrics
from labn.tracking import register_model, save_servable

logger = logging.getLogger(__name__)

_SCORE = "val_pid"
_QUALITY = "val_auroc"


def register_best(study: AblationStudy, reporter: Reporter) -> Path | None:
    """Register the best run of the condition with the best mean validation PID.

    Return the file of its model card; None where no run is finished or nothing is tracked, or the
    network's AUROC is below ``register_min_auroc``.
    """
    finished = [
        run
        for run in study.runs()
        # A network without an attention branch has none.
        if study.is_finished(run) and _SCORE in validation_metrics(run.config.output_dir)
    ]
    if not finished or study.base.tracking.uri == "none":
        return None
    scores = {run.name: validation_metrics(run.config.output_dir)[_SCORE] for run in finished}
    by_condition = {
        name: fmean(scores[run.name] for run in finished if run.condition == name)
        for name in dict.fromkeys(run.condition for run in finished)
    }
    condition = max(by_condition, key=lambda name: by_condition[name])
    runs = [run for run in finished if run.condition == condition]
    best = max(runs, key=lambda run: scores[run.name])
    auroc = validation_metrics(best.config.output_dir)[_QUALITY]
    floor = study.settings.register_min_auroc
    if auroc < floor:
        reporter.message(
            f"{best.name} is not registered: its {_QUALITY} is {auroc:.3f}, below"
            f" register_min_auroc = {floor:g} (0.5 is chance)"
        )
        return None
    card = _card(study, best, runs)
    file = study.settings.output_dir / "report" / "model_card.md"
    write_atomically(file, card)
    name = f"labn-{study.base.data.name}"
    metrics = _metrics(best)
    tags = {key: f"{value:.4f}" for key, value in metrics.items()}
    tags |= {"condition": condition, "seed": str(best.seed), "study": study.settings.title}
    try:
        version = _register(best, name=name, card=card, tags=tags)
    # A failed export or tracker must not break a finished study and its report.
    except Exception as error:
        reporter.message(f"{best.name} is not registered: {describe_error(error)}")
        logger.debug("the registration failed here", exc_info=True)
    else:
        reporter.message(f"registered {best.name} as {name}, version {version}")
    return file


def _register(run: AblationRun, *, name: str, card: str, tags: Mapping[str, str]) -> int:
    """Register the network of a run, logged first if it was not; return the version."""
    uri, run_id = run.config.tracking.uri, RunFolder(run.config.output_dir).tracker_run_id
    assert run_id is not None, f"{run.name} was tracked"
    version = register_model(uri, run_id, name=name, card=card, tags=tags)
    if version is None:
        _log_network(run)
        version = register_model(uri, run_id, name=name, card=card, tags=tags)
    if version is None:
        raise RunFailed("the tracker has not received the network; run the same command again")
    return version


def _log_network(run: AblationRun) -> None:
    trained = TrainedRun.open(run.config.output_dir, without_data(["train.device=cpu"]))
    with tempfile.TemporaryDirectory() as scratch:
        exported = Path(scratch, "model")
        try:
            save_servable(trained.model, trained.preparation, exported)
        except Exception as error:
            raise RunFailed(f"the network cannot be exported ({describe_error(error)})") from error
        with reopened_entry(run.config, trained.folder) as entry:
            entry.log_saved_model(exported)


def _metrics(run: AblationRun) -> dict[str, float]:
    """Return the main metrics of a network, on validation and on the scored subset."""
    outcome, every = run.outcome, validation_metrics(run.config.output_dir)
    every |= outcome.metrics if outcome else {}
    wanted = ("pid", "pid_random", "auroc", "accuracy", "tss")
    named = re.compile(rf"[a-z]+_(first\d+_)?({'|'.join(wanted)})")
    return {key: value for key, value in every.items() if named.fullmatch(key)}


def _card(study: AblationStudy, best: AblationRun, runs: Sequence[AblationRun]) -> str:
    config, metrics = best.config, _metrics(best)
    lines = [
        f"# {best.name} of {study.settings.title}",
        "",
        f"A {config.model.backbone} with B = {config.model.split}, which classifies images of"
        f" {config.data.name} and explains itself by an attention map (Lambda Attention Branch"
        " Networks, Iida et al., ACCV 2022).",
        "",
        f"- Condition {best.condition}: {settings_as_text(study.differing()[best.condition])}.",
        f"- Chosen by {_SCORE}: the mean over the condition's seeds (n = {len(runs)}) was the"
        " highest, and this seed's the highest among them. Its own value is therefore biased"
        " upwards.",
        "- Input: images of any size, as a list of PIL images or arrays of bytes; the model resizes"
        f" them to {config.data.image_size} x {config.data.image_size} pixels and standardises"
        " them. Output: probabilities and attention.",
        f"- Scored on the {study.settings.evaluate.split} subset.",
        "- For research only. It was neither made nor tested for decisions about patients or"
        " warnings.",
        "",
        "| score | this run | mean ± s.d. of the condition's seeds |",
        "| :-- | --: | --: |",
    ]
    every = [_metrics(run) for run in runs]
    for name, value in metrics.items():
        lines.append(f"| {name} | {value:.3f} | {_mean([one[name] for one in every])} |")
    return "\n".join(lines) + "\n"


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread} (n = {len(values)})"
