"""The report: what it reads, what it counts, what it escapes, and how it behaves in a browser."""

from __future__ import annotations

import contextlib
import csv
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from chromium_for_tests import Browser
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from ballot.errors import UserError
from ballot.report import answer, sizes, statistics
from ballot.report import page as page_module
from ballot.report.page import how_it_runs, try_report, write_report
from ballot.report.serve import open_server
from ballot.report.trials import Trial, best_and_others, evenly, find_trials
from ballot.runs.folder import open_run
from ballot.vote.ballots import write_ballot
from ballot.vote.options import VoteOptions
from ballot.vote.run import run_vote
from bench.report import SEARCH, make_runs
from report import diff_lines, main

ROOT = Path(__file__).resolve().parents[2]
EVIL = "<script>alert(1)</script>"


@pytest.fixture
def outputs(tmp_path):
    folder = tmp_path / "outputs"
    make_runs(folder, 24, epochs=6)
    return folder


def change(path: Path, **values):
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def folder_of(outputs: Path, number: int) -> Path:
    return outputs / f"{SEARCH}-{number:03d}-t{number:05d}"


def page_of(outputs: Path, **options) -> str:
    write_report(outputs, outputs.parent / "r.html", **options)
    return (outputs.parent / "r.html").read_text()


class Tags(HTMLParser):
    """Every element of a page, and the words outside of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words = ""
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script" and self.cdata_elem:
            self.scripts[-1] += data
        elif not self.cdata_elem:
            self.words += data


def figures_of(page: str) -> dict:
    return json.loads(next(s for s in Tags(page).scripts if s.startswith("{")))


# What is read


def test_trials_are_ranked_by_score_and_failed_ones_are_not(outputs):
    found = find_trials(outputs)
    assert len(found.trials) == 24
    scores = [t.score for t in found.scored]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 23
    failed = [t for t in found.trials if t.status == "failed"]
    assert [t.reason for t in failed] == ["loss stopped being finite"]


def test_a_score_that_is_minimised_is_ranked_from_below(outputs):
    for number in range(24):
        change(folder_of(outputs, number) / "result.json", mode="min")
    scores = [t.score for t in find_trials(outputs).scored]
    assert scores == sorted(scores)


def test_hyperparameters_are_what_the_tuner_set_or_what_differs(outputs):
    names = set(find_trials(outputs).params)
    tuned = {"lr", "batch_size", "optimizer", "optimizer_args.momentum"}
    assert names == tuned | {"augmentation_args.erase"}


def test_a_running_trial_has_the_best_score_of_its_curve(outputs):
    folder = folder_of(outputs, 0)
    change(folder / "result.json", status="running", score=None)
    with (folder / "history.csv").open() as file:
        best = max(float(row["val_acc"]) for row in csv.DictReader(file))
    trial = next(t for t in find_trials(outputs).trials if t.folder == folder)
    assert (trial.status, trial.score) == ("running", best)


def test_the_table_of_the_search_knows_what_a_killed_trial_could_not_write(outputs):
    name = folder_of(outputs, 0).name
    change(folder_of(outputs, 0) / "result.json", status="running")
    (outputs.parent / "results.csv").write_text(
        "run,status,reason,score,epochs,seconds,machine,device,lr\n"
        f'"{name}","failed","killed from outside",,1,2.5,"m","cpu",0.1\n'
        f'"{SEARCH}-900-gone","failed","no memory",,0,1.0,"m","cpu",0.2\n'
    )
    trials = {t.name: t for t in find_trials(outputs).trials}
    assert (trials[name].status, trials[name].reason) == ("failed", "killed from outside")
    gone = trials[f"{SEARCH}-900-gone"]
    assert (gone.reason, gone.values["lr"], gone.seconds) == ("no memory", 0.2, 1.0)


def test_runs_on_other_data_are_left_out_and_counted(outputs):
    change(folder_of(outputs, 3) / "result.json", data_fingerprint="other")
    found = find_trials(outputs)
    assert len(found.trials) == 23
    assert found.notes[0].startswith("1 run is left out")


def test_no_runs_are_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="run train"):
        find_trials(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        find_trials(tmp_path / "nowhere")


def test_an_unknown_search_is_answered_with_the_nearest(outputs):
    with pytest.raises(UserError, match=f"did you mean '{SEARCH}'"):
        find_trials(outputs, "benchmark")


# What is counted


def test_cost_counts_epochs_spent_saved_and_lost(outputs):
    told = [json.loads(p.read_text()) for p in outputs.glob("*/result.json")]
    cost = statistics.cost(find_trials(outputs))
    assert cost["epochs"] == sum(r["epochs"] for r in told)
    assert cost["epochs_saved"] == sum(6 - r["epochs"] for r in told if r["status"] == "stopped")
    assert cost["epochs_failed"] == sum(r["epochs"] for r in told if r["status"] == "failed")


def test_the_best_score_so_far_never_falls(outputs):
    rows = statistics.progress(find_trials(outputs))
    scores = [row["score"] for row in rows]
    assert [row["best"] for row in rows] == list(np.maximum.accumulate(scores))
    minutes = [row["minutes"] for row in rows]
    assert minutes == sorted(minutes)


def test_importance_finds_the_hyperparameter_that_made_the_score(tmp_path):
    make_runs(tmp_path / "outputs", 40, epochs=3)
    for folder in (tmp_path / "outputs").iterdir():
        lr = json.loads((folder / "config.json").read_text())["values"]["lr"]
        change(folder / "result.json", status="done", score=-np.log10(lr))
    rows, sentence = statistics.importance(find_trials(tmp_path / "outputs"))
    assert rows[0]["name"] == "lr"
    assert rows[0]["importance"] > 5 * rows[1]["importance"]
    assert int(re.search(r"explains (\d+)%", sentence)[1]) > 80


def test_what_shuffling_loses_is_what_scikit_learn_finds():
    from sklearn.inspection import permutation_importance
    from sklearn.linear_model import LinearRegression

    rng = np.random.default_rng(0)
    table = rng.normal(size=(500, 3))
    scores = 2 * table[:, 0] + table[:, 1] + 0.1 * rng.normal(size=500)
    model = LinearRegression().fit(table, scores)
    lost = statistics.lost_by_shuffling(model.predict, table, scores)
    wanted = permutation_importance(model, table, scores, n_repeats=30, random_state=0)
    assert lost.mean(axis=1) == pytest.approx(wanted.importances_mean, rel=0.1, abs=0.01)


@pytest.mark.parametrize(("rows", "most"), [(0, 4), (4, 4), (5, 4), (1000, 7)])
def test_a_choice_of_many_is_even_and_keeps_the_best(rows, most):
    some = evenly(range(rows), most)
    assert len(some) == min(rows, most) and some == sorted(set(some)) and some[:1] == [0][:rows]
    assert rows <= most or max(np.diff(some)) - min(np.diff(some)) <= 1
    some = best_and_others(range(rows), most)
    assert len(some) == min(rows, most) and some == sorted(set(some))
    assert some[: most // 2] == list(range(min(rows, most // 2)))


def test_a_page_of_many_trials_has_all_of_them_and_draws_some(tmp_path):
    make_runs(tmp_path / "outputs", 1300, epochs=3)
    page = page_of(tmp_path / "outputs")
    rows = re.findall(r'<tr data-number="([0-9]+)"[^>]*?( hidden)?>', page)
    assert {int(number) for number, _ in rows} == set(range(1, 1301))
    assert [bool(hidden) for _, hidden in rows] == [False] * 1000 + [True] * 300
    assert "the first 1000 of 1300 trials" in page and "1,000 trials in each other figure" in page
    shown = json.loads(re.search(r'id="figures">(.*?)</script>', page)[1])
    assert len({row["t"] for row in shown["curves"]["data"]["values"]}) == 305
    assert len(shown["parallel"]["data"][0]["values"]) == 1000
    assert len(shown["against_0"]["data"]["values"]) == 1000
    course = shown["best_trial"]["data"]["values"]
    scored = [row["best"] for row in statistics.progress(find_trials(tmp_path / "outputs"))]
    assert len(course) < 1100 and {row["best"] for row in course} == set(scored)
    assert course[-1]["trial"] == len(scored)


def test_importance_says_when_there_are_too_few_trials(tmp_path):
    make_runs(tmp_path / "outputs", 5, epochs=3)
    rows, sentence = statistics.importance(find_trials(tmp_path / "outputs"))
    assert rows == [] and "5 scored trials" in sentence


def judged_at_random(rows=400, seed=0):
    rng = np.random.default_rng(seed)
    probs, targets = rng.dirichlet(np.ones(4), rows), rng.integers(0, 4, rows)
    trial = Trial("t", Path("t"), "done", "", 0.5)
    return statistics.Judged(trial, [f"i{k}" for k in range(rows)], list("abcd"), targets, probs)


def test_confusion_and_class_scores_are_scikit_learns():
    run = judged_at_random()
    assert (statistics.confusion(run) == confusion_matrix(run.targets, run.answers)).all()
    theirs = np.array(precision_recall_fscore_support(run.targets, run.answers))
    ours = [
        [c[k] for c in statistics.class_scores(run)] for k in ("precision", "recall", "f1", "rows")
    ]
    np.testing.assert_allclose(ours, theirs)


def test_attributes_are_scored_by_the_sums_of_their_classes():
    run = judged_at_random()
    # a and c are blue, b and d red; the run's own order of the classes is another one.
    colour = {"name": "colour", "classes": ["blue", "red"], "of_class": [1, 0, 1, 0]}
    run.trial.result.update(classes=list("dcba"), attributes=[colour])
    red = run.probs[:, [1, 3]].sum(axis=1) > run.probs[:, [0, 2]].sum(axis=1)
    expected = {"name": "colour", "classes": 2, "accuracy": (red == (run.targets % 2 == 1)).mean()}
    assert statistics.attribute_scores(run) == [expected]


def test_a_class_that_was_never_predicted_has_no_precision():
    trial = Trial("t", Path("t"), "done", "", 0.5)
    run = statistics.Judged(trial, ["a"], ["x", "y"], np.array([1]), np.array([[1.0, 0.0]]))
    assert statistics.class_scores(run)[1]["precision"] is None


def test_reliability_weighs_each_bin_by_its_rows():
    run = judged_at_random()
    rows, error = statistics.reliability(run)
    sure, right = run.probs.max(axis=1), run.answers == run.targets
    parts = [(sure > k / 10) & (sure <= (k + 1) / 10) for k in range(10)]
    naive = sum(abs(sure[p].mean() - right[p].mean()) * p.mean() for p in parts if p.any())
    assert error == pytest.approx(naive)
    assert sum(row["rows"] for row in rows) == len(sure)


def test_the_surest_errors_come_first():
    run = judged_at_random()
    wrong = statistics.confident_errors(run, 5)
    every = sorted((p.max() for p, t in zip(run.probs, run.targets) if p.argmax() != t))
    assert [row["prob"] for row in wrong] == every[::-1][:5]


def test_agreement_counts_equal_answers_whatever_the_order_of_the_rows(outputs):
    probs = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    write_ballot(outputs / "a.csv", ["x", "y", "z"], ["c", "d"], probs)
    write_ballot(outputs / "b.csv", ["z", "y", "x"], ["d", "c"], probs[::-1])
    rows = [{"label": n, "weight": 0.5, "files": [outputs / f"{n}.csv"]} for n in "ab"]
    pairs, _ = statistics.agreement(rows)
    share = {(p["a"], p["b"]): p["share"] for p in pairs}
    assert share["a", "a"] == 1
    assert share["a", "b"] == 0  # the columns are swapped as well: every answer differs


# The page


def test_labels_that_the_runs_doubt_are_shown(outputs):
    for path in outputs.glob("*/val.csv"):
        lines = path.read_text().splitlines()
        assert lines[0] == "id,label,cat,dog,owl" and lines[4].startswith("img3,cat,")
        lines[4] = "img3,cat,0.01,0.02,0.97"
        path.write_text("\n".join(lines) + "\n")
    seen = Tags(page_of(outputs))
    words = " ".join(seen.words.split())
    assert "cat, probably owl (97 %)" in words
    assert (
        "img3"
        in words.split("Labels that are probably wrong")[1].split("cat, probably owl")[1][:40]
    )


def test_a_class_a_file_and_a_reason_are_text(outputs):
    # The best run's classes and rows, a trial's reason, and a hyperparameter's value.
    best = find_trials(outputs).scored[0].folder
    for name in ("val.csv", "split.csv"):
        source = next(outputs.glob(f"*/{name}")).read_text()
        text = source.replace("img3,cat", EVIL + "3,dog").replace("cat", EVIL)
        (best / name).write_text(text)
    change(folder_of(outputs, 19) / "result.json", reason=EVIL)
    config = folder_of(outputs, 2) / "config.json"
    change(config, values=json.loads(config.read_text())["values"] | {"optimizer": EVIL})
    page = page_of(outputs)
    seen = Tags(page)
    assert "<script>alert" not in page
    assert seen.words.count(EVIL) >= 4
    assert len(seen.scripts) == 3
    assert any(row["label"] == EVIL for row in figures_of(page)["counts"]["data"]["values"])


def test_the_page_asks_no_network_for_anything(outputs):
    for tag, attributes in Tags(page_of(outputs)).tags:
        assert tag not in ("iframe", "object", "embed")
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:"))


def test_every_figure_has_its_place_and_every_place_its_figure(outputs):
    page = page_of(outputs)
    placed = [a["data-figure"] for _, a in Tags(page).tags if "data-figure" in a]
    assert sorted(placed) == sorted(figures_of(page))
    assert {
        "curves",
        "losses",
        "best_trial",
        "best_minutes",
        "parallel",
        "importance",
        "confusion",
        "reliability",
        "counts",
    } <= set(placed)


def test_stopped_trials_are_marked_at_their_ends(outputs):
    rows = figures_of(page_of(outputs))["curves"]["data"]["values"]
    ends = [row["end"] for row in rows if "end" in row]
    assert ends.count("stopped") == sum(n % 2 == 1 and n % 20 != 19 for n in range(24))


def vote_of_three(outputs):
    rng = np.random.default_rng(0)
    for number in (0, 2, 4):
        probs = rng.dirichlet(np.ones(3), 30)
        ids = [f"t{k}" for k in range(30)]
        write_ballot(
            folder_of(outputs, number).with_suffix(".csv"), ids, ["cat", "dog", "owl"], probs
        )
    folder = outputs.parent / "ensemble"
    run_vote(sorted(outputs.glob("*.csv")), VoteOptions(out_dir=str(folder)))


def test_the_vote_shows_members_weights_and_agreement(outputs):
    vote_of_three(outputs)
    page = page_of(outputs)
    assert "3 of 3 members vote by mean" in Tags(page).words
    assert len(figures_of(page)["agreement"]["data"]["values"]) == 9
    assert "no vote" in Tags(page_of(outputs, vote_dir=outputs / "none")).words


@pytest.mark.parametrize(("metric", "shown"), [("acc", True), ("f1_macro", False)])
def test_a_gain_has_a_standard_error_where_the_score_is_a_mean_over_rows(metric, shown, outputs):
    rng = np.random.default_rng(0)
    for number in (0, 2, 4):
        folder = folder_of(outputs, number)
        for path, labels in ((folder.with_suffix(".csv"), None), (folder / "val.csv", "cdo" * 30)):
            names = {"c": "cat", "d": "dog", "o": "owl"}
            given = [names[letter] for letter in labels] if labels else None
            write_ballot(
                path,
                [f"r{k}" for k in range(90)],
                ["cat", "dog", "owl"],
                rng.dirichlet(np.ones(3), 90),
                given,
            )
    options = VoteOptions(out_dir=str(outputs.parent / "ensemble"), select="greedy", metric=metric)
    run_vote(sorted(outputs.glob("*.csv")), options)
    words = Tags(page_of(outputs)).words
    assert "held out of the choice" in words
    assert ("±" in words.split("a gain of")[1].split("Test")[0][:40]) == shown


def test_the_page_says_whose_answer_it_is_where_the_vote_was_worse(outputs):
    folder = outputs.parent / "ensemble"
    for number in (0, 2, 4):
        path = folder_of(outputs, number).with_suffix(".csv")
        write_ballot(path, ["t0"], ["cat", "dog", "owl"], np.full((1, 3), 1 / 3))
    run_vote(sorted(outputs.glob("*.csv")), VoteOptions(out_dir=str(folder)))
    change(folder / "ensemble.json", scores={"answer": "best_single"})
    words = Tags(page_of(outputs)).words
    assert "The best single trial answers, not the vote" in words
    assert "members vote by" not in words


def _only_failed(outputs):
    for path in outputs.glob("*/result.json"):
        change(path, status="failed", reason="no memory", score=None)


def _one_run(outputs):
    for folder in sorted(outputs.iterdir())[1:]:
        shutil.rmtree(folder)


def _bare(outputs):
    for path in [*outputs.glob("*/*.csv"), *outputs.glob("*/result.json")]:
        path.unlink()


def _half_written(outputs):
    for path in outputs.glob("*/*"):
        if path.name != "config.json":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


LACKS = {
    _only_failed: "No trial has a score yet",
    _one_run: "It takes two scored trials",
    _bare: "No trial has finished an epoch",
    _half_written: "No run has left validation predictions",
}


@pytest.mark.parametrize(
    "scores, sentence",
    [
        (
            {"test": {"acc": 0.9}, "test_rows": 96, "val": {"acc": 0.99}, "val_rows": 10},
            "the vote of 2 of 3 trials: accuracy 0.900 ± 0.032 on 96 test images",
        ),
        (
            {"answer": "vote", "held_out": {"metric": "acc", "vote": 1.0, "rows": 96}},
            "the vote of 2 of 3 trials: accuracy 1.000 ± 0.014 on 96 validation images held out",
        ),
        (
            {"held_out": {"metric": "f1_macro", "vote": 0.5, "rows": 96}},
            "the vote of 2 of 3 trials: macro F1 0.500 on 96 validation images held out",
        ),
        ({}, "the vote of 2 of 3 trials; how good it is, no labelled rows tell."),
    ],
)
def test_the_answer_is_a_sentence_with_its_error(scores, sentence):
    metric = scores.get("held_out", {}).get("metric", "acc")
    members = [{"name": "a", "weight": 0.5}, {"name": "b", "weight": 0.5}, {"name": "c"}]
    record = {"members": members, "scores": scores, "options": {"metric": metric}}
    assert f"The answer is {sentence}" in answer.sentence_of_vote(record)


def test_the_single_trial_answers_with_its_own_score_where_the_vote_is_worse():
    held = {"metric": "acc", "vote": 0.5, "best_single": 0.75, "rows": 46}
    members = [{"name": "a", "weight": 1.0}, {"name": "b", "weight": 0.0}]
    record = {"members": members, "scores": {"answer": "best_single", "held_out": held}}
    said = answer.sentence_of_vote(record, {"a": "001"})
    assert "the single trial 001, the best of 2, which did better than their vote" in said
    assert "accuracy 0.750 ± 0.063 on 46" in said


def test_the_page_begins_with_the_answer_its_command_and_the_next_step(outputs):
    words = " ".join(Tags(page_of(outputs)).words.split())
    best = find_trials(outputs).scored[0]
    before, _, rest = words.partition(f"The best of 24 trials is {best.label}: accuracy ")
    assert before.endswith("24 trials ") and "± is one standard error" in rest[:200]
    typed = re.search(r"Best configuration ?(python train.py .*?) ?(Next|val_acc,)", words)[1]
    assert f"--lr {best.values['lr']}" in typed and "--out_dir" not in typed
    folder = best.folder
    (folder / "best.pt").write_text("weights")
    page = page_of(outputs)
    assert f"python predict.py {folder} photos/ --out new.csv" in Tags(page).words


def vote_on_validation(outputs, numbers=(0, 2, 4), rows=90, **options):
    """Let runs vote that are right on more rows together than each by itself."""
    rng, classes = np.random.default_rng(0), ["cat", "dog", "owl"]
    ids, labels = [f"r{k}" for k in range(rows)], [classes[k % 3] for k in range(rows)]
    for number in numbers:
        folder, right = folder_of(outputs, number), np.eye(3)[np.arange(rows) % 3]
        for path, given in ((folder.with_suffix(".csv"), None), (folder / "val.csv", labels)):
            write_ballot(
                path, ids, classes, 0.5 * right + 0.5 * rng.dirichlet(np.ones(3), rows), given
            )
    folder = outputs.parent / "ensemble"
    options = VoteOptions(out_dir=str(folder), select="auto", **options)
    return run_vote(sorted(outputs.glob("*.csv")), options)


def test_the_confusion_and_the_mistakes_are_the_votes_on_rows_held_out_of_the_choice(outputs):
    report = vote_on_validation(outputs)
    page = page_of(outputs)
    words = " ".join(Tags(page).words.split())
    assert (
        "The vote on validation rows The vote of 3 members: 90 rows held out of the choice" in words
    )
    with (outputs.parent / "ensemble" / "val.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = ["cat", "dog", "owl"]
    answers = [max(names, key=lambda name: float(row[name])) for row in rows]
    wanted = confusion_matrix([row["label"] for row in rows], answers, labels=names)
    cells = figures_of(page)["confusion"]["data"]["values"]
    assert [cell["n"] for cell in cells] == wanted.ravel().tolist()
    assert f"accuracy {report.val['acc']:.3f}, expected calibration error" in words


def test_without_predictions_of_the_vote_the_best_run_is_shown_and_named(outputs):
    vote_of_three(outputs)
    (outputs.parent / "ensemble" / "val.csv").unlink()
    words = " ".join(Tags(page_of(outputs)).words.split())
    best = find_trials(outputs).scored[0]
    assert f"Best run on its validation rows {best.label}" in words
    assert "held out of the choice" not in words.split("Best run on its validation rows")[1]


# What accuracy costs


def test_a_vote_costs_what_its_members_cost_together_with_all_their_folds_and_views(outputs):
    networks = [(1e6, 2e8, 50.0), (3e6, 4e8, 25.0), (5e6, None, 100.0)]
    for number, (parameters, madds, speed) in zip((0, 2, 4), networks):
        network = {"parameters": parameters, "multiply_adds": madds, "images_per_second": speed}
        change(folder_of(outputs, number) / "result.json", network=network)
    change(folder_of(outputs, 2) / "result.json", tta=[{"passes": 2}, {"passes": 1}])
    report = vote_on_validation(outputs)
    found = find_trials(outputs)
    rows = sizes.rows_of(found, statistics.vote(found, outputs.parent / "ensemble")[0])
    trials = {row["name"]: row for row in rows if row["kind"] == "trial"}
    two = trials[next(t.label for t in found.trials if t.folder == folder_of(outputs, 2))]
    assert (two["parameters"], two["multiply_adds"]) == (6e6, 12e8)
    assert two["images_per_second"] == pytest.approx(25 / 3, rel=1e-3)
    votes = [row for row in rows if row["kind"] == "vote"]
    assert [row["number"] for row in votes] == [1, 2, 3]
    assert votes[-1]["parameters"] == 12e6 and votes[-1]["multiply_adds"] is None
    seconds = 1 / 50 + 3 / 25 + 1 / 100
    assert votes[-1]["images_per_second"] == pytest.approx(1 / seconds, rel=1e-3)
    assert votes[-1]["accuracy"] == pytest.approx(report.val["acc"], abs=1e-5)


@pytest.mark.parametrize("measure", sizes.MEASURES)
def test_the_front_has_what_nothing_else_beats_in_cost_and_accuracy(measure):
    rng = np.random.default_rng(0)
    rows = [
        {measure: float(rng.integers(1, 20)), "accuracy": rng.integers(10) / 10} for _ in range(60)
    ]
    rows.append({measure: None, "accuracy": 1.0})
    sign = 1 if sizes.MEASURES[measure] else -1
    points = {(sign * row[measure], row["accuracy"]) for row in rows if row[measure] is not None}
    naive = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)}
    front = sizes.front_of(rows, measure)
    assert {(sign * row[measure], row["accuracy"]) for row in front} == naive
    assert len(front) == len(naive)


def test_the_page_draws_accuracy_against_size_or_says_that_it_is_not_known(outputs):
    vote_on_validation(outputs)
    page = page_of(outputs)
    drawn = figures_of(page)
    for measure in sizes.MEASURES:
        values = drawn[f"size_{measure}"]["data"]["values"]
        assert [row["number"] for row in values if row["kind"] == "vote"] == [1, 2, 3]
        assert sum(row["kind"] == "trial" for row in values) == 23
    assert "vote of 3" in Tags(page).words.split("on a front")[1]
    for path in outputs.glob("*/result.json"):
        change(path, network=None)
    assert "No trial has recorded what its network costs." in Tags(page_of(outputs)).words


def test_trials_that_ended_after_the_vote_are_counted(outputs):
    vote_of_three(outputs)
    assert "after this vote" not in page_of(outputs)
    change(folder_of(outputs, 0) / "result.json", ended="2999-01-01T00:00:00+00:00")
    said = Tags(page_of(outputs)).words
    assert f"1 trial ended after this vote; python ensemble.py {outputs}/*.csv" in said


def test_losses_of_different_criteria_are_not_drawn_on_one_axis(outputs):
    for number in range(3):
        config = folder_of(outputs, number) / "config.json"
        values = json.loads(config.read_text())["values"]
        other = {"criterion": "focal", "criterion_args": {"gamma": 2.0}}
        heads = {"heads": "product", "head_weights": "equal", "ordinal": ["age"]}
        change(config, values=values | other | heads)
    for number in range(24):
        history = folder_of(outputs, number) / "history.csv"
        history.write_text(history.read_text().replace("val_acc", "val_loss"))
        change(folder_of(outputs, number) / "result.json", monitor="val_loss")
    page = page_of(outputs)
    drawn = figures_of(page)
    shown = {name: drawn[f"curves_{name}"]["data"]["values"] for name in "12"}
    lines = {name: len({row["t"] for row in rows}) for name, rows in shown.items()}
    assert lines == {"1": 21, "2": 3}
    words = " ".join(Tags(page).words.split())
    assert (
        "val_loss of focal, gamma 2, heads product, age by thresholds" in words
        and "cannot be compared" in words
    )


def test_a_page_refreshes_itself_only_while_the_search_runs(outputs):
    assert "location.reload" not in page_of(outputs)
    live = page_of(outputs, live="3 of 40 trials, 12 min left")
    assert "location.reload" in live
    assert "The search is running: 3 of 40 trials, 12 min left." in Tags(live).words


def test_a_trial_runs_as_long_as_a_process_holds_its_folder(outputs):
    folder = folder_of(outputs, 0)
    change(folder / "result.json", status="running")
    assert how_it_runs(find_trials(outputs)) == ""  # it was killed, and could not say so
    with open_run(folder, resume=True, facts={}):
        assert how_it_runs(find_trials(outputs)) == "1 trial in training"


@contextlib.contextmanager
def served(page, renew=lambda: False, live=False):
    with open_server(0, page, renew, live) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server, path="/", host=None):
    """Return the status and the text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answered = connection.getresponse()
    return answered.status, answered.read().decode()


