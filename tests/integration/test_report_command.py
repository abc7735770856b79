"""`labn report` over folders as `labn evaluate` leaves them, written by hand."""

from __future__ import annotations

import itertools
import json
import shutil
from statistics import fmean, stdev

import numpy as np
import pandas as pd
import pytest
import yaml
from command_line import SMALL, assert_mistake
from PIL import Image
from scipy import stats

# Sums in another order, in the same float64.
ROUNDING = 1e-12
METHODS = ("LABN", "lambda attention 1", "RISE", "random")
SCORES = {"ID": "zero", "PID m=4": "bias"}
POSITIVES, NEGATIVES = ("eye-1", "eye-2", "eye-3"), ("eye-4", "eye-5")
LOCALISATION = ("pointing_hit", "pointing_chance", "energy_inside", "area_share", "auroc")
SETTINGS = {
    "split": "test",
    "methods": ["LABN", "lambda attention", "RISE", "random"],
    "patch_sizes": [4],
    "num_points": 9,
    "baseline": "bias",
    "order": "most important first",
    "ties": "row by row",
}
ACCURACIES = {0: 0.6, 1: 0.8}


def value_of(method, score, name, seed):
    """A score that differs by method, measure, image and seed."""
    rng = np.random.default_rng([METHODS.index(method), len(score), int(name[-1]), seed])
    return float(0.5 - 0.1 * METHODS.index(method) + rng.normal(0, 0.05))


def score_rows(seed, baselines=SCORES):
    return [
        {"name": name, "label": 1, "method": method, "score": score, "patch_size": 4}
        | {"baseline": baseline, "value": value_of(method, score, name, seed)}
        | {"insertion_auc": 0.0, "deletion_auc": 0.0, "num_points": 9}
        for name in POSITIVES
        for method in METHODS
        for score, baseline in baselines.items()
    ]


def write_run(folder, seed, **settings):
    """Write a run and its scores on the test subset."""
    tree = SMALL | {"output_dir": str(folder), "train": SMALL["train"] | {"seed": seed}}
    for section, changes in settings.items():
        tree[section] = tree.get(section, {}) | changes
    scored = folder / "evaluation" / "test"
    scored.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    names = (*POSITIVES, *NEGATIVES)
    labels = [1] * len(POSITIVES) + [0] * len(NEGATIVES)
    manifest = {"name": names, "path": f"{folder}/x.png", "partition": "test", "label": labels}
    manifest |= {"grade": labels, "sha256": [f"sha-{name}" for name in names]}
    pd.DataFrame(manifest).to_csv(folder / "data.csv", index=False)
    images = pd.DataFrame({"name": names, "label": labels, "predicted": labels})
    images.to_csv(scored / "images.csv", index=False)
    pd.DataFrame(score_rows(seed)).to_parquet(scored / "scores.parquet")
    located = [
        {"name": name, "method": method} | dict.fromkeys(LOCALISATION, 0.1 * (seed + 1))
        for name in POSITIVES[:2]
        for method in METHODS
    ]
    pd.DataFrame(located).to_parquet(scored / "localisation.parquet")
    metrics = {"test_accuracy": ACCURACIES[seed], "test_auroc": 0.9, "test_tss": 0.2 + 0.1 * seed}
    description = {"metrics": metrics, "settings": SETTINGS, "lambda_attention": {"layer": 1}}
    (scored / "metrics.json").write_text(json.dumps(description))
    return folder


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def seeds(tmp_path):
    return [write_run(tmp_path / f"run-{seed}", seed) for seed in (0, 1)]


@pytest.fixture
def others(tmp_path):
    return [write_run(tmp_path / f"no-kl-{s}", s, loss={"lambda_kl": 0.0}) for s in (0, 1)]


def own_name(method):
    return "lambda attention" if method == "lambda attention 1" else method


def seed_means(method, score):
    return [fmean(value_of(method, score, name, seed) for name in POSITIVES) for seed in (0, 1)]


def rows_in_order():
    return [(method, score) for method in METHODS for score in SCORES]


