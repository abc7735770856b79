"""Training on several workers through Ray Train: the same run, wherever its processes are.

The driver (the process of the command) starts the workers, passes on what the first of them says,
and tells them to stop. Checkpoints are the run's own, in its folder, which all workers must see:
whoever starts again, Ray a worker or a person the command, goes on from the newest of them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from labn.config import Config
from labn.config.workers import Workers, fault_of_sharing
from labn.distributed.capacity import demand, num_slots, supply
from labn.distributed.checks.nodes import Requirements, check_nodes
from labn.distributed.session import connected
from labn.distributed.worker_group import ReleasingTorchConfig
from labn.errors import Interrupted, RunFailed, UserError
from labn.runs.folder import TAKE_OVER_S, RunFolder
from labn.runs.reporter import Reporter
from labn.runs.train import Summary, assist_run, train_run
from labn.training.process_group import Group

logger = logging.getLogger(__name__)

_MAX_FAILURES = 3
_POLL_S = 0.2
_RESIZE_S = 60.0
"""How often a number of workers that may change is looked at."""
_ADVANCE_S = 0.5
_ROOM_S = 30.0
"""How often it is looked whether workers wait for room, which is then said."""


def train_distributed(
    config: Config,
    workers: Workers,
    reporter: Reporter,
    should_stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Train a configuration on several workers, from its newest checkpoint where it has one.

    Uses the Ray that this process is connected to, else that of ``RAY_ADDRESS``, else one of its
    own on this machine.

    Raises:
        UserError: the settings or the data do not hold together, or there is no room for the
            workers.
        RunFailed: training went wrong, or workers failed more than three times.
        Interrupted: ``should_stop`` said so; everything is saved.
    """
    fault = fault_of_sharing(config.train.batch_size, workers)
    if fault:
        raise UserError(f"train.batch_size = {config.train.batch_size}: {fault}")
    config = config.model_copy(update={"output_dir": config.output_dir.expanduser().absolute()})
    folder = RunFolder(config.output_dir)
    folder.check_same(config)
    if folder.summary_file.is_file():
        return train_run(config, reporter)  # says so
    with folder.claimed(wait_s=TAKE_OVER_S):
        pass  # the workers of a driver that was killed have ended, and the disk can be written
    is_nested = ray.is_initialized()  # then whoever connected has looked at the nodes
    with connected(reporter.say, lambda: _check_room(workers)):
        if not is_nested:
            check_nodes(Requirements.of(config, workers), reporter.say)
        return _Driver(config, workers, reporter, should_stop).run()


def _check_room(workers: Workers) -> None:
    has = ray.cluster_resources()  # type: ignore[no-untyped-call]
    least = workers.least or workers.num
    for name, wanted, option in (
        ("CPU", workers.cpus, "--cpus-per-worker"),
        ("GPU", workers.gpus, "--gpus-per-worker"),
        *((name, amount, f"--resource {name}=") for name, amount in workers.resources.items()),
    ):
        if least * wanted > has.get(name, 0):
            raise UserError(
                f"--workers {least}: need {least * wanted:g} {name}s, but this machine"
                f" has {has.get(name, 0):g}; give fewer workers, or a smaller {option}"
            )


class _Mailbox:
    """An actor between the driver and the workers."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, tuple[Any, ...]]] = []
        self._verdict: tuple[str, Any] | None = None
        self._sizes: list[int] = []
        self._must_stop = False

    def start(self, size: int) -> tuple[str, Any] | None:
        """Hear that a group of so many workers starts; tell how the run ended, if it did."""
        self._sizes.append(size)
        return self._verdict

    def verdict(self) -> tuple[str, Any] | None:
        """Tell how the run ended, if it did."""
        return self._verdict

    def conclude(self, kind: str, content: Any) -> None:
        """Keep how the run ended; what came first counts."""
        self._verdict = self._verdict or (kind, content)

    def post(self, kind: str, *content: Any) -> None:
        """Keep something for the driver's reporter."""
        self._messages.append((kind, content))

    def take(self, must_stop: bool) -> tuple[list[tuple[str, tuple[Any, ...]]], list[int]]:
        """Hand over what was posted, with how many workers there were at each start."""
        self._must_stop = must_stop
        messages, self._messages = self._messages, []
        return messages, self._sizes

    def must_stop(self) -> bool:
        """Tell whether the driver was asked to stop."""
        return self._must_stop


