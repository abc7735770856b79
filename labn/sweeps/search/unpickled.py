"""What Tune may pickle, but nobody will read."""

from __future__ import annotations

from typing import Any


class Unpickled:
    """An object of which Tune's own record of a search holds nothing.

    Tune pickles all it is given, to restore it later; the study is what outlives a search here,
    and connections to it cannot be pickled.
    """

    def __getstate__(self) -> dict[str, Any]:
        """Leave everything out."""
        return {}
