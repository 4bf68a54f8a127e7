"""What is removed of a search, and when its disk is said to be short."""

import json
import shutil
from collections import namedtuple

import pytest

from ballot.runs import disk

Usage = namedtuple("Usage", "total used free")


def run(outputs, name, score, status="done"):
    folder = outputs / name
    (folder / "fold0").mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"status": status, "score": score}))
    for file in ("best.pt", "last.pt", "fold0/best.pt", "val.csv"):
        (folder / file).write_bytes(b"x" * 1000)
    return folder


def with_checkpoints(outputs):
    return sorted(f.name for f in outputs.iterdir() if (f / "best.pt").exists())


@pytest.fixture
def outputs(tmp_path):
    for name, score in (("a", 0.5), ("b", 0.9), ("c", 0.7), ("d", None)):
        run(tmp_path, name, score)
    run(tmp_path, "e", 0.1, "running")
    return tmp_path


@pytest.mark.parametrize(
    ("keep", "maximize", "left"),
    [(1, True, "be"), (2, True, "bce"), (1, False, "ae"), (9, True, "abcde"), (0, True, "e")],
)
def test_the_best_keep_their_checkpoints_and_so_do_those_that_run(outputs, keep, maximize, left):
    disk.Pruner(keep, maximize=maximize).prune(sorted(outputs.iterdir()))
    assert with_checkpoints(outputs) == list(left)


def test_nothing_but_checkpoints_is_removed_and_a_second_time_nothing(outputs):
    pruner = disk.Pruner(0, maximize=True)
    removed = pruner.prune(sorted(outputs.iterdir()))
    assert {path.suffix for path in removed} == {".pt"} and len(removed) == 4 * 3
    assert (outputs / "a" / "val.csv").exists() and (outputs / "a" / "result.json").exists()
    assert pruner.prune(sorted(outputs.iterdir())) == []


@pytest.mark.parametrize("maximize", [True, False])
def test_runs_that_end_one_by_one_leave_what_all_at_once_leave(tmp_path, maximize):
    scores = [0.3, 0.9, None, 0.5, 0.5, 0.1, 0.95, 0.2]
    for way in ("one", "all"):
        for k, score in enumerate(scores):
            run(tmp_path / way, f"r{k}", score, "running" if k == 6 else "done")
    pruner = disk.Pruner(2, maximize=maximize)
    folders = sorted((tmp_path / "one").iterdir())
    for number in range(1, len(folders) + 1):
        pruner.prune(folders[:number])
    disk.Pruner(2, maximize=maximize).prune(sorted((tmp_path / "all").iterdir()))
    assert with_checkpoints(tmp_path / "one") == with_checkpoints(tmp_path / "all")
    assert len(with_checkpoints(tmp_path / "one")) == 3  # that which runs too


def test_what_was_surpassed_is_not_looked_at_again(outputs):
    pruner = disk.Pruner(1, maximize=True)
    pruner.prune([outputs / "a", outputs / "b"])
    (outputs / "a" / "result.json").write_text('{"status": "done", "score": 1.0}')
    assert pruner.prune([outputs / "a", outputs / "b", outputs / "c"])
    assert with_checkpoints(outputs) == ["b", "d", "e"]


def test_a_short_disk_is_said_before_it_is_full(outputs, monkeypatch):
    folders = [outputs / name for name in "abc"]
    size = sum(path.lstat().st_size for path in folders[0].rglob("*"))

    def free(number):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, number))
        return disk.shortage(outputs, folders, left=10)

    assert free(disk.RESERVE + 10 * size) == ""
    said = free(disk.RESERVE + 10 * size - 1)
    assert "room for about 9 more trials" in said and "10 are to come" in said


def test_the_size_of_the_last_trials_judges_those_to_come(tmp_path, monkeypatch):
    old, new = ([tmp_path / f"{word}{k}" for k in range(disk.LATEST)] for word in "on")
    for folder in [*old, *new]:
        folder.mkdir()
        (folder / "best.pt").write_bytes(b"x" * (10**6 if folder in old else 1000))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, disk.RESERVE + 10**5))
    assert disk.shortage(tmp_path, [*old, *new], left=10) == ""
    assert disk.shortage(tmp_path, [*new, *old], left=10) != ""


def test_without_a_trial_that_ended_only_a_nearly_full_disk_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, disk.RESERVE))
    assert disk.shortage(tmp_path, [], left=100) == ""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 1000))
    assert "0.0 GiB are free" in disk.shortage(tmp_path, [], left=100)
    assert disk.shortage(tmp_path / "gone" / "by", [], left=1) is not None
