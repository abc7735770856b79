"""The maps of a page, and the page around them."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from labn.report.html import page
from labn.report.threshold import AttentionMap, threshold_section

HOSTILE = "</figure><script>alert(1)</script>\"'&"


class _Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def elements(html):
    parser = _Elements()
    parser.feed(html)
    return parser


def pixels_of(uri):
    kind, content = uri.split(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def make_map(height=2, width=2, channels=3, title="eye"):
    attention = np.linspace(0, 1, height * width).reshape(height, width)
    image = np.full((height, width, channels), 200, np.uint8)
    return AttentionMap(image=image, attention=attention, title=title)


def test_a_picture_shows_what_is_above_the_threshold_without_any_script():
    found = elements(threshold_section([make_map()], 1 / 3)).found

    figure = dict(found)["figure"]
    assert pixels_of(dict(found)["img"]["src"])[..., 0].tolist() == [[50, 50], [200, 200]]
    np.testing.assert_array_equal(pixels_of(figure["data-image"]), make_map().image)
    assert pixels_of(figure["data-alpha"]).tolist() == [[0, 85], [170, 255]]
    assert "hidden" in dict(found)["label"]  # until the script can move the threshold


def test_the_share_is_that_of_the_pixels_strictly_above_the_threshold():
    assert '<span class="share">50.0%</span>' in threshold_section([make_map()], 1 / 3)


def test_large_and_grey_images_are_embedded_small_and_in_colour():
    found = elements(threshold_section([make_map(300, 600, 1)], 0.5)).found

    assert pixels_of(dict(found)["figure"]["data-image"]).shape == (128, 256, 3)
    assert pixels_of(dict(found)["figure"]["data-alpha"]).shape == (128, 256)


def test_names_are_escaped_and_only_the_pages_own_script_may_run():
    html = page("x", [], [], {}, [], [make_map(title=HOSTILE)], 0.5)

    parsed = elements(html)
    assert [tag for tag, _ in parsed.found].count("script") == 1
    assert dict(parsed.found)["img"]["alt"].startswith(HOSTILE)
    policy = next(one["content"] for tag, one in parsed.found if "http-equiv" in one)
    script = re.search("<script>(.*?)</script>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline';"
        f" script-src 'sha256-{digest}'"
    )
    assert not re.search(r"https?://|url\(|@import", html)


def test_a_page_without_maps_runs_no_script():
    html = page("x", [], [], {}, [])

    assert "script-src 'none'" in html
    assert "<script" not in html
