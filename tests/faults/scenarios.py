"""What may happen to any work, and three kinds of it: a trial, the cache of photos, the vote. Each
fault disturbs once, checks that what stands under its own name is whole, runs again, and compares
with the undisturbed result."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import ensemble
import train
from tests.faults.processes import damaged, run, start

TRIAL = [
    "--epochs",
    "3",
    "--dataset",
    "dummy",
    "--dataset_args.rows",
    "80",
    "--image_size",
    "16",
    "--batch_size",
    "32",
    "--no_tensorboard",
    "--run_name",
    "run",
]
PHOTOS = [
    "--epochs",
    "1",
    "--data_dir",
    "photos",
    "--cache",
    "kept",
    "--image_size",
    "16",
    "--batch_size",
    "32",
    "--no_tensorboard",
    "--run_name",
    "run",
]
ANSWERS = ("run.csv", "run/val.csv", "run/history.csv")


class Scene:
    """Folders of one kind of work, with the result and the seconds that it has undisturbed."""

    def __init__(self, folder: Path, task: Callable[[], int], answers: Sequence[str] = ()) -> None:
        self.folder, self.task, self.answers = folder, task, answers
        self.count = 0
        (folder / "given").mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        place = self.fresh("undisturbed")
        child = run(task, place, self.said)
        assert child.status == 0, child.words
        self.seconds = time.monotonic() - began
        self.expected = self.read(place)

    @property
    def said(self) -> Path:
        """The file of what the last of them said."""
        return self.folder / "said"

    def fresh(self, name: str | None = None) -> Path:
        """Return a folder in which nothing has run yet."""
        self.count += 1
        place = self.folder / (name or f"{self.count}")
        shutil.copytree(self.folder / "given", place)
        return place

    def read(self, place: Path) -> dict[str, str]:
        """Return the answers without what is never twice the same."""
        found = {}
        for name in self.answers:
            text = (place / name).read_text(encoding="utf-8")
            rows = [line.split(",") for line in text.splitlines()]
            drop = {i for i, cell in enumerate(rows[0]) if cell in ("seconds", "images_per_second")}
            found[name] = "\n".join(
                ",".join(c for i, c in enumerate(row) if i not in drop) for row in rows
            )
        return found

    def mends(self, name: Path) -> bool:
        """Whether another run makes this file again as it was."""
        return str(name) in self.answers and name.name != "history.csv"  # nobody knows it any more

    def check(self, place: Path) -> None:
        """Demand that what stands under its own name is whole."""
        assert not (bad := damaged(place)), bad

    def finish(self, place: Path) -> None:
        """Run once more, and demand the undisturbed result."""
        self.check(place)
        child = run(self.task, place, self.said)
        assert child.status == 0, child.words
        found = self.read(place)
        other = {
            name: [str(told.get(name))[:100] for told in (self.expected, found)]
            for name in self.expected | found
            if found.get(name) != self.expected.get(name)
        }
        assert not other, f"the result is another one: {other}"
        self.check(place)

    def close(self) -> None:
        """End what still runs of it."""


def trial_scene(folder: Path) -> Scene:
    """Make a trial of three epochs that resumes where it can."""
    words = [*TRIAL, "--out_dir", ".", "--resume", "auto"]
    return Scene(folder, lambda: train.main(words), ANSWERS)


def photo_scene(folder: Path) -> Scene:
    """Make a trial on image files, which are decoded into a cache first."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        for number in range(60):
            path = folder / "given" / "photos" / "train" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(path)
    words = [*PHOTOS, "--out_dir", ".", "--resume", "auto"]
    return Scene(folder, lambda: train.main(words), ("run/val.csv", "run/history.csv"))


def vote_scene(folder: Path) -> Scene:
    """Make a vote over eight ballots."""
    rng = np.random.default_rng(0)
    given = folder / "given"
    given.mkdir(parents=True)
    for number in range(8):
        probs = rng.dirichlet(np.ones(5), 400)
        rows = (f"row{i}," + ",".join(f"{p:.6f}" for p in row) for i, row in enumerate(probs))
        (given / f"m{number}.csv").write_text("\n".join(["id,a,b,c,d,e", *rows]) + "\n")
    names = [f"m{number}.csv" for number in range(8)]
    task = lambda: ensemble.main([*names, "--out_dir", "vote"])  # noqa: E731
    return Scene(folder, task, ("vote/soft.csv", "vote/submission.csv"))


