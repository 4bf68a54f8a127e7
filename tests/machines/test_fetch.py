"""Results that come home: whole or not at all, once, and nothing but what they should be."""

import errno
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from searches_for_tests import wait_for

from ballot.config.out_dir import outputs_of
from ballot.engines.nni import remote
from ballot.engines.nni.remote import ON_MACHINE
from ballot.engines.nni.sent.on_machine import listening, sweep
from ballot.errors import UserError
from ballot.machines import fetch
from ballot.machines.fetch import Collector, Source
from ballot.machines.machine import Machine
from ballot.machines.ssh import Link
from ballot.machines.ssh_errors import Unreachable
from ballot.runs.trials import TrialRecord

OUT = "$HOME/nni-experiments/$NNI_EXP_ID/outputs"


class HereLink(Link):
    """A machine that is a home on this one; the commands are those of a real one."""

    def __init__(self, home, name="gpu1"):
        super().__init__(Machine(name, python=sys.executable))
        self.home, self.is_out = home, False
        home.mkdir(exist_ok=True)

    @property
    def environment(self):
        return {**os.environ, "HOME": str(self.home)}

    def open(self, interactive=False):  # noqa: ARG002
        if self.is_out:
            raise Unreachable(f"{self.name}: Connection refused")

    def words_for(self, command):
        return ["sh", "-c", command]


def make_run(home, name, status="done", **files):
    run = home / "nni-experiments/x/outputs" / name
    run.mkdir(parents=True)
    contents = {
        "result.json": json.dumps({"status": status}),
        "history.csv": "epoch\n1\n",
        "best.pt": "weights of " + name,
        "last.pt": "all of " + name,
        **files,
    }
    for file, text in contents.items():
        (run / file).parent.mkdir(exist_ok=True)
        (run / file).write_text(text)
    run.with_name(f"{name}.csv").write_text(f"id,a,b\n{name},0.5,0.5\n")
    return run


def trial(name, sequence, score=None, machine="gpu1", status="succeeded"):
    return TrialRecord(name, sequence, status, final=score, machine=machine)


@pytest.fixture
def link(tmp_path):
    return HereLink(tmp_path / "home")


@pytest.fixture
def collector(link, tmp_path):
    return Collector(Source("x", [link], OUT, tmp_path / "outputs", tmp_path / "logs", ON_MACHINE))


def test_runs_come_home_as_they_are_with_the_weights_of_the_best_alone(link, collector, tmp_path):
    files = {"fold0/best.pt": "w", "empty": "", "also-empty": ""}
    runs = [make_run(link.home, "x-000-a", **files), make_run(link.home, "x-001-b")]
    make_run(link.home, "y-000-a")
    assert collector.finish([trial("a", 0, 0.9), trial("b", 1, 0.7), trial("c", 2, None)]) == []
    home = tmp_path / "outputs"
    for run in runs:
        assert (home / f"{run.name}.csv").read_bytes() == run.with_name(
            f"{run.name}.csv"
        ).read_bytes()
    best = {str(p.relative_to(home)) for p in home.rglob("*") if p.is_file()}
    own = {"best.pt", "fold0/best.pt", "empty", "also-empty", "result.json", "history.csv"}
    assert best == {"x-000-a.csv", "x-001-b.csv", "x-001-b/result.json", "x-001-b/history.csv"} | {
        f"x-000-a/{name}" for name in own
    }
    assert sorted(collector.brought) == ["x-000-a", "x-001-b"]
    again = Collector(collector.source, checkpoints=2)
    assert again.finish([trial("a", 0, 0.9), trial("b", 1, 0.7)]) == []
    assert again.brought == ["x-001-b"] and (home / "x-001-b/best.pt").is_file()


