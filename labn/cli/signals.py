"""Ctrl-C and SIGTERM as requests to finish the step, save, and exit."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOTICE = "stopping: this step is finished and saved first (again to stop at once)\n"
_STANDARD_ERROR = 2


class StopRequest:
    """A context in which the first signal requests a stop; a second one stops at once."""

    def __init__(self, notice: str = _NOTICE) -> None:
        self._requested, self._notice = False, notice
        self._previous: dict[signal.Signals, Any] = {}

    def is_requested(self) -> bool:
        """Return whether a signal has arrived."""
        return self._requested

    def __enter__(self) -> StopRequest:
        self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True
        # Not by the console: it may be in the middle of a line, which it would print again.
        start = "\n" if os.isatty(_STANDARD_ERROR) else ""
        os.write(_STANDARD_ERROR, (start + self._notice).encode())
