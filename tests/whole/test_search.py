"""Real searches: NNI's own manager and tuner, started as a user starts them."""

import contextlib
import csv
import json
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from searches_for_tests import (
    environment,
    home_of_its_own,
    managers_and_trials,
    only_experiment,
    search,
    write_config,
)
from trained_for_tests import coloured

import predict
from ballot.engines.nni import database


@pytest.fixture
def home(tmp_path):
    with home_of_its_own(tmp_path) as folder:
        yield folder


def logs_held_open(process, home):
    """The most files of trials that NNI's manager had open at once until the search has ended."""
    most, deadline = 0, time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        for each in managers_and_trials(home):
            with contextlib.suppress(psutil.Error):
                if any(word.endswith("main.js") for word in each.cmdline()):
                    files = [file.path for file in each.open_files()]
                    most = max(most, sum(path.endswith("trial.stdout") for path in files))
        time.sleep(0.3)
    return most


@pytest.mark.slow
def test_a_search_runs_its_trials_and_lets_them_vote(home):
    process = search(home, "--config", "config.yml", "--keep_checkpoints", "1")
    most = logs_held_open(process, home)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert "3/3 trials done" in said and "best single" in said and "vote" in said
    trials = database.read_trials(only_experiment(home))
    assert [trial.status for trial in trials] == ["succeeded"] * 3
    for trial in trials:  # what NNI was told is what the trial's own files say
        run = next(home.glob(f"outputs/*-{trial.id}"))
        result = json.loads((run / "result.json").read_text())
        history = pd.read_csv(run / "history.csv")
        assert trial.final == result["score"] == history["val_acc"].max()
        assert trial.scores == history["val_acc"].tolist()
        config = json.loads((run / "config.json").read_text())
        assert config["origin"]["lr"] == "tuner" and 0.002 <= config["values"]["lr"] <= 0.01
    assert most <= 2, "NNI's manager keeps the files of trials that have ended"
    members = [pd.read_csv(file).set_index("id") for file in sorted(home.glob("outputs/*.csv"))]
    assert len(members) == 3
    with (home / "results.csv").open(newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert len(rows) == 3  # the table says what the runs' own files say, to the last digit
    for run, row in rows.items():
        result = json.loads((home / "outputs" / run / "result.json").read_text())
        values = json.loads((home / "outputs" / run / "config.json").read_text())["values"]
        assert (row["status"], float(row["score"])) == ("done", result["score"])
        assert (row["machine"], row["device"]) == (result["machine"], result["device"])
        assert float(row["lr"]) == values["lr"] and row["optimizer"] == values["optimizer"]
        momentum = values["optimizer_args"].get("momentum")
        # No column where no trial drew an optimiser that has it.
        assert row.get("optimizer_args.momentum", "") == (
            "" if momentum is None else repr(momentum)
        )
    assert "reproduce the best trial: python train.py --epochs 2 --no_tensorboard --lr 0.00" in said
    best = max(rows.values(), key=lambda row: float(row["score"]))
    kept = {path.parent.name for path in home.glob("outputs/*/best.pt")}
    assert len(kept) == 1 and rows[kept.pop()]["score"] == best["score"]
    vote = pd.read_csv(home / "ensemble" / "soft.csv").set_index("id")
    assert vote.index.tolist() == members[0].index.tolist()
    assert managers_and_trials(home) == []
    page = (home / "report.html").read_text()
    assert all(trial.id in page for trial in trials) and "report: " in said


@pytest.mark.slow
def test_trials_without_test_rows_vote_on_their_validation_rows(home, monkeypatch):
    photos = coloured(home, {"photos": 40}) / "photos"
    new = coloured(home, {"new": 2}, seed=1) / "new"
    write_config(home, epochs=2)
    text = (home / "config.yml").read_text()
    text = text.replace("--epochs 2", f"--epochs 2 --data_dir {photos} --image_size 16")
    (home / "config.yml").write_text(text)
    process = search(home, "--config", "config.yml", "--no_probe")
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert "no test rows, 3 classes" in said and "scored on 24 validation rows" in said
    assert "held out of the choice" in said and "reproduce the best trial: python train.py" in said
    files = sorted(path.name for path in (home / "ensemble").iterdir())
    assert files == ["ensemble.json", "val.csv"]
    assert not list(home.glob("outputs/*.csv")) and not list(home.glob("outputs/*/submission.csv"))
    vote = json.loads((home / "ensemble" / "ensemble.json").read_text())
    assert len(vote["members"]) == 3 and vote["scores"]["test"] == {}
    monkeypatch.chdir(home)
    for what in ("ensemble", *(f"outputs/{m['name']}" for m in vote["members"])):
        words = [what, str(new), "--out", f"{Path(what).name}.csv", "--device", "cpu"]
        assert predict.main(words) == 0
    found = [pd.read_csv(f"{m['name']}.csv").set_index("id") for m in vote["members"]]
    weights = [m["weight"] for m in vote["members"]]
    expected = sum(w * table.to_numpy() for w, table in zip(weights, found))
    answers = pd.read_csv("ensemble.csv").set_index("id")
    assert len(answers) == 6 and list(answers.columns) == list(found[0].columns)
    np.testing.assert_allclose(answers.to_numpy(), expected, atol=1e-6)
    page = (home / "report.html").read_text()
    assert "Validation rows on which two voters answer alike" in page


@pytest.mark.slow
def test_our_tuner_and_halving_stop_what_lags_and_learn_of_what_fails(home):
    rates = [0.003, 1e-7, 1e-8, 1e30, 0.001]  # the last is the script's own, the one before fails
    (home / "search_space.json").write_text(
        json.dumps({"lr": {"_type": "choice", "_value": rates}})
    )
    code = str(Path(__file__).resolve().parents[2])
    write_config(
        home,
        epochs=15,
        maxTrialNumber=9,
        trialConcurrency=1,
        tuner={"className": "ballot.engines.nni.tuner.Tuner", "codeDirectory": code},
        assessor={
            "className": "ballot.engines.nni.assessor.Assessor",
            "codeDirectory": code,
            "classArgs": {"start_step": 1},
        },
    )
    process = search(home, "--config", "config.yml", "--no_probe")
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    with (home / "results.csv").open(newline="") as file:
        rows = {float(row["lr"]): row for row in csv.DictReader(file)}
    assert sorted(rows) == sorted(rates), "each configuration once, and then no more"
    assert [rows[rate]["status"] for rate in (1e-7, 1e-8, 1e30)] == ["stopped", "stopped", "failed"]
    assert rows[0.001]["run"].split("-")[1] == "000" and rows[0.001]["status"] == "done"
    for trial in database.read_trials(only_experiment(home)):
        row = next(row for row in rows.values() if trial.id in row["run"])
        assert trial.final == float(row["score"] or 0.0)  # of a failed one a floor
        assert row["status"] != "stopped" or trial.status != "succeeded"
        assert (home / "outputs" / f"{row['run']}.csv").exists() == (row["status"] != "failed")
    (file,) = only_experiment(home).glob("checkpoint/tuner.json")
    known = {values["lr"]: (state, loss) for values, state, loss in json.loads(file.read_text())}
    assert known == {
        rate: (row["status"], -float(row["score"]) if row["score"] else None)
        for rate, row in rows.items()
    }


def ended_trials(folder):
    """Wait for two trials of a search to end; none where NNI's tuner has not started in time."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        trials = database.read_trials(folder)
        if len(trials) == 2 and all(trial.has_ended for trial in trials):
            return trials
        if "Tuner did not connect" in (folder / "log" / "nnimanager.log").read_text():
            return []
        time.sleep(0.5)
    return trials


@pytest.mark.slow
def test_nnictl_runs_the_same_search_without_search_py(home):
    write_config(home, epochs=1, maxTrialNumber=2)
    create = ["nnictl", "create", "--config", "config.yml", "--port", "18240"]
    how = {"cwd": home, "env": environment(home), "capture_output": True, "timeout": 120}
    # NNI gives its manager four seconds and its tuner ten, which a busy machine may not have.
    for _ in range(3):
        done = subprocess.run(create, text=True, **how)
        if done.returncode == 0 and (trials := ended_trials(only_experiment(home))):
            break
        subprocess.run(["nnictl", "stop", "--all"], **how)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = only_experiment(home)
    subprocess.run(
        ["nnictl", "stop", folder.name],
        cwd=home,
        env=environment(home),
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert [trial.status for trial in trials] == ["succeeded"] * 2
    assert len(list(home.glob("outputs/*.csv"))) == 2
    said = [
        next(folder.glob(f"environments/*/trials/{trial.id}/trial.log")).read_text()
        for trial in trials
    ]
    assert all(text.count("NNI runs without the guard") == 1 for text in said)


@pytest.mark.slow
def test_a_configuration_that_cannot_work_is_refused_before_anything_starts(home):
    write_config(home, trialConcurency=2)
    process = search(home, "--config", "config.yml")
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 2 and "NNI does not take it" in said
    assert len(said.strip().splitlines()) == 1
    assert not (home / "nni").exists() and not (home / "outputs").exists()


@pytest.mark.slow
def test_a_tuner_that_is_slow_to_start_is_waited_for(home):
    (home / "slow_tuner.py").write_text(
        "import time\n"
        "from nni.algorithms.hpo.random_tuner import RandomTuner\n"
        "time.sleep(15)  # NNI by itself gives it ten seconds\n"
        "class Slow(RandomTuner):\n"
        "    def __init__(self, optimize_mode):\n"
        "        super().__init__()\n"
    )
    tuner = {
        "className": "slow_tuner.Slow",
        "codeDirectory": str(home),
        "classArgs": {"optimize_mode": "maximize"},
    }
    write_config(home, epochs=1, maxTrialNumber=1, tuner=tuner)
    process = search(home, "--config", "config.yml", "--no_probe")
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 0 and "1/1 trials done" in said, said