def test_one_page_is_served_and_nothing_else_to_nobody_else(tmp_path):
    page = tmp_path / "report.html"
    page.write_text("the page")
    (tmp_path / "secret").write_text("no")
    with served(page) as server:
        assert server.server_address[0] == "127.0.0.1"
        assert ask(server) == ask(server, "/report.html?x=1") == (200, "the page")
        for path in ("/secret", "/../secret", "/.", "/report.html/"):
            assert ask(server, path)[0] == 404
        assert ask(server, host="evil.example")[0] == 421
        assert ask(server, host=f"localhost:{server.server_port}")[0] == 200
        with pytest.raises(UserError, match="--serve: port"):
            open_server(server.server_port, page, bool, False)


def test_the_served_page_is_made_anew_while_trials_run_and_then_no_more(tmp_path):
    page = tmp_path / "report.html"
    calls = []

    def renew():
        calls.append(1)
        page.write_text(f"page {len(calls)}")
        old(page)
        return len(calls) < 2

    page.write_text("page 0")
    with served(page, renew, live=True) as server:
        assert ask(server)[1] == "page 0"  # it is new
        old(page)
        assert [ask(server)[1] for _ in range(3)] == ["page 1", "page 2", "page 2"]


@pytest.mark.slow
def test_ctrl_c_ends_the_server_in_order(outputs):
    words = [sys.executable, ROOT / "report.py", "outputs", "--no_pictures", "--serve"]
    with subprocess.Popen(words, cwd=outputs.parent, stdout=subprocess.PIPE, text=True) as process:
        line = next(line for line in process.stdout if line.startswith("serving"))
        address = re.search(r"http://127\.0\.0\.1:\d+/", line)[0]
        with urllib.request.urlopen(address, timeout=20) as answered:
            assert "24 trials" in answered.read().decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def old(page):
    os.utime(page, (0, 0))


