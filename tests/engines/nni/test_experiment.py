"""NNI's list of searches, and the processes that belong to one."""

import dataclasses
import json
import os
import sqlite3
import subprocess
import sys
import time

import psutil
import pytest

from ballot.engines.choose import find_search, newest_search
from ballot.engines.interface import Status
from ballot.engines.nni import portal, processes, profile
from ballot.engines.nni.engine import NniEngine
from ballot.engines.nni.experiment import NniSearch, known_searches
from ballot.errors import UserError
from ballot.search import status

PARAMS = {
    "trialCommand": "python train.py --out_dir runs",
    "trialCodeDirectory": "/code",
    "maxTrialNumber": 4,
    "trialConcurrency": 1,
    "tuner": {"classArgs": {"optimize_mode": "maximize"}},
}


def add_search(home, name, began, note=None, pid=None):
    """Make a search as NNI leaves it, in a home's list."""
    folder = home / "nni" / name
    (folder / "db").mkdir(parents=True)
    with sqlite3.connect(folder / "db" / "nni.sqlite") as db:
        db.execute("CREATE TABLE ExperimentProfile (params, execDuration, revision)")
        db.execute("INSERT INTO ExperimentProfile VALUES ('{}', 1, 1)")
        db.execute("INSERT INTO ExperimentProfile VALUES (?, 60, 2)", (json.dumps(PARAMS),))
    if note:
        (folder / "search.json").write_text(json.dumps(note))
    path = home / "nni-experiments" / ".experiment"
    path.parent.mkdir(exist_ok=True)
    entries = json.loads(path.read_text()) if path.exists() else {}
    entries[name] = {"logDir": str(home / "nni"), "startTime": began, "port": 1, "pid": pid}
    path.write_text(json.dumps(entries))
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_newest_search_is_that_of_the_folder_or_of_the_configuration(home):
    here = str(home)
    add_search(home, "old", 1000, {"folder": here, "config": "/c/a.yml"})
    add_search(home, "new", 3000, {"folder": here, "config": "/c/b.yml"})
    add_search(home, "elsewhere", 4000, {"folder": "/x", "config": "/c/c.yml"})
    add_search(home, "foreign", 5000)
    assert newest_search(NniEngine(), None).id == "new"
    assert newest_search(NniEngine(), "/c/a.yml").id == "old"
    assert find_search(NniEngine(), "foreign").id == "foreign"
    with pytest.raises(UserError, match=r"no search of /c/none\.yml"):
        newest_search(NniEngine(), "/c/none.yml")
    with pytest.raises(UserError, match="--list shows all"):
        find_search(NniEngine(), "none")


@pytest.mark.parametrize("params", [None, '{"trialCommand": "pyth', "[]", 5])
def test_a_damaged_record_of_a_search_is_one_clear_line(home, params):
    folder = add_search(home, "cut", 1000, {"folder": str(home)})
    with sqlite3.connect(folder / "db" / "nni.sqlite") as db:
        db.execute("UPDATE ExperimentProfile SET params = ?", (params,))
    with pytest.raises(UserError, match="cut: holds no search that can be read"):
        find_search(NniEngine(), "cut").plan()


def test_a_search_of_an_older_version_is_refused_in_one_line(home):
    folder = add_search(home, "old", 1000, {"folder": str(home)})
    params = {**PARAMS, "trialCommand": "python3 -m harness.preload train.py"}
    with sqlite3.connect(folder / "db" / "nni.sqlite") as db:
        db.execute("UPDATE ExperimentProfile SET params = ?", (json.dumps(params),))
    with pytest.raises(UserError, match="search old: was started by an older version"):
        find_search(NniEngine(), "old").plan()


def test_without_nnis_list_there_are_no_searches(home):
    assert known_searches() == []
    (home / "nni-experiments").mkdir()
    (home / "nni-experiments" / ".experiment").write_text("{")
    assert known_searches() == []
    assert status.list_lines([]) == ["no search has been started yet"]


