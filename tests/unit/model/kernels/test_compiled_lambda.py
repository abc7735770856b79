from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from labn.model.kernels import compiled, compiled_lambda
from labn.model.kernels.compiled_lambda import apply_lambdas
from labn.model.kernels.position_lambda import by_fft, dense
from labn.model.lambda_layer import LambdaLayer

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="there is no C++ compiler"
)

# images, map, heads, key depth, values, field
SHAPES = {
    "one position": (1, (1, 1), 2, 1, 1, 3),
    "one column, odd depth": (2, (9, 1), 2, 3, 2, 5),
    "smaller than the kernel": (2, (4, 6), 3, 4, 5, 23),
    "larger than the kernel": (1, (11, 20), 1, 2, 19, 5),
    "several vectors of values": (1, (6, 5), 4, 16, 40, 7),
    "more keys than lanes": (1, (3, 4), 2, 37, 3, 3),
    "several pairs of keys in a vector": (2, (6, 5), 4, 16, 2, 5),
    "pairs of keys that fill no vector": (2, (5, 4), 2, 7, 4, 3),
    "vectors with idle lanes": (2, (4, 5), 3, 13, 7, 5),
}


@pytest.fixture(autouse=True)
def fresh_library():
    yield
    compiled.library.cache_clear()


@pytest.fixture(params=["native", "haswell"])
def instructions(request, monkeypatch):
    """Compile for this CPU, and for the instructions of AVX2, whose vectors are half as wide."""
    if request.param != "native" and "avx512f" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("the CPU's own instructions are the others, or the same")
    monkeypatch.setenv("LABN_MARCH", request.param)
    compiled.library.cache_clear()


def make_case(seed, shape):
    b, (height, width), h, k, v, r = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = ((b, height * width, h, k), (b, height * width, v), (b, k, v), (k, r, r))
    return [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]


def by_torch(q, v, content, kernel, map_size, path=by_fft):
    """The same by forms that are themselves compared with the definition, position by position."""
    queries = q.permute(0, 2, 3, 1)
    y = path(queries, v.mT, kernel, map_size)
    return (y + torch.einsum("bhkm,bkv->bhvm", queries, content)).permute(0, 3, 1, 2)


def with_gradients(function, inputs, map_size, weights):
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    y = function(*inputs, map_size)
    (y * weights.to(y)).sum().backward()
    return [y.detach(), *(tensor.grad for tensor in inputs)]


@needs_compiler
@pytest.mark.parametrize("path", [by_fft, dense])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.usefixtures("instructions")
def test_results_and_gradients_are_those_of_the_forms_in_torch(shape, path):
    inputs = make_case(0, shape)
    weights = torch.randn(
        by_torch(*inputs, shape[1]).shape, generator=torch.Generator().manual_seed(1)
    ).double()
    assert compiled_lambda.is_available(inputs[0])
    found = with_gradients(apply_lambdas, inputs, shape[1], weights)
    expected = with_gradients(lambda *a: by_torch(*a, path=path), inputs, shape[1], weights)
    # Sums of a few thousand float64 products of order 1, in another order.
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@needs_compiler
@pytest.mark.parametrize(("side", "num_values"), [(56, 16), (28, 32), (7, 128), (28, 2), (20, 7)])
@pytest.mark.usefixtures("instructions")
def test_float32_is_exact_to_rounding_at_the_networks_own_sizes(side, num_values):
    shape = (2, (side, side), 4, 16, num_values, 23)
    inputs = make_case(2, shape)
    weights = torch.randn(
        (*inputs[0].shape[:3], shape[4]), generator=torch.Generator().manual_seed(3)
    )
    single = [tensor.float() for tensor in inputs]
    y, *gradients = with_gradients(apply_lambdas, single, shape[1], weights)
    expected, *expected_gradients = with_gradients(by_torch, inputs, shape[1], weights)
    assert (y - expected).norm() < 1e-5 * expected.norm()
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert (one - other).norm() < 1e-4 * other.norm()