def test_weights_that_are_surpassed_on_the_way_do_not_stay(link, collector, tmp_path):
    make_run(link.home, "x-000-a")
    first, second = trial("a", 0, 0.6), trial("b", 1, 0.8)
    collector.finish([first], over=False)
    assert (tmp_path / "outputs/x-000-a/best.pt").exists()
    make_run(link.home, "x-001-b")
    assert collector.finish([first, second]) == []
    assert [p.parent.name for p in tmp_path.glob("outputs/*/best.pt")] == ["x-001-b"]


def test_a_trial_is_fetched_when_it_has_ended_and_again_when_it_has_gone_on(link, collector):
    run = make_run(link.home, "x-000-a", status="stopped")
    running = trial("a", 0, status="running")
    assert collector.finish([running], over=False) == [] and collector.brought == []
    assert collector.finish([running]) == [] and collector.brought == ["x-000-a"]
    (run / "result.json").write_text('{"status": "done"}')
    later = Collector(collector.source)
    later.finish([trial("a", 0, 0.5)])
    home = collector.source.outputs / "x-000-a/result.json"
    assert json.loads(home.read_text()) == {"status": "done"}


def test_what_runs_is_kept_with_all_its_checkpoints_until_it_has_ended(
    link, collector, tmp_path, monkeypatch
):
    monkeypatch.setattr(fetch, "KEEP_S", 0.0)
    run = make_run(link.home, "x-000-a", status="running")
    running = trial("a", 0, status="running")
    running.scores = [0.5]
    kept = tmp_path / "outputs/.collect/running/x-000-a"
    collector.update([running])
    wait_for((kept / "result.json").exists, "what is kept", 20)
    assert (kept / "last.pt").read_text() == (run / "last.pt").read_text()
    assert not (tmp_path / "outputs/x-000-a").exists() and collector.brought == []
    (run / "result.json").write_text('{"status": "done"}')
    assert collector.finish([trial("a", 0, 0.5)]) == []
    assert not (tmp_path / "outputs/.collect").exists()
    assert not (tmp_path / "outputs/x-000-a/last.pt").exists()


def test_a_part_goes_on_where_it_was_interrupted_and_a_wrong_one_begins_anew(link, tmp_path):
    big, other = "0123456789" * 50_000, "abc" * 100_000
    run = make_run(link.home, "x-000-a", **{"big.bin": big, "other.bin": other})
    stage = tmp_path / "outputs/.collect/x-000-a"
    stage.mkdir(parents=True)

    def part(name, text):
        digest = hashlib.sha256(text.encode()).hexdigest()
        return fetch.part_of(stage, name, digest)

    part("big.bin", big).write_text(big[:300_000])
    part("other.bin", other).write_text("x" * 1000)
    asked = []

    def send(*args, **how):
        asked.append(args)
        return Link.spawn(link, *args, **how)

    link.spawn = send
    fetch.bring_run(link, ON_MACHINE, "x-000-a", str(run), tmp_path / "outputs", "")
    assert (tmp_path / "outputs/x-000-a/big.bin").read_text() == big
    assert (tmp_path / "outputs/x-000-a/other.bin").read_text() == other
    assert len(asked) == 3  # the list, what was missing, and what had begun wrongly
    assert not (tmp_path / "outputs/.collect").exists()


def test_a_stream_that_ends_early_leaves_a_part_and_no_file(tmp_path):
    whole = (10).to_bytes(8, "big") + b"0123456789"
    with pytest.raises(EOFError):
        fetch.receive(io.BytesIO(whole[:13]).read, tmp_path / "part", 0)
    assert (tmp_path / "part").read_bytes() == b"01234"
    rest = (5).to_bytes(8, "big") + b"56789"
    fetch.receive(io.BytesIO(rest).read, tmp_path / "part", 5)
    assert (tmp_path / "part").read_bytes() == b"0123456789"


def test_who_waits_for_a_folder_of_parts_gets_one_that_is_there(tmp_path):
    found = []

    def wait():
        with fetch.staging(tmp_path, "x-000-a") as stage:
            found.append(stage.is_dir())

    with fetch.staging(tmp_path, "x-000-a"):
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.3)
        assert found == []
    waiting.join(5)
    assert found == [True] and not (tmp_path / ".collect").exists()


