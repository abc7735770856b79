"""What a served network takes, beyond the images of the tracker's own test."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from labn.tracking.labn_served import ServedNetwork

PREPARATION = {
    "class_names": ["no", "yes"],
    "image_size": 6,
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.2, 0.2],
    "crops": [],
}


class Network(torch.nn.Module):
    def forward(self, images):
        return {"attention": images}


def in_base64(pixels, format="png"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return base64.b64encode(file.getvalue()).decode()


def test_images_as_numbers_or_in_base64_are_those_that_were_sent():
    served = ServedNetwork(Network(), PREPARATION)
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, shape, np.uint8) for shape in [(6, 6, 3), (9, 7, 3), (8, 8)]]
    expected = served.predict(pixels)["attention"]

    sent = json.loads(json.dumps([in_base64(image) for image in pixels]))
    # As the server of MLflow hands them over.
    as_text = served.predict(np.array(sent))["attention"]
    as_numbers = served.predict(np.array(json.loads(json.dumps(pixels[1].tolist())))[None])

    np.testing.assert_array_equal(as_text, expected)
    np.testing.assert_array_equal(as_numbers["attention"], expected[1:2])


@pytest.mark.parametrize("text", ["no base64!", base64.b64encode(b"no image").decode()])
def test_text_that_is_no_image_in_base64_is_named(text):
    with pytest.raises(ValueError, match=rf"text of {len(text)} letters, must be an image file"):
        ServedNetwork(Network(), PREPARATION).predict([text])
