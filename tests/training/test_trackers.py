"""What TensorBoard, MLflow and W&B get of a run, and what their failures do not do to it."""

from __future__ import annotations

import contextlib
import socket
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ballot.runs.files import write_json, write_rows
from ballot.training import trackers
from ballot.training.trackers import CELL, confusion_picture, log_best, read_state, sending


def answers(rows=60, classes=3):
    rng = np.random.default_rng(0)
    return rng.dirichlet(np.ones(classes), rows), rng.integers(0, classes, rows)


def test_the_best_weights_leave_a_picture_and_a_curve_for_each_class(tmp_path):
    probs, labels = answers()
    log_best(tmp_path, 7, probs, labels, ["cat", "dog", "<owl>"])
    assert [path.is_file() for path in tmp_path.iterdir()] == [True]
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["images"] == ["val/confusion"]
    assert events.Images("val/confusion")[0].step == 7
    curves = [tag for tag in events.Tags()["tensors"] if tag.startswith("val_pr/")]
    assert len(curves) == 3


def test_many_classes_are_left_to_the_report(tmp_path):
    probs, labels = answers(60, 40)
    log_best(tmp_path / "board", 1, probs, labels, [str(k) for k in range(40)])
    assert not (tmp_path / "board").exists()


def test_a_cell_is_as_blue_as_its_share_of_the_true_class():
    probs = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    picture = confusion_picture(probs, np.array([0, 1, 1]), ["a", "b"])
    corners = picture[2::CELL, -2 * CELL + 2 :: CELL]  # beside the numbers
    assert corners.shape == (2, 2, 3)
    assert corners[0, 0].tolist() == [0, 114, 178]
    assert corners[0, 1].tolist() == [255, 255, 255]
    assert abs(corners[1, 0].astype(int) - [128, 184, 216]).max() <= 1


# MLflow and W&B: their processes, with a run folder as a trial leaves it.


def a_run(folder, epochs=2):
    """Write a small run folder."""
    folder.mkdir()
    write_json(folder / "config.json", {"values": {"lr": 0.1, "model": "x", "freeze": None}})
    rows = [{"epoch": k, "val_acc": k / 10, "val_loss": 1 / k} for k in range(1, epochs + 1)]
    write_rows(folder / "history.csv", rows)
    write_json(folder / "result.json", {"status": "done", "score": 0.2, "test": {"acc": 0.3}})
    (folder / "run.log").write_text("hello\n")
    folder.with_name(f"{folder.name}.csv").write_text("id,a,b\n1,0.5,0.5\n")
    return folder


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


def slow_start(monkeypatch):
    """Give a tracker's process the time that loading its library takes on a busy machine."""
    monkeypatch.setattr(trackers, "LINGER", 200)


@pytest.mark.slow
def test_mlflow_has_scores_parameters_and_files_and_a_resumed_run_goes_on_there(
    tmp_path, monkeypatch, caplog
):
    from mlflow import MlflowClient

    slow_start(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = a_run(tmp_path / "one")
    with sending(run, ["mlflow"], "exp7"):
        pass
    write_rows(run / "history.csv", [{"epoch": k, "val_acc": k / 10} for k in (1, 2, 3)])
    with sending(run, ["mlflow"], "exp7"):
        pass
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("ballot-exp7").experiment_id])
    assert (found.info.run_name, found.info.status) == ("one", "FINISHED")
    assert found.data.params == {"lr": "0.1", "model": "x", "freeze": "none"}
    points = client.get_metric_history(found.info.run_id, "val_acc")
    assert [(p.step, p.value) for p in points] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert found.data.metrics["score"] == 0.2 and found.data.metrics["test_acc"] == 0.3
    names = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert names == {"config.json", "result.json", "history.csv", "run.log", "one.csv"}
    assert warnings_of(caplog) == []


@pytest.mark.slow
def test_trials_of_a_search_make_one_mlflow_data_base_at_once(tmp_path, monkeypatch, caplog):
    from mlflow import MlflowClient

    slow_start(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with contextlib.ExitStack() as stack:
        for name in ("a", "b", "c"):
            stack.enter_context(sending(a_run(tmp_path / name), ["mlflow"], "exp"))
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("ballot-exp").experiment_id])
    assert sorted(run.info.run_name for run in found) == ["a", "b", "c"]
    assert warnings_of(caplog) == []


@pytest.mark.slow
def test_wandb_without_a_key_writes_into_the_run_folder(tmp_path, monkeypatch, caplog):
    slow_start(monkeypatch)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    run = a_run(tmp_path / "one")
    with sending(run, ["wandb"], "exp7"):
        pass
    assert warnings_of(caplog) == []
    (record,) = (run / "wandb").glob("offline-run-*/*.wandb")
    written = record.read_bytes()
    for word in (b"val_acc", b"val_loss", b"exp7", b"test_acc"):
        assert word in written, word
    names = {path.name for path in record.parent.glob("files/**/*") if path.is_file()}
    assert {"config.json", "history.csv", "run.log", "one.csv"} <= names
    assert read_state(run, "wandb")["sent"] == {"": 2}


@pytest.mark.slow
def test_a_server_that_is_gone_is_warned_of_once(tmp_path, monkeypatch, caplog):
    slow_start(monkeypatch)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with sending(a_run(tmp_path / "one"), ["mlflow"], None):
        pass
    (warning,) = warnings_of(caplog)
    assert warning.startswith("tracker mlflow: ") and "goes on without it" in warning


def test_a_tracker_that_does_not_answer_is_left_after_a_moment(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(trackers, "LINGER", 0.5)
    with socket.socket() as deaf:  # takes connections and never says a word
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        began = time.monotonic()
        with sending(a_run(tmp_path / "one"), ["mlflow"], None):
            entered = time.monotonic() - began
        assert entered < 2 and time.monotonic() - began < 10
    (warning,) = warnings_of(caplog)
    assert "does not answer" in warning


def test_a_tracker_that_is_not_installed_is_warned_of(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(trackers, "LINGER", 100)
    (tmp_path / "mlflow.py").write_text("raise ModuleNotFoundError('No module named mlflow')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with sending(a_run(tmp_path / "one"), ["mlflow"], None):
        pass
    (warning,) = warnings_of(caplog)
    assert "No module named mlflow" in warning


def test_without_trackers_nothing_is_started(tmp_path):
    run = a_run(tmp_path / "one")
    before = sorted(run.iterdir())
    with sending(run, ["tensorboard"], None):
        pass
    assert sorted(run.iterdir()) == before
