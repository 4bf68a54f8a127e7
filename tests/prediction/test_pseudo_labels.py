"""A last round on images without labels: what is kept, what is said, and the whole as typed."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from trained_for_tests import coloured, run

from ballot.prediction.pseudo_labels import gain_of, members_to_train
from ballot.runs.folder import read_config
from ballot.vote.options import VoteOptions
from ballot.vote.outcome import Validation
from ballot.vote.run import run_vote


def held(probs, rows=100):
    targets = np.zeros(rows, dtype=np.int64)
    first = np.broadcast_to(probs, rows)
    return Validation(
        list(map(str, range(rows))), targets, None, np.stack([first, 1 - first], 1), held_out=True
    )


@pytest.mark.parametrize(
    "before, after, kept",
    [
        (0.7, 0.8, True),
        (0.8, 0.7, False),
        (0.8, 0.8, False),
        # A better log loss, and 30 of 100 rows wrong that were right.
        (0.51, np.where(np.arange(100) < 30, 0.49, 0.99), False),
    ],
)
def test_what_does_not_gain_is_not_kept(before, after, kept):
    gain = gain_of(held(before), held(after))
    assert gain.kept == kept
    assert gain.nll_before == pytest.approx(-np.log(before))


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    folder = tmp_path_factory.mktemp("members")
    data = coloured(folder / "data", {"train": 12, "val": 8, "test": 8}, size=16)
    words = ("--image_size", 16, "--epochs", 3, "--lr", 0.01)
    for seed in (1, 2):
        run(folder, data, f"m{seed}", *words, "--seed", seed)
    return folder


def test_the_members_with_the_most_weight_are_trained_again(members, tmp_path):
    shutil.copytree(members / "outputs", tmp_path / "outputs")
    csvs = sorted((tmp_path / "outputs").glob("*.csv"))
    report = run_vote(csvs, VoteOptions(out_dir=str(tmp_path / "vote"), weights=[1.0, 2.0]))
    assert [run.name for run in members_to_train(report)] == ["m2", "m1"]
    assert report.held is not None and len(report.held.ids) == 24
    report = run_vote(csvs, VoteOptions(out_dir=str(tmp_path / "vote"), select="best:1"))
    (best,) = members_to_train(report)
    again = best.with_name("again")  # trained on all rows, it has half of the weight
    shutil.copytree(best, again)
    shutil.copy(best.with_name(f"{best.name}.csv"), again.with_name("again.csv"))
    values = read_config(again) | {"all_rows": True}
    (again / "config.json").write_text(json.dumps({"values": values}))
    csvs.append(again.with_name("again.csv"))
    report = run_vote(csvs, VoteOptions(out_dir=str(tmp_path / "vote"), select="best:1"))
    assert "again" in [member.name for member in report.members]
    assert members_to_train(report) == [best]


@pytest.mark.slow  # processes that load torch
@pytest.mark.parametrize("least", [0.34, 1.0])
def test_a_last_round_is_voted_on_and_told(members, tmp_path, script, least):
    csvs = sorted((members / "outputs").glob("*.csv"))
    done = script("ensemble.py", *csvs, "--pseudo_label", least)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "ensemble" / "ensemble.json").read_text())
    facts = record["pseudo_labels"]
    soft = pd.read_csv(tmp_path / "ensemble" / "pseudo" / "soft.csv")
    assert facts["of"] == 24 and facts["images"] == len(soft)
    assert f"pseudo labels: {len(soft)} of 24 unlabelled images" in record["notes"][-1]
    assert "rules of a competition may forbid" in done.stdout
    names = {member["name"] for member in record["members"]}
    if least == 1.0 and not len(soft):
        assert "nothing to train on" in done.stdout and names == {"m1", "m2"}
        return
    new = {"m1-pseudo", "m2-pseudo"}
    assert names == ({"m1", "m2"} | new if facts["kept"] else {"m1", "m2"})
    assert facts["kept"] == (facts["nll_after"] < facts["nll_before"]) or "not kept" in done.stdout
    again = read_config(tmp_path / "ensemble" / "pseudo" / "m1-pseudo")
    before = read_config(members / "outputs" / "m1")
    assert again["seed"] != before["seed"] and again["lr"] == before["lr"]
    log = (tmp_path / "ensemble" / "pseudo" / "m1-pseudo" / "run.log").read_text()
    assert f"{len(soft)} images added to the training rows" in log
