"""Run a study of conditions on Ray; the same as `labn ablate`.

Requires only an installed labn, so this file alone can be copied to a cluster's head:

    python tune/ablation.py --config configs/ablation/idrid.yaml data.root=/shared/idrid
    ray submit cluster/gpu.yaml tune/ablation.py -- --config /mnt/labn/idrid.yaml
"""

from __future__ import annotations

import argparse
import os
import sys

from labn.cli import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run a study: see `labn ablate --help`.")
    parser.add_argument("--config", required=True, help="the study's file")
    parser.add_argument("--address", help="the Ray cluster; on its nodes: theirs")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to replace")
    given = parser.parse_intermixed_args()
    # LABN_SHARED is set on the nodes of a cluster.
    address = given.address or ("auto" if "LABN_SHARED" in os.environ else None)
    if address:
        os.environ["RAY_ADDRESS"] = address
    json = ["--json"] if given.json else []
    sys.argv = ["labn", "ablate", given.config, *given.overrides, *json]
    main()
