"""What may happen to a search: search.py with a real manager, a real tuner and trials of NNI.

Its three trials are those of three learning rates and one seed, in whatever order the tuner comes
to them; none runs twice. So compared are the scores and the ballot of each learning rate, and the
vote over all three. Left out is what is never twice the same: the names of the runs, their order
and times. The trials have fewer validation rows than a choice of members needs, so that the vote is
a plain mean, which the order changes in the last digit only.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import random
import signal
import time
from pathlib import Path

import psutil

import search
from ballot.engines.choose import load_engine, newest_search
from ballot.errors import UserError
from tests.faults import scenarios
from tests.faults.processes import Child, start
from tests.faults.scenarios import Scene
from tests.support.searches_for_tests import (
    ROOT,
    environment,
    managers_and_trials,
    only_experiment,
    process_of,
    write_config,
)

RATES = [0.003, 0.01, 0.03]
TUNER = {
    "className": "ballot.engines.nni.tuner.Tuner",
    "codeDirectory": str(ROOT),
    "classArgs": {"optimize_mode": "maximize", "seed": 0},
}
TRIAL = (
    "python3 -m ballot.preload train.py --resume auto --epochs 12 --dataset dummy "
    "--dataset_args.rows 80 --image_size 16 --batch_size 32 --no_tensorboard"
)
# By what the parts of a search are known in the list of processes, and for about how long each is
# there. The preloader's name is also that of the trials that it forks.
PARTS = {"main.js": 6.0, "--exp_params": 6.0, "train.py": 2.0, "ballot.preload.server": 2.0}


class SmallSearch(Scene):
    """Searches of three trials, whose home is the same: its preloader need start but once."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        super().__init__(folder, self.begin_or_go_on)
        self.seconds *= 0.6  # later ones find the preloader's imports done

    def fresh(self, name: str | None = None) -> Path:
        """Return a folder with a configuration, while nothing of an earlier search runs."""
        self.end_all(but="ballot.preload.server")
        place = super().fresh(name)
        space = {"lr": {"_type": "choice", "_value": RATES}}
        (place / "search_space.json").write_text(json.dumps(space))
        write_config(place, trialCommand=f"{TRIAL} --out_dir {place}/outputs", tuner=TUNER)
        return place

    def begin_or_go_on(self) -> int:
        """Do what a person does: go on where there is a search of this folder, or begin one."""
        signal.signal(signal.SIGINT, signal.default_int_handler)  # also from a background job
        os.environ.update(environment(self.home))
        words = ["--config", "config.yml", "--no_probe"]
        with contextlib.suppress(UserError):
            words = ["--resume", newest_search(load_engine("nni"), None).id]
        return search.main([*words, "--port", "19200"])

    def read(self, place: Path) -> dict[str, str]:
        """Return what each learning rate and the vote came to."""
        found = {}
        with (place / "results.csv").open(newline="") as file:
            rows = [
                row
                for row in csv.DictReader(file)
                if row["run"].startswith(only_experiment(place).name)
            ]
        for row in rows:
            assert row["lr"] not in found, f"two trials of the rate {row['lr']}"
            ballot = (place / "outputs" / f"{row['run']}.csv").read_bytes()
            found[row["lr"]] = (
                f"{row['status']} {row['score']} {row['epochs']} "
                f"{hashlib.sha256(ballot).hexdigest()}"
            )
        with (place / "ensemble/soft.csv").open(newline="") as file:
            first, *rest = csv.reader(file)
            probs = [[name, *(f"{float(p):.6f}" for p in cells)] for name, *cells in rest]
        found["vote"] = "\n".join(map(",".join, [first, *probs]))
        found["answer"] = (place / "ensemble/submission.csv").read_text()
        return found

    def mends(self, name: Path) -> bool:
        """The table and the vote are made anew; nobody trains anew what has ended."""
        return name.parts[0] in ("results.csv", "ensemble")

    def finish(self, place: Path) -> None:
        """Go on, demand the undisturbed result, and that nothing runs any more."""
        super().finish(place)
        deadline = time.monotonic() + 10
        while left := [
            word
            for word in PARTS
            if word != "ballot.preload.server" and process_of(self.home, word)
        ]:
            assert time.monotonic() < deadline, f"{left} still run"
            time.sleep(0.1)

    def end_all(self, but: str | None = None) -> None:
        """SIGKILL of everything that a search has started."""
        for process in managers_and_trials(self.home):
            with contextlib.suppress(psutil.Error):
                if but is None or but not in process.cmdline():
                    process.kill()

    close = end_all

    def end(self, child: Child) -> None:
        """Wait until search.py has seen that something is wrong, or has come to its end."""
        if not child.wait(150):
            child.kill()
            raise AssertionError(f"hung: {child.words[-500:]}")
        assert "Traceback" not in child.words, child.words


def parts_die(scene: SmallSearch, rng: random.Random) -> None:
    """SIGKILL of one or two parts: the manager, the tuner, a trial, what forks trials."""
    place = scene.fresh()
    child = start(scene.task, place, scene.said)
    for part in rng.sample(list(PARTS), rng.randint(1, 2)):
        deadline = time.monotonic() + 60
        while not process_of(scene.home, part) and time.monotonic() < deadline:
            if child.wait(0.1):
                break
        child.wait(rng.uniform(0, PARTS[part]))
        if found := process_of(scene.home, part):
            with contextlib.suppress(psutil.Error):
                rng.choice(found).kill()
    scene.end(child)
    scene.finish(place)


def power_fails(scene: SmallSearch, rng: random.Random) -> None:
    """SIGKILL of everything at once."""
    place = scene.fresh()
    child = start(scene.task, place, scene.said)
    child.wait(rng.uniform(0, scene.seconds))
    child.kill()
    scene.end_all()
    scene.finish(place)


def interrupted(scene: SmallSearch, rng: random.Random) -> None:
    """Ctrl-C, or the SIGTERM of a machine that is shut down."""
    place = scene.fresh()
    child = start(scene.task, place, scene.said)
    if not child.wait(rng.uniform(0.5, scene.seconds)):
        os.kill(child.pid, rng.choice((signal.SIGINT, signal.SIGTERM)))
    scene.end(child)
    scene.finish(place)


SEARCH_FAULTS = (
    parts_die,
    parts_die,
    parts_die,
    power_fails,
    interrupted,
    scenarios.killed,
    scenarios.two_at_once,
    scenarios.file_is_cut,
    scenarios.clock_jumps,
    scenarios.write_fails,
)