def sign_flip_p(method, score):
    """Two-sided p, over all changes of sign, of LABN's lead in the images' means over seeds."""
    leads = [
        fmean(value_of("LABN", score, name, s) - value_of(method, score, name, s) for s in (0, 1))
        for name in POSITIVES
    ]
    sums = [np.dot(signs, leads) for signs in itertools.product((1, -1), repeat=len(leads))]
    tails = [np.mean(sums >= sums[0] - 1e-12), np.mean(sums <= sums[0] + 1e-12)]
    return min(1.0, 2 * min(tails))


def test_seeds_of_one_condition_give_the_papers_table_and_its_tests(labn, seeds, tmp_path):
    done = labn("report", *seeds)

    assert done.returncode == 0, done.stderr
    folder = tmp_path / "report"
    assert done.stderr == f"written to {folder}\n"
    assert done.stdout == (folder / "report.md").read_text()
    content = json.loads((folder / "report.json").read_text())
    assert {row["condition"] for row in content["scores"]} == {"all runs"}
    rows = {(row["method"], row["score"]): row for row in content["scores"]}
    assert list(rows) == [(own_name(m), s) for m, s in rows_in_order()]
    for method, score in rows_in_order():
        means, row = seed_means(method, score), rows[own_name(method), score]
        assert row["mean"] == pytest.approx(fmean(means), abs=ROUNDING)
        assert row["sd"] == pytest.approx(stdev(means), abs=ROUNDING)
        assert (row["num_seeds"], row["num_images"]) == (2, 3)
        cell = f"{fmean(means):.3f} ± {stdev(means):.3f}"
        assert cell in done.stdout
        assert cell.replace("±", r"\pm") in (folder / "report.tex").read_text()
    assert "| Method | ID ↑ | PID m=4 ↑ |" in done.stdout
    assert "2 seeds, each the mean over 3 images of the test subset" in done.stdout


def test_every_method_is_tested_against_labn(labn, seeds):
    content = json.loads(labn("report", *seeds, "--json").stdout)

    found = {(one["other"]["method"], one["cell"]["score"]): one for one in content["differences"]}
    assert set(found) == {(own_name(m), s) for m, s in rows_in_order() if m != "LABN"}
    for method, score in rows_in_order():
        if method == "LABN":
            continue
        one = found[own_name(method), score]
        assert one["cell"] == {"condition": "all runs", "method": "LABN", "score": score}
        a, b = seed_means("LABN", score), seed_means(method, score)
        assert one["difference"] == pytest.approx(fmean(a) - fmean(b), abs=ROUNDING)
        expected = stats.ttest_ind(a, b, equal_var=False).pvalue
        assert one["welch_p"] == pytest.approx(expected, rel=1e-8)
        assert one["welch_p"] <= one["welch_p_holm"] <= 1
        assert one["permutation_p"] == pytest.approx(sign_flip_p(method, score), abs=ROUNDING)
        assert (one["num_seeds"], one["num_other_seeds"], one["num_images"]) == (2, 2, 3)


def test_what_else_was_measured_is_reported_over_seeds(labn, seeds):
    done = labn("report", *seeds)
    content = json.loads(labn("report", *seeds, "--json").stdout)

    classification = {row["score"]: row for row in content["classification"]}
    assert classification["accuracy"]["mean"] == pytest.approx(0.7)
    assert classification["accuracy"]["sd"] == pytest.approx(stdev([0.6, 0.8]))
    assert classification["tss"]["by_run"] == {"run-0": 0.2, "run-1": pytest.approx(0.3)}
    assert "| all runs | 0.700 ± 0.141 | 0.900 ± 0.000 | 0.250 ± 0.071 | 2 |" in done.stdout
    localisation = {(row["method"], row["score"]): row for row in content["localisation"]}
    assert len(localisation) == len(METHODS) * len(LOCALISATION)
    assert localisation["RISE", "auroc"]["mean"] == pytest.approx(0.15)
    assert localisation["RISE", "auroc"]["num_images"] == 2
    for line in (
        "| order | most important first |",
        "| ties | row by row |",
        "| scores | ID against zero in 9 points, PID m=4 against bias in 9 points |",
        "| run-1 | 1 | all runs | lambda attention 1 |",
    ):
        assert line in done.stdout


