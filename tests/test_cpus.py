"""Cores as the kernel's files tell of them, and their division among trials."""

import os
import sys

import pytest

from ballot import cpus
from ballot.engines.nni.engine import threads_for

linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's files are Linux's")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 8 processors that are 4 cores, without a container."""
    for number in range(8):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{number % 4},{number % 4 + 4}\n")
    monkeypatch.setattr(cpus, "CPUS", tmp_path)
    monkeypatch.setattr(cpus, "QUOTAS", (tmp_path / "cpu.max", tmp_path / "cpu.cfs_quota_us"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return tmp_path


@linux
@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("at_once, threads", [(1, 4), (2, 2), (3, 1), (4, 1), (100, 1)])
def test_trials_at_once_share_the_cores(at_once, threads):
    assert cpus.threads_each(at_once) == threads


@linux
@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("allowed, number", [({0, 4}, 1), ({0, 1, 5}, 2), ({7}, 1)])
def test_hyperthreads_are_one_core_and_what_is_not_allowed_is_none(monkeypatch, allowed, number):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed)
    assert cpus.count_cores() == number


@linux
@pytest.mark.parametrize(
    "text, number", [("250000 100000", 2), ("50000 100000", 1), ("max 100000", 4)]
)
def test_a_containers_quota_counts(machine, text, number):
    (machine / "cpu.max").write_text(text)
    assert cpus.count_cores() == number


@linux
@pytest.mark.parametrize("quota, number", [("300000", 3), ("-1", 4)])
def test_an_older_containers_quota_counts(machine, quota, number):
    (machine / "cpu.cfs_quota_us").write_text(quota)
    (machine / "cpu.cfs_period_us").write_text("100000")
    assert cpus.count_cores() == number


@linux
def test_where_nothing_is_told_each_processor_is_a_core(machine, monkeypatch):
    monkeypatch.setattr(cpus, "CPUS", machine / "none")
    assert cpus.count_cores() == 8


@linux
@pytest.mark.usefixtures("machine")
def test_a_search_tells_its_trials_unless_a_person_has(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads_for(2) == {"OMP_NUM_THREADS": "2"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_for(2) == {}
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert threads_for(2) == {"OMP_NUM_THREADS": "2"}


@pytest.mark.parametrize(
    "text, told",
    [("", None), (" ", None), ("x", None), ("0", None), ("-1", None), ("4", 4), ("4,2", 4)],
)
def test_what_a_person_says_of_threads(monkeypatch, text, told):
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert cpus.threads_told() == told
