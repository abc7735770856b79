"""Designs of a search, compared on recorded curves in seconds instead of hours.

A surrogate of the curves of ``tests.bench.curves`` stands in for training: a Gaussian process of
the per-image PID after each epoch, to which the difference that another seed made at a similar
point is added. Two trials run at a time, as in the real searches of ``tests.bench.search``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import TrialState
from scipy.stats import binom, binomtest, wilcoxon
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from labn.config.search import PruningConfig, SamplerConfig
from labn.sweeps.search.asha import AshaByEpoch, list_rungs
from labn.sweeps.search.samplers import make_sampler, quiet_optuna
from tests.bench.curves import NUM_EPOCHS, PROBLEM, RECORDED, read_curves, to_unit
from tests.bench.timing import Row, row_of

_NUM_TRIALS_AT_ONCE = 2
_NUM_SIMILAR = 5
"""How many repeated points a draw of noise is taken from."""


class Surrogate:
    """The curves of any point: ``mean`` without noise, ``draw`` as one training gives them.

    Curves are (epochs, images): the PID of each positive image. ``error`` and ``noise`` are root
    mean square differences of the final mean PID: of predictions of points left out, and of a
    training from the mean of its repetitions. ``optimum`` is the highest true score of 4,096
    points.
    """

    def __init__(self, recorded: list[dict[str, Any]]) -> None:
        curves = np.array([[epoch["pid"] for epoch in curve["epochs"]] for curve in recorded])
        units = np.array([to_unit(curve["parameters"]) for curve in recorded])
        points = np.array([curve["point"] for curve in recorded])
        self._shape = curves.shape[1:]
        finals = curves[:, -1].mean(-1)
        # The process of the final scores smooths all curves; its length scales are fitted once.
        scales = np.full(units.shape[1], 0.5)
        kernel = ConstantKernel() * Matern(scales, (0.05, 10), nu=2.5) + WhiteKernel(0.1)
        process = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=2)
        process.fit(units, finals)
        self._kernel, self._units = process.kernel_.k1, units
        inverse = np.linalg.inv(process.kernel_(units))
        self._centre = curves.reshape(len(curves), -1).mean(0)
        self._weights = inverse @ (curves.reshape(len(curves), -1) - self._centre)
        # Of a training left out, by the inverse (Rasmussen and Williams 2006, 5.12).
        errors = (inverse @ (finals - finals.mean())) / np.diag(inverse)
        is_single = np.isin(points, [p for p in points if (points == p).sum() == 1])
        self.error = float(np.sqrt(np.mean(errors[is_single] ** 2)))
        self._repeated, self._residuals = [], []
        for point in dict.fromkeys(points):
            same = curves[points == point]
            if len(same) > 1:
                self._repeated.append(units[points == point][0])
                scale = np.sqrt(len(same) / (len(same) - 1))
                self._residuals.append((same - same.mean(0)) * scale)
        self.noise = float(np.sqrt(np.mean([r[:, -1].mean(-1) ** 2 for r in self._residuals])))
        grid = np.random.default_rng(0).random((4096, units.shape[1]))
        self.optimum = max(float(self.mean(unit).mean(1).max()) for unit in grid)

    def mean(self, unit: np.ndarray) -> np.ndarray:
        """Return the curves of a point without noise."""
        curves = self._centre + (self._kernel(unit[None], self._units) @ self._weights)[0]
        return np.asarray(curves.reshape(self._shape))

    def draw(self, unit: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Return the curves of one training."""
        distances = [((place - unit) ** 2).sum() for place in self._repeated]
        similar = self._residuals[random.choice(np.argsort(distances)[:_NUM_SIMILAR])]
        drawn: np.ndarray = self.mean(unit) + random.choice(similar)
        return drawn


@dataclass
class _Trial:
    trial: optuna.Trial
    curves: np.ndarray
    true_score: float
    epoch: int = 0
    scores: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        return max(self.scores)


@dataclass(frozen=True, kw_only=True)
class Design:
    """One way to search.

    ``smooth`` epochs are averaged in a score; ``stops`` decides after an epoch, given the trial and
    the best one so far; ``counts_pruned`` passes the last scores of pruned trials to a sampler
    that ignores those trials. ``racing`` is the share of the budget for new seeds of the best.
    """

    sampler: str = "tpe"
    pruning: PruningConfig | None = None
    smooth: int = 1
    paired: bool = False
    hyperband: bool = False
    counts_pruned: bool = False
    racing: float = 0.0


