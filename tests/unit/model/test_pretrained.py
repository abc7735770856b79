from __future__ import annotations

import contextlib
import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from golden.rebuild import IDRID, MAGNETOGRAM, released_shapes, released_state
from torch import nn

from labn.errors import UserError
from labn.model.network import build_model
from labn.model.pretrained import load_pretrained, load_release_state


def small_model(**settings):
    torch.manual_seed(0)
    return build_model("lambda_cnn", in_channels=1, **({"split": 0} | settings))


def numbered(shapes):
    """Give every tensor one number of its own, at the cost of one number on disk."""
    return {
        name: torch.full((), float(i)).expand(shape)
        for i, (name, shape) in enumerate(shapes.items())
    }


def shapes_of(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def copy_of(state):
    return {name: tensor.clone() for name, tensor in state.items()}


def released_like(model, cut):
    """Chain a model's modules as the release does: children in order, cut before child ``cut``."""
    stages, first = [], 0
    for depth in model.plan.stage_depths:
        stage = model.bottlenecks[first : first + depth]
        stages.append(stage[0] if len(model.bottlenecks) == 1 else nn.Sequential(*stage))
        first += depth
    stem = model.stem
    children = [stem.conv1, stem.bn1, nn.ReLU(), stem.maxpool, *stages]
    children += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.fc]
    released = nn.Module()
    released.feature_extractor = nn.Sequential(*children[:cut])
    released.attention_branch = model.attention_branch
    released.perception_branch = nn.Sequential(*children[cut:])
    return released


