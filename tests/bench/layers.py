"""The lambda layers, against Conv3d and public layers."""

from __future__ import annotations

import copy
import functools
import statistics
from collections.abc import Callable, Iterator
from unittest.mock import patch

import torch
from torch import Tensor, nn

from labn import build_model
from labn.model.kernels import compiled_lambda, dispatch, position_lambda
from labn.model.lambda_layer import LambdaLayer
from labn.model.network import LABN
from tests.bench.network import BATCH, SIZE, network
from tests.bench.reference import with_conv3d_layers
from tests.bench.timing import Row, compare, interleave

_AT_LEAST = {"timm": 7.0, "lambda-networks": 5.0}
_NETWORKS = (
    ("lambda_resnet50", (224,)),
    ("lambda_resnet26", (112,)),
    ("lambda_cnn", (112, 224, 512)),
)
_TORCH_FORMS = {
    "dense": position_lambda.dense,
    "tiles": position_lambda.tiled,
    "torch's FFT": position_lambda.by_fft,
}
_MAX_DENSE_POSITIONS = 400  # beyond them the dense form takes a hundred times as long


def lambda_layer_rows(num_rounds: int) -> list[Row]:
    """Time forward and backward of the 16 lambda layers of a ResNet-50 at 224."""
    ours, inputs = _layers_and_inputs(network(), SIZE)
    others = [with_conv3d_layers(copy.deepcopy(layer)) for layer in ours]
    sets: dict[str, list[nn.Module]] = {"ours": list(ours), "Conv3d": others}
    sets |= _public_layers(ours)
    # Each gets its native layout: ours that of the network's convolutions.
    last = [x.detach().contiguous(memory_format=torch.channels_last) for x in inputs]
    last = [x.requires_grad_() for x in last]
    works = {
        name: _forward_backward(layers, last if name == "ours" else inputs)
        for name, layers in sets.items()
    }
    times = interleave(works, num_rounds)
    error = _layer_error(list(ours), others, inputs)
    label = f"16 lambda layers, forward + backward, batch {BATCH}, float32, against "
    rows = [compare(label + "Conv3d", times["ours"], times["Conv3d"], *error, at_least=5.0)]
    for name in [name for name in sets if name not in ("ours", "Conv3d")]:
        rows.append(compare(label + name, times["ours"], times[name], at_least=_AT_LEAST[name]))
    return rows


def shape_rows(num_rounds: int) -> list[Row]:
    """Compare the chosen form with all others at every layer shape of the networks.

    ``dispatch`` is right where no form is faster than ours.
    """
    rows = []
    for label, layer, x in _distinct_layers():
        with_gradient = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        for name, makes in (("forward + backward", _forward_backward), ("forward", _forward)):
            works = {
                form: _with_form(makes([module], [with_gradient]), form)
                for form, module in _forms(layer, x)
            }
            times = interleave(works, num_rounds, is_warm=True)
            found = f"{label}, {name}, batch {BATCH}, float32, against "
            others = {form: t for form, t in times.items() if form != "ours"}
            best = min(others, key=lambda form: statistics.median(others[form]))
            for form in sorted({"Conv3d", "timm", best} & set(others)):
                is_best = " (the best other)" if form == best else ""
                rows.append(
                    compare(f"{found}{form}{is_best}", times["ours"], others[form], at_least=0.95)
                )
    return rows


def _distinct_layers() -> Iterator[tuple[str, LambdaLayer, Tensor]]:
    seen = set()
    for backbone, sizes in _NETWORKS:
        for size in sizes:
            for layer, x in zip(
                *_layers_and_inputs(build_model(backbone, split=0), size), strict=True
            ):
                shape = (tuple(x.shape), isinstance(layer.pool, nn.AvgPool2d))
                if shape not in seen:
                    seen.add(shape)
                    pool = ", stride 2" if shape[1] else ""
                    yield (
                        f"{x.shape[1]} channels, {x.shape[2]}x{x.shape[3]}{pool}",
                        layer,
                        x.detach(),
                    )