_DEFAULT = "TPE, ASHA (the default)"
DESIGNS = {
    "random": Design(sampler="random"),
    "TPE": Design(),
    _DEFAULT: Design(pruning=PruningConfig()),
    "random, ASHA": Design(sampler="random", pruning=PruningConfig()),
    "TPE, ASHA from epoch 1": Design(pruning=PruningConfig(grace_epochs=1)),
    "TPE, ASHA, half continue": Design(pruning=PruningConfig(reduction=2)),
    "TPE, one epoch, then a ninth": Design(pruning=PruningConfig(grace_epochs=1, reduction=9)),
    "TPE, ASHA, mean of 3 epochs": Design(pruning=PruningConfig(), smooth=3),
    "TPE, paired test at the rungs": Design(pruning=PruningConfig(), paired=True),
    "TPE, HyperBand": Design(hyperband=True),
    "TPE, ASHA, racing": Design(pruning=PruningConfig(), racing=0.25),
    "GP": Design(sampler="gp"),
    "GP, ASHA, pruned scores count": Design(
        sampler="gp", pruning=PruningConfig(), counts_pruned=True
    ),
    "CMA-ES": Design(sampler="cmaes"),
}


@dataclass(frozen=True)
class Replay:
    """One search: after each epoch, the highest score, and the true score of the trial chosen."""

    highest: np.ndarray
    chosen: np.ndarray


def replay(design: Design, surrogate: Surrogate, seed: int, num_epochs: int) -> Replay:
    """Search once, for this many epochs of training."""
    return _Search(design, surrogate, seed).run(num_epochs)


class _Search:
    def __init__(self, design: Design, surrogate: Surrogate, seed: int) -> None:
        self._design, self._surrogate, self._seed = design, surrogate, seed
        self._random = np.random.default_rng(seed)
        self._stopped: set[int] = set()
        quiet_optuna()
        self._study = optuna.create_study(
            # HyperBand deals trials to its brackets by this name, which is random otherwise.
            study_name=f"replay {seed}",
            direction="maximize",
            sampler=_sampler(design.sampler, seed),
            pruner=optuna.pruners.HyperbandPruner(1, NUM_EPOCHS)
            if design.hyperband
            else optuna.pruners.NopPruner(),
        )
        self._asha = None
        if design.pruning is not None:
            self._asha = AshaByEpoch(
                design.pruning,
                metric="score",
                num_epochs=NUM_EPOCHS,
                on_prune=lambda number, _: self._stopped.add(number),
            )
        self._rungs = list_rungs(design.pruning, NUM_EPOCHS) if design.pruning else ()
        self._all: list[_Trial] = []
        self._finished: list[_Trial] = []
        self._again: dict[int, list[float]] = {}

    def run(self, num_epochs: int) -> Replay:
        running: list[_Trial] = []
        highest, chosen = list[float](), list[float]()
        while len(highest) < num_epochs:
            if len(highest) >= (1 - self._design.racing) * num_epochs and self._finished:
                used = self._repeat_best()
            else:
                while len(running) < _NUM_TRIALS_AT_ONCE:
                    running.append(self._start())
                trial = running.pop(0)
                if self._continues(trial):
                    running.append(trial)
                used = 1
            best = self._choose()
            highest += [best.best if best else -np.inf] * used
            chosen += [best.true_score if best else -np.inf] * used
        return Replay(np.maximum.accumulate(highest[:num_epochs]), np.array(chosen[:num_epochs]))

    def _start(self) -> _Trial:
        trial = self._study.ask()
        for key, domain in PROBLEM["space"].items():
            is_log = domain.get("log", False)
            distribution = FloatDistribution(domain["low"], domain["high"], log=is_log)
            trial._suggest(key, distribution)
        unit = np.array(to_unit(trial.params))
        means = self._surrogate.mean(unit).mean(1)
        started = _Trial(trial, self._surrogate.draw(unit, self._random), float(means.max()))
        self._all.append(started)
        if self._asha:
            self._asha.on_trial_add(None, _as_tune(trial.number))
        return started

    def _continues(self, trial: _Trial) -> bool:
        """Train an epoch; conclude the trial if it is the last or it is stopped."""
        trial.epoch += 1
        means = trial.curves[: trial.epoch].mean(1)
        trial.scores.append(float(means[-self._design.smooth :].mean()))
        trial.trial.report(trial.scores[-1], trial.epoch)
        if trial.epoch == NUM_EPOCHS:
            self._study.tell(trial.trial, trial.best)
            self._finished.append(trial)
            return False
        if self._is_stopped(trial):
            if self._design.counts_pruned:
                self._study.tell(trial.trial, trial.best)
            else:
                self._study.tell(trial.trial, state=TrialState.PRUNED)
            return False
        return True

    def _is_stopped(self, trial: _Trial) -> bool:
        if self._design.hyperband:
            return trial.trial.should_prune()
        if self._design.paired:
            return trial.epoch in self._rungs and self._is_worse(trial)
        if self._asha is None:
            return False
        number = trial.trial.number
        result = {"epoch": trial.epoch, "score": trial.scores[-1]}
        self._asha.on_trial_result(None, _as_tune(number), result)
        return number in self._stopped

    def _is_worse(self, trial: _Trial) -> bool:
        """Return whether the best trial so far is better on the same images after this epoch."""
        if not self._finished:
            return False
        best = max(self._finished, key=lambda one: one.best)
        difference = trial.curves[trial.epoch - 1] - best.curves[trial.epoch - 1]
        return bool(wilcoxon(difference, alternative="less").pvalue < 0.1)

    def _repeat_best(self) -> int:
        """Train the trial of the best lower-noise score with another seed; return the epochs."""
        candidates = sorted(self._finished, key=lambda one: -one.best)[:5]
        least = min(candidates, key=lambda one: len(self._again.get(one.trial.number, [])))
        unit = np.array(to_unit(least.trial.params))
        curves = self._surrogate.draw(unit, self._random)
        self._again.setdefault(least.trial.number, []).append(float(curves.mean(1).max()))
        return NUM_EPOCHS

    def _choose(self) -> _Trial | None:
        """Return the best finished trial; of those trained again, by the mean without the first.

        The first score won among many, so it is too high.
        """
        if not self._finished:
            return None
        if self._again:
            means = {number: np.mean(scores) for number, scores in self._again.items()}
            number = max(means, key=lambda one: means[one])
            return next(one for one in self._finished if one.trial.number == number)
        return max(self._finished, key=lambda one: one.best)