def _place_mailbox() -> Any:
    """Start a mailbox on this node: the run outlives the loss of others."""
    here = ray.get_runtime_context().get_node_id()
    strategy: Any = NodeAffinitySchedulingStrategy(here, soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=strategy)(_Mailbox).remote()


class _PostingReporter(Reporter):
    """A worker's reporter: it posts what the driver's is to show."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox, self._last_s = mailbox, 0.0

    def say(self, text: str) -> None:
        """Pass on one line for a person."""
        self._mailbox.post.remote("say", text)

    def advance(self, task: str, done: int, total: int) -> None:
        """Pass on progress, a few times a second at most."""
        now_s = time.monotonic()
        if now_s - self._last_s >= _ADVANCE_S or done == total:
            self._last_s = now_s
            self._mailbox.post.remote("advance", task, done, total)

    def epoch(self, metrics: Mapping[str, float], num_epochs: int, time_s: float) -> None:
        """Pass on a finished epoch; here, so that none is lost with a killed process."""
        ray.get(self._mailbox.post.remote("epoch", dict(metrics), num_epochs, time_s))


class _PostingHandler(logging.Handler):
    """Has a worker's warnings, as of a checkpoint that is passed over, come from the driver."""

    def __init__(self, mailbox: Any) -> None:
        super().__init__(logging.WARNING)
        self._mailbox = mailbox

    def emit(self, record: logging.LogRecord) -> None:
        """Post one warning."""
        self._mailbox.post.remote("warn", record.getMessage())


