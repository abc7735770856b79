"""Freed memory stays with a process that is configured to keep it."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="another C library, whose memory is its own affair"
)
# Page faults of eight blocks, after as many of the same size were freed.
FAULTS = """
import resource, torch
from labn.training.device import keep_freed_memory
print({call})
def work():
    blocks = [torch.ones({size} // 4) for _ in range(8)]
for _ in range(4):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call, size, **environment):
    code = FAULTS.format(call=call, size=size)
    kept = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True,
        env=kept | environment,
    )  # fmt: skip
    printed, count = done.stdout.split()
    return printed, int(count)


def num_pages(size):
    return 8 * size / resource.getpagesize()


@pytest.mark.parametrize("size", [25_000_000, 50_000_000])
def test_freed_memory_is_used_again_without_asking_the_system(size):
    printed, count = faults("keep_freed_memory()", size)

    assert printed == "True"
    assert count < 0.3 * num_pages(size)


def test_large_blocks_are_requested_again_otherwise():
    # Of smaller ones that depends on what else lies at the end of the heap.
    _, count = faults("None", 50_000_000)

    assert count > 0.9 * num_pages(50_000_000)


def test_thresholds_that_a_user_chose_stay():
    printed, count = faults("keep_freed_memory()", 50_000_000, MALLOC_MMAP_THRESHOLD_="1000000")

    assert printed == "False"
    assert count > 0.9 * num_pages(50_000_000)