def test_a_disk_that_is_full_here_is_no_broken_connection(link, collector, monkeypatch):
    make_run(link.home, "x-000-a")

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    (line,) = collector.finish([trial("a", 0, 0.5)])
    assert "could not be brought home" in line and "No space left on device" in line


OUTSIDE = (
    "../x-001-b.csv",
    "../../x",
    "/etc/passwd",
    "a/../../b",
    "a//b",
    "",
    ".",
    "..",
    ".ssh/id",
    "a\nb",
    "a b",
    "./a",
    "-rf",
)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leaves_its_folder_is_refused(name):
    with pytest.raises(UserError, match="not a file of x-000-a"):
        fetch.checked_names({name: [1, "0" * 64]}, "x-000-a", "gpu1")


def test_names_and_the_ballots_of_a_run_are_taken():
    files = {"a.csv": [1, "0" * 64], "fold0/b_1.pt": [2, "f" * 64], "../x-000-a.csv": [3, "a" * 64]}
    assert fetch.checked_names(files, "x-000-a", "gpu1") == {k: tuple(v) for k, v in files.items()}
    with pytest.raises(UserError, match="invalid size or hash"):
        fetch.checked_names({"a": ["1", "0" * 64]}, "x-000-a", "gpu1")


def test_links_on_a_machine_stay_there(link, collector, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("key")
    run = make_run(link.home, "x-000-a")
    (run / "link.txt").symlink_to(secret)
    (run.parent / "x-001-b").symlink_to(tmp_path)
    assert collector.finish([trial("a", 0, 0.5), trial("b", 1, 0.4)]) == []
    assert not (tmp_path / "outputs/x-000-a/link.txt").exists()
    assert not (tmp_path / "outputs/x-001-b").exists()


def test_what_a_machine_that_is_out_has_is_said_and_comes_later(link, collector):
    make_run(link.home, "x-000-a")
    link.is_out = True
    lines = collector.finish([trial("a", 0, 0.5), trial("b", 1, machine=None)])
    assert lines == ["1 trial of gpu1 could not be brought home (Connection refused)"]
    link.is_out = False
    assert collector.finish([trial("a", 0, 0.5)]) == []
    link.is_out = True  # what is here is not missed
    assert Collector(collector.source).finish([trial("a", 0, 0.5)]) == []


def test_a_file_that_is_damaged_on_the_way_is_no_result(link, collector, tmp_path):
    run = make_run(link.home, "x-000-a")
    spawn = link.spawn

    def damaged(command, **how):
        process = spawn(command, **how)
        (run / "history.csv").write_text(f"{time.time()}")
        return process

    link.spawn = damaged
    (line,) = collector.finish([trial("a", 0, 0.5)])
    assert "history.csv does not arrive as it is there" in line
    assert not (tmp_path / "outputs/x-000-a/result.json").exists()


def test_the_last_words_of_a_trial_that_left_no_run_come_too(link, collector, tmp_path):
    place = link.home / "nni-experiments/x/environments/remote-worker1/trials/a"
    place.mkdir(parents=True)
    (place / "trial.stderr").write_text("Traceback\nValueError: it is so\n")
    assert collector.finish([trial("a", 0, status="failed")]) == []
    said = tmp_path / "logs/environments/remote-worker1/trials/a/trial.stderr"
    assert "it is so" in said.read_text()


def test_a_machine_that_nni_names_by_its_host_alone_is_found(tmp_path):
    links = [HereLink(tmp_path / "1", "a:22"), HereLink(tmp_path / "2", "a:23")]
    for link in links:
        object.__setattr__(link.machine, "host", "a")
    assert fetch.links_of(trial("t", 0, machine="a:23"), links) == [links[1]]
    assert fetch.links_of(trial("t", 0, machine="a"), links) == links
    assert fetch.links_of(trial("t", 0, machine=None), links) == []


def test_relative_outputs_are_found_beside_nnis_copy_of_the_code(link):
    run = (
        link.home
        / "nni-experiments/x/environments/remote-worker2/upload/trial_code/outputs/x-000-a"
    )
    run.mkdir(parents=True)
    (run / "result.json").write_text('{"status": "done", "score": 0.5}')
    found = ON_MACHINE.ask(link, "runs", "x", "outputs")
    assert found["x-000-a"]["folder"] == str(run) and found["x-000-a"]["score"] == 0.5


def test_a_sweep_ends_the_trials_of_its_search_and_of_no_other():
    def sleeping(place):
        names = {**os.environ, "NNI_OUTPUT_DIR": f"/home/a/nni-experiments/{place}/trials/t"}
        return subprocess.Popen(["sleep", "60"], env=names)

    mine, elsewhere = (
        sleeping("swept/environments/remote-worker1"),
        sleeping("swept/environments/remote-worker2"),
    )
    others = sleeping("other/environments/remote-worker1")
    try:
        assert sweep("swept", "remote-worker1") == 1 and mine.wait(5) == -9
        assert elsewhere.poll() is None and sweep("swept") == 1
        assert elsewhere.wait(5) == -9 and others.poll() is None
    finally:
        for process in (mine, elsewhere, others):
            process.kill()
            process.wait()


def test_a_sweep_lets_a_trial_write_what_it_has(tmp_path):
    code = (
        "import pathlib, signal, sys, time\n"
        "def end(*_):\n"
        "    time.sleep(0.5)\n"
        f"    pathlib.Path({str(tmp_path / 'written')!r}).touch()\n"
        "    sys.exit(3)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(60)\n"
    )
    names = {**os.environ, "NNI_OUTPUT_DIR": "/h/nni-experiments/gently/environments/e/trials/t"}
    trial = subprocess.Popen([sys.executable, "-c", code], env=names)
    try:
        wait_for((tmp_path / "ready").exists, "the trial", 20)
        reaper = threading.Thread(target=trial.wait)
        reaper.start()
        assert sweep("gently", None, 10.0) == 1
        reaper.join(5)
        assert trial.returncode == 3 and (tmp_path / "written").exists()
    finally:
        trial.kill()


def test_the_addresses_that_a_process_listens_on_are_seen():
    with socket.create_server(("127.0.0.1", 0)) as near, socket.create_server(("", 0)) as far:
        ports = near.getsockname()[1], far.getsockname()[1]
        found = listening(os.getpid())
    assert {f"127.0.0.1:{ports[0]}", f"0.0.0.0:{ports[1]}"} <= set(found)


@pytest.mark.parametrize(
    "gpus, concurrency, slots",
    [
        ([0, 0], 2, [1, 1]),
        ([0, 0], 3, [2, 1]),
        ([8, 1], 9, [8, 1]),
        ([2, 1], 6, [4, 2]),
        ([1], 1, [1]),
        ([0, 4], 1, [1, 4]),
    ],
)
def test_slots_follow_the_gpus(gpus, concurrency, slots):
    assert remote.slots_of(gpus, concurrency) == slots


def test_trials_elsewhere_write_where_a_later_start_finds_it():
    command = remote.with_out_dir("python3 train.py --epochs 3")
    assert command.endswith('--out_dir "$HOME/nni-experiments/$NNI_EXP_ID/outputs"')
    assert remote.with_out_dir("python train.py --out-dir=x") == "python train.py --out-dir=x"
    assert outputs_of(command, "/code", elsewhere=True) == Path("/code/outputs")
    assert outputs_of("t --out_dir ~/r/runs", "/c", elsewhere=True) == Path("/c/runs")
    assert outputs_of("t --out_dir o", "/c", elsewhere=True) == Path("/c/o")
    assert outputs_of("t --out_dir /o", "/c") == Path("/o")