def test_conditions_are_identified_by_their_settings_and_compared_with_the_first(
    labn, others, seeds
):
    done = labn("report", *others, *seeds)
    content = json.loads(labn("report", *others, *seeds, "--json").stdout)

    conditions = [run["condition"] for run in content["runs"]]
    assert conditions == ["loss.lambda_kl=0.0"] * 2 + ["loss.lambda_kl=1.0"] * 2
    between = [
        (one["cell"]["method"], one["cell"]["condition"], one["other"]["condition"])
        for one in content["differences"]
        if one["cell"]["condition"] != one["other"]["condition"]
    ]
    assert between == [("LABN", "loss.lambda_kl=1.0", "loss.lambda_kl=0.0")] * len(SCORES)
    assert "## Conditions: LABN" in done.stdout
    assert "LABN (loss.lambda_kl=1.0) | LABN (loss.lambda_kl=0.0)" in done.stdout


def test_settings_that_do_not_change_the_network_make_no_condition(labn, tmp_path):
    runs = [
        write_run(tmp_path / "a", 0, validation={"batch_size": 3}, tracking={"uri": "none"}),
        write_run(tmp_path / "b", 1, validation={"batch_size": 4}, data={"cache_dir": "elsewhere"}),
    ]

    content = json.loads(labn("report", *runs, "--json").stdout)

    assert [run["condition"] for run in content["runs"]] == ["all runs"] * 2


def test_seeds_whose_maps_were_kept_are_compared_by_their_maps(labn, seeds, tmp_path):
    maps = np.random.default_rng(0).random((2, 3, 4, 5)).astype(np.float16)
    for run, attention in zip(seeds, maps, strict=True):
        images = np.zeros((3, 4, 5, 3), np.uint8)
        file = run / "evaluation" / "test" / "attention.npz"
        np.savez(file, images=images, attention=attention, names=POSITIVES, titles=POSITIVES)

    content = json.loads(labn("report", *seeds, "--json").stdout)

    exact = maps.astype(np.float64).reshape(2, 3, -1)
    expected = fmean(stats.spearmanr(*pair)[0] for pair in zip(*exact, strict=True))
    (agreement,) = content["seed_agreement"]
    assert agreement["images"] == list(POSITIVES)
    assert agreement["spearman"][0][1] == pytest.approx(expected, abs=ROUNDING)
    written = (tmp_path / "report" / "report.md").read_text()
    assert f"| all runs | {expected:.3f} | {expected:.3f} |" in written
    for picture in ("agreement.png", "spread-0.png"):
        assert (tmp_path / "report" / picture).is_file()
        assert f"]({picture})" in written
    assert "Spread over seeds: all runs" in (tmp_path / "report" / "report.html").read_text()


def test_one_run_is_reported_without_a_spread_and_with_the_reason_for_no_welch(labn, seeds):
    done = labn("report", seeds[0])

    assert done.returncode == 0, done.stderr
    means = [fmean(value_of("RISE", score, name, 0) for name in POSITIVES) for score in SCORES]
    assert f"| RISE | {means[0]:.3f} | {means[1]:.3f} |" in done.stdout
    assert "one seed, so no s.d.; the mean over 3 images of the test subset" in done.stdout
    page = (seeds[0] / "report" / "report.html").read_text()
    assert '<td class="text">model.theta_alpha</td><td class="text">0.25</td>' in page
    assert "On the 5 images of the test subset: accuracy 0.600, AUROC 0.900, TSS 0.200." in page
    assert "<img" not in page  # the pictures of its evaluation were not written here
    assert "Welch's test needs two seeds of each method, but got 1 and 1" in done.stdout


def test_the_reference_and_the_folder_are_the_users_choice(labn, seeds, tmp_path, drawn_figures):
    out = tmp_path / "new" / "place"

    done = labn("report", *seeds, "--reference", "RISE", "--out", out, "--json")

    content = json.loads(done.stdout)
    assert content["out"] == str(out)
    assert {one["cell"]["method"] for one in content["differences"]} == {"RISE"}
    assert sorted(path.name for path in out.iterdir()) == [
        f"report.{kind}" for kind in ("html", "json", "md", "png", "tex")
    ]
    with Image.open(out / "report.png") as picture:
        assert min(picture.size) > 100
        assert len(picture.convert("L").getcolors()) > 10
    latex = (out / "report.tex").read_text()
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") > 3


