from __future__ import annotations

import numpy as np
import torch
from explained import make_images

from labn.explain.controls import EdgeEnergy
from labn.explain.greedy import Greedy
from labn.metrics.faithfulness import patch_insertion_deletion

WEIGHTS = torch.linspace(-1, 1, 9, dtype=torch.float64)[torch.tensor([4, 0, 7, 8, 2, 1, 6, 3, 5])]
LABELS = torch.tensor([1])


def patch_means(images):
    return torch.nn.functional.avg_pool2d(images, 4).mean(dim=1).flatten(1)


def predict(images):
    logit = patch_means(images) @ WEIGHTS
    return torch.stack([-logit, logit], dim=1).softmax(dim=1)


def test_patches_that_add_up_are_ordered_by_their_contributions():
    image = torch.ones(1, 2, 12, 12, dtype=torch.float64)

    (found,) = Greedy(predict, torch.zeros(()), 4).explain(image, LABELS, ["a"])

    ranks = found[::4, ::4].flatten().numpy()
    assert found.shape == (12, 12)
    # An eighth of nine patches, rounded up, is two: within a round the order is that of its start.
    assert np.argsort(-ranks).tolist() == WEIGHTS.argsort(descending=True).tolist()


def test_no_other_map_of_these_is_more_faithful():
    images, b = make_images(1, 12, 12), torch.full((2, 1, 1), 0.2, dtype=torch.float64)
    methods = [Greedy(predict, b, 4), EdgeEnergy()]
    maps = [method.explain(images, LABELS, ["a"]) for method in methods]
    contributions = (patch_means(images - b) * WEIGHTS).view(1, 3, 3)
    maps.append(contributions.repeat_interleave(4, 1).repeat_interleave(4, 2))

    pid = [
        patch_insertion_deletion(predict, images, one, LABELS, patch_size=4, baseline=b).pid.item()
        for one in maps
    ]

    assert pid[0] > pid[1]
    # The patches add up, so that the true contributions are the best order.
    np.testing.assert_allclose(pid[0], pid[2])
