"""The driver of training on several workers through Ray Train.

The driver (the process of the command) starts the workers, forwards the messages of the first of
them, and signals them to stop. Checkpoints are in the run's folder, which all workers must see: a
restart, of workers by Ray or of the command by a person, resumes from the newest of them.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer

from labn.config import Config
from labn.config.workers import Workers, fault_of_gpus, fault_of_sharing
from labn.distributed.capacity import check_capacity, demand, num_slots, supply
from labn.distributed.checks.nodes import Requirements, check_nodes
from labn.distributed.session import connected
from labn.distributed.train_worker import place_mailbox, work
from labn.distributed.worker_group import FailuresBesideLostNodes, ReleasingTorchConfig
from labn.errors import Interrupted, OutOfMemory, RunFailed, UserError
from labn.runs.folder import TAKE_OVER_S, RunFolder
from labn.runs.reporter import Reporter
from labn.runs.train import Summary, train_run

logger = logging.getLogger(__name__)

_OPTIONS = ("--workers", "--cpus-per-worker", "--gpus-per-worker", "--resource")
_MAX_FAILURES = 3
_POLL_S = 0.2
_RESIZE_S = 60.0
"""How often the number of elastic workers is reconsidered."""
_CAPACITY_CHECK_S = 30.0
"""How often it is checked, and reported, whether workers wait for capacity."""


def train_distributed(
    config: Config,
    workers: Workers,
    reporter: Reporter,
    should_stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Train or resume a configuration on several workers, and return the run's summary.

    Uses the Ray that this process is connected to, else that of ``RAY_ADDRESS``, else a local one.

    Raises:
        UserError: the settings or the data are invalid, or there is no capacity for the workers.
        RunFailed: training failed, or workers failed more than three times.
        Interrupted: ``should_stop`` returned True; everything is saved.
    """
    fault = fault_of_sharing(config.train.batch_size, workers)
    if fault:
        raise UserError(f"train.batch_size = {config.train.batch_size}: {fault}")
    if fault := fault_of_gpus(workers.gpus, workers.num):
        raise UserError(f"--gpus-per-worker {workers.gpus:g}: {fault}")
    config = config.model_copy(update={"output_dir": config.output_dir.expanduser().absolute()})
    folder = RunFolder(config.output_dir)
    folder.check_same(config)
    if folder.summary_file.is_file():
        return train_run(config, reporter)  # reports that the run is finished
    with folder.claimed(wait_s=TAKE_OVER_S):
        pass  # the workers of a killed driver have ended, and the disk is writable
    is_nested = ray.is_initialized()  # then the nodes were checked by the caller that connected
    with connected(reporter.message, lambda: check_capacity(workers, _OPTIONS)):
        if not is_nested:
            check_nodes(Requirements.of(config, workers), reporter.message)
        return _Driver(config, workers, reporter, should_stop).run()


class _Driver:
    """A driver that starts the workers and waits for their outcome."""

    def __init__(
        self,
        config: Config,
        workers: Workers,
        reporter: Reporter,
        should_stop: Callable[[], bool],
    ) -> None:
        self._workers, self._reporter, self._should_stop = workers, reporter, should_stop
        self._mailbox = place_mailbox()
        self._num_starts, self._is_given_up, self._lack = 0, False, ""
        self._failure: ray.train.TrainingFailedError | None = None
        gpus = {"GPU": workers.gpus} if workers.gpus else {}
        resources = {"CPU": workers.cpus} | gpus | dict(workers.resources)
        number: dict[str, Any] = {"num_workers": workers.num}
        if workers.least is not None:
            number["num_workers"] = (workers.least, workers.num)
            number["elastic_resize_monitor_interval_s"] = _RESIZE_S
        self._trainer = TorchTrainer(
            work,
            train_loop_config={
                "config": config.model_dump(mode="json"),
                "mailbox": self._mailbox,
                "command": list(sys.argv),
            },
            torch_config=ReleasingTorchConfig(),
            scaling_config=ray.train.ScalingConfig(
                **number,
                use_gpu=workers.gpus > 0,
                resources_per_worker=resources,
                placement_strategy=workers.placement,
            ),
            run_config=ray.train.RunConfig(
                name="workers",
                storage_path=str(config.output_dir / "ray"),
                failure_config=FailuresBesideLostNodes(_MAX_FAILURES, self._mailbox),
            ),
        )

    def run(self) -> Summary:
        """Train, and return the run's summary; see ``train_distributed``."""
        fitting = threading.Thread(target=self._fit, daemon=True)
        fitting.start()
        next_check_s = time.monotonic() + _CAPACITY_CHECK_S
        while fitting.is_alive():
            fitting.join(_POLL_S)
            self._forward()
            if not self._num_starts and self._should_stop():
                # No worker runs that could be stopped, and there is nothing to save.
                self._is_given_up = True
                raise Interrupted
            if time.monotonic() > next_check_s:
                self._check_capacity()
                next_check_s = time.monotonic() + _CAPACITY_CHECK_S
        verdict: tuple[str, Any] | None = ray.get(self._mailbox.verdict.remote())
        kind, content = verdict or ("lost", None)
        if kind == "finished" and content is not None:
            return Summary(**content)
        if kind == "interrupted":
            raise Interrupted
        if kind == "UserError":
            raise UserError(content)
        if kind == "OutOfMemory":
            raise OutOfMemory(content)
        raise RunFailed(content or f"the workers failed: {_reason(self._failure)}")

    def _check_capacity(self) -> None:
        """Report once what workers wait for that have not started, or whose node was lost."""
        workers = replace(self._workers, num=self._workers.least or self._workers.num)
        fits = num_slots(workers) >= workers.num
        lack = ""
        if not fits or not self._num_starts:
            lack = f"the run {demand(workers)}; the cluster has {supply(workers)}"
            lack += ", some of it in use" if fits else ""
        if lack and lack != self._lack:
            self._reporter.message(f"waiting for capacity: {lack}")
        self._lack = lack

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except ray.train.TrainingFailedError as error:
            self._failure = error
        except Exception:
            # Ray was shut down while this thread waited for it.
            if not self._is_given_up:
                raise

    def _forward(self) -> None:
        messages, sizes = ray.get(self._mailbox.take.remote(self._should_stop()))
        for number in range(max(self._num_starts, 1), len(sizes)):
            size, before = sizes[number], sizes[number - 1]
            what = "workers were lost; started them again"
            if size != before:
                what = (
                    f"workers {'joined' if size > before else 'were lost'}; continuing with {size}"
                )
            self._reporter.message(f"{what} (restart {number})")
        self._num_starts = len(sizes)
        for kind, content in messages:
            if kind == "warn":
                logger.warning("%s", *content)
            else:
                getattr(self._reporter, kind)(*content)


def _reason(failure: BaseException | None) -> str:
    """Return the workers' own message on one line, without the traceback."""
    errors = getattr(failure, "worker_failures", None) or {0: failure}
    text = str(next(iter(errors.values())))
    if "out of memory" in text.lower():
        # Here Ray's last line is advice on Ray's own settings.
        return (
            "Ray ended one because its node was nearly out of memory; use a smaller"
            " train.batch_size, a larger train.accumulation_steps or fewer workers per node"
        )
    lines = text.strip().splitlines()
    return lines[-1] if lines else type(failure).__name__
