"""``python -m labn``: the command line, where its script is not on the path."""

from __future__ import annotations

from labn.cli import main

main()
