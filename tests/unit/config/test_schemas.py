"""Rules for every key of a run, a search and a study, found by walking their schemas."""

from __future__ import annotations

import copy
import math
import re

import pytest
import yaml

from labn.config import load_config, load_search, load_study
from labn.config.ablation import StudyConfig
from labn.config.run import Config
from labn.config.search import SearchConfig
from labn.errors import UserError

RUN = {"data": {"name": "synthetic"}, "output_dir": "runs/test"}
DOMAIN = {"type": "float", "low": 0.1, "high": 0.9}
SEARCH = {"base": RUN, "space": {"loss.theta_b": DOMAIN}, "output_dir": "runs/test"}
STUDY = {"base": RUN, "conditions": {"full": {}}, "seeds": [0], "output_dir": "runs/test"}
FILES = {
    "run": (Config, load_config, RUN),
    "search": (SearchConfig, load_search, SEARCH),
    "study": (StudyConfig, load_study, STUDY),
}
MAY_BE_EMPTY = {"validation.pid_growth_epochs", "train.freeze", "first", "evaluate.metrics"}
MAY_BE_NEGATIVE = {"space.loss.theta_b.low", "space.loss.theta_b.high"}
INTERNAL = re.compile(
    r"[Ii]nput|Pydantic|Undefined|validation error|function-|\[\w+, ?\w+\]:|tuple"
)


def fields(schema):
    """Yield the path, the type and the items' type of every leaf in Pydantic's JSON schema."""
    definitions = schema.get("$defs", {})

    def walk(node, path):
        node = definitions[node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        options = [one for one in node.get("anyOf", [node]) if one.get("type") != "null"]
        if len(options) == 1 and options[0] is not node:
            yield from walk(options[0], path)
        elif "properties" in node:
            for name, inner in node["properties"].items():
                yield from walk(inner, (*path, name))
        else:
            kind = options[0].get("type")
            items = options[0].get("items", {}).get("type")
            yield path, kind, items

    return walk(schema, ())


def all_fields():
    for name, (schema, _, _) in FILES.items():
        yield from ((name, *found) for found in fields(schema.model_json_schema()))
    for kind, number in (("float", "number"), ("int", "integer")):
        for end in ("low", "high"):
            yield "search", ("space", "loss.theta_b", end), number, kind
    yield "search", ("space", "loss.theta_b", "choices"), "array", "categorical"


FIELDS = [(name, path, kind, items) for name, path, kind, items in all_fields()]
NUMBERS = [
    (name, path, items if kind == "array" else kind, kind == "array", items)
    for name, path, kind, items in FIELDS
    if {"integer", "number"} & {kind, items}
]


def write(folder, name, path, value, domain=None):
    tree = copy.deepcopy(FILES[name][2])
    if path[0] == "space" and domain:
        others = {"categorical": {}}.get(domain, {"low": 1, "high": 2})
        tree["space"]["loss.theta_b"] = {"type": domain} | others
    node = tree
    for part in path[:-1]:
        node = node.setdefault(part, {})
    node[path[-1]] = value
    if path == ("objective", "constraint", "at_least"):
        node["metric"] = "val_auroc"
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def refusal(file, name, *overrides):
    with pytest.raises(UserError) as caught:
        FILES[name][1](file, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert not INTERNAL.search(message), message
    return message


def ids(value):
    return ".".join(value) if isinstance(value, tuple) else None


def test_the_walk_finds_the_numbers_of_all_three():
    found = {f"{name} {'.'.join(path)}" for name, path, *_ in NUMBERS}

    assert len(found) > 50
    assert found > {
        "run train.epochs", "run data.augment.brightness", "run loss.class_weights",
        "search trials", "search trial.gpus", "search objective.constraint.at_least",
        "search pruning.reduction", "search space.loss.theta_b.low", "study seeds",
        "study each_run.gpus", "study evaluate.patch_sizes",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "path", "kind", "is_list", "domain"), NUMBERS, ids=ids)
def test_true_text_and_infinity_are_no_numbers(tmp_path, name, path, kind, is_list, domain):
    wrong = {
        True: "must not be true or false",
        "8": f"must be a valid {kind}, without quotes",
        math.inf: "must be a finite number",
        math.nan: "must be a finite number",
    }
    for value, rule in wrong.items():
        given = [value] if is_list else value
        file = write(tmp_path, name, path, given, domain)

        message = refusal(file, name)

        assert message.startswith(f"{file}: {'.'.join(path)} = "), message
        assert rule in message, message


@pytest.mark.parametrize(
    ("name", "path"),
    [(name, path) for name, path, kind, _ in FIELDS if kind == "array"],
    ids=ids,
)
def test_an_empty_list_is_refused_where_it_means_nothing(tmp_path, name, path):
    file = write(tmp_path, name, path, [], "categorical")
    if ".".join(path) in MAY_BE_EMPTY:
        FILES[name][1](file)
        return

    message = refusal(file, name)

    assert message.startswith(f"{file}: {'.'.join(path)} = []: must not be empty"), message


@pytest.mark.parametrize(("name", "path", "kind", "is_list", "domain"), NUMBERS, ids=ids)
def test_a_negative_number_is_refused_where_it_means_nothing(
    tmp_path, name, path, kind, is_list, domain
):
    file = write(tmp_path, name, path, [-1] if is_list else -1, domain)
    if ".".join(path) in MAY_BE_NEGATIVE:
        FILES[name][1](file)  # whether the run takes it is another matter
        return

    message = refusal(file, name)

    assert f"{'.'.join(path)} = {[-1] if is_list else -1}: must be greater than " in message


@pytest.mark.parametrize(
    "value",
    [{"what": [1]}, [[[1]]]],
    ids=["mapping", "lists"],
)
@pytest.mark.parametrize(("name", "path", "kind", "items"), FIELDS, ids=ids)
def test_every_wrong_value_is_reported_in_terms_of_the_file(
    tmp_path, name, path, kind, items, value
):
    key = ".".join(path)
    if isinstance(value, dict) and key in ("base", "fixed"):
        pytest.skip("any mapping: what is in it is a run's")
    file = write(tmp_path, name, path, value, items if path[0] == "space" else None)

    message = refusal(file, name)

    assert re.match(rf"{re.escape(f'{file}: {key}')}\S* = .+: (must (be|hold)|unknown)", message), (
        message
    )


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (3, "space = 3: must be a mapping from keys to values"),
        ({}, "space = {}: must not be empty"),
        (
            {"a": 3},
            "space.a = 3: must be a section, with keys of its own: type, low, high, log, ch",
        ),
        (
            {"a": {"low": 1}},
            "space.a.type: required key is missing; it must be one of float, int, ",
        ),
        (
            {"a": DOMAIN | {"type": "flot"}},
            'space.a.type = flot: must be one of float, int, categorical. Did you mean "float"?',
        ),
        ({"a": {"type": "int"}}, "space.a.low: required key is missing; add it to the file"),
        ({"a": DOMAIN | {"hig": 1}}, 'space.a.hig = 1: unknown key. Did you mean "high"?'),
        (
            {"a": {"type": "categorical", "choices": [1, {"b": 2}]}},
            "space.a.choices = [1, {'b': 2}]: must hold finite numbers, text, true, false, null, or"
            " lists of these",
        ),
        (
            {"a": {"type": "categorical", "choices": [1, [math.inf]]}},
            "space.a.choices = [1, [inf]]: must hold finite numbers",
        ),
    ],
)
def test_a_wrong_space_is_reported_with_what_is_allowed(tmp_path, space, expected):
    file = write(tmp_path, "search", ("space",), space)

    assert refusal(file, "search").startswith(f"{file}: {expected}")


