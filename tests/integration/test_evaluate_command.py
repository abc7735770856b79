"""`labn evaluate`: what it leaves, whatever the batches, the processes, the interruptions."""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import ENVIRONMENT, TIMEOUT_S, assert_mistake, run, run_here, write_config

from labn.config import load_config
from labn.data.readers.synthetic import write_synthetic
from labn.explain.registry import USUAL
from labn.metrics.map_metrics import METRICS
from labn.runs.evaluation.evaluate_run import evaluate_run
from labn.runs.evaluation.image_scores import (
    build_scorer,
    chosen_positions,
    fingerprint,
    score_positions,
)
from labn.runs.evaluation.measure_maps import COSTS
from labn.runs.evaluation.options import EvaluationOptions
from labn.runs.folder import RunFolder
from labn.runs.reporter import Reporter
from labn.runs.train import train_run
from labn.runs.trained import TrainedRun

SMALL = ("--patch-sizes", "4,8")
LAYER = "lambda attention 0"
NAMES = [LAYER if name == "lambda attention" else name for name in USUAL]
COLUMNS = [
    "name",
    "label",
    "method",
    "score",
    "patch_size",
    "baseline",
    "value",
    "insertion_auc",
    "deletion_auc",
    "num_points",
]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    config = load_config(write_config(folder, train__epochs=1))
    train_run(config, Reporter())
    return config.output_dir


@pytest.fixture
def trained(original, tmp_path):
    """A trained run of one's own."""
    return Path(shutil.copytree(original, tmp_path / "run"))


def scores_of(folder, part="test"):
    return pd.read_parquet(folder / "evaluation" / part / "scores.parquet")


def metrics_of(folder, part="test"):
    return json.loads((folder / "evaluation" / part / "metrics.json").read_text())


def assert_same_scores(one, other, tolerance):
    keys = ["name", "label", "method", "score", "patch_size", "baseline", "num_points"]
    pd.testing.assert_frame_equal(one[keys], other[keys])
    for column in ("value", "insertion_auc", "deletion_auc"):
        np.testing.assert_allclose(one[column], other[column], rtol=0, atol=tolerance)


def test_the_files_hold_what_was_measured_and_how(trained, labn):
    done = labn("evaluate", trained, *SMALL, "--json")

    assert done.returncode == 0, done.stderr
    printed, described, scores = json.loads(done.stdout), metrics_of(trained), scores_of(trained)
    folder = trained / "evaluation" / "test"
    assert printed["metrics"] == described["metrics"]
    assert list(scores.columns) == COLUMNS
    num_positives = sum(described["confusion"][1])
    assert len(scores) == num_positives * len(USUAL) * 5
    assert set(scores["method"]) == set(NAMES)
    pids = {"PID m=4", "PID m=8"}
    assert set(scores["score"]) == {"ID", *pids, *(f"{name} matched" for name in pids)}
    assert set(scores[scores["score"] == "ID"]["baseline"]) == {"zero"}
    assert set(scores[scores["score"] != "ID"]["baseline"]) == {"bias"}
    np.testing.assert_allclose(
        scores["value"], scores["insertion_auc"] - scores["deletion_auc"], rtol=0, atol=1e-15
    )
    images = pd.read_csv(folder / "images.csv")
    assert images.columns[:4].tolist() == ["name", "label", "predicted", "probability_0"]
    assert set(scores["name"]) == set(images.query("label > 0")["name"])
    localisation = pd.read_parquet(folder / "localisation.parquet")
    assert len(localisation) == num_positives * len(USUAL)
    assert described["settings"]["patch_sizes"] == [4, 8]
    assert described["settings"]["methods"] == list(USUAL)
    assert described["settings"]["num_masks"] == 500
    assert described["lambda_attention"] == {"layer": 0, "chosen_by": "the only one"}
    assert described["failures"]["num_scored"] == num_positives
    counts = sum(described["failures"][code] for code in ("IP", "OA", "IA", "WA"))
    assert counts == described["failures"]["num_failed"] == images["failure"].notna().sum()
    drawn = {path.name for path in map(Path, printed["pictures"])}
    assert drawn >= {"attention.png", "confusion.png", "curves.png", "examples.png"}
    assert "reliability.png" in drawn
    calibration = described["calibration"]
    assert calibration["temperature"] == described["metrics"]["test_temperature"] > 0
    assert calibration["expected_error"] == described["metrics"]["test_ece"]
    assert sum(calibration["counts"]) == described["num_images"]
    errors = images["label"] - images["probability_1"]
    skill = 1 - (errors**2).mean() / images["label"].var(ddof=0)
    # The table has the probabilities of float32.
    assert described["metrics"]["test_bss"] == pytest.approx(skill, abs=1e-6)
    assert "test_gmgs" not in described["metrics"]  # of two classes it is the TSS
    assert not list(folder.glob("parts-*"))


