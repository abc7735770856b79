"""The command line as ``python -m labn``."""

from __future__ import annotations

from labn.cli import main

main()
