"""The errors that reach a user, and how they read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user gave is wrong; the message says what, where, and how to mend it.

    The command line prints the message alone, on one line, and exits with 2.
    """


class RunFailed(Exception):
    """A run stopped for a reason that is neither the user's input nor a defect of this code.

    The command line prints the message alone and exits with 1.
    """


class Interrupted(Exception):
    """A run was asked to stop; everything done so far is saved."""


class Stopped(RunFailed):
    """Work was stopped as asked, and can be resumed."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean "x"?`` for the nearest known word, or an empty string."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f' Did you mean "{matches[0]}"?' if matches else ""
