"""What may happen while results come home from a machine, through a real sshd.

The machine holds three runs that have ended, and home NNI's database and search.py's note of their
search. Compared is every file of `outputs` and the table, byte for byte: a file is copied, so that
nothing about it may be another one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import sqlite3
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil

import collect
from tests.engines.nni.test_manager import database, given
from tests.faults import far
from tests.faults.processes import damaged, start
from tests.faults.scenarios import FAULTS, Scene

ID, TRIALS = "ended001", "abc"
OUT_DIR = '"$HOME/nni-experiments/$NNI_EXP_ID/outputs"'
WEIGHTS = 6_000_000  # bytes of a checkpoint: as long as it takes to interrupt its transfer


class Homecoming(Scene):
    """Searches whose results are on a machine."""

    def __init__(self, folder: Path) -> None:
        self.far = far.machine(folder / "far")
        self.runs = folder / "runs"  # as they are there
        self.gone: Path | None = None  # what was cut or not there for a while
        make_runs(self.runs)
        self.close = self.far.close
        super().__init__(folder, task)

    def fresh(self, name: str | None = None) -> Path:
        """Return a home that knows of the search; the machine has its runs as they were."""
        place, self.gone = super().fresh(name), None
        folder = place / "home/nni-experiments" / ID
        state = {trial: 0.5 + 0.1 * number for number, trial in enumerate(TRIALS)}
        host = self.far.machine.host
        database(
            folder,
            [
                (
                    1000 * at,
                    trial,
                    event,
                    number,
                    given(number, lr=0.1),
                    f"{host}:~/nni-experiments/{ID}/environments/remote-worker1/trials/{trial}",
                )
                for number, trial in enumerate(state)
                for at, event in enumerate(("waiting", "running", "succeeded"))
            ],
            [(trial, "0", "FINAL", score) for trial, score in state.items()],
        )
        _write_profile(folder, place)
        note = {
            "folder": str(place),
            "machines": [asdict(self.far.machine)],
            "ssh_options": self.far.ssh_options,
        }
        (folder / "search.json").write_text(json.dumps(note))
        entry = {"logDir": str(folder.parent), "startTime": 1000}
        (folder.parent / ".experiment").write_text(json.dumps({ID: entry}))
        known = self.far.home / "nni-experiments"
        shutil.rmtree(known, ignore_errors=True)
        shutil.copytree(self.runs, self.there)
        self.far.own(known)
        return place

    @property
    def there(self) -> Path:
        """The folder of the runs on the machine."""
        return self.far.home / "nni-experiments" / ID / "outputs"

    def read(self, place: Path) -> dict[str, str]:
        """Return a hash of every file that came home, parts of files too, and of the table."""
        files = [
            *(path for path in place.glob("outputs/**/*") if path.is_file()),
            *place.glob("results.csv"),
        ]
        return {str(path.relative_to(place)): hash_of(path) for path in files}

    def mends(self, name: Path) -> bool:
        """All that came home."""
        return name.parts[0] == "outputs" or str(name) == "results.csv"

    def check(self, place: Path) -> None:
        """Demand that what is here is what is there, and runs with a result are here whole.

        A file that was cut there came as it was.
        """
        bad = [each for each in damaged(place) if f"outputs/{self.gone}:" not in each]
        assert not bad, bad
        outputs = place / "outputs"
        for path in (path for path in outputs.rglob("*") if path.is_file()):
            name = path.relative_to(outputs)
            if not name.parts[0].startswith(".") and name != self.gone:
                assert hash_of(path) == hash_of(self.runs / name), f"{name} is not as it is there"
        for result in outputs.glob("*/result.json"):
            wanted = {path for path in (self.runs / result.parent.name).glob("*.[cj]s*")}
            missing = [
                name
                for path in wanted
                if (name := path.relative_to(self.runs)) != self.gone
                and not (outputs / name).exists()
            ]
            assert not missing, f"there is a result.json and no {missing}"


def hash_of(path: Path) -> str | None:
    """Return what tells a file from another one; None where there is none."""
    with contextlib.suppress(OSError):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return None


def task() -> int:
    """Bring home what is there."""
    os.environ["HOME"] = str(Path("home").absolute())
    return collect.main([ID])


def make_runs(folder: Path) -> None:
    """Write runs as train.py leaves them."""
    rng = np.random.default_rng(0)
    for number, trial in enumerate(TRIALS):
        run = folder / f"{ID}-{number:03d}-{trial}"
        run.mkdir(parents=True)
        result = {"status": "done", "score": 0.5 + 0.1 * number, "epochs": 3, "seconds": 1.5}
        (run / "result.json").write_text(json.dumps(result))
        (run / "config.json").write_text(json.dumps({"values": {"lr": 0.1}, "origin": {}}))
        (run / "history.csv").write_text("epoch,val_acc\n1,0.5\n")
        rows = "".join(f"{row},{p:.9f},{1 - p:.9f}\n" for row, p in enumerate(rng.random(20_000)))
        for path in (run / "val.csv", run.with_name(f"{run.name}.csv")):
            path.write_text(f"id,a,b\n{rows}")
        for name in ("best.pt", "last.pt"):
            with zipfile.ZipFile(run / name, "w") as file:
                file.writestr("weights", rng.bytes(WEIGHTS))


def while_it_runs(
    scene: Homecoming, rng: random.Random, disturb: Callable[[], None], mend: Callable[[], None]
) -> None:
    """Disturb at a random moment, mend it, and finish; what is not well is said in a line."""
    place = scene.fresh()
    child = start(scene.task, place, scene.said)
    try:
        child.wait(rng.uniform(0, scene.seconds))
        disturb()
        child.wait(rng.choice((0.0, rng.uniform(0, 3))))
    finally:
        mend()
    if not child.wait(120):
        child.kill()
        raise AssertionError(f"hung: {child.words}")
    assert child.status in (0, 1) and "Traceback" not in child.words, child.words
    assert child.status == 0 or "could not be brought home" in child.words, child.words
    scene.finish(place)


def connection_drops(scene: Homecoming, rng: random.Random) -> None:
    """The machine's end of the connections dies."""
    while_it_runs(scene, rng, scene.far.drop, lambda: None)


