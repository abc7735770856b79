"""Attention maps on a page, whose threshold the reader moves by a slider."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

_DARKENED = 0.25
"""What remains of the colours where the attention is not above the threshold."""
_MOST_PIXELS = 256
"""The longest side of an embedded picture."""

SCRIPT = f"""
"use strict";
const slider = document.querySelector("#theta");
const read = (source) => new Promise((done) => {{
  const image = new Image();
  image.onload = () => {{
    const canvas = document.createElement("canvas");
    canvas.width = image.width; canvas.height = image.height;
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    done([canvas, context, context.getImageData(0, 0, image.width, image.height)]);
  }};
  image.src = source;
}});
const prepare = async (figure) => {{
  const [canvas, context, pixels] = await read(figure.dataset.image);
  const alpha = (await read(figure.dataset.alpha))[2].data;
  return (theta) => {{
    const shown = new ImageData(new Uint8ClampedArray(pixels.data), pixels.width);
    let attended = 0;
    for (let i = 0; i < alpha.length; i += 4) {{
      if (alpha[i] / 255 > theta) attended++;
      else for (let c = i; c < i + 3; c++) shown.data[c] *= {_DARKENED};
    }}
    context.putImageData(shown, 0, 0);
    figure.querySelector("img").src = canvas.toDataURL();
    figure.querySelector(".share").textContent = (400 * attended / alpha.length).toFixed(1) + "%";
  }};
}};
Promise.all([...document.querySelectorAll(".map")].map(prepare)).then((figures) => {{
  slider.closest("label").hidden = false;
  slider.addEventListener("input", () => {{
    document.querySelector("#theta-value").textContent = Number(slider.value).toFixed(2);
    for (const draw of figures) draw(Number(slider.value));
  }});
}});
""".strip()
"""Draws the maps at the slider's threshold, and shows the slider; without it the pictures stay."""


@dataclass(frozen=True, eq=False, kw_only=True)
class AttentionMap:
    """An image, alpha at its size, in [0, 1] and not thresholded, and what it is in words."""

    image: UInt8[np.ndarray, "h w c"]
    attention: Float[np.ndarray, "h w"]
    title: str


def threshold_section(maps: Sequence[AttentionMap], theta_alpha: float) -> str:
    """Return maps and a slider as HTML: what lies above the threshold is seen, the rest is dark."""
    figures = "\n".join(_figure(one, theta_alpha) for one in maps)
    return f"""<p>What the attention leaves above the threshold is shown as it is, the rest
darkened. The network's own threshold is theta_alpha = {theta_alpha:g}.</p>
<p class="slider"><label hidden>Threshold <output id="theta-value">{theta_alpha:.2f}</output>
<input id="theta" type="range" min="0" max="1" step="0.01" value="{theta_alpha:g}"></label></p>
<div class="maps">
{figures}
</div>"""


def _figure(one: AttentionMap, theta_alpha: float) -> str:
    image, attention = _limited(one)
    is_attended = attention > theta_alpha
    shown = np.where(is_attended[..., None], image, (image * _DARKENED).astype(np.uint8))
    title = escape(one.title)
    about = f"{title}: the attended pixels, the others darkened"
    return (
        f'<figure class="map" data-image="{_uri(image)}"'
        f' data-alpha="{_uri(np.rint(attention * 255).astype(np.uint8))}">'
        f'<img alt="{about}" src="{_uri(shown)}">'
        f'<figcaption>{title}. Attended: <span class="share">{is_attended.mean():.1%}</span>'
        "</figcaption></figure>"
    )


def _limited(one: AttentionMap) -> tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "h w"]]:
    """Return the image in colour and the map, both small enough to be embedded."""
    grey_or_colour = one.image[:, :, 0] if one.image.shape[2] == 1 else one.image
    image = Image.fromarray(grey_or_colour).convert("RGB")
    image.thumbnail((_MOST_PIXELS, _MOST_PIXELS), Image.Resampling.BICUBIC)
    attention = Image.fromarray(one.attention.astype(np.float32))
    resized = attention.resize(image.size, Image.Resampling.BILINEAR)
    return np.asarray(image), np.clip(np.asarray(resized), 0, 1)


def _uri(pixels: UInt8[np.ndarray, "h w *c"]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