def test_tables_and_metrics_are_means_of_the_rows(trained, labn):
    assert labn("evaluate", trained, *SMALL).returncode == 0

    described, scores = metrics_of(trained)["metrics"], scores_of(trained)
    folder = trained / "evaluation" / "test"
    table = json.loads((folder / "table2.json").read_text())
    assert [row["Method"] for row in table["rows"]] == NAMES
    for row in table["rows"]:
        for score in ("ID", "PID m=4", "PID m=8"):
            chosen = (scores["method"] == row["Method"]) & (scores["score"] == score)
            values = scores[chosen]["value"]
            assert row[score]["mean"] == pytest.approx(values.mean(), abs=1e-12)
            assert row[score]["std"] == pytest.approx(values.std(), abs=1e-12)
    by_name = {row["Method"]: row for row in table["rows"]}
    assert described["test_pid"] == by_name["LABN"]["PID m=8"]["mean"]
    assert described["test_pid_random"] == by_name["random"]["PID m=8"]["mean"]
    assert described["test_pid_matched"] == by_name["LABN"]["PID m=8 matched"]["mean"]
    assert described["test_pid_m4_matched_RISE"] == by_name["RISE"]["PID m=4 matched"]["mean"]
    assert (
        f"p(x) {described['test_p_image']:.3f}, p(b) {described['test_p_bias']:.3f}"
        in table["caption"]
    )
    assert described["test_pid_m4_Grad_CAM"] == by_name["Grad-CAM"]["PID m=4"]["mean"]
    assert described["test_id_lambda_attention_0"] == by_name[LAYER]["ID"]["mean"]
    assert all(re.fullmatch(r"\w+", name) for name in described)
    confusion = metrics_of(trained)["confusion"]
    counts = {
        row[""]: row["test images"]
        for row in json.loads((folder / "table3.json").read_text())["rows"]
    }
    assert counts == {
        "TN": confusion[0][0],
        "FP": confusion[0][1],
        "FN": confusion[1][0],
        "TP": confusion[1][1],
    }
    with np.load(folder / "curves.npz") as curves:
        for name in NAMES:
            mean = (
                curves[f"{name}/PID m=8/insertion_mean"] - curves[f"{name}/PID m=8/deletion_mean"]
            )
            area = np.trapezoid(mean, curves[f"{name}/PID m=8/fractions"])
            assert area == pytest.approx(by_name[name]["PID m=8"]["mean"], abs=1e-12)


def test_scores_are_the_same_in_batches_of_any_size(trained, labn):
    tables = []
    for size in (3, 64):
        done = labn("evaluate", trained, *SMALL, f"validation.batch_size={size}")
        assert done.returncode == 0, done.stderr
        tables.append(scores_of(trained))

    # A float32 network in batches of other sizes.
    assert_same_scores(*tables, tolerance=1e-6)


