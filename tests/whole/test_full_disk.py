"""A trial whose files do not fit: it ends by itself, with what it has."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ballot.errors import CannotWrite
from ballot.training.tensor_files import save_tensors

ROOT = Path(__file__).resolve().parents[2]


def no_file_beyond(size):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_checkpoint_that_does_not_fit_is_said_and_leaves_the_old_one(tmp_path):
    path = tmp_path / "best.pt"
    save_tensors(path, {"a": torch.ones(3)})
    code = (
        "import torch; from pathlib import Path\n"
        "from ballot.training.tensor_files import save_tensors\n"
        "from ballot.errors import CannotWrite\n"
        "try:\n"
        f"    save_tensors(Path({str(path)!r}), {{'a': torch.zeros(100_000)}})\n"
        "except CannotWrite as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=no_file_beyond(200_000),
    )
    assert done.stdout.strip() == f"{path}: cannot be written (File too large)", done.stderr
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == ["best.pt"]


def test_a_defect_in_what_is_written_is_no_full_disk(tmp_path):
    with pytest.raises(Exception) as caught:
        save_tensors(tmp_path / "a.pt", {"a": lambda: None})
    assert not isinstance(caught.value, CannotWrite)


def train(out_dir, limit):
    command = [
        sys.executable,
        "train.py",
        "--epochs",
        "2",
        "--out_dir",
        str(out_dir),
        "--run_name",
        "run",
        "--no_tensorboard",
    ]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, preexec_fn=no_file_beyond(limit)
    )


@pytest.mark.slow
def test_a_trial_ends_with_its_best_where_its_last_state_does_not_fit(tmp_path):
    done = train(tmp_path, 500_000)  # best.pt takes half of it, last.pt more
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "done" and "last.pt: cannot be written" in result["reason"]
    assert result["best_epoch"] == 1 and result["score"] > 0.3
    table = np.genfromtxt(tmp_path / "run.csv", delimiter=",", skip_header=1)[:, 1:]
    assert np.allclose(table.sum(axis=1), 1, atol=1e-5)
    assert not (tmp_path / "run" / "last.pt").exists()


@pytest.mark.slow
def test_a_trial_that_can_keep_nothing_says_so_in_one_line(tmp_path):
    done = train(tmp_path, 100_000)
    assert done.returncode == 1
    assert "best.pt: cannot be written (File too large)" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "failed" and result["score"] is None


def test_a_log_that_cannot_be_written_is_given_up_in_one_line(tmp_path):
    code = (
        "import logging, pathlib, sys\n"
        "from ballot.training import process as runtime, run_log as logs\n"
        "runtime.setup_logging(); logs.keep_early(); log = logging.getLogger('t')\n"
        "log.info('early ' * 30)\n"
        f"logs.log_to(pathlib.Path({str(tmp_path)!r}))\n"
        "[log.info('line %d', n) for n in range(100)]\n"
    )
    # Coverage's own file would not fit either.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=env,
        preexec_fn=no_file_beyond(1000),
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    warnings = [line for line in done.stdout.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1 and "run.log" in warnings[0] and "File too large" in warnings[0]
    assert done.stdout.count("line ") == 100
    assert (tmp_path / "run.log").read_text().startswith("2")
