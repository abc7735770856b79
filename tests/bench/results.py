"""The command `python -m tests.bench.results STUDY ... --out FILE`: write the page of results.

A STUDY is a folder of runs with their report in it (`labn ablate`, or `labn report RUNS --out
STUDY/report`). All tables come from its files, but for the figures of the paper and the aims, which
stand below. Text above the mark in the page stays.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from labn.report.tables import Column, Estimate, Table, as_markdown
from labn.runs.comparison.read_runs import split_place

Row = dict[str, Any]

_SIZES = (2, 4, 8, 16)
_PAPER = {
    "RISE": [(0.179, 0.080), (0.130, 0.045), (0.136, 0.050), (0.101, 0.033)],
    "lambda attention": [(-0.105, 0.073), (-0.116, 0.081), (-0.123, 0.078), (-0.093, 0.054)],
    "LABN": [(0.458, 0.198), (0.473, 0.178), (0.470, 0.178), (0.455, 0.181)],
}
"""Table 2 of Iida 2022 on IDRiD: PID at m = 2, 4, 8, 16, mean and standard deviation."""
_MARK = "<!-- Below: written by python -m tests.bench.results -->"


@dataclass(frozen=True)
class Study:
    """A folder of scored runs, and the rows of their report."""

    folder: Path

    @cached_property
    def report(self) -> dict[str, Any]:
        """The comparison of its runs."""
        content: dict[str, Any] = json.loads((self.folder / "report" / "report.json").read_text())
        return content

    @property
    def pid(self) -> str:
        """The name of PID at the largest m."""
        return f"PID m={max(self.report['settings']['patch_sizes'])}"

    @cached_property
    def conditions(self) -> list[str]:
        """Its conditions; the first is the reference."""
        return list(dict.fromkeys(run["condition"] for run in self.report["runs"]))

    def estimate(self, kind: str, condition: str, method: str, score: str) -> Estimate | None:
        """Return a mean and its deviation over seeds, None if it was not measured."""
        wanted = (condition, method, score)
        for row in self.report[kind]:
            if (row["condition"], row["method"], row["score"]) == wanted:
                return Estimate(row["mean"], row["sd"])
        return None

    def methods(self, condition: str) -> list[str]:
        """Return the methods that a condition was scored by."""
        rows = self.report["scores"]
        return list(dict.fromkeys(r["method"] for r in rows if r["condition"] == condition))

    def test(self, score: str, condition: str, method: str) -> Row:
        """Return the test of the reference against a method of a condition, empty if none."""
        reference = {"condition": self.conditions[0], "method": self.report["reference"]}
        rows: list[Row] = self.report["differences"]
        for row in rows:
            first, second = row["cell"], row["other"]
            pair = (second["condition"], second["method"])
            if pair != (condition, method):  # the report puts the reference first or second
                first, second = second, first
            is_pair = (second["condition"], second["method"]) == (condition, method)
            if is_pair and first["score"] == score and reference.items() <= first.items():
                sign = 1 if first is row["cell"] else -1
                ends = sorted(sign * row[end] for end in ("low", "high") if row[end] is not None)
                return row | {"difference": sign * row["difference"], "ends": ends}
        return {}


def main() -> None:
    """Write the page, and copy its pictures to `images` beside it."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.bench.results")
    parser.add_argument("studies", nargs="+", type=Path, metavar="STUDY")
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    given = parser.parse_args()
    studies = [Study(folder) for folder in given.studies]
    above = given.out.read_text().partition(_MARK)[0] if given.out.is_file() else "# Results\n\n"
    given.out.write_text(above + "\n".join(_page(studies, given.out)) + "\n")
    print(given.out)


def _page(studies: list[Study], out: Path) -> Iterator[str]:
    yield _MARK
    for study in studies:
        yield from _section(study, out)


def _section(study: Study, out: Path) -> Iterator[str]:
    report = study.report
    seeds = sorted({run["seed"] for run in report["runs"]})
    folds = sorted({run["fold"] for run in report["runs"] if run["fold"] is not None})
    over = f", {len(folds)} folds" if folds else ""
    yield f"\n## {study.folder.name}\n"
    yield (
        f"{report['num_images']} images of the {report['split']} subset; seeds"
        f" {', '.join(map(str, seeds))}{over}; {report['settings']['num_points']} points of each"
        " curve. Mean ± standard deviation over seeds.\n"
    )
    yield as_markdown(_scores(study))
    yield as_markdown(_classifiers(study))
    if report["localisation"]:
        yield as_markdown(_localisation(study))
    if (tests := _tests(study)).rows:
        yield as_markdown(tests)
    if report["reference"] == "LABN":
        yield from _aims(study)
    yield as_markdown(_trainings(study))
    yield from _pictures(study, out)


def _scores(study: Study) -> Table:
    scores = [*(f"PID m={m}" for m in _SIZES), f"{study.pid} matched"]
    rows = [
        (condition, method, *(study.estimate("scores", condition, method, one) for one in scores))
        for condition in study.conditions
        for method in study.methods(condition)
    ]
    paper = [
        ("Iida 2022, test subset", method, *(Estimate(*one) for one in values), None)
        for method, values in _PAPER.items()
    ]
    return Table(
        columns=(Column("Network"), Column("Method"), *map(Column, scores)),
        rows=(*rows, *paper),
        caption="PID by network and method, laid out as Table 2 of Iida 2022; the paper's own"
        " values, of another subset and network, for orientation.",
    )


