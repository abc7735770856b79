"""The command line."""

from __future__ import annotations

import logging
import os
import sys

from labn.errors import RunFailed, UserError

_INTERRUPTED = 130
"""What Typer exits with when a KeyboardInterrupt reaches it."""


def main() -> None:
    """Run the command line; exit 0 done, 2 the user's input is wrong, 1 anything else."""
    # They add commands to the app.
    from labn.cli import (  # noqa: F401
        ablate,
        cluster,
        data,
        doctor,
        evaluate,
        explain,
        report,
        sanity,
        search,
        train,
        ui,
    )
    from labn.cli.app import app

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        app()
    except UserError as error:
        _fail(str(error), 2)
    except RunFailed as error:
        _fail(str(error), 1)
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            _fail("interrupted", 1)
        raise
    except BrokenPipeError:
        # Whoever read our output has gone; keep the interpreter from complaining as it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(message: str, exit_code: int) -> None:
    one_line = " ".join(message.split())
    sys.stderr.write(f"error: {one_line}\n")
    sys.exit(exit_code)