def test_several_baselines_are_compared_and_the_first_is_reported(labn, seeds):
    for seed, run in enumerate(seeds):
        path = run / "evaluation" / "test" / "scores.parquet"
        black = pd.DataFrame(score_rows(seed, {"PID m=4": "black"}))
        black["value"] = -black["value"]
        pd.concat([pd.read_parquet(path), black]).to_parquet(path)

    content = json.loads(labn("report", *seeds, "--json").stdout)

    (agreement,) = content["baseline_agreement"]
    assert agreement["baselines"] == ["bias", "black"]
    assert agreement["kendall_tau"] == [[1, pytest.approx(-1)], [pytest.approx(-1), 1]]
    assert agreement["num_methods"] == len(METHODS)
    (row,) = (r for r in content["scores"] if (r["method"], r["score"]) == ("LABN", "PID m=4"))
    assert row["mean"] == pytest.approx(fmean(seed_means("LABN", "PID m=4")), abs=ROUNDING)


def test_runs_of_one_folder_name_are_identified_by_their_paths(labn, tmp_path):
    runs = [write_run(tmp_path / f"seed-{seed}" / "run", seed) for seed in (0, 1)]

    content = json.loads(labn("report", *runs, "--json").stdout)

    assert [run["name"] for run in content["runs"]] == list(map(str, runs))
    assert content["scores"][0]["num_seeds"] == 2


def no_run(run):
    (run / "config.yaml").unlink()


def not_scored(run):
    shutil.rmtree(run / "evaluation")


def other_settings(run):
    def change(content):
        content["settings"] |= {"patch_sizes": [2, 4], "baseline": "black"}

    edit_json(run / "evaluation" / "test" / "metrics.json", change)


def other_points(run):
    path = run / "evaluation" / "test" / "scores.parquet"
    pd.read_parquet(path).assign(num_points=5).to_parquet(path)


def no_localisation(run):
    (run / "evaluation" / "test" / "localisation.parquet").unlink()


def fewer_scored(run):
    path = run / "evaluation" / "test" / "scores.parquet"
    table = pd.read_parquet(path)
    table[table["name"] != "eye-2"].to_parquet(path)


def other_pixels(run):
    path = run / "data.csv"
    path.write_text(path.read_text().replace("sha-eye-4", "sha-other"))


def other_training_images(run):
    path = run / "data.csv"
    path.write_text(path.read_text() + "more,x.png,train,0,0,sha-more\n")


def not_finite(run):
    path = run / "evaluation" / "test" / "scores.parquet"
    pd.read_parquet(path).assign(value=np.nan).to_parquet(path)


def damaged(run):
    (run / "evaluation" / "test" / "scores.parquet").write_bytes(b"PAR1")


def old_layout(run):
    edit_json(run / "evaluation" / "test" / "metrics.json", lambda content: content.pop("settings"))


def no_description(run):
    (run / "evaluation" / "test" / "metrics.json").write_text("[1]")


def no_accuracy(run):
    edit_json(
        run / "evaluation" / "test" / "metrics.json",
        lambda content: content["metrics"].pop("test_accuracy"),
    )


