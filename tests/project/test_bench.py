"""The table of measurements."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[2] / "bench"
GOOD = """
def measure(full):
    return [{"what": "sum", "ours": 2.0, "other": 1.0, "ratio": 2.0, "spread": (1.5, 2.5)},
            {"what": "on a GPU", "skipped": "no GPU here"},
            {"what": "words", "ours": "1 s", "other": None, "ratio": None, "spread": None}]
"""


def test_one_measurement_that_fails_does_not_stop_the_others(tmp_path):
    (tmp_path / "run.py").write_text((BENCH / "run.py").read_text())
    (tmp_path / "bad.py").write_text("def measure(full):\n    raise ValueError('no luck')\n")
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "none.py").write_text("print('not a measurement')\n")
    done = subprocess.run([sys.executable, tmp_path / "run.py"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "bad" in done.stdout and "FAILED: ValueError: no luck" in done.stdout
    assert "skipped: no GPU here" in done.stdout and "1.50-2.50" in done.stdout
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["file"] for row in rows] == ["bad", "good", "good", "good"]
    assert rows[1]["ratio"] == 2.0
    again = subprocess.run([sys.executable, tmp_path / "run.py", "good"], capture_output=True)
    assert again.returncode == 0
    assert subprocess.run([sys.executable, tmp_path / "run.py", "none"]).returncode == 2