def test_the_list_shows_our_searches_and_counts_the_others(home):
    add_search(home, "ours", 1000, {"folder": str(home)})
    add_search(home, "foreign", 2000)
    lines = status.list_lines(known_searches())
    assert len(lines) == 2 and "0/4 trials done" in lines[0] and "/code/runs" in lines[0]
    assert lines[1].startswith("besides, 1 ")
    assert not (home / "results.csv").exists()  # looking writes nothing


def test_a_process_that_took_the_pid_of_a_manager_is_not_it(home):
    add_search(home, "ours", 1000, {"folder": str(home)}, pid=os.getpid())
    (search,) = known_searches()
    assert not search.is_running() and search.status() == Status("gone")
    search.stop(), search.kill()  # neither ends this process


def test_the_last_revision_of_a_configuration_counts_and_can_be_changed(home):
    add_search(home, "ours", 1000)
    (search,) = known_searches()
    assert profile.read_profile(search.folder) == (PARAMS, 60.0)
    search.record(dataclasses.replace(search.plan(), max_trials=9, max_seconds=90.0))
    assert search.plan().max_trials == 9 and search.plan().max_seconds == 90.0


def test_a_search_is_watched_by_one_search_py_at_a_time(home):
    add_search(home, "ours", 1000)
    (search,) = known_searches()
    with search.watched(), pytest.raises(UserError, match="watches it"), search.watched():
        pass
    with search.watched():
        pass


def sleeper(code="import time; print(flush=True); time.sleep(60)", **env):
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, **env}, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    return process


def test_what_a_search_left_running_is_ended_and_nothing_else(home):
    mine = f"mine{os.getpid()}"  # all processes of the machine are looked at
    folder = home / "nni" / mine
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print(flush=True); time.sleep(60)"
    )
    trial, deaf = sleeper(NNI_EXP_ID=mine), sleeper(stubborn, NNI_EXP_ID=mine)
    tuner = sleeper(NNI_LOG_DIRECTORY=str(folder / "log"))
    other = sleeper(NNI_EXP_ID="other", NNI_LOG_DIRECTORY=str(home / "nni" / "other" / "log"))
    try:
        began = time.monotonic()
        assert processes.end_processes(mine, folder, 1.0) == 3
        assert time.monotonic() - began < 20
        assert not any(psutil.pid_exists(p.pid) for p in (trial, tuner, deaf))
        assert other.poll() is None
    finally:
        for process in (trial, deaf, tuner, other):
            process.kill()
            process.wait(5)


def test_a_manager_that_accepts_and_says_nothing_is_silent(tmp_path, monkeypatch):
    import socket

    monkeypatch.setattr(portal, "ANSWER_S", 0.2)
    script = tmp_path / "main.js"
    script.write_text("import time; print(flush=True); time.sleep(60)")
    process = subprocess.Popen(
        [sys.executable, str(script), "--experiment-id", "mine"], stdout=subprocess.PIPE
    )
    process.stdout.readline()
    try:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            search = NniSearch("mine", tmp_path, server.getsockname()[1], process.pid)
            assert search.status() == Status("silent")
        process.kill()
        assert search.status().state in ("gone", "silent")  # until it is reaped
        process.wait(5)
        assert search.status() == Status("gone")
    finally:
        process.kill()
        process.wait(5)


def test_retries_and_the_tuners_last_error_are_read_from_nnis_logs(tmp_path):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "nnictl_stderr.log").write_text(
        "x\n[ballot trials] trial aB1 crashed (exit 1); it runs once more\n"
        "[ballot trials] trial cD2 was killed; it runs once more\n"
    )
    (tmp_path / "log" / "dispatcher.log").write_text("Traceback\n  File x\nKeyError: 3\nbye\n")
    search = NniSearch("mine", tmp_path)
    assert search.retries() == {"aB1": "crashed (exit 1)", "cD2": "was killed"}
    assert search.tuner_error() == "KeyError: 3"