def _forms(layer: LambdaLayer, x: Tensor) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layer under the names of all forms that are within reach at this size."""
    yield "ours", layer
    yield "Conv3d", with_conv3d_layers(copy.deepcopy(layer))
    for name, (public,) in _public_layers([layer]).items():
        yield name, public
    if compiled_lambda.is_available(x):
        yield "compiled", layer
    for name in _TORCH_FORMS:
        if name != "dense" or x.shape[2] * x.shape[3] <= _MAX_DENSE_POSITIONS:
            yield name, layer


def _with_form(work: Callable[[], None], form: str) -> Callable[[], None]:
    """Return a function that does the work with a layer's form forced, where ``form`` is one."""

    def forced() -> None:
        whole = compiled_lambda.apply_lambdas if form == "compiled" else None
        with (
            patch.object(dispatch, "_choose_whole_layer", lambda *_: whole),
            patch.object(
                dispatch, "_choose_position_lambda", lambda *_, **__: _TORCH_FORMS.get(form)
            ),
        ):
            work()

    return forced if form == "compiled" or form in _TORCH_FORMS else work


def _layers_and_inputs(model: LABN, size: int) -> tuple[list[LambdaLayer], list[Tensor]]:
    """Return the layers of a network, with inputs of the shapes that they have there."""
    model = model.eval()
    layers = [module for module in model.modules() if isinstance(module, LambdaLayer)]
    shapes: list[torch.Size] = []
    hooks = [
        layer.register_forward_hook(lambda _, x, __: shapes.append(x[0].shape)) for layer in layers
    ]
    with torch.inference_mode():
        model(torch.zeros(BATCH, 3, size, size))
    for hook in hooks:
        hook.remove()
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    return [layer.train() for layer in layers], inputs


def _public_layers(ours: list[LambdaLayer]) -> dict[str, list[nn.Module]]:
    """Return timm's and lambda-networks' layers of the same sizes, if they are installed."""
    found: dict[str, list[nn.Module]] = {}
    try:
        from timm.layers.lambda_layer import LambdaLayer as TimmLayer
    except ImportError:
        _report_absent("timm")
    else:
        found["timm"] = [
            TimmLayer(
                dim=layer.conv_qkv.in_channels,
                num_heads=layer.num_heads,
                dim_head=layer.key_depth,
                r=layer.lambda_conv.kernel_size[1],
                stride=2 if isinstance(layer.pool, nn.AvgPool2d) else 1,
            )
            for layer in ours
        ]
    try:
        from lambda_networks import LambdaLayer as PublicLayer
    except ImportError:
        _report_absent("lambda-networks")
    else:
        found["lambda-networks"] = [
            nn.Sequential(
                PublicLayer(
                    dim=layer.conv_qkv.in_channels,
                    dim_out=layer.conv_qkv.in_channels,
                    dim_k=layer.key_depth,
                    heads=layer.num_heads,
                    r=layer.lambda_conv.kernel_size[1],
                ),
                copy.deepcopy(layer.pool),
            )
            for layer in ours
        ]
    return found


@functools.cache  # once, not at each shape
def _report_absent(package: str) -> None:
    print(f"{package} is not installed (pip install '.[bench]'): left out")


def _forward_backward(layers: list[nn.Module], inputs: list[Tensor]) -> Callable[[], None]:
    def work() -> None:
        for layer, x in zip(layers, inputs, strict=True):
            layer(x).square().mean().backward()

    return work


def _forward(layers: list[nn.Module], inputs: list[Tensor]) -> Callable[[], None]:
    def work() -> None:
        with torch.inference_mode():
            for layer, x in zip(layers, inputs, strict=True):
                layer(x)

    return work


def _layer_error(
    ours: list[nn.Module], others: list[nn.Module], inputs: list[Tensor]
) -> tuple[float, str]:
    """Return the largest relative difference of any layer's gradients, kernel and input."""
    worst = 0.0
    for one, other, x in zip(ours, others, inputs, strict=True):
        grads = []
        for layer in (one, other):
            layer.zero_grad()
            x.grad = None
            layer(x).square().mean().backward()
            kernel = layer.get_parameter("lambda_conv.weight")
            gradients = [one.grad for one in (x, kernel) if one.grad is not None]
            grads.append([gradient.clone() for gradient in gradients])
        for a, b in zip(*grads, strict=True):
            worst = max(worst, ((a - b).norm() / b.norm()).item())
    return worst, "relative difference of gradients"
