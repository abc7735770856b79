"""The list of methods, and the methods that other packages add to it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from labn.errors import UserError
from labn.explain.registry import METHODS, MethodContext, build_method, resolve_names
from labn.model.network import build_model

PACKAGE = """
class Glow:
    name = "glow"

    def __init__(self, context):
        self.model = context.model

    def explain(self, images, labels, names):
        return images.abs().mean(dim=1)


class Broken(Glow):
    def __init__(self, context):
        context.absent
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that makes a package with an entry point importable."""

    def call(name, entry):
        (tmp_path / f"{name}.py").write_text(PACKAGE)
        about = tmp_path / f"{name}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[labn.methods]\n{entry}\n")
        monkeypatch.syspath_prepend(tmp_path)

    yield call
    for module in ("labn_glow", "labn_other"):
        sys.modules.pop(module, None)


def make_context(**changes):
    model = build_model("lambda_cnn", split=0).eval()
    given = {"model": model, "predict": lambda x: model(x).logits.softmax(1)}
    return MethodContext(**(given | {"num_masks": 4, "seed": 0, "lambda_layer": 0} | changes))


@pytest.mark.parametrize("name", METHODS)
def test_each_method_bears_the_name_that_it_is_listed_under(name):
    method = build_method(name, make_context())

    assert method.name.startswith(name)


def test_a_method_of_another_package_is_found_by_its_entry_point(install):
    install("labn_glow", "glow = labn_glow:Glow")
    images = torch.rand(2, 3, 8, 8)

    (name,) = resolve_names(["Glow"])
    maps = build_method(name, make_context()).explain(images, torch.tensor([0, 1]), ["a", "b"])

    assert torch.equal(maps, images.abs().mean(dim=1))


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ("glow = labn_other:Absent", "cannot be loaded"),
        ("glow = labn_absent:Glow", "cannot be loaded"),
        ("glare = labn_other:Glow", "calls itself 'glow'"),
    ],
)
def test_a_package_whose_method_is_broken_is_named(install, entry, fault):
    install("labn_other", entry)
    name = entry.partition(" ")[0]

    with pytest.raises(UserError, match=f"--methods {name}: labn_.*{fault}"):
        build_method(name, make_context())


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r'--methods grad cat: .*Did you mean "Grad-CAM"'):
        resolve_names(["grad cat"])


def test_a_layer_that_the_network_has_not_is_refused():
    with pytest.raises(UserError, match="must be lambda attention 0 to 0"):
        build_method("lambda attention 3", make_context())


def test_a_defect_of_a_methods_own_constructor_is_not_taken_for_a_broken_package(install):
    install("labn_glow", "glow = labn_glow:Broken")

    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        build_method("glow", make_context())


def test_the_names_of_methods_are_known_without_captum():
    code = (
        "import sys; import labn.runs.comparison.read_runs, labn.sweeps.ablation.ablation_study;"
        "sys.exit('captum' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
