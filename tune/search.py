"""Search for settings with Ray Tune and Optuna; the same as `labn search`.

Requires only an installed labn, so this file alone can be copied to a cluster's head:

    ray submit cluster/gpu.yaml tune/search.py
    ray submit cluster/gpu.yaml tune/search.py -- --config /mnt/labn/mine.yaml data.root=/mnt/labn/a
    python tune/search.py --config configs/search/idrid.yaml data.root=~/idrid

Without --config the search is that of configs/search/cluster.yaml, on the data that data.root or
LABN_DATA names, else on the embedded set.
"""

from __future__ import annotations

import argparse
import os
import sys

from labn.cli import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Search for settings: see `labn search --help`.")
    parser.add_argument("--config", help="the search's file; default: a search of its own")
    parser.add_argument("--address", help="the Ray cluster; on its nodes: theirs")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--retrain-best", type=int, default=0, metavar="K")
    parser.add_argument("--seeds", type=int, default=3, metavar="S")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to replace")
    given = parser.parse_intermixed_args()
    # LABN_SHARED is set on the nodes of a cluster.
    address = given.address or ("auto" if "LABN_SHARED" in os.environ else None)
    if address:
        os.environ["RAY_ADDRESS"] = address
    json = ["--json"] if given.json else []
    again = ["--retrain-best", str(given.retrain_best), "--seeds", str(given.seeds)]
    config = [given.config] if given.config else []
    sys.argv = ["labn", "search", "run", *config, *given.overrides, *again, *json]
    main()
