"""RISE: randomised input sampling for explanation (Petsiuk et al. 2018), streamed.

Symbols: p probability that a cell is kept, M_i the i-th mask, f the class probabilities.
Axes: n masks, g and k the grid's rows and columns, i and j the image's, c classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from labn.metrics.arguments import Numbers, as_images, as_tensor, check_count
from labn.metrics.faithfulness import Predict


def rise(
    predict: Predict,
    images: Numbers,
    *,
    num_masks: int,
    grid_size: int = 7,
    keep_probability: float = 0.5,
    seed: int = 0,
    batch_size: int = 64,
    on_batch: Callable[[], None] = lambda: None,
) -> Float[Tensor, "n classes h w"]:
    """Return the average of random masks, weighted by the probabilities of the masked images.

    S = 1 / (N p) sum_i f(x * M_i) M_i, for every class at once. A mask is a ``grid_size`` square
    of cells, each kept with ``keep_probability``, upsampled bilinearly to one cell more than the
    image and cropped at random; hidden pixels are zero, the mean of standardised images. All
    images (n, c, h, w) see the same masks, a function of ``seed`` alone. Values are on the scale
    of the probabilities, and comparable only within one map.

    Masks and sums are float32 also for narrower images, and so is the result.

    Only the masks of one batch exist at a time. ``predict`` receives ``batch_size`` masked copies
    of one image at a time, on the device of ``images``, without gradients; the next copies
    overwrite them. ``on_batch`` is called after each. Departure from the authors' release of LABN:
    a cell is kept with ``keep_probability`` itself; there a normal deviate is compared with it.

    Raises:
        ValueError: an argument, or what ``predict`` returns, breaks its rule.
    """
    _check_settings(num_masks, grid_size, keep_probability, batch_size)
    images = as_images(images)
    if not len(images):
        raise ValueError(f"images: got shape {tuple(images.shape)}, must be at least one")
    masks = draw_masks(
        num_masks, (images.shape[2], images.shape[3]), grid_size, keep_probability, seed
    )
    wide = images.new_zeros((), dtype=torch.promote_types(images.dtype, torch.float32))
    sums = [wide] * len(images)
    # One buffer for all batches: allocating each time would fragment the memory.
    num_rows = min(batch_size, num_masks)
    masks_buffer_nij = wide.new_empty(num_rows, *masks.image_size)
    images_buffer_ncij = images.new_empty(num_rows, *images.shape[1:])
    with torch.no_grad():
        for start in range(0, num_masks, batch_size):
            masks_nij = masks.expand(slice(start, start + batch_size), wide, masks_buffer_nij)
            for index, image in enumerate(images):
                masked_ncij = images_buffer_ncij[: len(masks_nij)]
                torch.mul(masks_nij.unsqueeze(1), image, out=masked_ncij)
                scores_nc = as_tensor("predict", predict(masked_ncij))
                sums[index] = sums[index] + _weigh(scores_nc, masks_nij)
                on_batch()
    return torch.stack(sums) / (num_masks * keep_probability)


@dataclass(frozen=True, kw_only=True)
class Rise:
    """RISE's map of the label's class, as a method; see ``rise``."""

    predict: Predict
    num_masks: int
    grid_size: int = 7
    keep_probability: float = 0.5
    seed: int = 0
    batch_size: int = 64
    on_batch: Callable[[], None] = lambda: None
    name: str = "RISE"

    def explain(
        self, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], names: Sequence[str]
    ) -> Float[Tensor, "b h w"]:
        """Return the masks averaged by the probability of each image's class."""
        maps = rise(
            self.predict,
            images,
            num_masks=self.num_masks,
            grid_size=self.grid_size,
            keep_probability=self.keep_probability,
            seed=self.seed,
            batch_size=self.batch_size,
            on_batch=self.on_batch,
        )
        return maps[torch.arange(len(maps), device=maps.device), labels.long()]


@dataclass(frozen=True)
class GridMasks:
    """Random masks, kept as cells and the offsets (row, column) at which they are cropped."""

    grids_ngk: Bool[Tensor, "n g g"]
    offsets: Int64[Tensor, "n 2"]
    image_size: tuple[int, int]

    def expand(
        self, chosen: slice, like: Tensor, buffer: Tensor | None = None
    ) -> Float[Tensor, "n h w"]:
        """Return some of the masks, in [0, 1], with the type and device of ``like``.

        They are written to ``buffer``, if passed, which has space for as many or more.
        Bilinear upsampling is separable, so that a mask is R_y G R_x^T with few columns in R.
        """
        grids_ngk = self.grids_ngk[chosen].to(like)
        offsets = self.offsets[chosen].to(like.device)
        rows_ngi, columns_nkj = (
            _windows(grids_ngk, length)[offsets[:, axis]]
            for axis, length in enumerate(self.image_size)
        )
        with torch.autocast(like.device.type, enabled=False):
            out = None if buffer is None else buffer[: len(grids_ngk)]
            return torch.matmul(rows_ngi.mT @ grids_ngk, columns_nkj, out=out)


def draw_masks(
    num_masks: int,
    image_size: tuple[int, int],
    grid_size: int,
    keep_probability: float,
    seed: int,
) -> GridMasks:
    """Return random cells (Bernoulli) and offsets (uniform from 0 to a cell's side), on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(num_masks, grid_size, grid_size, generator=generator, dtype=torch.float64)
    offsets = [
        torch.randint(0, _cell_side(length, grid_size) + 1, (num_masks,), generator=generator)
        for length in image_size
    ]
    return GridMasks(draws < keep_probability, torch.stack(offsets, dim=1), image_size)


def _cell_side(length: int, grid_size: int) -> int:
    return -(-length // grid_size)


def _windows(grids_ngk: Tensor, length: int) -> Float[Tensor, "offsets g length"]:
    """Return each offset's interpolation matrix: a cell's weight in each pixel along one axis."""
    grid_size = grids_ngk.shape[1]
    upsampled = (grid_size + 1) * _cell_side(length, grid_size)
    cells = torch.eye(grid_size, dtype=grids_ngk.dtype, device=grids_ngk.device)
    weights = F.interpolate(cells[None], size=upsampled, mode="linear", align_corners=False)[0]
    return weights.unfold(1, length, 1).transpose(0, 1)


def _weigh(scores_nc: Tensor, masks_nij: Tensor) -> Float[Tensor, "classes h w"]:
    if scores_nc.ndim != 2 or len(scores_nc) != len(masks_nij):
        raise ValueError(
            f"predict: got shape {tuple(scores_nc.shape)} for {len(masks_nij)} images, must be"
            " (images, classes)"
        )
    with torch.autocast(masks_nij.device.type, enabled=False):
        return torch.einsum("nc,nij->cij", scores_nc.to(masks_nij), masks_nij)


def _check_settings(
    num_masks: int, grid_size: int, keep_probability: float, batch_size: int
) -> None:
    counts = {"num_masks": num_masks, "grid_size": grid_size, "batch_size": batch_size}
    for name, count in counts.items():
        check_count(name, count, "at least 1")
    if not 0 < keep_probability <= 1:
        raise ValueError(f"keep_probability: got {keep_probability}, must be above 0 and at most 1")
