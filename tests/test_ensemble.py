"""The vote as typed: files in, one answer out, and what happens with bad ones."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier

import ensemble
from ballot.vote import combine, rules
from ballot.vote.options import VoteOptions
from ballot.vote.run import run_vote
from ballot.vote.table import format_table

ROOT = Path(__file__).resolve().parents[1]
CLASSES = [f"digit {k}" for k in range(10)]
GOOD = "id,a,b\nx,0.25,0.75\ny,0.5,0.5\n"


def write_csv(path, ids, probs, classes=CLASSES, labels=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["id", *(["label"] if labels is not None else []), *classes])
        for number, (name, row) in enumerate(zip(ids, probs)):
            label = [] if labels is None else [labels[number]]
            rows.writerow([name, *label, *(str(v) for v in np.asarray(row, np.float32))])


class Digits:
    """Four real members on noisy digits, written as runs write themselves."""

    def __init__(self, folder):
        images, self.labels = load_digits(return_X_y=True)
        random = np.random.default_rng(0)
        self.images = images + random.normal(size=images.shape) * 5
        self.ids = np.array([f"img{i:04d}.png" for i in range(len(images))])
        order = random.permutation(len(images))
        self.train, self.val, self.test = order[:700], order[700:1000], order[1000:]
        self.voter = VotingClassifier(
            [
                ("nb", GaussianNB(var_smoothing=0.01)),
                ("knn", KNeighborsClassifier(7)),
                ("forest", RandomForestClassifier(20, random_state=0)),
                ("logistic", LogisticRegression(C=0.001, max_iter=100)),
            ],
            voting="soft",
        ).fit(self.images[self.train], self.labels[self.train])
        self.names = list(self.voter.named_estimators_)
        for name, model in self.voter.named_estimators_.items():
            self.write_run(folder, name, model)

    def words(self, rows):
        return [CLASSES[k] for k in self.labels[rows]]

    def write_run(self, folder, name, model, val=None, **result):
        val = self.val if val is None else val
        write_csv(folder / f"{name}.csv", self.ids[self.test], self.probs(model, self.test))
        run = folder / name
        write_csv(run / "val.csv", self.ids[val], self.probs(model, val), labels=self.words(val))
        with (run / "split.csv").open("w", encoding="utf-8") as file:
            file.write("id,label,split,group\n")
            for split, rows in (("train", self.train), ("val", val), ("test", self.test)):
                file.writelines(f"{self.ids[i]},{CLASSES[self.labels[i]]},{split},\n" for i in rows)
        result = {
            "run": name,
            "status": "done",
            "classes": CLASSES,
            "submission": {"columns": ["ImageID", "ans"], "answers": list("0123456789")},
            **result,
        }
        (run / "result.json").write_text(json.dumps(result))

    def probs(self, model, rows):
        return model.predict_proba(self.images[rows])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "outputs"
    made = Digits(folder)
    made.folder = folder
    made.files = sorted(folder.glob("*.csv"))
    return made


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cast(files, **options):
    return run_vote(files, VoteOptions(**options))


def validation_of(digits, *names):
    return [digits.folder / name / "val.csv" for name in names or digits.names]


def names_in(folder):
    return sorted(path.name for path in Path(folder).iterdir())


# What is right


def test_the_plain_vote_is_scikit_learns_and_its_scores_are_told(digits):
    report = cast(digits.files)
    expected = digits.voter.predict_proba(digits.images[digits.test])
    order = [report.classes.index(name) for name in CLASSES]
    assert report.ids == digits.ids[digits.test].tolist()
    np.testing.assert_allclose(report.probs[:, order], expected, atol=1e-7)
    truth = digits.labels[digits.test]
    assert report.test["acc"] == accuracy_score(truth, expected.argmax(axis=1))
    for member in report.members:
        model = digits.voter.named_estimators_[member.name]
        assert member.test["acc"] == model.score(digits.images[digits.test], truth)
        assert member.val["acc"] == model.score(
            digits.images[digits.val], digits.labels[digits.val]
        )
    assert report.best_single.val["acc"] == max(m.val["acc"] for m in report.members)


def test_it_writes_a_soft_csv_a_submission_and_a_record(digits):
    report = cast(digits.files, weights=[2, 1, 1, 1])
    soft = pd.read_csv("ensemble/soft.csv")
    assert list(soft.columns) == ["id", *CLASSES]
    np.testing.assert_allclose(soft[report.classes].to_numpy(), report.probs, atol=1e-7)
    answers = pd.read_csv("ensemble/submission.csv")
    assert list(answers.columns) == ["ImageID", "ans"]
    assert answers["ImageID"].tolist() == report.ids
    assert answers["ans"].tolist() == soft[CLASSES].to_numpy().argmax(axis=1).tolist()
    record = json.loads(Path("ensemble/ensemble.json").read_text())
    assert [m["raw_weight"] for m in record["members"]] == [2, 1, 1, 1]
    for member in record["members"]:
        assert (Path("ensemble") / member["files"][0]).resolve() in digits.files
    assert record["scores"]["test"] == report.test


def test_a_submission_keeps_the_order_that_the_data_ask_for(digits, in_tmp):
    folder = in_tmp / "outputs"
    digits.write_run(folder, "nb", digits.voter.estimators_[0])
    wanted = sorted(digits.ids[digits.test])
    (folder / "nb/submission.csv").write_text("ImageID,ans\n" + "".join(f"{i},0\n" for i in wanted))
    cast([folder / "nb.csv"])
    assert pd.read_csv("ensemble/submission.csv")["ImageID"].tolist() == wanted


@pytest.mark.parametrize("method", combine.METHODS)
@pytest.mark.parametrize("select", [None, "best:2"])
def test_shuffled_rows_columns_and_files_change_nothing_to_the_last_bit(
    digits, in_tmp, method, select
):
    straight = cast(digits.files, method=method, select=select)
    random = np.random.default_rng(1)
    for path in [*digits.files, *digits.folder.glob("*/val.csv")]:
        frame = pd.read_csv(path, dtype=str)
        fixed = 2 if "label" in frame else 1
        columns = [*frame.columns[:fixed], *random.permutation(frame.columns[fixed:])]
        shuffled = frame.sample(frac=1, random_state=len(columns[-1]))[columns]
        target = in_tmp / "shuffled" / path.relative_to(digits.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shuffled.to_csv(target, index=False)
    crooked = cast(
        sorted(in_tmp.glob("shuffled/*.csv"), reverse=True), method=method, select=select
    )
    rows = [crooked.ids.index(name) for name in straight.ids]
    assert (crooked.probs[rows] == straight.probs).all()
    assert crooked.val == straight.val
    assert [m.weight for m in crooked.members] == [m.weight for m in straight.members]


def test_greedy_weighs_by_validation_and_its_gain_is_of_rows_it_did_not_see(digits):
    report = cast(digits.files, select="greedy")
    plain = cast(digits.files, out_dir="plain")
    assert plain.greedy == report.honest
    assert report.honest.rows == len(digits.val)
    assert report.honest.gain == pytest.approx(report.honest.vote - report.honest.best_single)
    assert report.val["acc"] == report.honest.vote
    frames = [pd.read_csv(digits.folder / m.name / "val.csv") for m in report.members]
    values = np.stack([frame.sort_values("id")[CLASSES].to_numpy() for frame in frames])
    labels = frames[0].sort_values("id")["label"].map(CLASSES.index).to_numpy()
    counts = np.array(combine.greedy(values, labels))
    assert [m.weight for m in report.members] == (counts / counts.sum()).tolist()


def test_auto_weighs_all_good_members_and_is_scored_where_it_was_not_chosen(digits):
    report = cast(digits.files, select="auto")
    weights = {m.name: m.weight for m in report.members}
    models = [digits.voter.named_estimators_[name] for name in weights]
    values = np.stack([digits.probs(model, digits.val) for model in models])
    expected = rules.weigh(values.astype(np.float32), digits.labels[digits.val], "acc")
    np.testing.assert_allclose(list(weights.values()), expected, atol=1e-6)
    assert not report.alone
    assert report.honest.gain >= 0


def test_the_answer_on_validation_rows_is_held_out_of_the_choice_and_kept(digits):
    report = cast(digits.files, select="auto")
    kept = pd.read_csv("ensemble/val.csv").set_index("id").loc[digits.ids[digits.val]]
    assert list(kept.columns) == ["label", *report.classes] and len(kept) == 300
    right = kept[report.classes].idxmax(axis=1) == kept["label"]
    assert right.mean() == report.val["acc"] == report.honest.vote
    assert digits.words(digits.val) == kept["label"].tolist()
    scores = json.loads(Path("ensemble/ensemble.json").read_text())["scores"]
    assert scores["val_held_out"] and scores["by_size"][-1]["val"]["acc"] == report.val["acc"]
    again = cast([*digits.files, "ensemble/val.csv"], out_dir="again")
    assert "left out: 'ensemble/val.csv', an earlier vote's result" in again.notes


def test_the_votes_of_the_first_members_follow_their_weights(digits):
    report = cast(digits.files, weights=[1, 3, 0, 2])
    names = [m.name for m in sorted(report.members, key=lambda m: -m.weight) if m.weight]
    assert [row["name"] for row in report.by_size] == names and len(names) == 3
    truth = digits.labels[digits.val]
    models = [digits.voter.named_estimators_[name] for name in names]
    for size in (1, 2, 3):  # weights that were given are fitted to no row: each is counted as it is
        sums = sum(w * digits.probs(m, digits.val) for w, m in zip((3, 2, 1), models[:size]))
        score = report.by_size[size - 1]["val"]["acc"]
        assert score == pytest.approx(accuracy_score(truth, sums.argmax(axis=1)), abs=1e-3)
    assert cast(digits.files, stack="logistic", out_dir="stacked").by_size == []


@pytest.fixture
def one_good_trial():
    """One run that knows nearly all, and five that are wrong together, as sure as it is."""
    rng = np.random.default_rng(0)
    ids, targets = [f"r{i}" for i in range(400)], rng.integers(0, 4, 400)
    wrong = (targets + (rng.uniform(size=400) < 0.12) * rng.integers(1, 4, 400)) % 4
    for number in range(6):
        answer = np.where(rng.uniform(size=400) < 0.08, rng.integers(0, 4, 400), targets)
        probs = np.eye(4)[wrong if number else answer] * 0.96 + 0.01
        rows = slice(0, 200), slice(200, 400)
        labels = [f"c{k}" for k in targets]
        names = [f"c{k}" for k in range(4)]
        write_csv(Path(f"outputs/t{number}.csv"), ids[rows[1]], probs[rows[1]], names)
        write_csv(
            Path(f"outputs/t{number}/val.csv"), ids[rows[0]], probs[rows[0]], names, labels[rows[0]]
        )
    return sorted(Path("outputs").glob("*.csv"))


def test_a_link_to_a_search_that_was_removed_becomes_a_folder(one_good_trial):
    Path("ensemble").symlink_to("searches/gone/ensemble")
    assert ensemble.main([*map(str, one_good_trial)]) == 0
    assert Path("ensemble/soft.csv").is_file() and not Path("searches").exists()


def test_a_vote_of_files_is_not_written_over_that_of_a_search(one_good_trial):
    search = Path("searches/photos-1")
    (search / "ensemble").mkdir(parents=True)
    (search / "search_space.json").write_text("{}")
    Path("ensemble").symlink_to(search / "ensemble")
    assert ensemble.main([*map(str, one_good_trial)]) == 0
    assert Path("ensemble/soft.csv").is_file() and not Path("ensemble").is_symlink()
    assert list((search / "ensemble").iterdir()) == []


def test_a_link_to_itself_is_no_folder_for_a_vote(one_good_trial, capsys):
    Path("ensemble").symlink_to("ensemble")
    assert ensemble.main([*map(str, one_good_trial)]) == 2
    assert "ensemble: is a link that leads to itself" in capsys.readouterr().err


def test_where_the_vote_is_worse_the_answer_is_the_best_single_trials(one_good_trial, capsys):
    assert ensemble.main([*map(str, one_good_trial), "--select", "auto"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the vote is worse than the best single trial, t0: submission.csv is its answer" in said
    soft, own = pd.read_csv("ensemble/soft.csv"), pd.read_csv("outputs/t0.csv")
    np.testing.assert_allclose(soft.iloc[:, 1:], own.iloc[:, 1:], atol=1e-6)
    submission = pd.read_csv("ensemble/submission.csv")
    assert submission.label.tolist() == own.set_index("id").idxmax(axis=1).tolist()
    record = json.loads(Path("ensemble/ensemble.json").read_text())
    assert record["scores"]["answer"] == "best_single"
    assert [m["raw_weight"] for m in record["members"]] == [1, 0, 0, 0, 0, 0]


def test_a_vote_that_was_asked_for_stays_and_is_said_to_be_worse(one_good_trial, capsys):
    words = [*map(str, one_good_trial), "--weights", "0", "1", "1", "1", "1", "1"]
    assert ensemble.main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the vote is worse than the best single trial; --select auto" in said
    record = json.loads(Path("ensemble/ensemble.json").read_text())
    assert record["scores"]["answer"] == "vote"


def test_auto_without_common_validation_rows_is_the_mean_and_says_so(capsys):
    for name in "ab":
        Path(f"{name}.csv").write_text(GOOD)
    assert ensemble.main(["a.csv", "b.csv", "--select", "auto"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "no validation row is common to all members: all of them have the same weight" in said


def test_calibration_changes_no_members_answers_and_tells_its_error_before_and_after(
    digits,
):
    before, after = cast(digits.files), cast(digits.files, calibrate=True)
    for plain, calibrated in zip(before.members, after.members):
        assert plain.val["acc"] == calibrated.val["acc"]
        assert 0 <= calibrated.val["ece_after"] <= 1
        assert calibrated.temperature > 0
    nb = next(m for m in after.members if m.name == "nb")
    assert nb.val["ece_after"] < nb.val["ece"]
    table = format_table(after, 100)
    assert "ece_cal" in table


def test_stacking_votes_and_is_scored_where_it_did_not_learn(digits):
    report = cast(digits.files, stack="logistic")
    np.testing.assert_allclose(report.probs.sum(axis=1), 1, atol=1e-9)
    assert report.honest.vote > 0.8
    assert json.loads(Path("ensemble/ensemble.json").read_text())["stack"]["seen"] == [*range(10)]


def test_truth_comes_from_a_file_in_names_or_in_the_submissions_words(digits, in_tmp):
    (in_tmp / "names.csv").write_text(
        "id,label\n"
        + "".join(f"{digits.ids[i]},{CLASSES[digits.labels[i]]}\n" for i in digits.test[:50])
    )
    (in_tmp / "words.csv").write_text(
        "ImageID,ans\n" + "".join(f"{digits.ids[i]},{digits.labels[i]}\n" for i in digits.test[:50])
    )
    names, words = (cast(digits.files, truth=f"{kind}.csv") for kind in ("names", "words"))
    assert names.test == words.test
    assert names.test_rows == 50


def test_folds_of_one_configuration_become_one_member_with_out_of_fold_rows(digits, in_tmp):
    folder = in_tmp / "outputs"
    halves = np.array_split(digits.val, 2)
    for fold, rows in enumerate(halves):
        model = digits.voter.estimators_[fold]
        digits.write_run(folder, f"cnn-fold{fold}", model, val=rows)
        settings = {"values": {"lr": 0.1, "fold": fold, "run_name": f"r{fold}"}, "origin": {}}
        (folder / f"cnn-fold{fold}/config.json").write_text(json.dumps(settings))
    digits.write_run(folder, "other", digits.voter.estimators_[2])
    apart = cast(folder.glob("*.csv"))
    assert apart.val == {}
    assert "validation rows differ" in " ".join(apart.notes)
    report = cast(sorted(folder.glob("*.csv")), group_folds=True, out_dir="joined")
    assert [m.name for m in report.members] == ["cnn-fold (2)", "other"]
    assert report.val_rows == len(digits.val)
    hits = [
        digits.voter.estimators_[fold].score(digits.images[rows], digits.labels[rows]) * len(rows)
        for fold, rows in enumerate(halves)
    ]
    assert report.members[0].val["acc"] == pytest.approx(sum(hits) / len(digits.val))
    means = [m.predict_proba(digits.images[digits.test]) for m in digits.voter.estimators_[:3]]
    order = [report.classes.index(name) for name in CLASSES]
    np.testing.assert_allclose(
        report.probs[:, order], ((means[0] + means[1]) / 2 + means[2]) / 2, atol=1e-7
    )


def test_runs_that_ended_early_count_when_their_csv_is_whole_and_are_named(digits, in_tmp):
    folder = in_tmp / "outputs"
    for name, status in (("one", "done"), ("two", "stopped"), ("three", "failed")):
        digits.write_run(folder, name, digits.voter.estimators_[0], status=status)
    broken = folder / "three.csv"
    broken.write_text(broken.read_text()[:-200])
    report = cast(sorted(folder.glob("*.csv")))
    assert [m.name for m in report.members] == ["one", "two"]
    notes = " ".join(report.notes)
    assert "left out: three, whose run is failed" in notes
    assert "stopped, with a whole CSV, and counted: 'two'" in notes


def test_a_run_that_another_one_goes_on_from_votes_only_as_that_one(digits, in_tmp):
    folder = in_tmp / "outputs"
    for name, more in (("old", {}), ("new", {"continues": "old"}), ("other", {"continues": "far"})):
        digits.write_run(folder, name, digits.voter.estimators_[0], **more)
    report = cast(sorted(folder.glob("*.csv")))
    assert [m.name for m in report.members] == ["new", "other"]
    assert "which another member goes on from" in " ".join(report.notes)
    assert [m.name for m in cast([folder / "old.csv"]).members] == ["old"]


def test_a_member_without_validation_rows_takes_no_part_in_a_choice(digits, in_tmp):
    folder = in_tmp / "outputs"
    for number, name in enumerate(("one", "two", "mute")):
        digits.write_run(folder, name, digits.voter.estimators_[number])
    (folder / "mute/val.csv").unlink()
    report = cast(sorted(folder.glob("*.csv")), select="all")
    assert report.val == {}
    report = cast(sorted(folder.glob("*.csv")), select="greedy")
    assert next(m for m in report.members if m.name == "mute").weight == 0
    assert "left out: 'mute'" in " ".join(report.notes)
    assert report.val


@pytest.mark.parametrize(
    "text",
    [
        'name,soft\nx,"[0.25, 0.75]"\ny,"[0.5, 0.5]"\n',
        'ImageID,ans,soft\nx,1,[0.25 0.75]\ny,0,"[0.5\n 0.5]"\n',
        "ImageID,0,1\nx,0.25,0.75\ny,0.5,0.5\n",
        ",ImageID,0,1\n0,x,0.25,0.75\n1,y,0.5,0.5\n",
        "ImageID,ans,1,0\ny,0,0.5,0.5\nx,1,0.75,0.25\n",
        "\ufeffid,0,1\r\nx,0.25,0.75\r\ny,0.5,0.5",
    ],
)
def test_soft_csvs_made_by_others_are_taken(in_tmp, text):
    (in_tmp / "own.csv").write_text("id,0,1\nx,0.5,0.5\ny,0.1,0.9\n")
    (in_tmp / "theirs.csv").write_text(text, newline="", encoding="utf-8")
    report = cast(["own.csv", "theirs.csv"])
    assert report.ids == ["x", "y"]
    np.testing.assert_allclose(report.probs, [[0.375, 0.625], [0.3, 0.7]])


def test_ids_with_newlines_quotes_and_formulas_come_out_as_they_went_in(in_tmp, capsys):
    ids = ["a\nb", '=cmd("x",1)', "plain", ' padded "q" ', "NA", "0012"]
    probs = np.tile([0.25, 0.75], (len(ids), 1))
    for name in ("one.csv", "two.csv"):
        write_csv(in_tmp / name, ids, probs, ["a", "b"])
    assert ensemble.main(["one.csv", "two.csv"]) == 0
    for name in ("soft.csv", "submission.csv"):
        with (in_tmp / "ensemble" / name).open(newline="", encoding="utf-8") as file:
            assert [row[0] for row in csv.reader(file)][1:] == ids
    assert capsys.readouterr().out.count("formula") == 1


def test_rounded_rows_are_divided_by_their_sum_and_that_is_said(in_tmp):
    (in_tmp / "one.csv").write_text("id,a,b,c\nx,0.333,0.333,0.333\n")
    report = cast(["one.csv"])
    np.testing.assert_allclose(report.probs, [[1 / 3] * 3], rtol=1e-15)
    assert sum("rounded" in note for note in report.notes) == 1


def test_ten_thousand_classes_are_taken(in_tmp):
    random = np.random.default_rng(0)
    probs = random.dirichlet(np.ones(10_000), 3)
    classes = [f"c{n}" for n in range(10_000)]
    for name in ("one.csv", "two.csv"):
        write_csv(in_tmp / name, ["x", "y", "z"], probs, classes)
    report = cast(["one.csv", "two.csv"])
    np.testing.assert_allclose(report.probs.sum(axis=1), 1, atol=1e-6)
    assert report.classes == classes


def test_an_earlier_vote_caught_by_the_pattern_is_left_out(digits):
    cast(digits.files)
    report = cast([*digits.files, "ensemble/soft.csv"], out_dir="again")
    assert len(report.members) == 4
    assert "earlier vote" in report.notes[0]


def test_a_pattern_that_no_shell_expanded_is_expanded(digits):
    assert len(cast([f"{digits.folder}/*.csv"]).members) == 4


# What is wrong: the words that the message must hold, and the file's text


BAD_FILES = {
    "empty": ("", "is empty"),
    "header only": ("id,a,b\n", "no rows"),
    "no csv": ("hello\nworld\n", "no header of a CSV"),
    "semicolons": ("id;a;b\nx;0.1;0.9\n", "commas"),
    "answers only": ("id,ans\nx,1\ny,0\n", "no probabilities"),
    "duplicate id": ("id,a,b\nx,0.25,0.75\nx,0.5,0.5\n", "id 'x' stands in two rows"),
    "empty id": ("id,a,b\n,0.25,0.75\ny,0.5,0.5\n", "row 1 has no id"),
    "missing id": ("id,a,b\nx,0.25,0.75\n", "lacks id 'y'"),
    "other id": ("id,a,b\nx,0.25,0.75\nz,0.5,0.5\n", "lacks id 'y' and adds id 'z'"),
    "missing class": ("id,a,c\nx,0.25,0.75\ny,0.5,0.5\n", "lacks 'b' and adds 'c'"),
    "extra class": ("id,a,b,c\nx,0.25,0.75,0\ny,0.5,0.5,0\n", "adds 'c'"),
    "class twice": ("id,a,a\nx,0.25,0.75\ny,0.5,0.5\n", "two columns are called 'a'"),
    "unnamed class": ("id,a,\nx,0.25,0.75\ny,0.5,0.5\n", "no name"),
    "nan": ("id,a,b\nx,nan,0.75\ny,0.5,0.5\n", "row 1 (id 'x'), column 'a': 'nan'"),
    "blank": ("id,a,b\nx,0.25,0.75\ny,,0.5\n", "row 2 (id 'y'), column 'a': ''"),
    "infinite": ("id,a,b\nx,0.25,0.75\ny,inf,0.5\n", "holds inf"),
    "word": ("id,a,b\nx,0.25,0.75\ny,much,0.5\n", "'much' is no number"),
    "above one": ("id,a,b\nx,0.25,0.75\ny,1.5,-0.5\n", "lies in 0..1"),
    "logits": ("id,a,b\nx,2.25,-0.75\ny,3.5,0.5\n", "torch.softmax"),
    "far from one": ("id,a,b\nx,0.25,0.25\ny,0.5,0.5\n", "sums to 0.5"),
    "short row": ("id,a,b\nx,0.25,0.75\ny,0.5\n", "row 2 (id 'y') has 2 fields"),
    "long row": ("id,a,b\nx,0.25,0.75,0\ny,0.5,0.5\n", "row 1 (id 'x') has 4 fields"),
    "long last row": ("id,a,b\nx,0.25,0.75\ny,0.5,0.5,0\n", "row 2 (id 'y') has 4 fields"),
    "cut in a number": ("id,a,b\nx,0.25,0.75\ny,0.5004,0.49", "last line (id 'y') is cut"),
    "open quote": ('id,a,b\nx,0.25,0.75\n"y,0.5,0.5\n', "row 2"),
    "validation": ("id,label,a,b\nx,a,0.25,0.75\ny,a,0.5,0.5\n", "outputs/<run>.csv"),
    "list of words": ('id,soft\nx,"[0.25, much]"\ny,"[0.5, 0.5]"\n', "no list of numbers"),
    "uneven lists": ('id,soft\nx,"[0.25, 0.75]"\ny,[1]\n', "lists 1 probabilities"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\xff,\x00", "no text in UTF-8"),
    "binary below": (b"id,a,b\nx\xff,0.25,0.75\n", "no text in UTF-8"),
    "nul": (b"id,a,b\nx,0.25,0.75\x00\n", "bad.csv"),
}


@pytest.mark.parametrize("content, words", BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_refused_in_one_line_that_names_it(in_tmp, capsys, content, words):
    (in_tmp / "good.csv").write_text(GOOD)
    bad = in_tmp / "bad.csv"
    bad.write_bytes(content if isinstance(content, bytes) else content.encode())
    for order in (["good.csv", "bad.csv"], ["bad.csv", "good.csv"]):
        assert ensemble.main(order) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        if order[0] == "good.csv":
            assert "bad.csv" in error
            assert words in error
    assert not (in_tmp / "ensemble").exists()


def test_a_vote_that_fails_overwrites_nothing(digits, in_tmp):
    cast(digits.files)
    before = {p: p.read_bytes() for p in Path("ensemble").iterdir()}
    (in_tmp / "bad.csv").write_text(GOOD)
    assert ensemble.main([*map(str, digits.files), "bad.csv"]) == 2
    assert {p: p.read_bytes() for p in Path("ensemble").iterdir()} == before


BAD_COMMANDS = {
    "no file": ([], "required: CSV"),
    "missing file": (["none.csv"], "none.csv: does not exist"),
    "folder": (["folder"], "is a folder"),
    "nothing matches": (["outputs/*.csv"], "matches no file"),
    "twice": (["one.csv", "one.csv"], "is given twice"),
    "near flag": (["one.csv", "--methd", "mean"], "did you mean '--method'"),
    "near method": (["one.csv", "--method", "geometrc"], "did you mean 'geometric'"),
    "near metric": (["one.csv", "--metric", "f1"], "--metric"),
    "weights": (["one.csv", "two.csv", "--weights", "1"], "gives 1 for 2 files"),
    "file among weights": (["one.csv", "--weights", "1", "two.csv"], "stand before --weights"),
    "negative weight": (["one.csv", "two.csv", "--weights", "1", "-1"], "-1.0 is no weight"),
    "nan weight": (["one.csv", "--weights", "nan"], "nan is no weight"),
    "no weight": (["one.csv", "--weights", "0"], "all are 0"),
    "select": (["one.csv", "--select", "best"], "auto, greedy, best:N or all"),
    "select none": (["one.csv", "--select", "best:0"], "greedy, best:N or all"),
    "select and weights": (["one.csv", "--select", "greedy", "--weights", "1"], "does not go with"),
    "greedy geometric": (["one.csv", "--select", "greedy", "--method", "geometric"], "averages"),
    "greedy without validation": (["one.csv", "--select", "greedy"], "needs validation rows"),
    "stack without validation": (["one.csv", "--stack", "logistic"], "needs validation rows"),
    "bag": (["one.csv", "--bag", "0"], "1 or more"),
    "bag without greedy": (["one.csv", "--bag", "5"], "--select greedy"),
    "out_dir of members": (["one.csv", "--out_dir", "."], "holds the member one.csv"),
    "out_dir is a file": (["one.csv", "--out_dir", "two.csv"], "is a file"),
    "truth missing": (["one.csv", "--truth", "gt.csv"], "gt.csv: does not exist"),
    "truth of others": (["one.csv", "--truth", "others.csv"], "none of the 2 ids"),
    "truth with other words": (["one.csv", "--truth", "words.csv"], "'c' is no class"),
    "truth of two minds": (["one.csv", "--truth", "twice.csv"], "two different labels"),
}


@pytest.mark.parametrize("argv, words", BAD_COMMANDS.values(), ids=BAD_COMMANDS)
def test_a_bad_command_is_refused_in_one_line(in_tmp, capsys, argv, words):
    for name in ("one.csv", "two.csv"):
        (in_tmp / name).write_text(GOOD)
    (in_tmp / "folder").mkdir()
    (in_tmp / "others.csv").write_text("id,label\nq,a\n")
    (in_tmp / "words.csv").write_text("id,label\nx,c\n")
    (in_tmp / "twice.csv").write_text("id,label\nx,a\nx,b\n")
    assert ensemble.main(argv) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (in_tmp / "ensemble").exists()


@pytest.mark.parametrize("flags", [[], ["--group_folds"]])
def test_runs_that_disagree_on_a_label_are_refused(digits, in_tmp, capsys, flags):
    folder = in_tmp / "outputs"
    for number, name in enumerate(("cnn-fold0", "cnn-fold1")):
        digits.write_run(folder, name, digits.voter.estimators_[number])
    path = folder / "cnn-fold1/val.csv"
    head, first, rest = path.read_text().split("\n", 2)
    fields = first.split(",")
    fields[1] = CLASSES[0] if fields[1] != CLASSES[0] else CLASSES[1]
    path.write_text("\n".join([head, ",".join(fields), rest]))
    assert ensemble.main([*(str(p) for p in folder.glob("*.csv")), *flags]) == 2
    assert fields[0] in capsys.readouterr().err


# Validation rows alone


def test_without_test_rows_the_vote_is_chosen_on_validation_as_it_is_with_them(digits):
    with_test = cast(digits.files, select="greedy", bag=5, calibrate=True)
    alone = cast(validation_of(digits), select="greedy", bag=5, calibrate=True, out_dir="alone")
    files = ["ensemble.json", "val.csv"]
    assert sorted(path.name for path in alone.files) == names_in("alone") == files
    assert (alone.ids, alone.probs.shape, alone.test) == ([], (0, 10), {})
    assert (alone.honest, alone.val, alone.val_rows) == (
        with_test.honest,
        with_test.val,
        with_test.val_rows,
    )
    one, other = (json.loads(Path(f, "ensemble.json").read_text()) for f in ("ensemble", "alone"))
    for a, b in zip(one["members"], other["members"], strict=True):
        run = a["files"][0].removesuffix(".csv")
        assert b["files"] == [f"{run}/val.csv"]
        assert b == {**a, "test": {}, "files": b["files"]}
    table = format_table(alone, 100)
    assert "no test rows, 10 classes" in table and "scored on 300 validation rows" in table
    assert "held out of the choice" in table and "submission" not in table


def test_scores_of_validation_rows_are_those_that_numpy_gives(digits):
    report = cast(validation_of(digits), select="best:2")
    places = sorted(digits.val, key=lambda i: digits.ids[i])
    values = {
        name: digits.probs(digits.voter.named_estimators_[name], places).astype(np.float32)
        for name in digits.names
    }
    truth = digits.labels[places]
    alone = {name: (probs.argmax(1) == truth).mean() for name, probs in values.items()}
    assert {m.name: m.val["acc"] for m in report.members} == pytest.approx(alone)
    best = sorted(sorted(alone), key=lambda name: -alone[name])
    assert {m.name for m in report.members if m.weight} == set(best[:2])
    held = np.zeros(len(places), dtype=bool)
    parts = combine.split_parts(list(digits.ids[places]), truth, None, 5, 0)
    for part in range(5):  # the two that are best elsewhere answer here
        rows, rest = parts == part, parts != part
        elsewhere = {n: (p[rest].argmax(1) == truth[rest]).mean() for n, p in values.items()}
        two = sorted(sorted(elsewhere), key=lambda name: -elsewhere[name])[:2]
        held[rows] = (values[two[0]] + values[two[1]])[rows].argmax(1) == truth[rows]
    assert report.val["acc"] == report.honest.vote == pytest.approx(held.mean())


def test_folds_without_test_rows_become_one_member(digits, in_tmp):
    halves = np.array_split(digits.val, 2)
    for fold, rows in enumerate(halves):
        digits.write_run(in_tmp, f"cnn-fold{fold}", digits.voter.estimators_[fold], val=rows)
    digits.write_run(in_tmp, "other", digits.voter.estimators_[2])
    files = sorted(in_tmp.glob("*/val.csv"))
    report = cast(files, group_folds=True, select="greedy")
    assert [m.name for m in report.members] == ["cnn-fold (2)", "other"]
    assert report.val_rows == len(digits.val) and report.honest is not None


def test_runs_that_share_no_validation_row_have_the_same_say(digits, in_tmp, capsys):
    for name, model, rows in zip("ab", digits.voter.estimators_, np.array_split(digits.val, 2)):
        digits.write_run(in_tmp, name, model, val=rows)
    files = ["a/val.csv", "b/val.csv"]
    assert ensemble.main([*files, "--select", "greedy"]) == 2
    assert "needs validation rows that all members predict" in capsys.readouterr().err
    report = cast(files)
    assert [m.weight for m in report.members] == [0.5, 0.5] and report.val == {}
    assert all(0.5 < m.val["acc"] < 1 for m in report.members)
    assert Path("ensemble/ensemble.json").exists()


def test_answers_of_an_earlier_vote_do_not_stay_beside_one_that_gives_none(digits):
    cast(digits.files)
    report = cast(validation_of(digits))
    assert names_in("ensemble") == ["ensemble.json", "val.csv"]
    assert "removed" in " ".join(report.notes)
    Path("mine").mkdir()
    Path("mine/submission.csv").write_text("id,label\n")  # of no vote
    cast(validation_of(digits), out_dir="mine")
    assert Path("mine/submission.csv").exists()


def test_a_damaged_or_missing_row_of_validation_is_refused_as_ever(digits, in_tmp, capsys):
    digits.write_run(in_tmp, "a", digits.voter.estimators_[0])
    for words in (["a.csv", "a/val.csv"], ["a/val.csv", "--truth", "a/split.csv"]):
        assert ensemble.main(words) == 2
        assert "test rows" in capsys.readouterr().err
    text = Path("a/val.csv").read_text()
    Path("a/val.csv").write_text(text[:-30])
    assert ensemble.main(["a/val.csv"]) == 2
    assert "a/val.csv: row 300" in capsys.readouterr().err
    digits.write_run(in_tmp, "val", digits.voter.estimators_[0])
    assert cast(["val.csv"]).test_rows == len(digits.test), "a run may be called val"


# How it looks, and what it costs


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize(
    "options", [{}, {"calibrate": True, "metric": "f1_macro"}, {"select": "greedy"}]
)
def test_the_table_fits_the_terminal_with_long_names(digits, in_tmp, width, options):
    folder = in_tmp / "outputs"
    names = [
        f"swin_tiny_patch4_window7_224-label_smoothing-20261121-06000{i}-TrIaL{i}" for i in "12"
    ]
    for name, model in zip(names, digits.voter.estimators_):
        digits.write_run(folder, name, model)
    table = format_table(cast(sorted(folder.glob("*.csv")), **options), width)
    assert max(map(len, table.splitlines())) <= width
    for name in names:
        assert name[-6:] in table  # the trial's own end is what tells it apart
    assert "ensemble/submission.csv" in table


def test_many_members_are_counted_rather_than_listed(in_tmp):
    for number in range(40):
        (in_tmp / f"run{number}.csv").write_text(GOOD)
    table = format_table(cast(sorted(in_tmp.glob("*.csv"))), 80)
    assert "... and 10 more members" in table
    assert len(table.splitlines()) < 45


@pytest.mark.slow
def test_the_command_is_quick_and_never_loads_torch(digits):
    code = (
        "import sys, ensemble; status = ensemble.main(sys.argv[1:]);"
        "sys.exit(status or 3 * ('torch' in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, digits.files), "--select", "greedy"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "best single" in done.stdout
