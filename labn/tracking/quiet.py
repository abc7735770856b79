"""A filter for MLflow's warnings about itself."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

_MESSAGES = (
    # Raised when its modules are imported:
    "The ``noload`` loader strategy is deprecated",
    r".*Any type hint is inferred as AnyType",
    # The two sources that match a local path are one source, registered twice.
    "The specified dataset source can be interpreted in multiple ways",
    # Labels are never missing.
    "Hint: Inferred schema contains integer column",
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress those warnings; show any other."""
    with warnings.catch_warnings():
        for message in _MESSAGES:
            warnings.filterwarnings("ignore", message=message)
        yield
