"""The command line."""

from __future__ import annotations

import json
import logging
import os
import sys

from labn.errors import Interrupted, RunFailed, UserError

_INTERRUPTED = 130
"""Typer's exit code after a KeyboardInterrupt."""


def main() -> None:
    """Run the command line; exit with 0 if done, 2 if the user's input is wrong, 1 otherwise."""
    # Importing these modules adds their commands to the app.
    from labn.cli import (  # noqa: F401
        ablate,
        cluster,
        config,
        data,
        doctor,
        evaluate,
        explain,
        init,
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
    except (RunFailed, Interrupted) as error:
        _fail(str(error), 1)
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            _fail("interrupted", 1)
        raise
    except BrokenPipeError:
        # The reader of standard output is gone; without this the interpreter reports it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(message: str, exit_code: int) -> None:
    one_line = " ".join(message.split())
    if "--json" in sys.argv:
        sys.stdout.write(json.dumps({"error": one_line, "exit_code": exit_code}) + "\n")
    sys.stderr.write(f"error: {one_line}\n")
    sys.exit(exit_code)