class _Warned:
    """Asks for a checkpoint once, when a node of this run is about to be taken back.

    Ray Train restarts the group when the node is gone, or its time is up.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._is_known = say, False

    def __call__(self) -> bool:
        """Tell whether a warning has just come; every rank must ask alike, and hears the same."""
        if self._is_known or (info := ray.train.get_preemption_info()) is None:
            return False
        self._is_known = True
        left = ""
        if info.deadline_ms is not None:
            left = f" in {max(0.0, info.deadline_ms / 1000 - time.time()):.0f} s"
        ranks = ", ".join(map(str, info.preempted_ranks))
        self._say(
            f"the node of worker {ranks} is about to be taken back{left}: saving a checkpoint"
        )
        return True


def _work(given: dict[str, Any]) -> None:
    """Be one of the workers."""
    mailbox = given["mailbox"]
    context = ray.train.get_context()
    group = Group(context.get_world_rank(), context.get_world_size())
    # A verdict ends the workers that Ray starts anew because another one's error broke the group.
    if group.is_first:
        known = ray.get(mailbox.start.remote(group.size))
    else:
        known = ray.get(mailbox.verdict.remote())
    if known is not None:
        return
    config = Config.model_validate(given["config"])
    try:
        if group.is_first:
            logging.getLogger("labn").addHandler(_PostingHandler(mailbox))
            reporter = _PostingReporter(mailbox)
            summary = train_run(
                config,
                reporter,
                lambda: bool(ray.get(mailbox.must_stop.remote())),
                group,
                take_over_s=TAKE_OVER_S,
                should_save=_Warned(reporter.say),
            )
            verdict: tuple[str, Any] = ("finished", asdict(summary))
        else:
            assist_run(config, group, should_save=_Warned(lambda _: None))
            return
    except Interrupted:
        verdict = ("interrupted", None)
    except (UserError, RunFailed) as error:
        ray.get(mailbox.conclude.remote(type(error).__name__, str(error)))
        raise
    ray.get(mailbox.conclude.remote(*verdict))


class _Driver:
    """Starts the workers, and waits for the verdict."""

    def __init__(
        self,
        config: Config,
        workers: Workers,
        reporter: Reporter,
        should_stop: Callable[[], bool],
    ) -> None:
        self._workers, self._reporter, self._should_stop = workers, reporter, should_stop
        self._mailbox = _place_mailbox()
        self._num_starts, self._is_given_up, self._lack = 0, False, ""
        self._failure: ray.train.TrainingFailedError | None = None
        gpus = {"GPU": workers.gpus} if workers.gpus else {}
        resources = {"CPU": workers.cpus} | gpus | dict(workers.resources)
        number: dict[str, Any] = {"num_workers": workers.num}
        if workers.least is not None:
            number["num_workers"] = (workers.least, workers.num)
            number["elastic_resize_monitor_interval_s"] = _RESIZE_S
        self._trainer = TorchTrainer(
            _work,
            train_loop_config={
                "config": config.model_dump(mode="json"),
                "mailbox": self._mailbox,
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
                failure_config=ray.train.FailureConfig(max_failures=_MAX_FAILURES),
            ),
        )

    def run(self) -> Summary:
        """Train; see ``train_distributed``."""
        fitting = threading.Thread(target=self._fit, daemon=True)
        fitting.start()
        patience_s = time.monotonic() + _ROOM_S
        while fitting.is_alive():
            fitting.join(_POLL_S)
            self._pass_on()
            if not self._num_starts and self._should_stop():
                # Nobody is there to be told, and nothing to be saved.
                self._is_given_up = True
                raise Interrupted
            if time.monotonic() > patience_s:
                self._look_for_room()
                patience_s = time.monotonic() + _ROOM_S
        verdict: tuple[str, Any] | None = ray.get(self._mailbox.verdict.remote())
        kind, content = verdict or ("lost", None)
        if kind == "finished" and content is not None:
            return Summary(**content)
        if kind == "interrupted":
            raise Interrupted
        if kind == "UserError":
            raise UserError(content)
        raise RunFailed(content or f"the workers failed: {_reason(self._failure)}")

    def _look_for_room(self) -> None:
        """Say once what workers wait for that have not started, or whose node was lost."""
        workers = replace(self._workers, num=self._workers.least or self._workers.num)
        has_room = num_slots(workers) >= workers.num
        lack = ""
        if not has_room or not self._num_starts:
            lack = f"the run {demand(workers)}; the cluster has {supply(workers)}"
            lack += ", some of it in use" if has_room else ""
        if lack and lack != self._lack:
            self._reporter.say(f"waiting for room: {lack}")
        self._lack = lack

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except ray.train.TrainingFailedError as error:
            self._failure = error
        except Exception:
            # Ray ends while this thread still waits for it.
            if not self._is_given_up:
                raise

    def _pass_on(self) -> None:
        messages, sizes = ray.get(self._mailbox.take.remote(self._should_stop()))
        for number in range(max(self._num_starts, 1), len(sizes)):
            size, before = sizes[number], sizes[number - 1]
            what = "workers were lost; started them again"
            if size != before:
                what = f"workers {'joined' if size > before else 'were lost'}; going on with {size}"
            self._reporter.say(f"{what} (restart {number})")
        self._num_starts = len(sizes)
        for kind, content in messages:
            if kind == "warn":
                logger.warning("%s", *content)
            else:
                getattr(self._reporter, kind)(*content)


def _reason(failure: BaseException | None) -> str:
    """Give the workers' own message, in a line, rather than the way it took."""
    errors = getattr(failure, "worker_failures", None) or {0: failure}
    text = str(next(iter(errors.values())))
    if "out of memory" in text.lower():
        # Here Ray's last line is a page of advice on its own settings.
        return (
            "Ray ended one, for its node was nearly out of memory; give a smaller"
            " train.batch_size, a larger train.accumulation_steps or fewer workers a node"
        )
    lines = text.strip().splitlines()
    return lines[-1] if lines else type(failure).__name__