@pytest.mark.parametrize("spoil", LACKS, ids=lambda f: f.__name__.strip("_"))
def test_what_is_missing_is_a_sentence_and_not_an_error(outputs, spoil):
    spoil(outputs)
    assert LACKS[spoil] in Tags(page_of(outputs)).words


def test_numbers_that_json_does_not_know_are_shown_as_words(outputs):
    for number, value in enumerate([float("nan"), float("inf"), None, "x", [1, 2], {"a": EVIL}]):
        config = folder_of(outputs, number) / "config.json"
        change(config, values=json.loads(config.read_text())["values"] | {"lr": value})
        change(folder_of(outputs, number + 6) / "result.json", epochs="many", seconds=[])
    assert EVIL in Tags(page_of(outputs)).words


def test_a_report_never_stops_a_search(outputs):
    assert try_report(outputs, outputs.parent / "r.html")
    assert not try_report(outputs / "nowhere", outputs.parent / "r.html")
    blocked = outputs.parent / "file"
    blocked.write_text("")
    assert not try_report(outputs, blocked / "r.html")


# The command


@pytest.mark.slow
def test_figures_are_written_as_files(outputs, capsys):
    folder = outputs.parent / "png"
    page = outputs.parent / "r.html"
    args = [str(outputs), "--out", str(page), "--no_pictures", "--png", str(folder)]
    assert main(args) == 0
    names = {path.stem for path in folder.iterdir()}
    assert names == set(figures_of(page.read_text()))
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.iterdir())
    assert "24 trials" in capsys.readouterr().out


