"""The errors that reach a user, and what their messages need."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class UserError(Exception):
    """An error in the user's input; the message names what is wrong, where, and the fix.

    The command line prints the message alone, on one line, and exits with 2.
    """


class RunFailed(Exception):
    """The end of a run for a reason that is neither the user's input nor a defect of this code.

    The command line prints the message alone and exits with 1.
    """


class OutOfMemory(RunFailed):
    """The end of a run for lack of an accelerator's memory; its process should be replaced."""


class Interrupted(Exception):
    """The end of work on request; everything done so far is saved.

    The command line prints the message alone and exits with 1.
    """

    def __init__(
        self, message: str = "stopped as asked; run the same command again to resume"
    ) -> None:
        super().__init__(message)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean "x"?`` for the nearest known word, or an empty string."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f' Did you mean "{matches[0]}"?' if matches else ""


def printable(text: object) -> str:
    r"""Return text whose bytes of file names that are not UTF-8 are written as ``\xe9``."""
    return re.sub("[\ud800-\udfff]", lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", str(text))