def ssh_is_killed(scene: Homecoming, rng: random.Random) -> None:
    """One of the ssh at home dies, or all of them."""
    number = rng.choice((0, -1, None))

    def disturb() -> None:
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has just ended
                if process.name() == "ssh":
                    found.append(process)
        for process in found if number is None else found[number:][:1]:
            with contextlib.suppress(psutil.Error):
                process.kill()

    while_it_runs(scene, rng, disturb, lambda: None)


def machine_is_away(scene: Homecoming, rng: random.Random) -> None:
    """Its power is cut, and it comes back."""
    while_it_runs(scene, rng, scene.far.switch_off, scene.far.switch_on)


def cable_is_cut(scene: Homecoming, rng: random.Random) -> None:
    """Packets vanish for a while."""
    if scene.far.cut is None:  # a machine of its own is not permitted here
        machine_is_away(scene, rng)
    else:
        while_it_runs(scene, rng, scene.far.cut, scene.far.restore)


def file_changes_there(scene: Homecoming, rng: random.Random) -> None:
    """A file is cut or vanishes on the machine while it is copied, and is there again later."""
    names = sorted(path.relative_to(scene.runs) for path in scene.runs.rglob("*.*"))
    victim, size = rng.choice(names), rng.choice((None, rng.random()))

    def disturb() -> None:
        path, scene.gone = scene.there / victim, victim
        if size is None:
            path.unlink()
        else:
            os.truncate(path, int(size * path.stat().st_size))

    def mend() -> None:
        time.sleep(rng.uniform(0, 0.5))
        shutil.copy(scene.runs / victim, scene.there / victim.with_name(f".{victim.name}"))
        scene.far.own(scene.there)
        (scene.there / victim.with_name(f".{victim.name}")).replace(scene.there / victim)

    while_it_runs(scene, rng, disturb, mend)


OWN = (connection_drops, ssh_is_killed, machine_is_away, cable_is_cut, file_changes_there)
COLLECTOR_FAULTS = (*FAULTS, *OWN)


def _write_profile(folder: Path, place: Path) -> None:
    """Write down in NNI's database what the search of `folder` was asked for."""
    params = {
        "trialCommand": f"python3 train.py --out_dir {OUT_DIR}",
        "maxTrialNumber": 3,
        "trialCodeDirectory": str(place),
        "trialConcurrency": 1,
        "tuner": {"classArgs": {"optimize_mode": "maximize"}},
        "trainingService": {"platform": "remote"},
    }
    with sqlite3.connect(folder / "db" / "nni.sqlite") as db:
        db.execute("CREATE TABLE ExperimentProfile (params, execDuration, revision)")
        db.execute("INSERT INTO ExperimentProfile VALUES (?, 60, 1)", (json.dumps(params),))