def score_some(folder, start, parts):
    """Score every other positive, in a process of its own."""
    torch.set_num_threads(1)
    run = TrainedRun.open(folder)
    dataset = run.load_dataset(Reporter())
    options = EvaluationOptions.of(run.config, {"patch_sizes": (4, 8)})
    subset = dataset.subsets["test"]
    scorer = build_scorer(run, subset, options, layer=0)
    positions = chosen_positions(subset, None)[start::2]
    score_positions(scorer, positions, parts, Reporter())
    (parts / f"digest-{start}").write_text(fingerprint(run, dataset.digest, options))


@pytest.mark.slow
def test_two_processes_share_the_images_out_and_score_them_as_one_would(trained, labn, tmp_path):
    parts = tmp_path / "parts"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=score_some, args=(trained, start, parts)) for start in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(TIMEOUT_S)
        assert worker.exitcode == 0
    digests = {(parts / f"digest-{start}").read_text() for start in (0, 1)}
    assert len(digests) == 1, "both know each other's work by the same name"

    assert labn("evaluate", trained, *SMALL).returncode == 0

    shared = [
        row for path in parts.glob("image-*.json") for row in json.loads(path.read_text())["scores"]
    ]
    merged = pd.DataFrame(shared)[COLUMNS].sort_values(["name", "method", "score"])
    # Those at matched confidence need the temperature, which the two were not given.
    whole = scores_of(trained).query("not score.str.endswith('matched')")
    whole = whole.sort_values(["name", "method", "score"])
    assert_same_scores(merged.reset_index(drop=True), whole.reset_index(drop=True), tolerance=1e-12)


@pytest.mark.slow
def test_a_killed_evaluation_resumes_where_it_stopped(original, trained, labn):
    arguments = ("evaluate", trained, *map(str, SMALL))
    points = [
        ("labn.runs.evaluation.image_scores:score_image", "before", 3),
        ("labn.runs.evaluation.evaluate_run:write_per_image_scores", "before", 1),
    ]
    command = [sys.executable, Path(__file__).with_name("kill_points.py"), json.dumps(points)]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=TIMEOUT_S,
    )

    assert done.returncode == 0, done.stderr
    kept = re.findall(r"resuming: (\d) of (\d) images", done.stderr)
    assert kept == [("2", "4"), ("4", "4")]
    whole = Path(shutil.copytree(original, trained.with_name("whole")))
    assert run("evaluate", whole, *SMALL).returncode == 0
    assert_same_scores(scores_of(trained), scores_of(whole), tolerance=0)
    assert metrics_of(trained) == metrics_of(whole)
    assert not list((trained / "evaluation" / "test").glob("parts-*"))