@needs_compiler
def test_gradients_agree_with_finite_differences():
    inputs = [tensor.requires_grad_() for tensor in make_case(4, (2, (4, 3), 2, 3, 2, 3))]
    assert torch.autograd.gradcheck(lambda *tensors: apply_lambdas(*tensors, (4, 3)), inputs)


@needs_compiler
def test_the_number_of_threads_changes_no_bit():
    inputs = [tensor.float() for tensor in make_case(5, (3, (12, 10), 4, 6, 20, 9))]
    weights = torch.randn((*inputs[0].shape[:3], 20), generator=torch.Generator().manual_seed(6))
    before = torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            results.append(with_gradients(apply_lambdas, inputs, (12, 10), weights))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@needs_compiler
@pytest.mark.parametrize("num_values", [2, 20])
def test_the_other_images_of_a_batch_change_no_bit(num_values):
    inputs = [tensor.float() for tensor in make_case(8, (3, (6, 7), 4, 6, num_values, 5))]
    weights = torch.randn((*inputs[0].shape[:3], num_values))
    *together, _ = with_gradients(apply_lambdas, inputs, (6, 7), weights)
    for image in range(3):
        alone = [tensor[image : image + 1] for tensor in inputs[:3]]
        *one, _ = with_gradients(apply_lambdas, [*alone, inputs[3]], (6, 7), weights[image])
        assert all(torch.equal(a, b[image : image + 1]) for a, b in zip(one, together, strict=True))


@needs_compiler
def test_the_vectors_are_as_wide_as_the_instructions(monkeypatch):
    cpu = Path("/proc/cpuinfo").read_text()
    if " avx2 " not in cpu:
        pytest.skip("not an x86 CPU with AVX2")
    assert compiled_lambda.vectors() == ("512 bits" if "avx512f" in cpu else "256 bits")
    monkeypatch.setenv("LABN_MARCH", "haswell")
    compiled.library.cache_clear()
    assert compiled_lambda.vectors() == "256 bits"
    monkeypatch.setenv("LABN_COMPILE", "0")
    compiled.library.cache_clear()
    assert compiled_lambda.vectors() == "none"


@needs_compiler
@pytest.mark.parametrize("why", ["switched off", "no compiler", "no folder", "source is broken"])
def test_without_the_kernel_the_layer_agrees_by_torch(why, monkeypatch, tmp_path, caplog):
    layer = LambdaLayer(16, num_heads=2, key_depth=3, receptive_field=5).double()
    x = torch.randn(2, 16, 6, 7, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    assert compiled_lambda.is_available(x)
    expected = layer(x)

    monkeypatch.setenv("HOME", str(tmp_path))
    if why == "switched off":
        monkeypatch.setenv("LABN_COMPILE", "0")
    elif why == "no compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
    elif why == "no folder":
        (tmp_path / ".cache").write_text("a file, where a folder should be")
    else:
        (tmp_path / "broken.cpp").write_text("this is not C++")
        monkeypatch.setattr(compiled_lambda, "SOURCE", tmp_path / "broken.cpp")
    compiled.library.cache_clear()
    with caplog.at_level(logging.DEBUG, logger=compiled.__name__):
        assert not compiled_lambda.is_available(x)
    assert f"torch is used instead of {compiled_lambda.SOURCE.name}" in caplog.text
    # Sums of a few hundred float64 products of order 1, in another order.
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-10)


@needs_compiler
@pytest.mark.slow
def test_processes_that_start_together_compile_once_and_leave_nothing_else(tmp_path):
    code = (
        "from pathlib import Path;"
        "from labn.model.kernels import compiled, compiled_lambda as module;"
        f"print(compiled.built(module.SOURCE, Path({str(tmp_path)!r})).stat().st_ino)"
    )
    together = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    inodes = {process.communicate(timeout=300)[0] for process in together}
    assert len(inodes) == 1 and inodes != {""}
    assert {path.suffix for path in tmp_path.iterdir()} == {".so", ".lock"}
    assert len(list(tmp_path.glob("*.so"))) == 1