def _classifiers(study: Study) -> Table:
    classification = {"auroc": "AUROC", "accuracy": "accuracy"}
    certainty = {
        "p_image": "p(x)",
        "p_bias": "p(b)",
        "ece": "ECE",
        "attended_area": "attended area",
    }
    return Table(
        columns=tuple(map(Column, ("Network", *classification.values(), *certainty.values()))),
        rows=tuple(
            (
                condition,
                *(study.estimate("classification", condition, "", one) for one in classification),
                *(study.estimate("certainty", condition, "", one) for one in certainty),
            )
            for condition in study.conditions
        ),
        caption="The classifiers, and how much of an image their attention covers.",
    )


def _localisation(study: Study) -> Table:
    scores = {"energy_inside": "energy inside", "auroc": "AUROC", "pointing_hit": "pointing game"}
    keys = dict.fromkeys((r["condition"], r["method"]) for r in study.report["localisation"])
    return Table(
        columns=tuple(map(Column, ("Network", "Method", *scores.values()))),
        rows=tuple(
            (*key, *(study.estimate("localisation", *key, one) for one in scores)) for key in keys
        ),
        caption="Agreement with the expert's boxes, over the positives that have one.",
    )


def _tests(study: Study) -> Table:
    rows = []
    for condition in study.conditions:
        for method in study.methods(condition):
            if not (row := study.test(f"{study.pid} matched", condition, method)):
                continue
            interval = " to ".join(f"{end:+.3f}" for end in row["ends"])
            rows.append(
                (
                    f"{method} ({condition})",
                    f"{row['difference']:+.3f}",
                    interval,
                    f"{row['permutation_p_holm']:.4f}",
                    row["num_images"],
                )
            )
    return Table(
        columns=tuple(map(Column, ("Against", "Difference", "95% interval", "Holm's p", "images"))),
        rows=tuple(rows),
        caption=f"{study.pid} matched of {study.report['reference']} ({study.conditions[0]}) minus"
        " that of another: bootstrap interval and paired permutation test over images, corrected"
        " for all tests of the study.",
    )


def _aims(study: Study) -> Iterator[str]:
    """Yield one line for each aim: whether the first condition reaches it."""
    first, method = study.conditions[0], study.report["reference"]
    area = study.estimate("certainty", first, "", "attended_area")
    at_least = {
        study.pid: (study.estimate("scores", first, method, study.pid), 0.30),
        "AUROC": (study.estimate("classification", first, "", "auroc"), 0.85),
    }
    yield f"\nWhat holds for {method} ({first}):\n"
    for name, (estimate, aim) in at_least.items():
        if estimate is not None:
            verdict = "reached" if estimate.mean >= aim else "not reached"
            yield f"- {name} is {estimate}; the aim of at least {aim:.2f} is {verdict}."
    if area is not None:
        verdict = "reached" if area.mean < 0.25 else "not reached"
        yield f"- The attended area is {area}; the aim of less than 0.25 is {verdict}."
    for other in study.methods(first):
        if row := study.test(f"{study.pid} matched", first, other):
            is_above = row["difference"] > 0 and row["permutation_p_holm"] < 0.05
            verdict = "above" if is_above else "not above, beyond chance,"
            yield f"- At matched confidence it is {verdict} {other}: {row['difference']:+.3f}."
    yield ""


def _trainings(study: Study) -> Table:
    names = (
        "Run",
        "precision",
        "best epoch",
        "val_pid",
        "val_auroc",
        "last epoch",
        "val_pid",
        "best.pt",
    )
    rows = []
    for run in study.report["runs"]:
        folder, _ = split_place(study.folder / run["name"])
        history = pd.read_csv(folder / "history.csv").set_index("epoch")
        train = yaml.safe_load((folder / "config.yaml").read_text())["train"]
        best = json.loads((folder / "summary.json").read_text())["best_epoch"]
        scores = [_shown(history, *one) for one in (("val_pid", best), ("val_auroc", best))]
        last = _shown(history, "val_pid", history.index[-1])
        digest = _digest(study.folder, folder / "checkpoints" / "best.pt")
        name = str(folder.relative_to(study.folder))
        rows.append((name, train["precision"], best, *scores, len(history), last, digest))
    return Table(
        columns=tuple(map(Column, names)),
        rows=tuple(rows),
        caption="The trainings: validation scores of the best epoch, which was chosen by"
        " validation, and the PID of the last epoch, which was not; of each network's file the"
        " first digits of its SHA-256.",
    )


def _shown(history: pd.DataFrame, name: str, epoch: float) -> str:
    # A network without an attention branch has no PID.
    return f"{history[name][epoch]:.3f}" if name in history else "–"


def _digest(study: Path, file: Path) -> str:
    """Return the first digits of a network's digest, also of one that lies elsewhere."""
    if file.is_file():
        return hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    listed = study / "digests.txt"  # sha256sum */*/checkpoints/best.pt > digests.txt
    rows = [line.split() for line in listed.read_text().splitlines()] if listed.is_file() else []
    return next((digest[:12] for digest, name in rows if study / name == file), "")


def _pictures(study: Study, out: Path) -> Iterator[str]:
    """Copy the pictures, with the failures of the first run by kind, and yield their lines."""
    run, _ = split_place(study.folder / study.report["runs"][0]["name"])
    first = run / "evaluation" / study.report["split"]
    failures = sorted(first.glob("failures-*.png"))
    pictures = [study.folder / "report" / f"{name}.png" for name in ("scores", "report", "maps")]
    for picture in filter(Path.is_file, pictures + failures):
        copy = out.parent / "images" / f"results-{study.folder.name}-{picture.name}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, copy)
        yield f"\n![{picture.stem} of {study.folder.name}]({copy.relative_to(out.parent)})"


if __name__ == "__main__":
    main()
