"""The lambda layers and the whole training step, against Conv3d and public layers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from labn import build_model
from labn.losses import Objective
from labn.model.lambda_layer import LambdaLayer
from labn.model.network import LABN
from tests.bench.reference import with_conv3d_layers
from tests.bench.timing import Row, compare, interleave, peak_memory_mb

SIZE = 224
BATCH = 8


def network() -> LABN:
    """Build the paper's network, B = 7, always the same."""
    torch.manual_seed(0)
    return build_model()


def channels_last(model: LABN) -> LABN:
    """Lay out the 2-d convolutions' weights as `labn.runs` does; others have other ranks."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def lambda_layer_rows(num_rounds: int) -> list[Row]:
    """Time forward and backward of the 16 lambda layers of a ResNet-50 at 224."""
    ours, inputs = _layers_and_inputs()
    others = [with_conv3d_layers(copy.deepcopy(layer)) for layer in ours]
    sets: dict[str, list[nn.Module]] = {"ours": list(ours), "Conv3d": others}
    sets |= _public_layers(ours)
    # Each gets the layout in which it is at home: ours what the network's convolutions give it.
    last = [x.detach().contiguous(memory_format=torch.channels_last) for x in inputs]
    last = [x.requires_grad_() for x in last]
    works = {
        name: _forward_backward(layers, last if name == "ours" else inputs)
        for name, layers in sets.items()
    }
    times = interleave(works, num_rounds)
    error = _layer_error(list(ours), others, inputs)
    label = f"16 lambda layers, forward + backward, batch {BATCH}, float32, against "
    rows = [compare(label + "Conv3d", times["ours"], times["Conv3d"], *error)]
    for name in [name for name in sets if name not in ("ours", "Conv3d")]:
        rows.append(compare(label + name, times["ours"], times[name]))
    return rows


def training_step_rows(num_rounds: int) -> list[Row]:
    """Time a training step of the whole network, in float32 and with bf16 convolutions."""
    ours, other = network().train(), with_conv3d_layers(network()).train()
    channels_last(ours)
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(BATCH) % 2
    last = images.contiguous(memory_format=torch.channels_last)
    works = {
        "float32": _step(ours, last, labels, None),
        "bf16": _step(ours, last, labels, torch.bfloat16),
        "Conv3d": _step(other, images, labels, None),
    }
    times = interleave(works, num_rounds)
    label = f"training step with L_KL, batch {BATCH} at {SIZE}, B = 7, against Conv3d contiguous, "
    return [compare(label + key, times[key], times["Conv3d"]) for key in ("float32", "bf16")]


def training_memory_row() -> Row:
    """Compare the peak memory of a float32 training step, beyond what the network takes."""
    code = """
import torch
from tests.bench.layers import channels_last, network, _step, BATCH, SIZE
from tests.bench.reference import with_conv3d_layers
net = {make}.train()
images = torch.randn(BATCH, 3, SIZE, SIZE){layout}
step = _step(net, images, torch.arange(BATCH) % 2, None)
mark()
step()
step()
"""
    last = "memory_format=torch.channels_last"
    ours = peak_memory_mb(
        code.format(make="channels_last(network())", layout=f".contiguous({last})")
    )
    other = peak_memory_mb(code.format(make="with_conv3d_layers(network())", layout=""))
    return Row(
        name=f"peak memory of a float32 training step, batch {BATCH}, against Conv3d",
        ours=ours[1],
        other=other[1],
        unit="MB",
        ratio=other[1] / ours[1],
        low=other[1] / ours[1],
        high=other[1] / ours[1],
        num_rounds=1,
        notes={"percent_less": 100 * (1 - ours[1] / other[1])},
    )


def _layers_and_inputs() -> tuple[list[LambdaLayer], list[Tensor]]:
    """Take the layers out of the network, with inputs of the shapes they get there."""
    model = network().eval()
    layers = [module for module in model.modules() if isinstance(module, LambdaLayer)]
    shapes: list[torch.Size] = []
    hooks = [
        layer.register_forward_hook(lambda _, x, __: shapes.append(x[0].shape)) for layer in layers
    ]
    with torch.inference_mode():
        model(torch.zeros(BATCH, 3, SIZE, SIZE))
    for hook in hooks:
        hook.remove()
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    return [layer.train() for layer in layers], inputs


def _public_layers(ours: list[LambdaLayer]) -> dict[str, list[nn.Module]]:
    """Build timm's and lambda-networks' layers of the same sizes, where they are installed."""
    found: dict[str, list[nn.Module]] = {}
    try:
        from timm.layers.lambda_layer import LambdaLayer as TimmLayer
    except ImportError:
        print("timm is not installed (pip install '.[bench]'): left out")
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
        print("lambda-networks is not installed (pip install '.[bench]'): left out")
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


def _forward_backward(layers: list[nn.Module], inputs: list[Tensor]) -> Callable[[], None]:
    def work() -> None:
        for layer, x in zip(layers, inputs, strict=True):
            layer(x).square().mean().backward()

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
            kernel = layer.lambda_conv.weight
            assert x.grad is not None and kernel.grad is not None
            grads.append((x.grad.clone(), kernel.grad.clone()))
        for a, b in zip(*grads, strict=True):
            worst = max(worst, ((a - b).norm() / b.norm()).item())
    return worst, "relative difference of gradients"


def _step(
    model: nn.Module, images: Tensor, labels: Tensor, precision: torch.dtype | None
) -> Callable[[], None]:
    objective = Objective(
        bias_image=torch.zeros_like(images[0]), theta_b=0.2, lambda_lab=1.0, lambda_kl=1.0
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    num_images = torch.tensor(float(len(images)))

    def work() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", precision, enabled=precision is not None):
            _, sums = objective.sums(model, images, labels)
        loss = objective.combine(sums, num_images, num_images).total
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return work
