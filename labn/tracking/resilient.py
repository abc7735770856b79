"""Tracking that survives outages: records that cannot be delivered are kept on disk."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from labn.tracking.provenance import redact
from labn.tracking.servable import Preparation, save_servable
from labn.tracking.spool import Spool
from labn.tracking.tracker import CallRefused, Status, Tracker

logger = logging.getLogger(__name__)

# Uploads may take long; their own requests time out.
_UNLIMITED = {"log_artifact", "log_saved_model", "finish"}


class ResilientTracker(Tracker):
    """A wrapper of a tracker that never stops a run, and loses no records in an outage.

    A call that fails is tried ``num_tries`` times within ``time_limit_s``, then kept in
    ``spool_dir`` with all that follow; every ``retry_after_s`` the kept calls are delivered in
    order, if the tracker can be reached. One outage is one warning. A call that the tracker refuses
    permanently is dropped with a warning. ``name`` is the tracker's in messages, without
    credentials. Calls that an earlier process of the run left in ``spool_dir`` are delivered first,
    without its last, ``finish``, if this one ``resumes`` the run.
    """

    def __init__(
        self,
        tracker: Tracker,
        spool_dir: Path,
        *,
        name: str,
        num_tries: int = 3,
        backoff_s: float = 0.2,
        time_limit_s: float = 5.0,
        retry_after_s: float = 60.0,
        resumes: bool = True,
    ) -> None:
        self._tracker, self.run_id = tracker, tracker.run_id
        self._spool = Spool(spool_dir)
        self._name = redact(name)
        self._num_tries, self._backoff_s = num_tries, backoff_s
        self._time_limit_s, self._retry_after_s = time_limit_s, retry_after_s
        self._next_try_s = 0.0
        self._is_losing = False
        # One thread: a call that hangs blocks later ones, not the training.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tracking")
        if self._spool:
            self._replay(None, is_resumed=resumes)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log the settings of the run."""
        self._deliver("log_params", params={k: redact(str(v)) for k, v in params.items()})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; a later value replaces an earlier one."""
        self._deliver("set_tags", tags={key: redact(text) for key, text in tags.items()})

    def log_metrics(
        self, metrics: Mapping[str, float], step: int, *, time_ms: int | None = None
    ) -> None:
        """Log metrics of one step, leaving out those that are not finite."""
        self._deliver(
            "log_metrics",
            metrics={key: float(value) for key, value in metrics.items()},
            step=step,
            time_ms=time.time_ns() // 1_000_000 if time_ms is None else time_ms,
        )

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file, under its own name, to a folder of the run's artifacts."""
        if not path.is_file():
            raise FileNotFoundError(f"log_artifact: no such file: {path}")
        self._deliver("log_artifact", path=path, folder=folder)

    def log_dataset(self, manifest: pd.DataFrame, *, name: str, source: str, digest: str) -> None:
        """Log which images the run saw: one row of ``manifest`` per image."""
        self._deliver(
            "log_dataset", manifest=manifest, name=name, source=redact(source), digest=digest
        )

    def log_model(self, model: torch.nn.Module, preparation: Preparation) -> None:
        """Log the network so that it predicts without this package, if it can be exported."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, "model")
            try:
                save_servable(model, preparation, folder)
            # torch.export fails in many ways, at the end of a run that has its checkpoints.
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                logger.warning("the network cannot be exported and is not tracked (%s)", reason)
                logger.debug("the export failed here", exc_info=True)
                return
            self.log_saved_model(folder)

    def log_saved_model(self, folder: Path) -> None:
        """Log a network that ``save_servable`` has written."""
        self._deliver("log_saved_model", folder=folder)

    def finish(self, status: Status | None) -> None:
        """Close the run, after a last attempt to deliver the kept records."""
        self._next_try_s = 0.0
        self._deliver("finish", status=status)
        if self._spool:
            logger.warning(
                "tracking.uri = %s: %d records of run %s could not be delivered; they are in %s"
                " and are delivered when the same command is run again",
                *(self._name, len(self._spool), self.run_id, self._spool.log),
            )

    def _deliver(self, call: str, **arguments: Any) -> None:
        if self._spool:
            self._keep(call, arguments)
            if time.monotonic() >= self._next_try_s:
                self._replay(None if call == "finish" else self._time_limit_s)
        elif error := self._try(call, arguments):
            self._postpone()
            reason = redact(" ".join(f"{type(error).__name__}: {error}".split()))
            logger.warning(
                "tracking.uri = %s: cannot be reached (%s); the run continues, and its records are"
                " kept in %s until it can",
                *(self._name, reason, self._spool.log),
            )
            self._keep(call, arguments)

    def _try(self, call: str, arguments: dict[str, Any]) -> Exception | None:
        """Try a call several times; return the last error if none succeeded."""
        end = time.monotonic() + self._time_limit_s
        error: Exception
        for number in range(self._num_tries):
            try:
                self._call(call, arguments, end=None if call in _UNLIMITED else end)
            # Any error of a store or its client: tracking must not stop a training run.
            except Exception as raised:  # noqa: BLE001
                error = raised
            else:
                return None
            pause_s = self._backoff_s * 2**number
            if time.monotonic() + pause_s >= end:
                break
            time.sleep(pause_s)
        return error

    def _call(self, call: str, arguments: dict[str, Any], *, end: float | None) -> None:
        timeout_s = None if end is None else max(end - time.monotonic(), 0)
        future = self._worker.submit(_unless_refused, self._tracker, call, arguments)
        try:
            future.result(timeout_s)
        except TimeoutError:
            raise TimeoutError(f"{call} got no answer within {self._time_limit_s:g} s") from None
        finally:
            # A call queued behind one that hangs would be made twice: now, and from the spool.
            future.cancel()

    def _replay(self, time_limit_s: float | None, *, is_resumed: bool = False) -> None:
        end = None if time_limit_s is None else time.monotonic() + time_limit_s

        def deliver(call: str, arguments: dict[str, Any]) -> None:
            # The end of an earlier process is not the end of the run.
            if not (is_resumed and call == "finish"):
                self._call(call, arguments, end=end)

        self._postpone()
        try:
            num_delivered = self._spool.drain(deliver)
        except Exception as error:  # noqa: BLE001 - as in _try
            reason = redact(str(error))
            logger.debug(
                "tracking.uri = %s: records cannot be delivered yet (%s)", self._name, reason
            )
        else:
            logger.info("tracking.uri = %s: %d kept records delivered", self._name, num_delivered)

    def _postpone(self) -> None:
        self._next_try_s = time.monotonic() + self._retry_after_s

    def _keep(self, call: str, arguments: dict[str, Any]) -> None:
        try:
            self._spool.append(self.run_id, call, arguments)
        except OSError as error:
            if not self._is_losing:
                self._is_losing = True
                logger.error(
                    "%s: cannot be written (%s); the run continues, but its records are lost",
                    *(self._spool.log, error),
                )


def _unless_refused(tracker: Tracker, call: str, arguments: dict[str, Any]) -> None:
    try:
        getattr(tracker, call)(**arguments)
    except CallRefused as error:
        logger.warning("tracking: %s was refused and is dropped (%s)", call, error)
