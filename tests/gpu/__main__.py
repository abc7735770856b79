"""The command `python -m tests.gpu`: prove on one GPU that labn is exact and fast there.

Needs a GPU, and of labn's libraries only those that training without a tracker needs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from tests.gpu.rows import Row, Rows


def main() -> int:
    """Run the chosen sections; return 1 if a row fails, 2 without a GPU."""
    given = _options()
    if given.counts:
        _print_counts()
        return 0
    if not torch.cuda.is_available():
        print(
            "error: no GPU: torch.cuda finds none; run this on a machine with one", file=sys.stderr
        )
        return 2
    sections = _sections()
    rows: list[Row] = []
    for name in given.sections or (name for name in sections if name != "graphs"):
        start_s = time.monotonic()
        for row in _run(name, sections[name]):
            rows.append(row)
            print(row, flush=True)
        print(f"({name}: {time.monotonic() - start_s:.0f} s)", flush=True)
    num_failed = sum(not row.passes for row in rows)
    print(f"{machine()}: {len(rows)} rows, {num_failed} fail")
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        content = {"machine": machine(), "rows": [asdict(row) for row in rows]}
        (given.out / "gpu.json").write_text(json.dumps(content, indent=1))
    return int(num_failed > 0)


def _run(name: str, section: Callable[[], Rows]) -> Rows:
    """Yield a section's rows; one that breaks off fails, and the others still run."""
    try:
        yield from section()
    except (RuntimeError, TypeError, ValueError, LookupError, OSError):
        traceback.print_exc()
        yield Row(name=f"section {name} broke off", value=float("nan"), unit="", at_most=0)


def machine() -> str:
    """Return the GPU's name and the versions of what computes."""
    properties = torch.cuda.get_device_properties(0)
    gigabytes = properties.total_memory / 1e9
    return f"{properties.name}, {gigabytes:.0f} GB, torch {torch.__version__}"


def _sections() -> dict[str, Callable[[], Rows]]:
    from tests.gpu import exactness, runs, speed

    return {
        "triton": exactness.triton_rows,
        "layers": exactness.layer_rows,
        "network": exactness.network_rows,
        "launches": exactness.launch_rows,
        "waits": exactness.waiting_rows,
        "runs": runs.resumed_rows,
        "group": runs.group_rows,
        "evaluation": speed.evaluation_rows,
        "training": speed.training_rows,
        "compiled": speed.compiled_rows,
        "others": speed.other_rows,
        "graphs": speed.graph_rows,
    }


def _print_counts() -> None:
    """Print what one pass launches on an accelerator, counted without one."""
    from tests.gpu.counting import compile_without_gpu, count_without_gpu

    for backbone, split, side in (("lambda_resnet50", 7, 224), ("lambda_cnn", 1, 512)):
        for precision in ("float32", "bf16"):
            for batch in (32, 128):
                counter = count_without_gpu(
                    backbone, split=split, image_size=side, batch=batch, precision=precision
                )
                kinds = ", ".join(
                    f"{name} {'/'.join(sorted(str(t).removeprefix('torch.') for t in types))}"
                    for name, types in sorted(counter.operand_types.items())
                )
                print(
                    f"{backbone} {side} px, batch {batch}, {precision}: {counter.total} operators"
                )
            print(f"  operands: {kinds}")
    for precision in ("float32", "bf16"):
        compiled = compile_without_gpu(precision)
        print(f"compiled lambda_cnn, {precision}: {compiled}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        prog="python -m tests.gpu",
        epilog="example: python -m tests.gpu layers training --out runs/gpu",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help="default: all but graphs, in order"
    )
    parser.add_argument("--out", type=Path, help="a folder for gpu.json")
    parser.add_argument(
        "--counts", action="store_true", help="count kernels without a GPU, and print no more"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
