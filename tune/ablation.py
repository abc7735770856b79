"""Run a study of conditions on Ray; the same as `labn ablate`.

Requires only an installed labn, so this file alone can be copied to a cluster's head:

    python tune/ablation.py --config configs/ablation/idrid.yaml data.root=/shared/idrid
    ray submit cluster/gpu.yaml tune/ablation.py -- --config /shared/idrid.yaml --address auto
"""

from __future__ import annotations

import argparse
import os
import sys

from labn.cli import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run a study: see `labn ablate --help`.")
    parser.add_argument("--config", required=True, help="the study's file")
    parser.add_argument("--address", help="the Ray cluster; auto: the one on this machine")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to replace")
    given = parser.parse_intermixed_args()
    if given.address:
        os.environ["RAY_ADDRESS"] = given.address
    json = ["--json"] if given.json else []
    sys.argv = ["labn", "ablate", given.config, *given.overrides, *json]
    main()
