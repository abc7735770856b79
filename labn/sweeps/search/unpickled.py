"""Objects that Tune pickles without content."""

from __future__ import annotations

from typing import Any


class Unpickled:
    """An object that is pickled without its attributes.

    Tune pickles its objects to restore them later. Here the study stores the search, and
    connections to it cannot be pickled.
    """

    def __getstate__(self) -> dict[str, Any]:
        """Return no attributes."""
        return {}
