"""The command `python -m tests.bench`: measure, print, and save as JSON, Markdown and figures.

Sections run one after another; within one, the alternatives take turns.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import mlflow
import torch

from labn.model.kernels import compiled, compiled_lambda
from labn.report.style import save_figure
from tests.bench import (
    busy,
    layers,
    network,
    noise,
    pictures,
    replay,
    scores,
    search,
    timing,
    trained,
    trials,
    workers,
)
from tests.bench.growth import Growth, measure_growth
from tests.bench.timing import Row

_EXPERIMENT = "labn/bench"
_NAME_CHARACTERS = re.compile(r"[^\w./ -]")


def main() -> None:
    """Measure the chosen sections."""
    given = _options()
    timing.chosen_clock = given.clock
    rows: list[Row] = []
    growth: list[Growth] = []
    sections = _sections(given, growth)
    for name in given.sections or sections:
        start_s = time.monotonic()
        found = sections[name](given.rounds)
        rows += found
        for row in found:
            print(describe(row), flush=True)
        print(f"({name}: {time.monotonic() - start_s:.0f} s)", flush=True)
    _keep(given.out, machine() | {"clock": given.clock}, rows, growth)
    print(f"saved in {given.out}")
    if given.mlflow is not None:
        _track(given.mlflow, given.out, rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        prog="python -m tests.bench",
        epilog="example: python -m tests.bench layers step --rounds 3 --mlflow sqlite:///mlflow.db",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = list(_sections(argparse.Namespace(), []))
    parser.add_argument(
        "sections", nargs="*", choices=[[], *names], metavar="SECTION",
        help=f"of {', '.join(names)}; default: all",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, help="of each comparison; default: 5")
    parser.add_argument("--clock", choices=timing.CLOCKS, default="wall")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument(
        "--run", type=Path, action="append", default=[],
        help="a trained run for the section `trained`; may be repeated",
    )  # fmt: skip
    parser.add_argument("--mlflow", metavar="URI", help="log the ratios as a run of this tracker")
    return parser.parse_args()


def _sections(
    given: argparse.Namespace, growth: list[Growth]
) -> dict[str, Callable[[int], list[Row]]]:
    """Return the sections by name; that of growth has no rows and appends to ``growth``."""

    def grow(num_rounds: int) -> list[Row]:
        growth.extend(measure_growth(num_rounds))
        for panel in growth:
            print(f"{panel.name}, {panel.unit} by {panel.size} {panel.sizes}:")
            for name, values in panel.lines.items():
                print(f"  {name}: " + ", ".join(f"{value:.4g}" for value in values))
        return []

    def show_noise(_: int) -> list[Row]:
        given.out.mkdir(parents=True, exist_ok=True)
        noise.show_noise(given.out)
        return []

    return {
        "layers": layers.lambda_layer_rows,
        "shapes": layers.shape_rows,
        "step": network.training_step_rows,
        "evaluation": network.evaluation_rows,
        "busy": busy.busy_rows,
        "memory": lambda _: network.training_memory_rows(),
        "roofline": network.roofline_rows,
        "pid": scores.pid_rows,
        "trained": lambda num_rounds: trained.trained_rows(num_rounds, given.run, given.out),
        "rise": scores.rise_rows,
        "reading": lambda num_rounds: [scores.reading_row(num_rounds)],
        "growth": grow,
        "trials": trials.overhead_rows,
        "search": replay.replay_rows,
        "noise": show_noise,
        "searches": search.search_rows,
        "workers": workers.worker_rows,
    }


def describe(row: Row) -> str:
    """Return one row as one line."""
    error = "" if row.error is None else f"; {row.error_kind} {row.error:.1e}"
    asked = "" if row.at_least is None else f", at least {row.at_least:.3g}x required"
    return (
        f"{row.name}: {row.ratio:.2f}x{asked}{', FALLS SHORT' if row.falls_short else ''}"
        f" (quartiles {row.low:.2f}-{row.high:.2f}, n ="
        f" {row.num_rounds}; {row.ours:.4g} against {row.other:.4g} {row.unit}{error})"
    )


def as_markdown(rows: list[Row]) -> str:
    """Return the rows as a table."""
    lines = [
        "| what | ratio | required | quartiles | ours | other | rounds | error |",
        "|:--|--:|--:|--:|--:|--:|--:|:--|",
    ]
    for row in rows:
        error = "" if row.error is None else f"{row.error:.1e} ({row.error_kind})"
        asked = "" if row.at_least is None else f"{row.at_least:.3g}x"
        lines.append(
            f"| {row.name} | {row.ratio:.2f}x | {asked} | {row.low:.2f}-{row.high:.2f}"
            f" | {row.ours:.4g} {row.unit} | {row.other:.4g} {row.unit} | {row.num_rounds}"
            f" | {error} |"
        )
    return "\n".join(lines) + "\n"


def machine() -> dict[str, object]:
    """Return the properties of this machine."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")),
        platform.processor(),
    ) if Path("/proc/cpuinfo").exists() else platform.processor()  # fmt: skip
    return {
        "processor": model,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "kernels": compiled.form(torch.device("cpu")),
        "vectors": compiled_lambda.vectors(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
    }


def _keep(out: Path, where: dict[str, object], rows: list[Row], growth: list[Growth]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": where,
        "rows": [asdict(row) for row in rows],
        "growth": [asdict(panel) for panel in growth],
    }
    (out / "bench.json").write_text(json.dumps(content, indent=2) + "\n")
    (out / "bench.md").write_text(as_markdown(rows))
    if rows:
        save_figure(pictures.ratios_figure(rows), out / "ratios.png")
    if growth:
        save_figure(pictures.growth_figure(growth), out / "growth.png")


def _track(uri: str, out: Path, rows: list[Row]) -> None:
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(_EXPERIMENT)
    with mlflow.start_run(run_name=time.strftime("bench %Y-%m-%d %H:%M")) as run:
        mlflow.log_params(machine())
        mlflow.log_metrics({_NAME_CHARACTERS.sub("", row.name)[:250]: row.ratio for row in rows})
        for path in sorted(out.glob("bench.*")) + sorted(out.glob("*.png")):
            mlflow.log_artifact(str(path))
        print(f"run {run.info.run_id} of the experiment {_EXPERIMENT} in {uri}")


if __name__ == "__main__":
    main()
