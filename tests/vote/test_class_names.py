"""Class names that training takes go through the vote, whatever they are."""

from __future__ import annotations

import csv
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from images_for_tests import save, table
from trained_for_tests import copy_run, run

import ensemble
from ballot.config.schema import Config
from ballot.errors import UserError
from ballot.vote.ballots import read_ballot
from ballot.vote.truth import read_truth
from dataset import find_table

NAMES = ["label", "soft", "hard", "ans", "answer", "target", "pred", "id", "end ", "cr\r", "a,b"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    for number, name in enumerate(NAMES):
        for k in range(6):
            side = ("train", "train", "val", "test", "test", "test")[k]
            save(folder / "data" / side / name / f"{k}.png", 10 * number + k, width=8, height=8)
    one = run(folder, folder / "data", "one", "--epochs", 1, "--image_size", 16)
    return [one, copy_run(one, "two")]


def header_of(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return next(csv.reader(file))


def test_a_vote_has_the_classes_of_its_runs(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ensemble.main([f"{folder}.csv" for folder in trained]) == 0
    assert sorted(header_of(tmp_path / "ensemble" / "soft.csv")) == sorted(["id", *NAMES])
    record = json.loads((tmp_path / "ensemble" / "ensemble.json").read_text(encoding="utf-8"))
    assert sorted(record["classes"]) == sorted(NAMES)
    scores, result = record["scores"], json.loads((trained[0] / "result.json").read_text("utf-8"))
    assert scores["test_rows"] == 3 * len(NAMES) and scores["val_rows"] == len(NAMES)
    assert scores["test"]["acc"] == pytest.approx(result["test"]["acc"])
    assert record["members"][0]["val"]["acc"] == pytest.approx(result["score"])


def test_a_ballot_keeps_each_column_under_its_own_name(trained):
    ballot = read_ballot(f"{trained[0]}.csv")
    assert ballot.columns == json.loads((trained[0] / "result.json").read_text("utf-8"))["classes"]
    val = read_ballot(trained[0] / "val.csv", labelled=True)
    assert sorted(set(val.labels)) == sorted(NAMES) and val.columns == ballot.columns


ROWS = ["a.png,0.25,0.75", "b.png,0.5,0.5", "c.png,1,0"]


@pytest.mark.parametrize("first", range(3))
@pytest.mark.parametrize("beside", [False, True])
def test_a_ballot_without_a_header_is_refused(tmp_path, first, beside):
    path = tmp_path / "one.csv"
    path.write_text("\n".join([*ROWS[first:], *ROWS[:first]]) + "\n")
    if beside:
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / "result.json").write_text('{"classes": ["x", "y"]}')
    with pytest.raises(UserError, match="header"):
        read_ballot(path)


@pytest.mark.parametrize("header", ["id,0,1", "image,1,0", "ImageID,0.5,0.50", "sample,0,1"])
def test_numbers_may_be_class_names(tmp_path, header):
    path = tmp_path / "one.csv"
    path.write_text(header + "\n" + "\n".join(ROWS) + "\n")
    assert np.shape(read_ballot(path).probs) == (3, 2)


COMPOSED, APART = (unicodedata.normalize(form, "Äpfel") for form in ("NFC", "NFD"))


def test_a_name_in_two_unicode_forms_is_one_class(tmp_path):
    for number in range(6):
        folder = ("train", "test")[number // 3] + "/" + (APART, COMPOSED, "b")[number % 3]
        save(tmp_path / folder / f"{number}.png", number)
    found = find_table(Config(data_dir=str(tmp_path)))
    assert found.classes == ["b", COMPOSED]
    truth = {name: found.classes[label] for name, label in zip(found.ids, found.labels)}
    assert truth == {name: "b" if "/b/" in name else COMPOSED for name in found.ids}
    assert len(truth) == 6 and not found.problems


def test_a_test_folder_in_another_unicode_form_keeps_its_truth(tmp_path):
    for number, place in enumerate([f"train/{COMPOSED}/0", "train/b/1", f"test/{APART}/2"]):
        save(tmp_path / f"{place}.png", number)
    found = find_table(Config(data_dir=str(tmp_path)))
    assert found.splits == ["test", "train", "train"]
    assert [found.classes[k] for k in found.labels] == [COMPOSED, "b", COMPOSED]


def test_labels_and_groups_of_a_csv_are_told_apart_by_what_is_read(tmp_path):
    rows = []
    for k, label in enumerate([COMPOSED, APART, "b"]):
        name = save(tmp_path / f"{k}.png", k).name
        rows.append({"path": name, "label": label, "person": label})
    table(tmp_path / "labels.csv", rows)
    found = find_table(Config(data_dir=str(tmp_path)))
    assert found.classes == ["b", COMPOSED] and found.labels.tolist() == [1, 1, 0]
    assert found.groups == [COMPOSED, COMPOSED, "b"]


@pytest.mark.parametrize("words", [{}, {COMPOSED: "0", "b": "1"}])
def test_a_truth_file_may_have_another_unicode_form(tmp_path, words):
    rows = [{"id": "x", "label": APART}, {"id": "y", "label": "b"}]
    path = table(tmp_path / "truth.csv", rows)
    assert read_truth(path, ["b", COMPOSED], words) == {"x": COMPOSED, "y": "b"}
