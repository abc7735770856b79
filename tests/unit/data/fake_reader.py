"""A reader of PNG files that records every image it decodes, and processes that use it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from labn.data.cache import build_cache
from labn.data.readers.reader import Problem, Record, Scan, SubsetName


@dataclass
class FakeReader:
    root: Path
    records: list[Record]
    problems: list[Problem] = field(default_factory=list)
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    num_channels: int = 3
    geometry: str = "none"
    read_time_s: float = 0.0
    gate: Path | None = None
    """Reading the last image waits for this file."""
    class_names: tuple[str, ...] = ("negative", "positive")

    def scan(self) -> Scan:
        return Scan(list(self.records), list(self.problems))

    def read(self, record: Record) -> np.ndarray:
        time.sleep(self.read_time_s)
        while self.gate and record == self.records[-1] and not self.gate.exists():
            time.sleep(0.01)
        with (self.root / "decoded.log").open("a") as log:
            log.write(f"{record.name}\n")
        if record.index is not None:
            pixels: np.ndarray = np.load(record.path)[record.index]
            return pixels
        if str(record.path) == "synthetic":
            return noise(sum(record.name.encode()), channels=self.num_channels)
        pixels = np.asarray(Image.open(record.path))
        return pixels.reshape(*pixels.shape[:2], -1)

    def lesion_mask(self, record: Record) -> np.ndarray | None:
        return self.masks.get(record.name)

    def decoded(self) -> list[str]:
        log = self.root / "decoded.log"
        return sorted(log.read_text().split()) if log.exists() else []


def noise(seed: int, height: int = 24, width: int = 32, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(path)


def make_reader(
    root: Path,
    labels: Sequence[int] = (0, 1) * 4,
    subsets: Sequence[SubsetName | None] | None = None,
    channels: int = 3,
) -> FakeReader:
    """Write one image of noise per label, and return their reader."""
    records = []
    for number, label in enumerate(labels):
        path = root / f"image_{number:03}.png"
        save(path, noise(number, channels=channels))
        subset = subsets[number] if subsets else None
        records.append(Record(name=path.stem, path=path, grade=label, label=label, subset=subset))
    return FakeReader(root, records, num_channels=channels)


def build_in_process(reader: FakeReader, image_size: int, cache_dir: Path) -> None:
    build_cache(reader, reader.records, image_size=image_size, cache_dir=cache_dir)


def build_at_a_signal(
    reader: FakeReader, cache_dir: Path, barrier: Barrier, contents: Queue[Any]
) -> None:
    barrier.wait()
    cache = build_cache(reader, reader.records, image_size=16, cache_dir=cache_dir)
    contents.put((str(cache.path), cache.images.tobytes(), cache.sha256, cache.has_mask.tolist()))
