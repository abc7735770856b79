"""`python -m tests.bench`: measure, print, and keep as JSON and Markdown.

Sections run one after another; within one, the alternatives take turns.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from labn.model import compiled_lambda
from tests.bench import layers, scores, search, timing, trials, workers
from tests.bench.timing import Row

SECTIONS: dict[str, Callable[[int], list[Row]]] = {
    "layers": layers.lambda_layer_rows,
    "step": layers.training_step_rows,
    "memory": lambda _: [layers.training_memory_row()],
    "pid": scores.pid_rows,
    "rise": scores.rise_rows,
    "reading": lambda num_rounds: [scores.reading_row(num_rounds)],
    "trials": trials.overhead_rows,
    "search": search.search_rows,
    "workers": workers.worker_rows,
}


def main() -> None:
    """Measure the sections asked for."""
    parser = argparse.ArgumentParser(description=__doc__, prog="make bench")
    parser.add_argument("sections", nargs="*", choices=[[], *SECTIONS], metavar="SECTION")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=timing.CLOCKS, default="wall")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    chosen = parser.parse_args()
    timing.chosen_clock = chosen.clock
    rows: list[Row] = []
    for name in chosen.sections or SECTIONS:
        start_s = time.monotonic()
        found = SECTIONS[name](chosen.rounds)
        rows += found
        for row in found:
            print(describe(row), flush=True)
        print(f"({name}: {time.monotonic() - start_s:.0f} s)", flush=True)
    chosen.out.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": machine() | {"clock": chosen.clock},
        "rows": [asdict(row) for row in rows],
    }
    (chosen.out / "bench.json").write_text(json.dumps(content, indent=2) + "\n")
    (chosen.out / "bench.md").write_text(as_markdown(rows))
    print(f"kept in {chosen.out}")


def describe(row: Row) -> str:
    """Say one row in one line."""
    error = "" if row.error is None else f"; {row.error_kind} {row.error:.1e}"
    return (
        f"{row.name}: {row.ratio:.2f}x (quartiles {row.low:.2f}-{row.high:.2f}, n ="
        f" {row.num_rounds}; {row.ours:.4g} against {row.other:.4g} {row.unit}{error})"
    )


def as_markdown(rows: list[Row]) -> str:
    """Lay the rows out as a table."""
    lines = [
        "| what | ratio | quartiles | ours | other | rounds | error |",
        "|:--|--:|--:|--:|--:|--:|:--|",
    ]
    for row in rows:
        error = "" if row.error is None else f"{row.error:.1e} ({row.error_kind})"
        lines.append(
            f"| {row.name} | {row.ratio:.2f}x | {row.low:.2f}-{row.high:.2f} | {row.ours:.4g}"
            f" {row.unit} | {row.other:.4g} {row.unit} | {row.num_rounds} | {error} |"
        )
    return "\n".join(lines) + "\n"


def machine() -> dict[str, object]:
    """Say where this was measured."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")),
        platform.processor(),
    ) if Path("/proc/cpuinfo").exists() else platform.processor()  # fmt: skip
    return {
        "processor": model,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "lambda_layers": "compiled" if compiled_lambda.is_available(torch.zeros(())) else "torch",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