def killed(scene: Scene, rng: random.Random) -> None:
    """SIGKILL at a random moment, up to three times."""
    place = scene.fresh()
    for _ in range(rng.randint(1, 3)):
        child = start(scene.task, place, scene.said)
        if not child.wait(rng.uniform(0, 1.1 * scene.seconds)):
            child.kill()
        scene.check(place)
    scene.finish(place)


def write_fails(scene: Scene, rng: random.Random) -> None:
    """A random fsync reports a full disk or an error of the device."""
    place, number = scene.fresh(), rng.randint(1, 12)
    code = rng.choice((errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS))
    sync = os.fsync

    def task() -> int:
        calls = iter(range(1, 10**6))

        def fsync(descriptor: int) -> None:
            if next(calls) >= number:
                raise OSError(code, os.strerror(code))
            sync(descriptor)

        os.fsync = fsync
        return scene.task()

    child = run(task, place, scene.said)
    assert child.status in (0, 1, 2) and "Traceback" not in child.words, child.words
    scene.check(place)
    shutil.rmtree(place / "run", ignore_errors=True)  # a trial that ended with less is not resumed
    scene.finish(place)


def too_large(scene: Scene, rng: random.Random) -> None:
    """No file may grow beyond a random size."""
    place, size = scene.fresh(), int(10 ** rng.uniform(2, 6))

    def task() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        return scene.task()

    child = run(task, place, Path(os.devnull))  # what it says would not fit either
    assert child.status in (0, 1, 2), child.status
    scene.check(place)
    shutil.rmtree(place / "run", ignore_errors=True)
    scene.finish(place)


def clock_jumps(scene: Scene, rng: random.Random) -> None:
    """The clock goes an hour or a year forth or back while it runs, and then it is killed."""
    place, jump = scene.fresh(), rng.choice((-1, 1)) * rng.choice((3600.0, 365 * 86400.0))
    now, at = time.time, time.monotonic() + rng.uniform(0, scene.seconds)

    def task() -> int:
        time.time = lambda: now() + (jump if time.monotonic() > at else 0.0)
        return scene.task()

    child = start(task, place, scene.said)
    if not child.wait(rng.uniform(0.3, 2) * scene.seconds):
        child.kill()
    scene.finish(place)


def two_at_once(scene: Scene, rng: random.Random) -> None:
    """Two of them on one folder: one does it, the other waits or says in a line that it cannot."""
    place = scene.fresh()
    first = start(scene.task, place, scene.said)
    time.sleep(rng.uniform(0, scene.seconds))
    second = run(scene.task, place, scene.folder / "said2")
    if not first.wait(120):
        first.kill()
        raise AssertionError("hung")
    statuses = {first.status, second.status}
    assert 0 in statuses and statuses <= {0, 2}, (first.words, second.words)
    assert "Traceback" not in first.words + second.words, (first.words, second.words)
    scene.finish(place)


def file_is_cut(scene: Scene, rng: random.Random) -> None:
    """A file that was written is cut or vanishes: one clear line, or the same result."""
    place = scene.fresh()
    child = run(scene.task, place, scene.said)
    assert child.status == 0, child.words
    given = {
        path.relative_to(scene.folder / "given") for path in (scene.folder / "given").rglob("*")
    }
    files = [
        path
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.relative_to(place) not in given
    ]
    victim = rng.choice(files)
    if rng.random() < 0.5:
        victim.unlink()
    else:
        os.truncate(victim, rng.randint(0, victim.stat().st_size))
    child = run(scene.task, place, scene.said)
    name = victim.relative_to(place)
    assert "Traceback" not in child.words, f"{name}: {child.words}"
    assert child.status in (0, 2), f"{name}: {child.words}"
    if child.status == 2:
        assert child.words.count("error:") == 1, f"{name}: {child.words}"
    elif scene.mends(name):
        assert scene.read(place) == scene.expected, f"{name}: the result is another one"


FAULTS = (killed, write_fails, too_large, clock_jumps, two_at_once, file_is_cut)
SCENES = {"trial": trial_scene, "photos": photo_scene, "vote": vote_scene}