def test_diff_names_what_differs_in_settings_and_results(outputs):
    lines = diff_lines(folder_of(outputs, 0), folder_of(outputs, 19))
    words = {line.split("  ")[0]: line for line in lines}
    assert "lr" in words and "model" not in words
    assert "done" in words["status"] and "failed" in words["status"]
    assert "loss stopped being finite" in words["reason"]


def test_diff_of_a_run_with_itself_says_so(outputs):
    run = folder_of(outputs, 0)
    assert "no setting differs" in diff_lines(run, run)
    assert main(["--diff", str(run), str(outputs / "nowhere")]) == 2


@pytest.mark.slow
def test_pictures_of_digits_are_on_the_page(script, tmp_path):
    assert script("train.py", "--epochs", 1, "--batch_size", 256).returncode == 0
    done = script("report.py")
    assert done.returncode == 0, done.stderr
    images = [
        a["src"] for tag, a in Tags((tmp_path / "report.html").read_text()).tags if tag == "img"
    ]
    assert len(images) > 5
    assert all(src.startswith("data:image/jpeg;base64,") for src in images)
    page = Tags((tmp_path / "report.html").read_text())
    pictures = [a for tag, a in page.tags if tag == "img" and a.get("class") != "sheet"]
    maps = [a["alt"] for a in pictures if a["alt"]]
    doubted = page.words.count(", probably ")
    assert 2 * len(maps) + doubted == len(pictures) and maps[0].startswith("What speaks for ")
    for weights in tmp_path.rglob("best.pt"):
        weights.unlink()
    assert script("report.py").returncode == 0
    words = Tags((tmp_path / "report.html").read_text()).words
    assert "No activation maps: the weights of" in words and "are not kept." in words


