"""`python -m tests.gpu` on a machine without a GPU: all of it that runs there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"ray", "mlflow", "optuna", "captum", "astropy", "beartype"}:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
"""


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""} | environment,
    )  # fmt: skip


def test_without_a_gpu_it_is_one_line_and_exit_2():
    done = run("-m", "tests.gpu")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: no GPU: torch.cuda finds none; run this on a machine with one"
    ]


def test_the_sections_need_none_of_the_large_libraries():
    done = run("-c", f"{BLOCKED}\nfrom tests.gpu import __main__\nprint(*__main__._sections())")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "triton"


def test_the_compiler_takes_the_network_as_one_graph():
    """In a process of its own, without the type checks of tests, which break graphs."""
    code = "from tests.gpu.counting import compile_without_gpu as f"
    code += "; print(*f('bf16'), *f('float32'))"
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    graphs, breaks, difference, *float32 = map(float, done.stdout.split())
    assert (graphs, breaks) == (1, 0)
    assert difference < 0.05
    assert float32[:2] == [1, 0]
    assert float32[2] < 1e-5


def test_a_run_without_a_tracker_needs_none_of_the_large_libraries(tmp_path):
    arguments = [
        "labn", "train", "configs/demo.yaml", "tracking.uri=none", "train.epochs=1",
        "data.synthetic.num_images=20", "data.image_size=32", f"output_dir={tmp_path / 'run'}",
        f"data.cache_dir={tmp_path / 'cache'}",
    ]  # fmt: skip
    done = run("-c", f"{BLOCKED}\nsys.argv = {arguments!r}\nfrom labn.cli import main\nmain()")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").is_file()
