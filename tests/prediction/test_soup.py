"""Averaged weights: who may go in, who is chosen, what is kept."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from trained_for_tests import coloured, copy_run, run

import ensemble
import predict
from ballot.prediction import soup_process
from ballot.prediction.checkpoints import read_checkpoint
from ballot.prediction.soup import adapt_norms, find_candidates, greedy, group_candidates
from ballot.runs.files import write_json, write_rows
from ballot.runs.folder import read_result
from ballot.search import conclusion
from ballot.search.time_budget import Budget
from ballot.training import tensor_files
from dataset import load_data

CLASSES = ["blue", "green", "red"]


def shaken(run: Path, name: str, seed: int, data: Path, size: float) -> Path:
    """A run that ended elsewhere near `run`: its weights with noise, and what they answer."""
    twin = copy_run(run, name)
    saved = tensor_files.load_tensors(twin / "best.pt")
    chance = torch.Generator().manual_seed(seed)
    saved["model"] = {
        key: value + size * value.std() * torch.randn(value.shape, generator=chance)
        for key, value in saved["model"].items()
    }
    tensor_files.save_tensors(twin / "best.pt", saved)
    write_json(twin / "result.json", {**read_result(twin), "pretrained": True})
    for file in (twin / "val.csv", twin.with_suffix(".csv")):
        rows = pd.read_csv(file)
        rows["id"].to_frame("path").to_csv("ask.csv", index=False)
        words = [twin, "ask.csv", "--root", data, "--out", "said.csv", "--device", "cpu"]
        assert predict.main([str(word) for word in words]) == 0
        rows[CLASSES] = pd.read_csv("said.csv")[CLASSES]
        rows.to_csv(file, index=False)
    return twin


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A trained run, and two pairs of worse ones that lie on opposite sides of it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("soup")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = coloured(folder / "data", {"train": 40, "val": 30, "test": 5})
        base = run(
            folder,
            data,
            "base",
            "--epochs",
            8,
            "--image_size",
            16,
            "--lr",
            0.003,
            "--scheduler",
            "cosine",
            "--batch_size",
            16,
            "--augmentation_args.crop",
            48,
            "--tta",
            "off",
        )
        near = [shaken(base, f"near{k}", k // 2, data, 1.5 * (-1) ** k) for k in range(4)]
    return base, near, data


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def cook(*runs: Path, out: str = "soups") -> int:
    return predict.main(["--soup", *map(str, runs), "--out", out, "--device", "cpu"])


def validation_accuracy(saved, weights) -> float:
    """Accuracy on validation rows, with nothing of ours but the network and the images."""
    net = predict.build(saved)
    net.load_state_dict(weights)
    val = load_data(saved.config, mean=saved.mean, std=saved.std).folds[0].val
    images = torch.cat([x.clone() for x, _ in val.batches(512)])
    with torch.no_grad():
        right = net.eval()(images).argmax(1).numpy() == val.labels
    return right.mean()


def naive_soup(runs):
    """Greedy averaging as the paper words it, on all validation rows."""
    saved = {run.name: read_checkpoint(run / "best.pt") for run in runs}
    own = {n: validation_accuracy(s, s.weights) for n, s in saved.items()}
    order = sorted(own, key=lambda n: (-own[n], n))
    chosen, best = order[:1], own[order[0]]
    for name in order[1:]:
        mean = {
            key: torch.stack([saved[n].weights[key] for n in [*chosen, name]]).mean(0)
            for key in saved[name].weights
        }
        score = validation_accuracy(saved[name], mean)
        if score >= best:
            chosen, best = [*chosen, name], score
    return chosen, best, own


def test_the_greedy_mean_is_the_naive_one_and_answers_as_its_files_say(made, capsys):
    _, near, data = made
    chosen, best, own = naive_soup(near)
    assert len(chosen) > 1 and best >= max(own.values())
    assert cook(*near) == 0
    said = capsys.readouterr().out
    assert f"soup: {len(chosen)} of 4 runs of one start averaged" in said and "written:" in said
    result = json.loads(Path("soups/soup-simple_cnn/result.json").read_text())
    assert result["soup"] == chosen and result["held_out"]["gain"] > 0
    soup_weights = read_checkpoint(Path("soups/soup-simple_cnn/best.pt"))
    for key, value in soup_weights.weights.items():
        parts = [read_checkpoint(r / "best.pt").weights[key] for r in near if r.name in chosen]
        torch.testing.assert_close(value, torch.stack(parts).mean(0))
    assert validation_accuracy(soup_weights, soup_weights.weights) == best
    words = ["soups/soup-simple_cnn", str(data / "test"), "--out", "new.csv", "--device", "cpu"]
    assert predict.main(words) == 0
    ballot, new = pd.read_csv("soups/soup-simple_cnn.csv"), pd.read_csv("new.csv")
    assert ballot["id"].tolist() == ("test/" + new["id"]).tolist()
    np.testing.assert_allclose(ballot[CLASSES], new[CLASSES], atol=1e-6)


def test_its_validation_answers_were_given_by_soups_that_had_not_seen_the_row(made):
    _, near, _ = made
    cook(*near)
    result = json.loads(Path("soups/soup-simple_cnn/result.json").read_text())
    val = pd.read_csv("soups/soup-simple_cnn/val.csv")
    right = (val[CLASSES].idxmax(axis=1) == val["label"]).mean()
    assert right == pytest.approx(result["held_out"]["vote"]) == pytest.approx(result["score"])


def test_equal_runs_gain_nothing_and_nothing_is_kept_of_an_earlier_soup(made, capsys):
    base, near, _ = made
    assert cook(*near) == 0 and Path("soups/soup-simple_cnn.csv").exists()
    twins = [copy_run(base, f"twin{k}") for k in range(2)]
    Path("soups/mine.txt").write_text("not a soup")
    assert cook(*twins) == 0
    assert "gain +0.0000 ± 0.0000; not kept" in capsys.readouterr().out
    assert [p.name for p in Path("soups").iterdir()] == ["mine.txt"]


def test_only_runs_of_one_start_one_look_and_one_validation_are_averaged(made, tmp_path, capsys):
    base, near, data = made
    small = ("--epochs", 1, "--image_size", 16, "--augmentation_args.crop", 48)
    seed = run(tmp_path, data, "seed", *small, "--seed", 1)
    size = run(tmp_path, data, "size", "--epochs", 1, "--image_size", 20)
    folds = run(tmp_path, data, "folds", *small, "--folds", 2)
    again = run(
        tmp_path, data, "again", *small, "--lr", 0.01, "--augmentation", "AffineAugmentation"
    )
    tuned = run(tmp_path, data, "tuned", *small, "--init_from", base)
    found, notes = find_candidates([base, near[0], seed, size, folds, again, tuned])
    assert notes == ["folds trained several folds, on other rows each"]
    groups = [[c.name for c in group] for group in group_candidates(found, predict.show)]
    assert groups == [["base", "near0", "again"], ["seed"], ["size"], ["tuned"]]
    assert cook(seed, size, tuned) == 0
    assert "soup: none; no two of 3 runs" in capsys.readouterr().out


def test_other_data_than_the_runs_had_is_refused(made, tmp_path, capsys):
    _, near, _ = made
    other = coloured(tmp_path / "other", {"train": 10, "val": 9}, seed=5)
    words = ["--soup", *map(str, near[:2]), "--out", "soups", "--data_dir", str(other)]
    assert predict.main(words) == 2
    assert "the validation rows of" in capsys.readouterr().err and not Path("soups").exists()


def test_a_candidate_joins_where_the_mean_is_no_worse():
    scores = {(2,): 0.5, (2, 0): 0.4, (2, 1): 0.5, (2, 1, 3): 0.6}
    tasted = []

    def taste(members):
        tasted.append(tuple(members))
        return np.array(scores[tuple(members)])

    assert greedy([2, 0, 1, 3], taste, float, lower=False) == [2, 1, 3]
    assert tasted == list(scores)
    assert greedy([2, 0], taste, float, lower=True) == [2, 0]


def test_batch_norms_take_their_statistics_from_images_as_pytorch_does_it():
    torch.manual_seed(0)
    batches = [torch.randn(8, 3, 6, 6) * 3 + 1 for _ in range(4)]

    def network():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 2, 3),
            nn.BatchNorm2d(2, momentum=0.3),
            nn.Dropout(0.5),
            nn.BatchNorm2d(2, track_running_stats=False),
        )

    ours, theirs = network(), network()
    adapt_norms(ours, batches)
    theirs[5].p = 0.0  # ours keeps dropout off while it looks
    torch.optim.swa_utils.update_bn(batches, theirs)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name])
    assert ours[4].momentum == 0.3 and not ours.training
    rested = network()
    adapt_norms(rested, batches, resting={"1"})
    assert torch.equal(rested[1].running_mean, torch.zeros(4))
    assert rested[4].running_mean.abs().sum() > 0


@pytest.mark.parametrize(
    "words, message",
    [
        (["--soup", "{run}"], "--soup: where to?"),
        (["--soup", "{run}", "--out", "x", "--tta", "hflip"], "--soup: does not go with"),
        (["--soup", "{run}", "--out", "x", "--metric", "accc"], "--metric"),
    ],
)
def test_bad_wishes_are_one_line(made, capsys, words, message):
    assert predict.main([word.format(run=made[0]) for word in words]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.strip().splitlines()) == 1


def test_a_vote_with_soups_takes_no_weights_and_needs_run_folders(made, capsys):
    base = str(made[0].with_suffix(".csv"))
    assert ensemble.main([base, "--soup", "--weights", "2"]) == 2
    assert "--soup: does not go with --weights" in capsys.readouterr().err
    Path("a.csv").write_text("id,a,b\nx,0.5,0.5\n")
    assert ensemble.main(["a.csv", "--soup"]) == 2
    assert "there are no run folders beside the CSVs" in capsys.readouterr().err


@pytest.mark.slow
def test_a_soup_that_gains_votes_and_the_written_vote_answers_with_it(made, script):
    _, near, data = made
    files = [run.with_suffix(".csv") for run in near]
    done = script("ensemble.py", *files, "--soup")
    assert done.returncode == 0, done.stderr
    assert "4 runs of one start averaged" in done.stdout and "vote of 5 members" in done.stdout
    record = json.loads(Path("ensemble/ensemble.json").read_text())
    member = next(m for m in record["members"] if m["name"] == "soup-simple_cnn")
    assert member["raw_weight"] > 0
    done = script("predict.py", "ensemble", data / "test", "--out", "new.csv", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    soft, new = pd.read_csv("ensemble/soft.csv"), pd.read_csv("new.csv")
    np.testing.assert_allclose(soft[CLASSES], new[CLASSES], atol=1e-6)
    (near[0] / "best.pt").rename(near[0] / "kept.pt")
    try:
        done = script("ensemble.py", *files[:2], "--soup")
        assert "left out: near0 holds no best.pt" in done.stdout and done.returncode == 0
    finally:
        (near[0] / "kept.pt").rename(near[0] / "best.pt")


def test_a_search_averages_its_best_pretrained_trials_unasked(made, capfd):
    _, near, _ = made
    files = [run.with_suffix(".csv") for run in near]
    report = conclusion.vote(files, Path("ensemble"), Budget(None, 0.0))
    assert "4 runs of one start averaged" in capfd.readouterr().out
    assert "soup-simple_cnn" in [member.name for member in report.members]


def test_a_search_without_the_time_for_it_averages_nothing(made):
    _, near, _ = made
    files = [run.with_suffix(".csv") for run in near]
    report = conclusion.vote(files, Path("ensemble"), Budget(60.0, time.time()))
    assert len(report.members) == len(near)


def kept_run(folder: Path, name: str, **result: object) -> Path:
    """A run as far as its files tell what may be averaged."""
    told = {"pretrained": True, "score": 0.5, "image_size": 64, "mode": "max", **result}
    model = told.pop("model", "one")
    write_json(folder / name / "result.json", told)
    write_json(folder / name / "config.json", {"values": {"model": model, "model_args": {}}})
    write_rows(folder / name / "history.csv", [{"seconds": 2.0}, {"seconds": 4.0}])
    (folder / name / "best.pt").touch()
    return folder / name


def test_the_best_runs_of_one_network_are_chosen_and_their_time_is_known(tmp_path):
    runs = [kept_run(tmp_path, f"r{k}", score=k / 10) for k in range(7)]
    runs += [kept_run(tmp_path, "other", model="two", score=0.99)]
    runs += [kept_run(tmp_path, "scratch", pretrained=False, score=0.98)]
    runs += [kept_run(tmp_path, "larger", image_size=128, score=0.97)]
    chosen = soup_process.Kitchen().choose(runs)
    assert [each.run.name for each in chosen] == ["r6", "r5", "r4", "r3", "r2"]
    assert soup_process.seconds_for(chosen) == soup_process.START_S + 3 * soup_process.EPOCHS
    assert soup_process.seconds_for([]) == 0


def test_a_single_run_of_each_network_is_averaged_with_none(tmp_path):
    runs = [kept_run(tmp_path, "one"), kept_run(tmp_path, "two", model="two")]
    assert soup_process.Kitchen().choose(runs) == []