# In a browser


@pytest.mark.slow
def test_200_trials_are_sorted_and_brushed_offline_in_two_seconds(tmp_path):
    make_runs(tmp_path / "outputs", 200)
    page = tmp_path / "report.html"
    write_report(tmp_path / "outputs", page)
    assert page.stat().st_size < 5e6
    with Browser(tmp_path / "profile") as browser:
        browser.size(1200)
        # Other programs take cores as well: the best of a few visits is what it can do.
        assert any(visit(browser, page) < 2 for _ in range(6))
        assert browser.run("document.querySelectorAll('.chart svg').length") >= 12
        assert browser.problems == []
        assert {url.split(":")[0] for url in browser.requests} <= {"file", "data", "blob"}


def visit(browser, page):
    start = time.monotonic()
    browser.open(page)
    sort_by_learning_rate(browser)
    brush_the_first_axis(browser)
    return time.monotonic() - start


def sort_by_learning_rate(browser):
    names = browser.run(
        "[...document.querySelectorAll('#leaderboard th')].map((th) => th.textContent)"
    )
    column = names.index("lr")
    browser.run(f"document.querySelectorAll('#leaderboard th')[{column}].click()")
    shown = browser.run(
        "[...document.querySelectorAll('#leaderboard tbody tr')]"
        f".map((row) => Number(row.cells[{column}].dataset.v))"
    )
    assert len(shown) == 200
    assert shown == sorted(shown)


