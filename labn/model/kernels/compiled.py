"""C++ kernels for the CPU, compiled once per source and CPU.

Compilation takes seconds at first use, and the result is cached; concurrent processes wait for one
of them. Without a compiler or a writable cache, or with ``LABN_COMPILE=0``, no kernel is available,
and callers use their own implementation in torch, which returns the same up to rounding.
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
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from labn.storage.files import locked, put_in_place

logger = logging.getLogger(__name__)

# No -ffast-math: it reorders sums, and makes the whole process flush denormals.
_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
_COMPILE_TIMEOUT_S = 300


def form(device: torch.device) -> str:
    """Return which kernels compute on a device here: ``compiled`` or ``torch``.

    The two differ by rounding, so that a run which changes from one to the other does not
    reproduce, bit by bit, a run that stays with one.
    """
    sources = sorted(Path(__file__).parent.glob("*.cpp"))
    is_compiled = device.type == "cpu" and all(library(source) for source in sources)
    return "compiled" if is_compiled else "torch"


def compiler() -> str | None:
    """Return the path of the C++ compiler to use, if any."""
    names = [os.environ.get("CXX", ""), "g++", "c++", "clang++"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


@functools.cache
def library(source: Path) -> ctypes.CDLL | None:
    """Return a source's library; None, for the rest of the process, where it cannot be loaded."""
    if os.environ.get("LABN_COMPILE", "1") == "0":
        logger.debug("LABN_COMPILE=0: torch is used instead of %s", source.name)
        return None
    try:
        return ctypes.CDLL(str(built(source)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or ""
        logger.debug("torch is used instead of %s: %s %s", source.name, error, output)
        return None


def addresses(tensors: Sequence[Tensor | None]) -> list[ctypes.c_void_p]:
    """Return the tensors' data pointers, as a kernel's arguments."""
    return [ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors]


def built(source: Path, folder: Path | None = None) -> Path:
    """Return the path of a source's library in the user's cache, compiled there if need be.

    Raises:
        OSError, RuntimeError, subprocess.SubprocessError: it is missing and cannot be compiled.
    """
    folder = folder or Path("~/.cache/labn/kernels").expanduser()
    target = folder / f"{source.stem}-{_digest(source)}.so"
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locked(target.with_suffix(".lock"), f"waiting for another process to compile {target}"):
        if not target.is_file():
            _compile(source, target)
    return target


def _compile(source: Path, target: Path) -> None:
    chosen = compiler()
    if chosen is None:
        raise FileNotFoundError("no C++ compiler (CXX, g++, c++ or clang++) is on the path")
    # In the same folder, so that an atomic rename puts it in place.
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        built = Path(scratch, "kernel.so")
        command = [chosen, *_FLAGS, *_machine_flags(), str(source), "-o", str(built)]
        subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S
        )
        put_in_place(built, target)


def _machine_flags() -> list[str]:
    """Return the flags that choose instructions: this CPU's, or those that LABN_MARCH names."""
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    widest = ["-mprefer-vector-width=512"] if is_x86 else []
    return [f"-march={os.environ.get('LABN_MARCH', 'native')}", *widest]


def _digest(source: Path) -> str:
    """Return a hash of source, flags, and the CPU that -march=native finds."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    cpu = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    digest = hashlib.sha256(source.read_bytes())
    digest.update(repr((_FLAGS, _machine_flags(), platform.machine(), cpu)).encode())
    return digest.hexdigest()[:16]