def same_seed(run):
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("seed: 1", "seed: 0"))


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (no_run, ["not a run (it has no config.yaml)"]),
        (not_scored, ["test subset is not scored", "run `labn evaluate RUN --subset test`"]),
        (other_settings, ["patch_sizes is [2, 4], there [4]", "baseline is black, there bias"]),
        (
            other_settings,
            ["`labn evaluate RUN --subset test ", "--patch-sizes 4", "--baseline bias"],
        ),
        (other_points, ["scores is ['ID against zero in 5 points'", "in 9 points"]),
        (no_localisation, ["localisation is False, there True"]),
        (fewer_scored, ["scores other images", "such as eye-2"]),
        (other_pixels, ["holds other images", "such as eye-4"]),
        (other_training_images, ["other data than", "data.csv differ"]),
        (not_finite, ["scores.parquet: cannot be read", "not finite", "labn evaluate"]),
        (damaged, ["scores.parquet: cannot be read", "labn evaluate"]),
        (old_layout, ["metrics.json: lacks its scores, or their settings", "labn evaluate"]),
        (no_description, ["metrics.json: lacks its scores, or their settings", "labn evaluate"]),
        (no_accuracy, ["metrics.json: lacks its scores, or their settings", "labn evaluate"]),
        (same_seed, ["the same training as", "train.seed = 0"]),
    ],
)
def test_runs_that_cannot_be_compared_are_named_with_the_reason(
    labn, seeds, tmp_path, spoil, parts
):
    spoil(seeds[1])

    done = labn("report", *seeds)

    assert_mistake(done, str(seeds[1]), *(part.replace("RUN", str(seeds[1])) for part in parts))
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("name", ["mine", "test-of-old", "validation-of-old"])
def test_an_evaluation_is_read_also_after_its_folder_was_renamed(labn, seeds, name):
    as_named = json.loads(labn("report", seeds[0], "--json").stdout)
    renamed = (seeds[0] / "evaluation/test").rename(seeds[0] / "evaluation" / name)

    done = labn("report", renamed, "--json")

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for key in ("split", "scores", "classification"):
        assert found[key] == as_named[key]


def test_a_run_that_is_given_twice_is_refused(labn, seeds):
    done = labn("report", *seeds, seeds[0] / ".." / "run-0")

    assert_mistake(done, "run-0", "the same run is given twice")


def test_a_reference_that_is_no_method_is_refused(labn, seeds):
    done = labn("report", *seeds, "--reference", "RICE")

    assert_mistake(done, "--reference RICE", "LABN, lambda attention, RISE", 'Did you mean "RISE"?')


def test_a_subset_that_is_not_scored_is_named(labn, seeds):
    done = labn("report", *seeds, "--split", "validation")

    assert_mistake(done, "validation subset is not scored", "--subset validation`")


def test_a_folder_that_cannot_be_made_is_refused(labn, seeds, tmp_path):
    (tmp_path / "taken").write_text("a file")

    done = labn("report", *seeds, "--out", tmp_path / "taken")

    assert_mistake(done, "--out", "taken", "give another")


def add_metrics(run, seed, scores=("ROAD", "entropy", "seconds")):
    rng = np.random.default_rng(seed)
    rows = [
        {"name": name, "method": method, "score": score, "value": rng.random()}
        for score in scores
        for method in METHODS
        for name in POSITIVES
    ]
    table = pd.DataFrame(rows)
    table.to_parquet(run / "evaluation/test/map_metrics.parquet")
    return table


def test_metrics_of_all_runs_are_one_family_with_a_figure(seeds, labn, tmp_path):
    tables = [add_metrics(run, seed) for seed, run in enumerate(seeds)]

    done = labn("report", *seeds, "--json")

    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    values = {(one["cell"]["score"], one["cell"]["method"]): one for one in content["metrics"]}
    names = ("PID m=4", "ROAD", "entropy", "seconds")
    assert list(values) == [(name, own_name(method)) for name in names for method in METHODS]
    both = pd.concat(tables)
    for name, method in itertools.product(names[1:], METHODS):
        own = both[(both["score"] == name) & (both["method"] == method)]
        one = values[name, own_name(method)]
        assert one["mean"] == pytest.approx(own["value"].mean())
        assert one["num_images"] == len(POSITIVES)
        assert (one["p"] is None) == (method == "LABN" or name == "seconds")
    (agreement,) = content["metric_agreement"]
    assert agreement["metrics"] == ["PID m=4", "ROAD", "entropy"]
    text = (tmp_path / "report/report.md").read_text()
    assert "## Metrics: all runs" in text
    assert "corrected for all 9 tests of metrics" in text
    assert "![Metrics of all runs](metrics-1.png)" in text
    assert (tmp_path / "report/metrics-1.png").is_file()


def test_without_the_metrics_of_one_run_there_is_no_such_family(seeds, labn, tmp_path):
    add_metrics(seeds[0], 0)

    done = labn("report", *seeds, "--json")

    assert json.loads(done.stdout)["metrics"] == []
    assert not (tmp_path / "report/metrics-1.png").exists()