@pytest.mark.parametrize("name", ["search", "study"])
def test_a_base_is_a_path_or_sections(tmp_path, name):
    file = write(tmp_path, name, ("base",), 3)

    expected = "base = 3: must be the path of a run's configuration, or its sections"
    assert refusal(file, name) == f"{file}: {expected}"


def test_a_default_from_a_factory_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@host")
    file = write(tmp_path, "run", ("tracking", "uri"), 3)

    assert refusal(file, "run") == f"{file}: tracking.uri = 3: must be text (digits go in quotes)"


@pytest.mark.parametrize(
    ("name", "key", "nearest"),
    [
        ("run", "train.epoch", "train.epochs"),
        ("search", "trails", "trials"),
        ("search", "trial.cpu", "trial.cpus"),
        ("search", "sampler.nam", "sampler.name"),
        ("search", "objective.constraint.at_last", "objective.constraint.at_least"),
        ("study", "sedes", "seeds"),
        ("study", "each_run.retry", "each_run.retries"),
        ("study", "evaluate.pints", "evaluate.points"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_in_files_and_overrides(
    tmp_path, name, key, nearest
):
    expected = f'{key} = 3: unknown key. Did you mean "{nearest}"?'
    file = write(tmp_path, name, tuple(key.split(".")), 3)
    assert refusal(file, name).startswith(f"{file}: {expected}")

    file = write(tmp_path, name, ("output_dir",), "runs/other")
    overrides = [f"{key}=3"]
    assert refusal(file, name, *overrides).startswith(f"command line: {expected}")


@pytest.mark.parametrize(
    ("name", "key", "expected"),
    [
        ("search", "train.epochs", "is a key of the runs: in a file, write it under fixed"),
        ("search", "trial.cpus", "must be nested: in a file, write cpus under trial"),
        ("study", "patience", "unknown key. Known: base, fixed, output_dir, name, conditions, see"),
    ],
)
def test_a_key_in_the_wrong_place_is_answered_with_its_place(tmp_path, name, key, expected):
    file = write(tmp_path, name, (key,), 3)

    assert refusal(file, name).startswith(f"{file}: {key} = 3: {expected}")
