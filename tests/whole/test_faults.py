"""A few of the faults of `make faults`, with a seed that is printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_nothing_is_lost_whatever_is_killed_cut_or_full():
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "COUNT": "20"},
        timeout=600,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"seed \d+: 20 faults, 0 not survived", done.stdout)
    assert re.search(r"^ +\d+  search: ", done.stdout, re.MULTILINE)
    assert re.search(r"^ +\d+  collector: |^left out: the collector ", done.stdout, re.MULTILINE)
