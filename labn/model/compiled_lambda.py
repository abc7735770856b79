"""The lambdas applied to their queries by a kernel in C++, compiled once for each CPU.

``position_lambda.cpp`` is compiled at first use, in seconds, and kept; processes that ask together
wait for one of them. Where there is no compiler, or nowhere to keep the result, or
``LABN_COMPILE=0`` is set, ``apply_lambdas`` is not to be had and the callers' own form in torch
gives the same, to rounding.

Axes: b images, m positions, h heads, k key depth, v values, r the kernel's rows and columns.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("position_lambda.cpp")
# No -ffast-math: it reorders sums, and linked in it has all of the process flush denormals.
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
_COMPILE_TIMEOUT_S = 300
_SUFFIXES = {torch.float32: "float32", torch.float64: "float64"}


def is_available(like: Tensor) -> bool:
    """Say whether ``apply_lambdas`` takes tensors of this type, here; compile it if need be."""
    if like.device.type != "cpu" or like.dtype not in _SUFFIXES or torch.compiler.is_compiling():
        return False
    return _library() is not None


def form(device: torch.device) -> str:
    """Name what computes position lambdas on a device, here: ``compiled`` or ``torch``.

    The two differ by rounding, so that a run which changes from one to the other is not, bit by
    bit, the run that stays with one.
    """
    return "compiled" if is_available(torch.empty(0, device=device)) else "torch"


def compiler() -> str | None:
    """Find the C++ compiler that would be used."""
    names = [os.environ.get("CXX", ""), "g++", "c++", "clang++"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


def apply_lambdas(
    queries: Float[Tensor, "b m h k"],
    values: Float[Tensor, "b m v"],
    content: Float[Tensor, "b k v"],
    kernel: Float[Tensor, "k r r"],
    map_size: tuple[int, int],
) -> Float[Tensor, "b m h v"]:
    """Apply content and position lambdas to the queries (Iida 2022, eq. 6 and 7).

    ``content`` holds what is the same at every position, lambda_c and the kernel's bias. Results
    do not depend on the number of threads. Ask ``is_available`` first.
    """
    result: Tensor = _ApplyLambdas.apply(queries, values, content, kernel, map_size)
    return result


class _ApplyLambdas(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_bmhk: Tensor, v_bmv: Tensor, c_bkv: Tensor, w_krr: Tensor, size: tuple[int, int]
    ) -> Tensor:
        inputs = [tensor.contiguous() for tensor in (q_bmhk, v_bmv, c_bkv, w_krr)]
        ctx.save_for_backward(*inputs)
        ctx.size = size
        y_bmhv = v_bmv.new_empty(*q_bmhk.shape[:3], v_bmv.shape[2])
        _call("forward", size, inputs, [y_bmhv])
        return y_bmhv

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = list(ctx.saved_tensors)
        results = [torch.empty_like(tensor) for tensor in inputs]
        _call("backward", ctx.size, [*inputs, grads[0].contiguous()], results)
        return (*results, None)


def _call(name: str, size: tuple[int, int], inputs: list[Tensor], results: list[Tensor]) -> None:
    library = _library()
    assert library is not None, "ask is_available first"
    b, _, h, k = inputs[0].shape
    sizes = (ctypes.c_int64 * 7)(b, *size, h, k, inputs[1].shape[2], inputs[3].shape[1])
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (*inputs, *results)]
    function = getattr(library, f"labn_{name}_{_SUFFIXES[inputs[0].dtype]}")
    function(sizes, torch.get_num_threads(), *pointers)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """Load the compiled kernel; None, for the rest of the process, where that cannot be."""
    if os.environ.get("LABN_COMPILE", "1") == "0":
        logger.debug("LABN_COMPILE=0: position lambdas are computed by torch")
        return None
    try:
        return ctypes.CDLL(str(_built()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or ""
        logger.debug("position lambdas are computed by torch: %s %s", error, output)
        return None


def _built(folder: Path | None = None) -> Path:
    """Find the kernel for this source and CPU in the user's cache, or compile it there."""
    folder = folder or Path("~/.cache/labn/kernels").expanduser()
    target = folder / f"position_lambda-{_digest()}.so"
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FileLock(target.with_suffix(".lock")):
        if not target.is_file():
            _compile(target)
    return target


def _compile(target: Path) -> None:
    chosen = compiler()
    if chosen is None:
        raise FileNotFoundError("no C++ compiler (CXX, g++, c++ or clang++) is on the path")
    # In the same folder, so that one rename puts it in place: whole or absent.
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        built = Path(scratch, "kernel.so")
        command = [chosen, *_FLAGS, *_vector_flags(), str(SOURCE), "-o", str(built)]
        subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S
        )
        built.rename(target)


def _vector_flags() -> list[str]:
    return ["-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else []


def _digest() -> str:
    """Name what the result depends on: source, flags, and the CPU that -march=native finds."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    cpu = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    digest = hashlib.sha256(SOURCE.read_bytes())
    digest.update(repr((_FLAGS, _vector_flags(), platform.machine(), cpu)).encode())
    return digest.hexdigest()[:16]
