"""Whole runs: `labn train`, stopped and resumed, and a group of as many ranks as there are GPUs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from labn.training import checkpoint
from tests.gpu.rows import Row, Rows
from tests.gpu.setup import make_network, random_images

_ROOT = Path(__file__).parents[2]
_SETTINGS = (
    "tracking.uri=none", "data.synthetic.num_images=200", "data.image_size=64", "train.epochs=6",
    "train.checkpoint_steps=2", "train.device=cuda",
)  # fmt: skip


def resumed_rows() -> Rows:
    """Train on the embedded set, killed once and resumed, against a run that was left alone."""
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        start_s = time.perf_counter()
        _train(whole).communicate()
        seconds = time.perf_counter() - start_s
        process = _train(killed)
        while process.poll() is None and not list(killed.glob("checkpoints/step-*.pt")):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        output = _train(killed).communicate()[0]
        resumed = "resuming from" in output
        losses = [_last_loss(one) for one in (whole, killed)]
        precision = _newest(killed).get("precision", "?")
    yield Row(
        name="labn train, embedded set, killed and resumed",
        value=abs(losses[0] - losses[1]) / losses[0] if resumed else float("nan"),
        unit="relative",
        at_most=0.05,
        detail=f"validation losses {losses[0]:.4f} and {losses[1]:.4f}, {precision},"
        f" {seconds:.0f} s" if resumed else output[-300:],
    )  # fmt: skip


def _train(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "labn", "train", "configs/demo.yaml", *_SETTINGS,
         f"output_dir={folder}", f"data.cache_dir={folder.parent / 'cache'}"],
        cwd=_ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": f"{_ROOT}:{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip


def _newest(folder: Path) -> dict[str, object]:
    found = checkpoint.load_newest(folder / "checkpoints")
    return dict(found[1]) if found else {}


def _last_loss(folder: Path) -> float:
    try:
        return float(json.loads((folder / "summary.json").read_text())["metrics"]["val_loss"])
    except (OSError, KeyError):
        return float("nan")


def group_rows() -> Rows:
    """Average gradients by NCCL over as many ranks as there are GPUs."""
    size = torch.cuda.device_count()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    start_s = time.perf_counter()
    torch.multiprocessing.spawn(_rank, args=(size, port, queue), nprocs=size)
    yield Row(
        name=f"NCCL group of {size}, gradients against one process",
        value=queue.get(), unit="relative", at_most=1e-4,
        detail=f"{time.perf_counter() - start_s:.0f} s",
    )  # fmt: skip


def _rank(rank: int, size: int, port: int, queue: torch.multiprocessing.SimpleQueue) -> None:
    torch.cuda.set_device(rank)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("nccl", init_method=address, rank=rank, world_size=size)
    network = make_network().cuda().eval()
    images, _ = random_images(2 * size)
    whole = network(images).logits.square().sum() / size
    expected = torch.autograd.grad(whole, list(network.parameters()), allow_unused=True)
    replica = DistributedDataParallel(network, device_ids=[rank], find_unused_parameters=True)
    replica(images[2 * rank : 2 * rank + 2]).logits.square().sum().backward()
    pairs = [
        (p.grad, e) for p, e in zip(network.parameters(), expected, strict=True) if e is not None
    ]
    error = sum(
        ((a - b).norm() ** 2 for a, b in pairs if a is not None), torch.zeros(1, device="cuda")
    )
    total = sum((b.norm() ** 2 for _, b in pairs), torch.zeros(1, device="cuda"))
    if rank == 0:
        queue.put(float((error / total).sqrt()))
    dist.destroy_process_group()
