"""MLflow's warnings about itself, which tell a user nothing."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

_MESSAGES = (
    # Raised when its modules are imported:
    "The ``noload`` loader strategy is deprecated",
    r".*Any type hint is inferred as AnyType",
    # Its two readings of a local path are the same one, registered twice.
    "The specified dataset source can be interpreted in multiple ways",
    # Labels are never missing.
    "Hint: Inferred schema contains integer column",
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leave out those warnings; any other is shown."""
    with warnings.catch_warnings():
        for message in _MESSAGES:
            warnings.filterwarnings("ignore", message=message)
        yield
