"""A trial that NNI started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    "mine, manager, nni",
    [(None, None, False), ("1", None, True), ("1", "1", False), ("0", "0,1", True)],
)
def test_what_nni_assigned_is_told_from_what_the_search_was_started_with(mine, manager, nni):
    env = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    trial = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from ballot.engines.nni import trial; "
        "print(trial.gpus_are_assigned())"
    )
    change = f"env['CUDA_VISIBLE_DEVICES'] = {mine!r}" if mine else ""
    parent = (
        f"import os, subprocess, sys\nenv = dict(os.environ)\n{change}\n"
        f"subprocess.run([sys.executable, '-c', {trial!r}], env=env)"
    )
    if manager:
        env["CUDA_VISIBLE_DEVICES"] = manager
    done = subprocess.run([sys.executable, "-c", parent], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == str(nni), done.stderr
