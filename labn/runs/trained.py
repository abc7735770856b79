"""Trained runs: the settings, the best network, and data prepared as for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from labn.config import Config
from labn.data.batches import standardise
from labn.data.dataset import ChannelStatistics, Dataset
from labn.data.readers.unlabelled import crops
from labn.errors import UserError
from labn.metrics.explained import over_views
from labn.model.network import LABN, LABNOutput, upsample_attention
from labn.runs.build import load_dataset, place_network, restore_network
from labn.runs.folder import RunFolder
from labn.runs.reporter import Reporter
from labn.tracking import Preparation
from labn.training.checkpoint import ModelCheckpoint
from labn.training.device import choose_device
from labn.training.precision import Precision, autocast, resolve_precision

_WITHOUT_DATA = {"data.root": ".", "model.pretrained": "null"}


def without_data(overrides: Sequence[str] = ()) -> list[str]:
    """Return overrides with which a run opens without its data and pretrained weights."""
    others = (one for one in overrides if one.partition("=")[0] not in _WITHOUT_DATA)
    return [*others, *(f"{key}={value}" for key, value in _WITHOUT_DATA.items())]


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """The best epoch of a run; ``model`` is on ``device``, in evaluation mode."""

    folder: RunFolder
    config: Config
    best: ModelCheckpoint
    device: torch.device
    model: LABN

    @classmethod
    def open(cls, path: Path, overrides: Sequence[str] = ()) -> TrainedRun:
        """Open the run in a folder, with ``key=value`` overrides of its settings.

        Raises:
            UserError: there is no such run, no trained network in it or no such device, or the
                settings describe another network.
        """
        folder = RunFolder(path)
        config = folder.load_config(list(overrides), needs=["data.root"])
        return cls.restore(folder, config, choose_device(config.train))

    @classmethod
    def restore(cls, folder: RunFolder, config: Config, device: torch.device) -> TrainedRun:
        """Restore the best network in a folder under these settings.

        Raises:
            UserError: there is no trained network, or the settings describe another one.
        """
        best = folder.load_best()
        trained, given = best["config"]["data"].get("local_contrast"), config.data.local_contrast
        if given != trained:
            raise UserError(
                f"data.local_contrast = {given}: is not what the network was trained with"
                f" ({trained}); leave it as it was"
            )
        model = place_network(
            restore_network(best, config.model), device, channels_last=config.train.channels_last
        ).eval()
        return cls(folder, config, best, device, model)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of the network's outputs."""
        return tuple(self.best["class_names"])

    @property
    def statistics(self) -> ChannelStatistics:
        """The statistics of the training images, used to standardise all images."""
        best = self.best
        tensors = {name: best[name] for name in ("mean", "std", "bias_image")}
        return ChannelStatistics(**tensors, contrast_window=self.config.data.local_contrast)

    @property
    def preparation(self) -> Preparation:
        """How images are prepared for the network, as an exported network carries it."""
        mean, std = (self.best[name].flatten().tolist() for name in ("mean", "std"))
        return Preparation(
            class_names=self.class_names,
            image_size=self.config.data.image_size,
            mean=mean,
            std=std,
            crops=crops(self.config.data.name),
            contrast_window=self.config.data.local_contrast,
        )

    def load_dataset(self, reporter: Reporter) -> Dataset:
        """Load the data set, with the subsets and statistics of training.

        Raises:
            UserError: images of training changed or are missing, or classes or image size differ.
        """
        known = self.folder.known_subsets(self.config.data)
        if known is None:
            reporter.message(
                f"{self.folder.manifest_file}: is missing, so that the subsets are drawn anew; they"
                " are those of training only if the data has not changed"
            )
        return load_dataset(
            self.config.data,
            self.config.loss,
            reporter,
            known,
            check_reader=lambda reader: self._check_alike(reader.class_names, reader.num_channels),
            statistics=self.statistics,
        )

    def as_trained(self, dataset: Dataset) -> Dataset:
        """Return the data set that the run was trained on, with the statistics of its best epoch.

        They are older than the data set's own if images were added since.
        """
        return replace(dataset, statistics=self.statistics)

    def _check_alike(self, class_names: Sequence[str], num_channels: int) -> None:
        """Check that data has the classes, the size and the channels of training."""
        data, size = self.config.data, self.best["bias_image"].shape[-1]
        if tuple(class_names) != self.class_names:
            raise UserError(
                f"data.root = {data.root}: has the classes {', '.join(class_names)}, the"
                f" network {', '.join(self.class_names)}; give data of the same classes"
            )
        if (data.image_size, num_channels) != (size, self.best["num_channels"]):
            raise UserError(
                f"data.image_size = {data.image_size}, {num_channels} channels: must be"
                f" what the network was trained at, {size} pixels and {self.best['num_channels']}"
                " channels"
            )

    def prepare(self, pixels: UInt8[np.ndarray, "b h w c"]) -> Float[Tensor, "b c h w"]:
        """Standardise images as in training, on the network's device."""
        return standardise(pixels, self.statistics, self.device)

    @property
    def precision(self) -> Precision:
        """The precision in which the network runs on this device."""
        return resolve_precision(self.config.train, self.device)

    def autocast(self) -> torch.autocast:
        """Return the context in which the network runs at its precision."""
        return autocast(self.config.train, self.device)

    def predict(self, pixels: UInt8[np.ndarray, "b h w c"]) -> LABNOutput:
        """Return the network's output for images of training's size."""
        with self.autocast(), torch.inference_mode():
            output: LABNOutput = self.model(self.prepare(pixels))
        return output

    def attention(
        self, pixels: UInt8[np.ndarray, "b h w c"], size: tuple[int, int]
    ) -> Float32[np.ndarray, "b h2 w2"]:
        """Return the network's attention for images, at a size in pixels."""
        attention = upsample_attention(self.predict(pixels).attention.float(), size)
        maps: Float32[np.ndarray, "b h2 w2"] = attention.cpu().numpy()
        return maps

    def attention_over_views(
        self, pixels: UInt8[np.ndarray, "b h w c"]
    ) -> Float32[np.ndarray, "v b h w"]:
        """Return the attention for images as they are, mirrored and slightly shifted."""

        def attend(images_bchw: Tensor) -> Tensor:
            moved = np.ascontiguousarray(images_bchw.permute(0, 2, 3, 1).numpy())
            return torch.from_numpy(self.attention(moved, moved.shape[1:3]))

        views: Float32[np.ndarray, "v b h w"] = over_views(
            attend, torch.from_numpy(pixels).permute(0, 3, 1, 2)
        ).numpy()
        return views
