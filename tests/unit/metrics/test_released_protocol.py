"""PID as the authors' code computes it, against a replica of it in loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_faithfulness import make_case

from labn.metrics.faithfulness import patch_insertion_deletion


def replica(network, image, saliency, label, patch_size, baseline, step):
    """One image's areas, as the authors' code takes them: by thresholds on the patches' maxima."""
    height, width = saliency.shape
    rows, columns = math.ceil(height / patch_size), math.ceil(width / patch_size)
    patches = np.zeros((rows, columns))
    for i, j in np.ndindex(rows, columns):
        patches[i, j] = saliency[
            i * patch_size : (i + 1) * patch_size, j * patch_size : (j + 1) * patch_size
        ].max()
    ordered = np.sort(patches, axis=None)[::-1]
    areas = []
    for is_insertion in (True, False):
        curve = []
        for i in range(math.ceil(len(ordered) / step)):
            threshold = ordered[min(step * (i + 1), len(ordered) - 1)]
            frame = np.empty_like(image)
            for y, x in np.ndindex(height, width):
                is_taken = patches[y // patch_size, x // patch_size] >= threshold
                source = image if is_taken == is_insertion else baseline
                frame[:, y, x] = source[:, y, x]
            curve.append(network.probability(frame, label))
        areas.append((sum(curve) - curve[0] / 2 - curve[-1] / 2) / (len(curve) - 1))
    return areas


@pytest.mark.parametrize(("size", "patch_size", "step"), [(12, 1, 4), (12, 3, 1), (14, 1, 5)])
@pytest.mark.parametrize("has_ties", [True, False])
def test_the_areas_are_those_of_the_authors_code(size, patch_size, step, has_ties):
    network, images, saliency, labels, baseline = make_case(3, height=size, width=size)
    if has_ties:
        saliency = (3 * saliency).round() / 3

    scores = patch_insertion_deletion(
        network, images, saliency, labels, patch_size=patch_size, baseline=baseline,
        protocol="released",
    )  # fmt: skip

    assert scores.insertion_curve.shape[1] == math.ceil(math.ceil(size / patch_size) ** 2 / step)
    for place, label in enumerate(labels.tolist()):
        insertion, deletion = replica(
            network, images[place].numpy(), saliency[place].numpy(), label, patch_size,
            baseline.numpy(), step,
        )  # fmt: skip
        assert scores.insertion_auc[place].item() == pytest.approx(insertion, abs=1e-12)
        assert scores.deletion_auc[place].item() == pytest.approx(deletion, abs=1e-12)
        assert scores.pid[place].item() == pytest.approx(insertion - deletion, abs=1e-12)


def test_there_are_40_frames_at_224_pixels_and_m_16():
    def predict(frames):
        return torch.tensor([[0.25, 0.75]]).expand(len(frames), 2)

    images, saliency = torch.zeros(1, 3, 224, 224), torch.rand(1, 224, 224)
    scores = patch_insertion_deletion(
        predict, images, saliency, torch.tensor([1]), patch_size=16, baseline=1.0,
        protocol="released",
    )  # fmt: skip
    assert scores.insertion_curve.shape == (1, 40)