def _sampler(name: str, seed: int) -> BaseSampler:
    settings = SamplerConfig(name=name, seed=seed)
    return make_sampler(settings, num_known=0, is_conditional=False, num_objectives=1)


def _as_tune(number: int) -> Any:
    return type("Trial", (), {"config": {"number": number}})()


NUM_TRIALS = 24
"""Of random search, whose best score is the target."""
_AFTER = (8, 16, 24, 48)
"""Trials of all epochs after whose cost the regret is given."""


def replay_rows(num_rounds: int, names: Sequence[str] = tuple(DESIGNS)) -> list[Row]:
    """Replay every design 40 times a round; print the table, and return the default's row."""
    surrogate = Surrogate(read_curves(RECORDED))
    print(
        f"  surrogate: final val_pid of points left out to {surrogate.error:.3f} (root mean square;"
        f" noise of a training {surrogate.noise:.3f}); highest true score {surrogate.optimum:.3f}",
        flush=True,
    )
    whole, seeds = NUM_TRIALS * NUM_EPOCHS, range(40 * num_rounds)
    most = max(_AFTER) * NUM_EPOCHS
    # Of other seeds than the designs, which would draw the same points at first.
    others = [replay(DESIGNS["random"], surrogate, 10_000 + seed, whole) for seed in seeds]
    needed = dict[str, list[float]]()
    for name in dict.fromkeys((_DEFAULT, *names)):
        replays = [replay(DESIGNS[name], surrogate, seed, most) for seed in seeds]
        pairs = zip(replays, others, strict=True)
        needed[name] = [_epochs_to(*pair) for pair in pairs]
        line = _line(name, np.array(needed[name]), replays, surrogate.optimum)
        print(f"  {line}", flush=True)
    name = "search: epochs until random search's best val_pid, the default against random (replays)"
    return [
        row_of(name, needed[_DEFAULT], [float(whole)] * len(seeds), "epochs", at_least=1 / 0.35)
    ]


def _epochs_to(one: Replay, random: Replay) -> float:
    """Return the epochs until the best score of random search; infinite if it is not reached."""
    whole = NUM_TRIALS * NUM_EPOCHS
    reached = np.flatnonzero(one.highest[:whole] >= random.highest[whole - 1])
    return float(reached[0] + 1) if len(reached) else math.inf


def _line(name: str, needed: np.ndarray, replays: list[Replay], optimum: float) -> str:
    whole, num = NUM_TRIALS * NUM_EPOCHS, len(needed)
    # The order statistics between which the median lies with 95 % probability.
    low, high = binom.interval(0.95, num, 0.5)
    ordered = np.sort(needed) / whole
    num_failed = int(np.isinf(needed).sum())
    failed = binomtest(num_failed, num).proportion_ci(method="wilson")
    interval = f"{_share(ordered[int(low)])} to {_share(ordered[min(int(high), num - 1)])}"
    cells = [
        f"{_share(float(np.median(ordered)))} of random's epochs ({interval})",
        f"never {num_failed / num:.1%} ({failed.low:.1%} to {failed.high:.1%})",
    ]
    for trials in _AFTER:
        regrets = np.array([optimum - one.chosen[trials * NUM_EPOCHS - 1] for one in replays])
        regrets = regrets[np.isfinite(regrets)]
        half = 1.96 * regrets.std(ddof=1) / math.sqrt(len(regrets))
        cells.append(f"regret after {trials} {regrets.mean():.3f} +- {half:.3f}")
    return f"{name}: " + "; ".join(cells)


def _share(value: float) -> str:
    return f"{value:.0%}" if math.isfinite(value) else "never"
