"""Search for settings with Ray Tune and Optuna; the same as `labn search`.

Requires only an installed labn, so this file alone can be copied to a cluster's head:

    python tune/search.py --config configs/search/idrid.yaml data.root=/shared/idrid
    ray submit cluster/gpu.yaml tune/search.py -- --config /shared/idrid.yaml --address auto
"""

from __future__ import annotations

import argparse
import os
import sys

from labn.cli import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Search for settings: see `labn search --help`.")
    parser.add_argument("--config", required=True, help="the search's file")
    parser.add_argument("--address", help="the Ray cluster; auto: the one on this machine")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--retrain-best", type=int, default=0, metavar="K")
    parser.add_argument("--seeds", type=int, default=3, metavar="S")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to replace")
    given = parser.parse_intermixed_args()
    if given.address:
        os.environ["RAY_ADDRESS"] = given.address
    json = ["--json"] if given.json else []
    again = ["--retrain-best", str(given.retrain_best), "--seeds", str(given.seeds)]
    sys.argv = ["labn", "search", "run", given.config, *given.overrides, *again, *json]
    main()