def test_other_settings_start_afresh_and_leave_nothing_of_the_old(trained, labn):
    assert labn("evaluate", trained, *SMALL).returncode == 0
    folder = trained / "evaluation" / "test"
    (folder / "failures-IP.png").write_bytes(b"of an earlier scoring")

    done = labn(
        "evaluate", trained, "--methods", "random,labn", "--patch-sizes", 4,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    scores, described = scores_of(trained), metrics_of(trained)
    assert set(scores["method"]) == {"random", "LABN"}
    assert set(scores["score"]) == {"ID", "PID m=4", "PID m=4 matched"}
    assert "test_pid_m8_LABN" not in described["metrics"]
    sheet = folder / "failures-IP.png"
    assert not sheet.exists() or sheet.read_bytes().startswith(b"\x89PNG")


QUICK = ("--methods", "random", "--patch-sizes", 8)


@pytest.mark.parametrize(
    ("given", "terms"),
    [
        (("--points", 5), "points5"),
        (("--baseline", "blur", "--points", 2), "blur-points2"),
        (("--protocol", "released"), "released"),
        (("--protocol", "released", "--baseline", "bias"), "released-bias"),
        (("--tolerance", 0.005), "tolerance0.005"),
        (("--num-masks", 20), "masks20"),
        (("--allow-changed-data",), "changed"),
        (("data.new_images=assign",), "new_images"),
        (
            ("model.theta_alpha=0.1", "validation.pid_patch_size=4"),
            "theta_alpha0.1-pid_patch_size4",
        ),
    ],
)
def test_scores_on_other_terms_have_a_folder_and_names_that_say_so(
    original, tmp_path, given, terms
):
    run, plain = tmp_path / "run", tmp_path / "run/evaluation/test"
    shutil.copytree(original, run)
    plain.mkdir(parents=True)
    (plain / "metrics.json").write_text("plain")

    done = run_here("evaluate", run, *QUICK, *given, "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["folder"] == str(run / "evaluation" / f"test-{terms}")
    assert [path.name for path in plain.iterdir()] == ["metrics.json"]
    assert (plain / "metrics.json").read_text() == "plain"
    prefix = f"test_{re.sub(r'[-.]', '_', terms)}_"
    found = metrics_of(run, f"test-{terms}")["metrics"]
    assert {f"{prefix}accuracy", f"{prefix}pid_m8_random"} <= found.keys()
    assert all(name.startswith(prefix) for name in found)


def test_what_changes_no_score_leaves_an_evaluation_the_plain_one(trained):
    incidental = (
        "--points",
        3,
        "--baseline",
        "bias",
        "validation.batch_size=3",
        "train.device=cpu",
    )

    done = run_here("evaluate", trained, *QUICK, *incidental, "--json")

    assert json.loads(done.stdout)["folder"] == str(trained / "evaluation" / "test")


def test_evaluations_on_other_terms_are_reported_by_their_folder(trained, tmp_path):
    assert run_here("evaluate", trained, *QUICK, "--points", 5).returncode == 0
    folder = trained / "evaluation" / "test-points5"

    plain = run_here("report", trained)
    done = run_here("report", folder, "--reference", "random", "--json")

    assert_mistake(plain, "the test subset is not scored", f"give {folder}, scored on other terms")
    content = json.loads(done.stdout)
    assert content["out"] == str(trained / "report-test-points5")
    assert content["runs"][0]["path"] == str(trained)


def test_scores_of_some_images_do_not_pass_for_those_of_all(trained, labn):
    assert labn("evaluate", trained, *SMALL).returncode == 0
    whole = trained / "evaluation" / "test"
    before = {path.name: path.read_bytes() for path in whole.glob("[!.]*")}
    partial = trained / "evaluation" / "test-first2"

    done = labn("evaluate", trained, *SMALL, "--max-images", 2, "--json")
    report = labn("report", partial, "--json")

    assert done.returncode == report.returncode == 0, done.stderr + report.stderr
    assert {path.name: path.read_bytes() for path in whole.glob("[!.]*")} == before
    assert json.loads(done.stdout)["folder"] == str(partial)
    names = sorted(pd.read_csv(partial / "images.csv").query("label > 0")["name"])[:2]
    assert sorted(set(scores_of(trained, partial.name)["name"])) == names
    described = metrics_of(trained, partial.name)
    assert described["settings"]["max_images"] == 2
    assert described["metrics"]["test_first2_pid_images"] == 2
    assert all(name.startswith("test_first2_") for name in described["metrics"])
    assert json.loads(report.stdout)["split"] == "test"


def test_areas_to_a_tolerance_agree_with_every_point_and_report_their_cost(trained, labn):
    choice = ("--methods", "LABN,random", "--patch-sizes", 4)
    assert labn("evaluate", trained, *choice, "--points", 65).returncode == 0
    exhaustive = scores_of(trained, "test-points65").query("score == 'PID m=4'")

    assert labn("evaluate", trained, *choice, "--tolerance", 0.001).returncode == 0

    part = "test-tolerance0.001"
    adaptive = scores_of(trained, part).query("score != 'ID'")
    assert adaptive["name"].tolist() == exhaustive["name"].tolist()
    for column in ("insertion_auc", "deletion_auc"):
        np.testing.assert_allclose(adaptive[column], exhaustive[column], rtol=0, atol=0.001)
    assert (adaptive["num_points"] <= 2 * 65 - 2).all()
    described = metrics_of(trained, part)["settings"]
    assert (described["tolerance"], described["num_points"]) == (0.001, None)
    folder = trained / "evaluation" / part
    assert "forward passes per map" in (folder / "table2.md").read_text()
    assert not (folder / "curves.png").exists()


def test_the_released_protocol_is_named_apart_from_the_papers(trained, labn):
    choice = ("--methods", "LABN", "--patch-sizes", 8, "--protocol", "released")
    assert labn("evaluate", trained, *choice).returncode == 0

    part = "test-released"
    described, scores = metrics_of(trained, part), scores_of(trained, part)
    assert set(scores.query("score == 'PID m=8'")["baseline"]) == {"black"}
    assert {"protocol": "released", "num_points": None, "ties": "together"}.items() <= described[
        "settings"
    ].items()
    assert "test_released_pid_m8_LABN" in described["metrics"]
    assert "test_pid" not in described["metrics"]


def test_what_counts_as_which_failure_can_be_chosen(trained, labn):
    choice = ("--methods", "LABN", "--patch-sizes", 8, "--failure-pid", 1)
    everything = ("--over-attended", 0, "--insufficiently-attended", 0)

    assert labn("evaluate", trained, *choice, *everything).returncode == 0

    failures = metrics_of(trained)["failures"]
    assert failures["num_failed"] == failures["num_scored"] > 0
    assert failures["thresholds"] == {
        "pid": 1.0, "over_attended": 0.0, "insufficiently_attended": 0.0
    }  # fmt: skip


def test_without_the_networks_own_maps_there_is_no_error_analysis(trained, labn):
    assert labn("evaluate", trained, "--methods", "edges", "--patch-sizes", 8).returncode == 0

    assert metrics_of(trained)["failures"] is None
    assert not (trained / "evaluation/test/table5.md").exists()


def test_the_lambda_layer_is_chosen_on_validation_positives(tmp_path):
    config = load_config(
        write_config(tmp_path, model__backbone="lambda_resnet50", model__split=1, train__epochs=1,
                     model__branch_width=4, data__synthetic__num_images=20),
        # One step is enough for a network to be there.
        ["train.batch_size=16", "train.warmup_epochs=0"],
    )  # fmt: skip
    train_run(config, Reporter())
    choices = {"methods": ("lambda attention", "lambda attention 3"), "patch_sizes": (16,)}

    evaluate_run(config.output_dir, "test", [], Reporter(), choices)

    described = metrics_of(config.output_dir)["lambda_attention"]
    assert len(described["means_by_layer"]) == 16
    assert described["layer"] == int(np.argmax(described["means_by_layer"]))
    assert "validation PID m=16" in described["chosen_by"]
    expected = {f"lambda attention {described['layer']}", "lambda attention 3"}
    assert set(scores_of(config.output_dir)["method"]) == expected


def test_data_that_lies_elsewhere_is_standardised_as_in_training(trained, labn, tmp_path):
    root = tmp_path / "elsewhere: here"
    write_synthetic(root, num_images=20, positive_fraction=0.5, seed=5, image_size=32)

    other = ("--allow-changed-data", "data.new_images=assign", "data.split_seed=3")
    done = labn("evaluate", trained, "--data", root, *other, "--methods", "LABN", "--json")

    assert done.returncode == 0, done.stderr
    names = pd.read_csv(trained / "evaluation/test-changed-new_images/images.csv")["name"]
    assert all((root / name).is_file() for name in names)


def test_a_layer_that_is_named_and_chosen_is_one_method(trained, labn):
    both = ("--methods", "lambda attention,lambda attention 0,random", "--patch-sizes", 8)
    assert labn("evaluate", trained, *both).returncode == 0
    assert set(scores_of(trained).groupby(["name", "method", "score"]).size()) == {1}
    done = labn("report", trained, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["reference"] == "lambda attention"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--methods", "LABN,grad cma"), ["--methods grad cma", 'Did you mean "Grad-CAM"?']),
        (("--methods", "lambda attention 7"), ["lambda attention 7", "lambda attention 0 to 0"]),
        (("--patch-sizes", "2,x"), ["--patch-sizes 2,x: must be whole numbers"]),
        (("--patch-sizes", "2,64"), ["--patch-sizes 2,64", "data.image_size (32)"]),
        (("--points", 1), ["--points 1: must be at least 2"]),
        (("--num-masks", 0), ["--num-masks 0: must be at least 1"]),
        (("--max-images", 0), ["--max-images 0: must be at least 1"]),
        (("--tolerance", 0), ["--tolerance 0: must be between 0 and 1"]),
        (("--points", 9, "--protocol", "released"), ["--points 9: --protocol released has points"]),
        (("--points", 9, "--tolerance", 0.1), ["--points 9: --tolerance 0.1 has points"]),
        (("data.folds=3",), ["data.folds = 3: a run is scored on its own subsets", "leave it out"]),
        (("--over-attended", 2), ["--over-attended 2", "over_attended <= 1"]),
        (("--data", "/no/such/place"), ["data.root = /no/such/place", "no such folder"]),
        (("data.image_size=16", "--patch-sizes", 4), ["data.image_size = 16", "32 pixels"]),
        (("model.split=1",), ["model = ", "is not the network that was trained"]),
        (("data.local_contrast=0.1",), ["data.local_contrast = 0.1", "trained with (None)"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_wrong_choice_is_named(trained, labn, arguments, parts):
    done = labn("evaluate", trained, *arguments)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("drew ")]
    done.stderr = "\n".join(lines)
    assert_mistake(done, *parts)


def test_an_unknown_baseline_is_refused_with_the_known_ones(trained, labn):
    done = labn("evaluate", trained, "--baseline", "blurr")

    assert done.returncode == 2
    for name in ("blurr", "bias", "zero", "black", "blur"):
        assert f"'{name}'" in done.stderr


def test_a_subset_without_positives_is_refused(labn, trained, tmp_path):
    root = tmp_path / "tree"
    write_synthetic(root, num_images=20, positive_fraction=0.5, seed=0, image_size=32)
    for part in ("train", "val", "test"):
        for name in ("negative", "positive"):
            if (part, name) != ("test", "positive"):
                shutil.copytree(root / name, root / part / name)
    for name in ("negative", "positive", "masks"):
        shutil.rmtree(root / name)

    other = ("--allow-changed-data", "data.new_images=assign")
    keep = "data.cross_partition_duplicates=keep"
    done = labn("evaluate", trained, "--data", root, *other, keep)

    assert done.returncode == 2
    assert "--subset test: holds no positives" in done.stderr.splitlines()[-1]


def test_a_subset_that_another_process_scores_is_left_alone(trained, labn):
    with RunFolder(trained).claimed_evaluation("test"):
        done = labn("evaluate", trained)

    assert done.returncode == 2
    assert "another process is scoring the test subset" in done.stderr.splitlines()[-1]


def test_metrics_and_methods_by_name_are_rows_means_and_a_table(trained, labn):
    methods = "LABN,occlusion,lambda rollout,greedy,random"
    options = ("--methods", methods, "--metrics", "all", "--max-images", "2", "--patch-sizes", "8")

    done = labn("evaluate", trained, *options)

    assert done.returncode == 0, done.stderr
    folder, described = trained / "evaluation" / "test-first2", metrics_of(trained, "test-first2")
    rows = pd.read_parquet(folder / "map_metrics.parquet")
    names = [*METRICS, *COSTS]
    assert len(rows) == 2 * 5 * len(names)
    assert set(rows["score"]) == set(names)
    for (score, method), group in rows.groupby(["score", "method"]):
        plain = re.sub(r"\W+", "_", score).lower()
        key = f"test_first2_map_{plain}_{method.replace(' ', '_')}"
        if group["value"].notna().any():
            assert described["metrics"][key] == pytest.approx(group["value"].mean())
    passes = rows.query("score == 'forward passes'").set_index("method")["value"]
    assert passes["random"].max() == 0
    assert passes["LABN"].unique().tolist() == [1]
    assert passes["occlusion"].min() > 50
    # Two frames of each of the 16 patches that are left, round by round.
    assert passes["greedy"].unique().tolist() == [2 * sum(range(2, 17, 2))]
    table = json.loads((folder / "map_metrics.json").read_text())
    assert [row["Method"] for row in table["rows"]] == methods.split(",")
    pids = {name: described["metrics"][f"test_first2_pid_m8_{name}"] for name in ("greedy", "LABN")}
    assert pids["greedy"] >= pids["LABN"]


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("rode", ["--metrics rode: must be all, or some of ROAD", 'Did you mean "ROAD"']),
        ("quantus:Rode", ["--metrics quantus:Rode: "]),
        ("quantus:RandomLogit", ["--metrics quantus:RandomLogit: needs maps", "`labn sanity`"]),
    ],
)
def test_a_metric_that_is_not_there_is_refused(trained, labn, given, parts):
    assert_mistake(labn("evaluate", trained, "--metrics", given), *parts)


@pytest.mark.real_data
def test_a_network_learns_five_grades_and_is_scored_on_the_true_ones(labn, test_data, tmp_path):
    parts = ("1. Original Images", "a. Training Set"), ("2. Groundtruths",)
    source, root = (
        place / "B. Disease Grading" for place in (test_data / "idrid256_dev", tmp_path)
    )
    images, tables = (root.joinpath(*part) for part in parts)
    images.mkdir(parents=True)
    tables.mkdir()
    name = "a. IDRiD_Disease Grading_Training Labels.csv"
    chosen = pd.read_csv(source / "2. Groundtruths" / name).groupby("Retinopathy grade").head(12)
    chosen.to_csv(tables / name, index=False)
    for path in source.joinpath(*parts[0]).iterdir():
        if path.stem in set(chosen["Image name"]):
            shutil.copy(path, images)
    data = {"name": "idrid", "root": root, "task": "grade", "group_by": None}
    changes = {f"data__{key}": value for key, value in data.items()}
    config = write_config(tmp_path, train__epochs=1, **changes)

    balance = json.loads(labn("data", "check", config, "--json").stdout)["partitions"]["train"]
    trained = labn("train", config)
    choices = ("--methods", "LABN,random", "--patch-sizes", "8", "--max-images", "4")
    done = labn("evaluate", tmp_path / "run", "--subset", "validation", *choices, "--json")

    classes = [f"grade {grade}" for grade in range(5)]
    assert balance["labels"] == dict.fromkeys(classes, 12)
    assert trained.returncode == 0, trained.stderr
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)["metrics"]
    folder = tmp_path / "run" / "evaluation" / "validation-first4"
    assert json.loads((folder / "metrics.json").read_text())["class_names"] == classes
    found = pd.read_csv(folder / "images.csv", index_col="name")
    grades = chosen.set_index("Image name")["Retinopathy grade"]
    assert found["label"].tolist() == [grades[Path(one).stem] for one in found.index]
    errors = (found["label"] - found["predicted"]) ** 2
    chance = np.subtract.outer(found["label"].to_numpy(), found["predicted"].to_numpy()) ** 2
    kappa = metrics["val_first4_kappa"]
    assert kappa == pytest.approx(1 - errors.mean() / chance.mean(), abs=1e-9)
    # PID is of the probability of the true grade.
    scores = pd.read_parquet(folder / "scores.parquet")
    scored = found.loc[scores["name"].unique()]
    assert (scores["label"] == scores["name"].map(found["label"])).all()
    assert scored["label"].nunique() > 1
    true = [row[f"probability_{row['label']:.0f}"] for _, row in scored.iterrows()]
    assert metrics["val_first4_p_image"] == pytest.approx(np.mean(true), abs=1e-5)
    assert "quadratic kappa" in labn("report", folder).stdout