def brush_the_first_axis(browser):
    box = browser.run(
        "(() => { const one = document.querySelector('[data-figure=parallel] "
        ".catch0 path'); one.scrollIntoView({block: 'center'}); "
        "const r = one.getBoundingClientRect(); "
        "return [r.x + r.width / 2, r.y, r.height]; })()"
    )
    x, top, height = box
    browser.drag((x, top + 2), (x, top + height / 2))
    browser.wait("document.getElementById('held').textContent !== ''")
    rows = "document.querySelectorAll('#leaderboard tbody tr:not([hidden])').length"
    shown = browser.run(rows)
    assert 0 < shown < 190
    assert browser.run("document.getElementById('held').textContent").startswith(f"{shown} of 190")


@pytest.mark.slow
def test_a_page_is_no_wider_than_a_phone(tmp_path):
    make_runs(tmp_path / "outputs", 12, epochs=4)
    page = tmp_path / "report.html"
    write_report(tmp_path / "outputs", page)
    with Browser(tmp_path / "profile") as browser:
        browser.size(390)
        browser.open(page)
        assert browser.run("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
def test_a_page_of_a_search_that_runs_loads_itself_until_it_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "REFRESH_S", 0.5)
    make_runs(tmp_path / "outputs", 4, epochs=2)
    page = tmp_path / "report.html"
    write_report(tmp_path / "outputs", page, live="1 trial in training")
    with Browser(tmp_path / "profile") as browser:
        browser.open(page)
        assert browser.run("document.getElementById('live').textContent").count("running") == 1
        write_report(tmp_path / "outputs", page)
        browser.wait("document.readyState === 'complete' && !document.getElementById('live')")
        browser.run("document.title = 'stays'")
        time.sleep(1.5)
        assert browser.run("document.title") == "stays"
        assert browser.problems == []
