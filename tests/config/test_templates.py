"""Projects of other templates, trained by their own words as their owners would."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = pytest.mark.slow


def test_a_project_of_three_parts_trains_on_dummy_data(script, tmp_path):
    files = [EXAMPLES / "template_json" / f"{name}.json" for name in ("model", "data", "env")]
    words = [word for path in files for word in ("--config", path)]
    done = script("train.py", *words, "--run_name", "parts")
    assert done.returncode == 0, done.stderr
    assert "env.optimizer.type = 'SGD'" in done.stderr
    assert "the same without" in done.stderr and "env.dist_url" in done.stderr
    assert "epoch 1, step 5, " in done.stdout  # train_freq
    run = tmp_path / "outputs" / "parts"
    history = pd.read_csv(run / "history.csv")
    assert {"train_accuracy_score", "val_accuracy_score", "val_top_k_accuracy_score"} <= set(
        history
    )
    assert "train_top_k_accuracy_score" not in history
    assert (history["val_top_k_accuracy_score"] >= history["val_accuracy_score"]).all()
    result = json.loads((run / "result.json").read_text())
    assert (result["data"], len(result["classes"]), result["image_size"]) == ("dummy", 10, 64)


def test_a_config_json_project_trains_resumes_and_predicts(script, tmp_path):
    folder = EXAMPLES / "template_config"
    done = script(
        "train.py",
        "-c",
        folder / "config.json",
        "--lr",
        0.003,
        "--bs",
        64,
        "--log_config",
        folder / "logger_config.json",
        "--run_name",
        "one",
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "saved" / "Digits_LeNet" / "one"
    values = json.loads((run / "config.json").read_text())["values"]
    assert (values["lr"], values["batch_size"]) == (0.003, 64)
    assert (run / "epoch001.pt").exists() and (run / "epoch002.pt").exists()  # save_period
    assert not (run / "tensorboard").exists()
    for name in ("info.log", "run.log"):
        assert "epoch 2/2" in (run / name).read_text()
    assert "train - INFO - epoch 2/2" in (run / "info.log").read_text()
    result = json.loads((run / "result.json").read_text())
    history = pd.read_csv(run / "history.csv")
    assert result["score"] == history["val_loss"].min() and "val_top3" in history

    more = script("train.py", "-r", run / "last.pt", "--epochs", 3)
    assert more.returncode == 0, more.stderr
    assert "resuming after epoch 2 of 3" in more.stdout
    assert len(pd.read_csv(run / "history.csv")) == 3
    wrong = script("train.py", "-r", run / "best.pt")
    assert wrong.returncode == 2 and "goes on from its last.pt" in wrong.stderr

    from PIL import Image

    image = np.zeros((8, 8), np.uint8)
    image[1:7, 3:5] = 255
    Image.fromarray(image).save(tmp_path / "one.png")
    seen = script("predict.py", run, tmp_path / "one.png", "--out", tmp_path / "new.csv")
    assert seen.returncode == 0, seen.stderr
    probs = pd.read_csv(tmp_path / "new.csv").iloc[:, 1:].to_numpy()
    assert probs.shape == (1, 10) and probs.sum() == pytest.approx(1, abs=1e-5)


def test_an_upper_case_project_trains_and_mlflow_has_its_config_log_and_csvs(script, tmp_path):
    done = script(
        "train.py",
        "-c",
        EXAMPLES / "template_yacs" / "cifar10.yaml",
        "--dataset",
        "dummy",
        "--data_dir",
        "none",
        "--run_name",
        "upper",
    )
    assert done.returncode == 0, done.stderr
    assert "tracker mlflow" not in done.stdout
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("ballot").experiment_id])
    history = pd.read_csv(tmp_path / "outputs" / "upper" / "history.csv")
    points = client.get_metric_history(found.info.run_id, "val_loss")
    assert [p.value for p in points] == history["val_loss"].tolist()
    assert found.data.params["model"] == "simple_cnn" and found.data.params["lr"] == "0.001"
    names = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert {"config.json", "run.log", "history.csv", "val.csv", "upper.csv"} <= names


def test_a_plateau_is_no_improvement_and_ends_training_early(script, tmp_path):
    words = ("--epochs", 20, "--early_stop", 2, "--lr", 1e-12, "--weight_decay", 0)
    done = script("train.py", *words, "--folds", 2, "--run_name", "flat")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "outputs" / "flat"
    result = json.loads((run / "result.json").read_text())
    assert (result["status"], result["reason"], result["epochs"]) == ("done", "early stop", 6)
    for fold in (0, 1):  # the second fold is trained although the first one ended early
        history = pd.read_csv(run / f"fold{fold}" / "history.csv")
        assert len(history) == 3 and history["val_acc"].nunique() == 1
    again = script("train.py", "--resume", run)
    assert again.returncode == 0 and json.loads((run / "result.json").read_text())["epochs"] == 6


def test_several_gpus_that_are_not_there_are_one_line(script):
    done = script("train.py", "-d", "0,7", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2 and "'0,7' names 2 GPUs; this machine has 0" in done.stderr


def test_training_goes_on_when_the_terminal_is_closed_and_can_be_watched(tmp_path):
    root = EXAMPLES.parent
    for name in ("Makefile", "train.py", "requirements.txt", "requirements-extra.txt"):
        (tmp_path / name).symlink_to(root / name)
    installed = tmp_path / "venv" / ".installed"
    installed.parent.mkdir()
    installed.touch()
    make = ["make", "-s", "VENV=venv", f"BIN={Path(sys.executable).parent}"]
    words = "ARGS=--epochs 2 --run_name mine"
    with subprocess.Popen(
        [*make, "train", words],
        cwd=tmp_path,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
    ) as started:
        said = started.stdout.readline()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGHUP)  # what a terminal sends when it is closed
    assert "goes on by itself" in said
    result = tmp_path / "outputs" / "mine" / "result.json"
    deadline = time.monotonic() + 300
    while not result.exists() or json.loads(result.read_text())["status"] == "running":
        assert time.monotonic() < deadline, [p.read_text() for p in tmp_path.glob("outputs/*.out")]
        time.sleep(0.5)
    assert json.loads(result.read_text())["status"] == "done"
    with subprocess.Popen(
        [*make, "watch", "RUN=mine"],
        cwd=tmp_path,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
    ) as watching:
        lines = [watching.stdout.readline() for _ in range(3)]
        os.killpg(watching.pid, signal.SIGTERM)
    assert any("run folder: outputs/mine" in line for line in lines)
