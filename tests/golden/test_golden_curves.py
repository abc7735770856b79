"""Insertion and deletion curves of a whole network against the RISE authors' metric."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden.rebuild import IDRID, golden, rebuilt_input, released_network

from labn import patch_insertion_deletion
from labn.model.network import upsample_attention

NUM_POINTS = 225
SIDE = 224

# One frame's probability in float32, of a network whose threshold no attention comes close to.
FRAME_TOLERANCE = 1e-5
# The metric leaves open which of several equally important pixels comes first (here up to 1856 of
# them, where the map is flat). In frames that hold some of them only, single positions of the
# 28x28 attention map cross theta_alpha, and the probability jumps.
TIED_FRAME_TOLERANCE = 0.03
# Such frames are few, and their jumps go both ways.
AREA_TOLERANCE = 1e-3


@pytest.mark.slow
def test_curves_and_areas_are_those_of_the_rise_authors_metric():
    expected = golden("rise-causal-metric")
    network = released_network(IDRID).eval()
    saliency = upsample_attention(torch.from_numpy(expected["attention"]), (SIDE, SIDE))

    scores = patch_insertion_deletion(
        lambda images: network(images).logits.softmax(dim=1),
        rebuilt_input("rise-causal-metric", (1, 3, SIDE, SIDE)),
        saliency,
        torch.tensor([int(expected["class_index"])]),
        patch_size=1,
        baseline=0.0,
        num_points=NUM_POINTS,
        batch_size=10,
    )

    assert scores.fractions.tolist() == [n / (NUM_POINTS - 1) for n in range(NUM_POINTS)]
    tolerances = np.where(splits_a_tie(saliency), TIED_FRAME_TOLERANCE, FRAME_TOLERANCE)
    assert (tolerances == FRAME_TOLERANCE).sum() > NUM_POINTS / 2
    for curve, area, name in (
        (scores.insertion_curve[0], scores.insertion_auc[0], "insertion"),
        (scores.deletion_curve[0], scores.deletion_auc[0], "deletion"),
    ):
        errors = np.abs(curve.numpy() - expected[name])
        assert np.all(errors <= tolerances), (name, np.flatnonzero(errors > tolerances))
        assert area.item() == pytest.approx(float(expected[f"{name}_auc"]), abs=AREA_TOLERANCE)


def splits_a_tie(saliency):
    """Return for each frame whether it takes some but not all of equally important pixels."""
    ordered = np.sort(saliency.numpy(), axis=None)[::-1]
    counts = np.arange(1, NUM_POINTS - 1) * SIDE
    return np.pad(ordered[counts - 1] == ordered[counts], 1)
