"""Labels that are probably wrong: the method against a naive one, and what runs may judge."""

import json

import numpy as np
import pytest

from ballot.errors import UserError
from ballot.vote.ballots import write_ballot
from ballot.vote.suspects import Judgements, find_suspects, judge, suspected_classes


def naive(labels, probs):
    """The definition of Northcutt et al. (2021), class by class and row by row."""
    size = probs.shape[1]
    thresholds = {}
    for j in range(size):
        own = [probs[i, j] for i in range(len(labels)) if labels[i] == j]
        if own:
            thresholds[j] = sum(own) / len(own)
    found = []
    for i, label in enumerate(labels):
        above = [j for j in thresholds if probs[i, j] >= thresholds[j]]
        found.append(max(above, key=lambda j: probs[i, j]) if above else label)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_suspected_classes_are_those_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, 60)  # of five classes one has no row
    logits = rng.normal(size=(60, 5)) + np.eye(5)[labels]
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = suspected_classes(labels, probs)
    assert found.tolist() == [int(j) for j in naive(labels, probs)]
    assert (found != labels).any() and (found != 4).all()


def test_the_most_probably_wrong_come_first():
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.02, 0.98], [0.2, 0.8], [0.3, 0.7], [0.1, 0.9]])
    labels = ["a", "a", "a", "b", "b", "b"]
    judged = Judgements([f"r{k}" for k in range(6)], labels, ["a", "b"], probs, 1, [])
    (suspect,) = find_suspects(judged)
    assert (suspect.id, suspect.label, suspect.suggested) == ("r2", "a", "b")
    assert suspect.margin == pytest.approx(0.02 - 0.98)
    worse = Judgements(judged.ids, ["a", "a", "a", "a", "b", "b"], ["a", "b"], probs, 1, [])
    assert [each.id for each in find_suspects(worse)] == ["r2", "r3"]


def run(folder, ids, probs, labels, **values):
    folder.mkdir(parents=True)
    write_ballot(folder / "val.csv", ids, ["a", "b"], np.array(probs), labels)
    (folder / "config.json").write_text(json.dumps({"values": values}))
    return folder


def test_a_row_has_the_mean_of_those_that_held_it_out(tmp_path):
    one = run(tmp_path / "1", ["x", "y"], [[0.9, 0.1], [0.4, 0.6]], ["a", "b"])
    two = run(tmp_path / "2", ["y", "z"], [[0.2, 0.8], [0.0, 1.0]], ["b", "b"])
    judged = judge([one, two, tmp_path / "nothing"])
    assert judged.ids == ["x", "y", "z"] and judged.runs == 2 and judged.notes == []
    assert judged.probs == pytest.approx(np.array([[0.9, 0.1], [0.3, 0.7], [0.0, 1.0]]))
    judged = judge([one, two], {"y": "a", "other": "b"})  # the label was mended meanwhile
    assert (judged.ids, judged.labels) == (["y"], ["a"])


def test_runs_that_may_know_the_rows_and_bad_ones_have_no_say(tmp_path):
    ids, labels = ["w", "x", "y", "z"], ["a", "a", "b", "b"]
    good = [[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8]]
    runs = [
        run(tmp_path / "good", ids, good, labels),
        run(tmp_path / "bad", ids, good[::-1], labels),
        run(tmp_path / "tuned", ids, good, labels, init_from="good"),
    ]
    judged = judge(runs)
    assert judged.runs == 1 and judged.probs == pytest.approx(np.array(good))
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "val.csv").write_text("id,label,a,b\nw,a,0.9,0")
    (note,) = judge([tmp_path / "cut", runs[0]]).notes
    assert "cut/val.csv: its last line (id 'w') is cut" in note
    assert [note.split(":")[0] for note in judged.notes] == [
        "1 run left out ('tuned')",
        "1 run left out ('bad')",
    ]
    with pytest.raises(UserError, match="none of the runs has validation rows"):
        judge(runs[2:])
    with pytest.raises(UserError, match="none of the runs has validation rows"):
        judge(runs, {"u": "a"})


def test_flipped_labels_of_digits_are_the_first_suspects(tmp_path):
    """Out-of-fold answers of nearest neighbours, 5 % of the labels flipped."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import StratifiedKFold
    from sklearn.neighbors import KNeighborsClassifier

    images, truth = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    flipped = rng.choice(len(truth), len(truth) // 20, replace=False)
    labels = truth.copy()
    labels[flipped] = (truth[flipped] + rng.integers(1, 10, len(flipped))) % 10
    names, ids = [str(k) for k in range(10)], np.array([f"d{k}" for k in range(len(truth))])
    folds = StratifiedKFold(5, shuffle=True, random_state=0).split(images, labels)
    for number, (train, val) in enumerate(folds):
        model = KNeighborsClassifier(15).fit(images[train] / 16, labels[train])
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        probs = model.predict_proba(images[val] / 16)
        write_ballot(folder / "val.csv", ids[val], names, probs, [names[k] for k in labels[val]])
    suspects = find_suspects(judge(sorted(tmp_path.iterdir())))
    wrong = set(ids[flipped])
    first = suspects[:50]
    assert sum(each.id in wrong for each in first) >= 45
    true = {name: names[k] for name, k in zip(ids, truth)}
    assert sum(each.suggested == true[each.id] for each in first) >= 45
    assert sum(each.id in wrong for each in suspects) >= 0.7 * len(wrong)
