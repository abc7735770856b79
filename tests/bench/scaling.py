"""The cost of the paper's magnetogram search on 1 to 64 GPUs: `python -m tests.bench.scaling`.

Measures what this machine allows, takes the rest as options, and prints all of it.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import ray
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

import labn
from labn.config import load_config
from tests.bench.network import training_step
from tests.bench.scaling_model import Cluster, Run, Search, all_reduce_s, run_hours, search_cost
from tests.bench.timing import interleave

NUM_IMAGES = 61_315
RUN_HOURS = 24.0
GPUS = (1, 2, 4, 8, 16, 32, 64)
WORKERS = (1, 2, 4, 8, 16, 32)
BATCHES = (1, 2, 4, 8)


def main() -> None:
    """Measure, compute, print."""
    given = _options()
    config = load_config(Path("configs/magnetograms.yaml"), ["data.root=."])
    model = labn.build_model("lambda_cnn", num_classes=2, in_channels=1, split=0, theta_alpha=0.5)
    fixed_s, image_s = measure_step(model.train(), config.data.image_size, given.rounds)
    start_s = measure_trial_start() if given.trial_start is None else given.trial_start
    batch, steps = config.train.batch_size, -(-NUM_IMAGES // config.train.batch_size)
    run = Run(
        hours=RUN_HOURS,
        steps=steps * given.epochs,
        fixed_share=given.fixed_share
        if given.fixed_share is not None
        else fixed_s / (fixed_s + image_s * batch),
        gradient_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        norm_layers=sum(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in
                        model.modules()),
    )  # fmt: skip
    cluster = Cluster(
        bandwidth_bytes_s=given.gbit * 1e9 / 8,
        latency_s=given.latency_us * 1e-6,
        node_start_s=given.node_start,
        trial_start_s=start_s,
    )
    search = Search(trials=given.trials, grace_epochs=2, reduction=3.0, epochs=given.epochs)
    print_inputs(given, run, cluster, search, fixed_s, image_s * batch)
    print_runs(run, cluster, batch)
    print_searches(run, cluster, search, given.price)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=40, help="of a run, early stop included")
    parser.add_argument("--gbit", type=float, default=10.0, help="between nodes, a second")
    parser.add_argument("--latency-us", type=float, default=50.0, help="of a message between nodes")
    parser.add_argument("--node-start", type=float, default=600.0, help="seconds")
    parser.add_argument("--fixed-share", type=float, help="of a step; default: measured here")
    parser.add_argument("--trial-start", type=float, help="seconds; default: measured here")
    parser.add_argument("--price", type=float, help="of a GPU hour; default: hours only")
    return parser.parse_args()


def measure_step(model: torch.nn.Module, size: int, num_rounds: int) -> tuple[float, float]:
    """Fit seconds = fixed + images x each to training steps on this machine's CPU."""
    works = {}
    for batch in BATCHES:
        images = torch.randn(batch, 1, size, size, generator=torch.Generator().manual_seed(0))
        works[str(batch)] = training_step(model, images, torch.arange(batch) % 2, None)
    medians = [float(np.median(times)) for times in interleave(works, num_rounds).values()]
    image_s, fixed_s = np.polyfit(BATCHES, medians, 1)
    return max(0.0, float(fixed_s)), float(image_s)


def measure_trial_start() -> float:
    """Time a group of two workers that do nothing, from Ray Train's start to its end."""
    ray.init("local", include_dashboard=False, log_to_driver=False, num_cpus=2)
    try:
        os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"
        start_s = time.perf_counter()
        TorchTrainer(
            _nothing,
            scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
            run_config=RunConfig(storage_path="/tmp/labn-scaling"),
        ).fit()
        return time.perf_counter() - start_s
    finally:
        ray.shutdown()


def _nothing() -> None:
    ray.train.get_context().get_world_rank()


def print_inputs(
    given: argparse.Namespace,
    run: Run,
    cluster: Cluster,
    search: Search,
    fixed_s: float,
    batch_s: float,
) -> None:
    """Print the inputs and their sources."""
    mega = 1e6
    print(
        f"Given by the paper: {NUM_IMAGES} images, {run.hours:g} h a run on one GPU (RTX 2080).\n"
        f"Measured here, on the CPU: a training step takes {fixed_s * 1e3:.0f} ms"
        f" + {batch_s * 1e3:.0f} ms for a batch, so {fixed_s / (fixed_s + batch_s):.1%} of it is"
        f" fixed (in the model: {run.fixed_share:.1%});\n"
        f"  gradients of {run.gradient_bytes / mega:.2f} MB, {run.norm_layers} batch"
        f" norms;"
        f" {'given' if given.trial_start is not None else 'measured'}:"
        f" {cluster.trial_start_s:.0f} s to start a trial.\n"
        f"Assumed: {given.epochs} epochs a run, {given.gbit:g} Gbit/s and {given.latency_us:g} us"
        f" between nodes, {given.node_start:g} s until rented nodes work;\n "
        f" {search.trials} trials, ASHA after {search.grace_epochs} epochs by {search.reduction:g}:"
        f" a trial takes {search.mean_share:.2f} of a run on average.\n"
    )


def print_runs(run: Run, cluster: Cluster, batch: int) -> None:
    """Print one run on more and more GPUs."""
    print("| GPUs of one run | images each | hours | speed-up | efficiency | exchange |")
    print("| --: | --: | --: | --: | --: | --: |")
    for workers in WORKERS:
        hours = run_hours(run, cluster, workers)
        gain = run_hours(run, cluster, 1) / hours
        exchange = all_reduce_s(run, cluster, workers) * run.steps / 3600 / hours
        print(
            f"| {workers} | {batch // workers} | {hours:.1f} | {gain:.1f} | {gain / workers:.0%}"
            f" | {exchange:.0%} |"
        )
    print()


def print_searches(run: Run, cluster: Cluster, search: Search, price: float | None) -> None:
    """Print the search on more and more GPUs: one per trial, and the fastest number per trial."""
    paid = " | price" if price is not None else ""
    print(f"| GPUs | GPUs a trial | at once | hours | speed-up | GPU hours{paid} |")
    print("| --: | --: | --: | --: | --: | --: |" + (" --: |" if price is not None else ""))
    base = search_cost(run, cluster, search, 1, 1).hours
    for gpus in GPUS:
        costs = {w: search_cost(run, cluster, search, gpus, w) for w in WORKERS if w <= gpus}
        fastest = min(costs, key=lambda workers: costs[workers].hours)
        for workers in dict.fromkeys((1, fastest)):
            cost = costs[workers]
            money = "" if price is None else f" | {cost.gpu_hours * price:.0f}"
            print(
                f"| {gpus} | {workers} | {cost.at_once} | {cost.hours:.1f}"
                f" | {base / cost.hours:.1f} | {cost.gpu_hours:.0f}{money} |"
            )


if __name__ == "__main__":
    main()
