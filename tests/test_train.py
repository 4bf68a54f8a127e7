"""One trial, started as a user starts it."""

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
import torch
from sklearn.metrics import accuracy_score

ROOT = Path(__file__).resolve().parents[1]
QUICK = ("--epochs", 2, "--seed", 3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One run of two epochs on the digits, made once."""
    folder = tmp_path_factory.mktemp("trained")
    command = [sys.executable, ROOT / "train.py", *map(str, QUICK), "--run_name", "one"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "outputs" / "one", done.stdout


def test_a_run_leaves_what_the_design_says(trained):
    run, _ = trained
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.json",
        "result.json",
        "history.csv",
        "split.csv",
        "val.csv",
        "submission.csv",
        "best.pt",
        "last.pt",
        "run.log",
        "tensorboard",
    }
    assert [path.name for path in run.parent.glob("*.csv")] == ["one.csv"]


def test_the_config_says_every_value_and_where_it_comes_from(trained):
    saved = json.loads((trained[0] / "config.json").read_text())
    assert saved["values"]["epochs"] == 2 and saved["origin"]["epochs"] == "command line"
    assert saved["values"]["lr"] == 0.001 and saved["origin"]["lr"] == "default"
    assert set(saved["values"]) <= set(saved["origin"])


def test_the_result_is_the_best_epochs_score_and_scikit_learn_agrees(trained):
    run, _ = trained
    result = json.loads((run / "result.json").read_text())
    history = pd.read_csv(run / "history.csv")
    assert result["status"] == "done" and len(history) == 2
    assert result["score"] == history["val_acc"].max()
    val = pd.read_csv(run / "val.csv", dtype={"label": str})
    predicted = val.columns[2:][val.iloc[:, 2:].to_numpy().argmax(1)]
    assert accuracy_score(val["label"], predicted) == pytest.approx(result["score"])
    soft = pd.read_csv(run.parent / "one.csv")
    truth = pd.read_csv(run / "split.csv", dtype=str).set_index("id")["label"]
    predicted = soft.columns[1:][soft.iloc[:, 1:].to_numpy().argmax(1)]
    assert accuracy_score(truth[soft["id"]], predicted) == pytest.approx(result["test"]["acc"])
    assert pd.read_csv(run / "submission.csv", dtype=str)["label"].tolist() == predicted.tolist()
    np.testing.assert_allclose(soft.iloc[:, 1:].sum(axis=1), 1, atol=1e-6)


def test_the_result_says_what_the_network_costs(trained):
    result = json.loads((trained[0] / "result.json").read_text())
    weights = torch.load(trained[0] / "best.pt", weights_only=True)["model"]
    running = [name for name in weights if "running" in name or "num_batches" in name]
    count = sum(value.numel() for name, value in weights.items() if name not in running)
    network = result["network"]
    assert network["parameters"] == result["parameters"] == count
    assert network["multiply_adds"] > count and 0 < network["latency"] < 1
    assert network["images_per_second"] > 1 and result["tta"]["passes"] == 1


def test_a_network_above_a_bound_ends_before_training_with_one_line(script, tmp_path):
    done = script("train.py", "--max_params", "10k", "--run_name", "big", "--epochs", 1)
    assert done.returncode == 1
    reason = "max_params: simple_cnn has 62,006 parameters, more than 10k"
    assert done.stdout.strip().endswith(f"error: the trial failed: {reason}")
    result = json.loads((tmp_path / "outputs/big/result.json").read_text())
    assert (result["status"], result["reason"], result["epochs"]) == ("failed", reason, 0)
    assert result["reported"] == 0.0 and not list(tmp_path.rglob("*.pt"))


def test_no_row_is_in_two_parts_of_the_split(trained):
    split = pd.read_csv(trained[0] / "split.csv")
    assert split["id"].is_unique and set(split["split"]) == {"train", "val", "test"}
    val = pd.read_csv(trained[0] / "val.csv")
    assert set(val["id"]) == set(split["id"][split["split"] == "val"])


def test_tensorboard_has_scalars_by_step_and_epoch_and_the_hyperparameters_in_one_file(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = [f for f in (trained[0] / "tensorboard").rglob("*") if not f.name.endswith(".best")]
    assert len(files) == 1
    events = EventAccumulator(str(files[0]))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"step/train_loss", "step/lr", "val_acc", "val_loss", "train_loss"} <= set(tags)
    assert len(events.Scalars("val_acc")) == 2
    assert len(events.Scalars("step/train_loss")) == events.Scalars("val_acc")[-1].step
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_tensorboard_has_the_answers_of_the_best_weights_in_the_same_run(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained[0] / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == ["val/confusion"]
    assert "val_pr/3" in events.Tags()["tensors"]


def test_checkpoints_hold_tensors_and_json_only(trained):
    for name in ("best.pt", "last.pt"):
        torch.load(trained[0] / name, weights_only=True)
    about = json.loads(torch.load(trained[0] / "best.pt", weights_only=True)["about"])
    assert about["classes"] == [str(k) for k in range(10)]


def test_a_pipe_gets_plain_lines(trained):
    assert "epoch 2/2" in trained[1] and "\r" not in trained[1] and "\x1b" not in trained[1]


BAD_INPUT = [
    (["--model", "simple_cn"], "unknown model 'simple_cn'; did you mean 'simple_cnn'?"),
    (["--epochs", "0"], "epochs is 0; it must be at least 1"),
]
MORE_BAD_INPUT = [
    (["--criterion", "focall"], "unknown criterion 'focall'; did you mean 'focal'?"),
    (["--batch_size", "-4"], "batch_size is -4"),
    (["--monitor", "val_accc"], "unknown metric 'accc'"),
    (["--resume", "nowhere"], "nowhere: is no run folder"),
    (["--config", "no.json"], "no.json: cannot be read"),
    (["--model_args", '{"dropot": 1}'], "takes no argument 'dropot'; did you mean 'dropout'?"),
    (["--criterion_args", '{"label_smoothing": 3}'], "label_smoothing is 3"),
    (["--device", "cuda:99"], "device: 'cuda:99' is not to be had here"),
    (["--run_name", "../x"], "is no name for a folder"),
    (["--pretrained", "yes"], "'simple_cnn' has no published weights"),
    (["--data_dir", "nowhere"], "nowhere"),
]


@pytest.mark.parametrize(
    "words, message",
    [*BAD_INPUT, *(pytest.param(*row, marks=pytest.mark.slow) for row in MORE_BAD_INPUT)],
)
def test_bad_input_is_one_line_and_status_2_and_leaves_nothing(script, tmp_path, words, message):
    done = script("train.py", *words)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


FAKE_NNI = """
import pathlib
log = pathlib.Path("reports.txt").open("a")
def say(*words): print(*words, file=log, flush=True)
def get_next_parameter(): say("ask"); return {"lr": 0.005, "batch_size": 128.0}
def report_intermediate_result(x): say("epoch", x)
def report_final_result(x): say("final", x)
"""


def nni_environment(folder, fake):
    """The environment of a trial whose NNI is a fake; tests of searches use the real one."""
    (folder / "nni.py").write_text(fake)
    return {
        **os.environ,
        "PYTHONPATH": str(folder),
        "NNI_PLATFORM": "local",
        "NNI_TRIAL_JOB_ID": "abc",
        "NNI_EXP_ID": "exp",
        "NNI_TRIAL_SEQ_ID": "7",
    }


@pytest.mark.slow
def test_a_trial_whose_manager_died_goes_on_and_leaves_its_ballot(tmp_path):
    env = nni_environment(tmp_path, FAKE_NNI.replace('say("epoch", x)', "raise ConnectionError"))
    command = [sys.executable, ROOT / "train.py", "--epochs", "2", "--resume", "auto"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("the search does not answer") == 1
    assert (tmp_path / "outputs" / "exp-007-abc.csv").exists()


def test_a_trial_that_was_posted_with_a_program_of_somebody_elses_does_not_run_it(tmp_path):
    (tmp_path / "evil.py").write_text("open('INJ', 'w')")
    env = nni_environment(tmp_path, FAKE_NNI.replace('"lr": 0.005', '"plugins": ["evil.py"]'))
    command = [sys.executable, ROOT / "train.py", "--epochs", "1"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("error: ")) == (2, 1)
    assert "tuner: plugins cannot be searched, its files are run as a program" in done.stderr
    assert not (tmp_path / "INJ").exists() and not (tmp_path / "outputs").exists()


def test_the_tuner_wins_over_the_command_line(tmp_path):
    env = nni_environment(tmp_path, FAKE_NNI)
    command = [sys.executable, ROOT / "train.py", "--epochs", "2", "--lr", "1", "--resume", "auto"]
    subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True, timeout=300)
    run = tmp_path / "outputs" / "exp-007-abc"
    saved = json.loads((run / "config.json").read_text())
    assert saved["values"]["lr"] == 0.005 and saved["origin"]["lr"] == "tuner"
    assert saved["values"]["batch_size"] == 128
    reports = [line.split() for line in (tmp_path / "reports.txt").read_text().splitlines()]
    history = pd.read_csv(run / "history.csv")
    assert [word for word, *_ in reports] == ["ask", "epoch", "epoch", "final"]
    assert [float(r[1]) for r in reports[1:3]] == history["val_acc"].tolist()
    assert float(reports[3][1]) == history["val_acc"].max()


@pytest.mark.slow
def test_a_competitions_machine_says_where_results_and_models_go(script, tmp_path):
    env = {"SM_OUTPUT_DATA_DIR": str(tmp_path / "o"), "SM_MODEL_DIR": str(tmp_path / "m")}
    done = script("train.py", "--epochs", 1, "--run_name", "run", **env)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "m" / "run.pt").read_bytes() == (tmp_path / "o/run/best.pt").read_bytes()
    saved = json.loads((tmp_path / "o" / "run" / "config.json").read_text())
    assert saved["origin"]["out_dir"] == "environment"


def wait_for_epoch(run: Path, epoch: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        result = run / "result.json"
        if result.exists() and json.loads(result.read_text())["epochs"] >= epoch:
            return
        time.sleep(0.02)
    raise AssertionError(f"never reached epoch {epoch}")


def start(folder: Path, *words: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, ROOT / "train.py", *map(str, words)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


SETTINGS = [
    (
        "--optimizer",
        "SGD",
        "--optimizer_args.momentum",
        0.9,
        "--scheduler",
        "cosine",
        "--ema",
        0.9,
        "--augmentation",
        "AffineAugmentation",
        "--model_args",
        '{"dropout": 0.3}',
    ),
    (
        "--freeze",
        "backbone",
        "--unfreeze_epoch",
        1,
        "--scheduler",
        "plateau",
        "--monitor",
        "min val_loss",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("more", SETTINGS)
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, more):
    words = ("--epochs", 4, "--image_size", 32, *more)
    whole = start(tmp_path, *words, "--run_name", "whole")
    assert whole.wait(300) == 0
    killed = start(tmp_path, *words, "--run_name", "killed")
    wait_for_epoch(tmp_path / "outputs" / "killed", 2, killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    outputs = tmp_path / "outputs"
    assert not (outputs / "killed.csv").exists()
    resumed = start(tmp_path, "--resume", outputs / "killed")
    said = resumed.communicate(timeout=300)[0]
    assert resumed.returncode == 0 and "resuming after epoch" in said
    assert (outputs / "killed.csv").read_bytes() == (outputs / "whole.csv").read_bytes()
    for name in ("val.csv", "submission.csv", "split.csv"):
        assert (outputs / "killed" / name).read_bytes() == (outputs / "whole" / name).read_bytes()
    for name in ("best.pt", "last.pt"):
        a, b = (
            torch.load(outputs / run / name, weights_only=True)["model"]
            for run in ("whole", "killed")
        )
        assert all(torch.equal(a[key], b[key]) for key in a)
    a, b = (pd.read_csv(outputs / run / "history.csv") for run in ("whole", "killed"))
    timing = ["seconds", "images_per_second"]
    pd.testing.assert_frame_equal(a.drop(columns=timing), b.drop(columns=timing))


@pytest.mark.slow
def test_plateau_waits_while_a_monitored_loss_falls(script, tmp_path):
    done = script(
        "train.py",
        "--epochs",
        4,
        "--monitor",
        "min val_loss",
        "--scheduler",
        "plateau",
        "--scheduler_args.patience",
        0,
        "--run_name",
        "run",
    )
    assert done.returncode == 0, done.stderr
    history = pd.read_csv(tmp_path / "outputs" / "run" / "history.csv")
    assert history["val_loss"].is_monotonic_decreasing and history["lr"].nunique() == 1


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_keeps_the_best_so_far_and_can_go_on(tmp_path, signum):
    run = tmp_path / "outputs" / "run"
    process = start(tmp_path, "--epochs", 50, "--run_name", "run")
    wait_for_epoch(run, 2, process)
    process.send_signal(signum)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == -signum and "Traceback" not in said
    assert f"--resume {run.relative_to(tmp_path)}" in said
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "stopped" and result["score"] > 0.2
    assert len(pd.read_csv(tmp_path / "outputs" / "run.csv")) > 0


TOLD_LATE = '''
import os, signal
from pathlib import Path
from torch import nn
from model import MODELS


class ToldLate(nn.Module):
    """A linear classifier that gets SIGTERM when its best weights first predict."""

    def __init__(self, num_classes, fold):
        super().__init__()
        self.linear, self.last = nn.Linear(3072, num_classes), Path("outputs/run", fold, "last.pt")

    def forward(self, images):
        if not self.training and self.last.exists():
            self.last = Path("none")
            os.kill(os.getpid(), signal.SIGTERM)
        return self.linear(images.flatten(1))


@MODELS.register("told_late", input_size=32)
def told_late(num_classes, pretrained, *, fold=""):
    return ToldLate(num_classes, fold)
'''


@pytest.mark.parametrize("folds", [1, 2])
def test_a_run_that_is_stopped_after_its_last_epoch_still_writes_its_predictions(
    script, tmp_path, folds
):
    (tmp_path / "late.py").write_text(TOLD_LATE)
    where = ("--model_args.fold", "fold0") if folds > 1 else ()
    done = script(
        "train.py",
        *("--plugins", "late.py", "--model", "told_late", *where, "--folds", folds),
        *("--epochs", 1, "--run_name", "run"),
    )
    assert done.returncode == -signal.SIGTERM and "Traceback" not in done.stderr, done.stderr
    result = json.loads((tmp_path / "outputs" / "run" / "result.json").read_text())
    assert result["status"] == ("done" if folds == 1 else "stopped")
    assert result["score"] is not None and result["epochs"] == 1
    assert len(pd.read_csv(tmp_path / "outputs" / "run.csv")) > 300


@pytest.mark.slow
def test_a_resumed_run_is_not_given_other_settings(trained, script):
    done = script("train.py", "--resume", trained[0], "--lr", 0.5)
    assert done.returncode == 2 and "lr was 0.001 in that run and is 0.5 now" in done.stderr


@pytest.mark.slow
def test_a_loss_that_explodes_is_a_failed_trial_with_its_reason(script, tmp_path):
    done = script(
        "train.py", "--epochs", 3, "--lr", 1e30, "--optimizer", "SGD", "--run_name", "boom"
    )
    assert done.returncode == 1 and "the trial failed" in done.stdout
    result = json.loads((tmp_path / "outputs" / "boom" / "result.json").read_text())
    assert result["status"] == "failed" and "finite" in result["reason"]
    assert result["reported"] == 0.0 and result["score"] is None


@pytest.mark.slow
def test_the_first_command_of_the_readme_trains(script, tmp_path):
    done = script(
        "train.py",
        "--model",
        "Efficientnet_b4",
        "--criterion",
        "focal",
        "--epochs",
        1,
        "--run_name",
        "b4",
    )
    assert done.returncode == 0, done.stderr
    assert len(pd.read_csv(tmp_path / "outputs" / "b4.csv")) > 300
    result = json.loads((tmp_path / "outputs" / "b4" / "result.json").read_text())
    assert result["pretrained"] is False and "FROM SCRATCH" in done.stdout


@pytest.mark.slow
def test_all_folds_in_one_trial_predict_every_training_row_once(script, tmp_path):
    done = script("train.py", "--folds", 3, "--epochs", 1, "--run_name", "cv")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "outputs" / "cv"
    val, split = pd.read_csv(run / "val.csv"), pd.read_csv(run / "split.csv")
    assert sorted(val["id"]) == sorted(split["id"][split["split"] != "test"])
    scores = [pd.read_csv(run / f"fold{k}" / "history.csv")["val_acc"].max() for k in range(3)]
    assert json.loads((run / "result.json").read_text())["score"] == pytest.approx(np.mean(scores))


@pytest.mark.slow
def test_a_time_limit_ends_training_in_time_with_the_best_so_far_counted_over_resumes(
    script, tmp_path
):
    done = script("train.py", "--epochs", 500, "--time_limit", 4, "--run_name", "late")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "outputs" / "late" / "result.json"
    first = json.loads(path.read_text())
    history = pd.read_csv(path.with_name("history.csv"))
    assert (first["status"], first["reason"]) == ("done", "time limit")
    assert 1 <= first["epochs"] < 500 and first["score"] == history["val_acc"].max()
    assert history["seconds"].sum() < 4 + history["seconds"].mean()
    assert (tmp_path / "outputs" / "late.csv").exists()
    # The time is used up: not one more epoch, until there is more of it.
    for limit, more in ((4, False), (first["seconds"] + 3, True)):
        script("train.py", "--resume", "outputs/late", "--time_limit", limit)
        again = json.loads(path.read_text())
        assert (again["epochs"] > first["epochs"]) is more and again["reason"] == "time limit"


@pytest.mark.slow
def test_a_first_epoch_is_trained_whatever_the_time_limit(script, tmp_path):
    done = script("train.py", "--epochs", 3, "--time_limit", 0.01, "--folds", 2, "--run_name", "a")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "outputs" / "a" / "result.json").read_text())
    assert (result["status"], result["epochs"]) == ("done", 1)


def test_a_run_on_all_rows_has_a_ballot_and_no_score(script, tmp_path):
    done = script("train.py", *QUICK, "--all_rows", "--run_name", "all")
    assert done.returncode == 0 and "val_acc" not in done.stdout, done.stdout + done.stderr
    run = tmp_path / "outputs" / "all"
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "done" and result["score"] is None and result["scores"] == {}
    assert run.with_name("all.csv").is_file() and not (run / "val.csv").exists()
    assert not [name for name in pd.read_csv(run / "history.csv") if name.startswith("val_")]
    split = pd.read_csv(run / "split.csv")
    assert set(split["split"]) == {"train", "test"} and split["id"].is_unique
