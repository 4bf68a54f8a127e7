"""The Slurm script, with stand-ins for Slurm's commands and for Ray's."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
COMMANDS = {"scontrol": "echo node1", "srun": 'shift; exec "$@"', "python": 'echo "$@"'}
RUNS = 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"'


@pytest.mark.parametrize(
    ("ray", "status", "said"),
    [
        (RUNS, 0, "search.py --config c.yml --max_duration 225m"),
        (
            "exit 0",
            1,
            "error: Ray was not started",
        ),  # so symmetric-run ends where `ray start` fails
    ],
)
def test_a_job_fails_where_ray_was_not_started(tmp_path, ray, status, said):
    for name, script in (COMMANDS | {"ray": ray}).items():
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(f"#!/bin/bash\n{script}\n")
        command.chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "node1", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1"}
    places = {
        "BIN": str(tmp_path / "bin"),
        "CONFIG": "c.yml",
        "PATH": f"{tmp_path}/bin:/bin:/usr/bin",
    }
    done = subprocess.run(
        ["bash", ROOT / "examples" / "ray" / "search.sbatch"],
        cwd=tmp_path,
        env={**os.environ, **job, **places},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    assert said in (done.stdout + done.stderr).splitlines()
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]  # neither token nor mark stays