@pytest.mark.parametrize(
    ("backbone", "split", "cut"),
    [
        ("lambda_cnn", 0, 4),
        ("lambda_cnn", 1, 5),
        ("lambda_resnet50", 0, 4),
        ("lambda_resnet50", 3, 5),
        ("lambda_resnet50", 7, 6),
        ("lambda_resnet50", 13, 7),
        ("lambda_resnet50", 16, 8),
    ],
)
def test_a_released_checkpoint_loads_at_every_edge_of_a_stage(backbone, split, cut):
    source, model = (build_model(backbone, split=split, branch_width=2) for _ in range(2))
    with torch.no_grad():
        for i, tensor in enumerate(source.state_dict().values()):
            tensor.fill_(i)
    load_release_state(model, released_like(source, cut).state_dict())
    expected = source.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_the_names_of_the_published_checkpoints_load_whole():
    model = small_model()
    load_release_state(model, released_state(MAGNETOGRAM))
    stem = released_state(MAGNETOGRAM)["feature_extractor.0.weight"]
    assert torch.equal(model.stem.conv1.weight, stem)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"split": 3}, "split=3"),
        ({"split": 13}, "split=13"),
        ({"split": 5}, r"split=5 lies within a stage.*\[0, 3, 7, 13, 16\]"),
        (
            {"num_classes": 5},
            r"attention_branch.conv4.weight has shape \(2, 10, 1, 1\).*num_classes",
        ),
        ({"in_channels": 1}, r"feature_extractor.0.weight.*\(64, 3, 7, 7\).*in_channels"),
        ({"branch_width": 8}, "attention_branch.layer1.0.conv1.weight.*branch_width"),
        ({"backbone": "lambda_cnn", "split": 0}, "split=0"),
    ],
)
def test_a_released_checkpoint_of_another_network_is_refused_by_what_differs(settings, named):
    with torch.device("meta"):
        model = build_model(**settings)
    with pytest.raises(UserError, match=named) as caught:
        load_release_state(model, numbered(released_shapes(IDRID)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_a_tensor_too_few_or_too_many_is_named_and_nothing_is_loaded(change):
    model = small_model()
    before = copy_of(model.state_dict())
    state = released_state(MAGNETOGRAM)
    if change == "missing":
        del state["attention_branch.bn3.bias"]
        named = "1 tensors are missing .first: attention_branch.bn3.bias. and 0"
    else:
        state["optimizer.extra"] = torch.zeros(1)
        named = "0 tensors are missing .* and 1 are unexpected .first: optimizer.extra."
    with pytest.raises(UserError, match=named):
        load_release_state(model, state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.fixture
def resnet50_file(tmp_path):
    with torch.device("meta"):
        resnet = torchvision.models.resnet50(weights=None)
    path = tmp_path / "resnet50.pth"
    torch.save(numbered(shapes_of(resnet)), path)
    return path


def test_a_torchvision_resnet_gives_all_but_the_3x3_convolutions_and_its_classes(resnet50_file):
    model = build_model(split=5, branch_width=2)
    before = copy_of(model.state_dict())
    report = load_pretrained(model, resnet50_file)
    checkpoint = torch.load(resnet50_file)

    openers = {0: 1, 3: 2, 7: 3, 13: 4}
    stage, position = 0, 0
    expected = {f"stem.{name}": name for name in checkpoint if name.startswith(("conv1.", "bn1."))}
    for index in range(16):
        stage, position = (openers[index], 0) if index in openers else (stage, position + 1)
        theirs = f"layer{stage}.{position}."
        expected |= {
            f"bottlenecks.{index}.{name.removeprefix(theirs)}": name
            for name in checkpoint
            if name.startswith(theirs) and ".conv2." not in name
        }
    assert set(report.matched) == set(expected)
    # 320 tensors less 16 convolutions, weight and bias of the linear layer.
    assert len(report.matched) == 302
    assert report.other_shape == ("fc.weight", "fc.bias")
    assert len(report.not_in_model) == 16
    assert all(name.endswith(".conv2.weight") for name in report.not_in_model)
    own = model.state_dict()
    assert set(report.not_in_checkpoint) == set(own) - set(expected) - {"fc.weight", "fc.bias"}
    for name, tensor in own.items():
        source = checkpoint[expected[name]].to(tensor.dtype) if name in expected else before[name]
        assert torch.equal(tensor, source), name
    sections = "stem 6 of 6, stage1 57 of 96, stage2 74 of 126, stage3 108 of 186, stage4 57 of 96"
    assert str(report).startswith(f"302 tensors loaded ({sections}, attention_branch 0 of 61, fc 0")
    assert report.share_of_backbone == 302 / 510


def test_a_torchvision_resnet_keeps_its_linear_layer_where_the_classes_agree(resnet50_file):
    report = load_pretrained(build_model(num_classes=1000, branch_width=2), resnet50_file)
    assert {"fc.weight", "fc.bias"} <= set(report.matched)
    assert report.other_shape == ()


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_of_one_s_own_is_taken_over_whole(tmp_path, prefix, wrapper):
    source, model = small_model(), small_model()
    state = {prefix + name: tensor + 1 for name, tensor in source.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "own.pt")
    report = load_pretrained(model, tmp_path / "own.pt")
    assert report.matched == tuple(source.state_dict())
    assert report.other_shape == report.not_in_checkpoint == report.not_in_model == ()
    expected = source.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name] + 1), name


def test_a_released_checkpoint_serves_as_a_start_too(tmp_path):
    torch.save(released_state(MAGNETOGRAM), tmp_path / "released.pt")
    model, expected = small_model(num_classes=3), small_model()
    load_release_state(expected, released_state(MAGNETOGRAM))
    report = load_pretrained(model, tmp_path / "released.pt")
    assert report.other_shape == ("attention_branch.conv4.weight", "fc.weight", "fc.bias")
    assert report.not_in_checkpoint == report.not_in_model == ()
    for name in report.matched:
        assert torch.equal(model.state_dict()[name], expected.state_dict()[name]), name


class Marker:
    """Unpickled with code allowed, it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def bad_file(kind, folder):
    path = folder / "bad.pt"
    if kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "empty":
        path.touch()
    elif kind == "truncated":
        torch.save(small_model().state_dict(), path)
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind == "pickle with code":
        path.write_bytes(pickle.dumps({"fc.weight": Marker(folder / "ran")}))
    elif kind == "checkpoint with code":
        torch.save({"fc.weight": Marker(folder / "ran")}, path)
    elif kind == "list":
        torch.save([torch.zeros(1)], path)
    elif kind == "numbers":
        torch.save({"fc.weight": 3}, path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "strange names":
        torch.save({"a": torch.zeros(1), 3: torch.zeros(2)}, path)
    elif kind == "nothing in it":
        torch.save({}, path)
    elif kind == "other shapes only":
        torch.save({"fc.bias": torch.zeros(7)}, path)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "text",
        "empty",
        "truncated",
        "pickle with code",
        "checkpoint with code",
        "list",
        "numbers",
        "folder",
        "absent",
        "strange names",
        "nothing in it",
        "other shapes only",
    ],
)
def test_a_file_that_gives_nothing_is_refused_and_none_of_it_is_run(tmp_path, kind):
    model = small_model()
    before = copy_of(model.state_dict())
    path = bad_file(kind, tmp_path)
    with pytest.raises(UserError) as caught:
        load_pretrained(model, path)
    message = str(caught.value)
    assert message.startswith(f"model.pretrained = {path}: ") and "\n" not in message
    assert not (tmp_path / "ran").exists()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", ["pickle with code", "checkpoint with code"])
def test_the_files_with_code_would_run_it_were_it_allowed(tmp_path, kind):
    with contextlib.suppress(RuntimeError):  # a bare pickle is no checkpoint, but it is run first
        torch.load(bad_file(kind, tmp_path), weights_only=False)
    assert (tmp_path / "ran").exists()


def public_names(model):
    """Return the backbone's names, each with torchvision's, which d-li14's code has too."""
    names = {f"stem.{name}": name for name in model.stem.state_dict()}
    places = [(s, i) for s, depth in enumerate(model.plan.stage_depths) for i in range(depth)]
    for index, (stage, position) in enumerate(places):
        for name in model.bottlenecks[index].state_dict():
            names[f"bottlenecks.{index}.{name}"] = f"layer{stage + 1}.{position}.{name}"
    return names


def staged(name):
    """Return timm's name of a staged network's tensor."""
    if not name.startswith("layer"):
        return name
    stage, position, rest = name.removeprefix("layer").split(".", 2)
    for own, timms in (
        ("conv2.conv_qkv.", "self_attn.qkv."),
        ("conv2.lambda_conv.", "self_attn.conv_lambda."),
        ("conv2.norm_", "self_attn.norm_"),
        ("conv1.", "conv1_1x1.conv."),
        ("bn1.", "conv1_1x1.bn."),
        ("conv3.", "conv3_1x1.conv."),
        ("bn3.", "conv3_1x1.bn."),
        ("bn2.", "post_attn."),
        ("downsample.0.", "shortcut.conv."),
        ("downsample.1.", "shortcut.bn."),
    ):
        if rest.startswith(own):
            rest = timms + rest.removeprefix(own)
            break
    return f"stages.{int(stage) - 1}.{position}.{rest}"


@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone.", "_orig_mod."])
@pytest.mark.parametrize("naming", [str, staged], ids=["d-li14", "timm"])
def test_a_lambda_resnet_with_public_names_gives_its_whole_backbone(tmp_path, naming, prefix):
    source, model = (build_model("lambda_resnet26", branch_width=2, split=2) for _ in range(2))
    state, names = source.state_dict(), public_names(source)
    saved = {}
    for own, public in names.items():
        tensor = state[own]
        if naming is staged and public.endswith("lambda_conv.weight"):
            tensor = tensor.permute(0, 1, 3, 4, 2)
        saved[prefix + naming(public)] = tensor
    saved[f"{prefix}fc.weight"] = torch.zeros(1000, 2048)
    torch.save({"state_dict": saved}, tmp_path / "public.pth")

    report = load_pretrained(model, tmp_path / "public.pth", at_least=1.0)

    assert report.share_of_backbone == 1
    assert set(report.matched) == set(names)
    assert report.other_shape == ("fc.weight",)
    assert report.not_in_model == ()
    for own in names:
        assert torch.equal(model.state_dict()[own], state[own]), own


def test_a_checkpoint_of_less_than_half_of_the_backbone_is_refused_and_changes_nothing(tmp_path):
    source = build_model("lambda_resnet26", branch_width=2, split=2)
    few = {
        k: v for k, v in source.state_dict().items() if k.startswith(("stem.", "bottlenecks.0."))
    }
    torch.save(few, tmp_path / "few.pt")
    model = build_model("lambda_resnet26", branch_width=2, split=2)
    before = copy_of(model.state_dict())

    with pytest.raises(UserError, match=r"has 1\d% of the backbone \(.*stage2 0 of .*at_least=0"):
        load_pretrained(model, tmp_path / "few.pt", at_least=0.5)

    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert len(load_pretrained(model, tmp_path / "few.pt").matched) == len(few)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = small_model()
    state = copy_of(model.state_dict())
    state["fc.bias"][0] = float("nan")
    torch.save(state, tmp_path / "nan.pt")

    with pytest.raises(UserError, match=r"nan.pt: its tensor fc.bias has values that are not fin"):
        load_pretrained(model, tmp_path / "nan.pt")
