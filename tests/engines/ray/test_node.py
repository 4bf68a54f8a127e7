"""A trial on a node and the receiver at home, in one process: what comes home, and what ends it."""

import asyncio
import concurrent.futures
import json
import os
import sys
import threading
import time

import pytest

from ballot.engines.ray import data
from ballot.engines.ray.node import Over, run_trial
from ballot.engines.ray.receiver import OVER, Receiver, checked
from ballot.errors import UserError
from ballot.machines.sent import facts

TRIAL = """
import json, os, pathlib, signal, sys, time
told = json.loads(pathlib.Path(os.environ["BALLOT_RAY_TRIAL"]).read_text())
sys.path.insert(0, {root!r})
from ballot.engines.ray.trial import find_trial
trial = find_trial()
run = pathlib.Path(sys.argv[-1]) / trial.name
run.mkdir(parents=True, exist_ok=True)
epoch = int((run / "last.pt").read_text()) if (run / "last.pt").exists() else 0
signal.signal(signal.SIGTERM, lambda *_: ((run / "result.json").write_text("stopped"), os._exit(3)))
while epoch < 3:
    epoch += 1
    (run / "last.pt").write_text(str(epoch))
    (run / "result.json").write_text(f"epoch {{epoch}}")
    trial.report_epoch(epoch / 10)
    {then}
(run / "last.pt").unlink()
(run / "best.pt").write_text("best")
run.with_name(f"{{run.name}}.csv").write_text("ballot")
(run / "result.json").write_text("done")
trial.report_final(0.3)
print("secret:", os.environ.get("RAY_AUTH_TOKEN"))
sys.exit(trial.parameters["status"])
"""
ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))  # noqa: PTH100, PTH118, PTH120


class Home:
    """The receiver without Ray: its methods in a loop of their own."""

    def __init__(self, receiver, attempt=1):
        self.receiver, self.attempt = receiver, attempt
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.ask("expect", "t1", attempt)
        self._order = self._submit("orders", "t1", attempt)

    def _submit(self, method, *args):
        return asyncio.run_coroutine_threadsafe(getattr(self.receiver, method)(*args), self.loop)

    def ask(self, method, *args):
        return self._submit(method, *args).result(10)

    def order(self, patience):
        try:
            return self._order.result(patience)
        except concurrent.futures.TimeoutError:  # before Python 3.11 another one than TimeoutError
            return None

    def put(self, *args):
        return self.ask("put", "t1", self.attempt, *args)

    def commit(self, *args):
        return self.ask("commit", "t1", self.attempt, *args)

    def report(self, said):
        return self.ask("report", "t1", self.attempt, said)

    def data_files(self):
        return self.ask("data_files", "t1", self.attempt)

    def data_piece(self, place):
        return self.ask("data_piece", "t1", self.attempt, place)

    def here(self, run):
        return self.ask("here", run)

    def get(self, *args):
        return self.ask("get", *args)


@pytest.fixture
def home(tmp_path):
    return Home(Receiver(str(tmp_path / "outputs")))


def job_of(tmp_path, then="pass", status=0):
    script = tmp_path / "trial.py"
    script.write_text(TRIAL.format(root=ROOT, then=then))
    return {
        "id": "t1",
        "search": "s",
        "sequence": 4,
        "attempt": 1,
        "parameters": {"status": status},
        "searched": ["status"],
        "has_gpus": False,
        "threads": 1,
        "command": f"{sys.executable} {script} {tmp_path / 'there'}",
    }


@pytest.fixture(autouse=True)
def its_own_folder(monkeypatch):
    """Let the script, which is not our train.py, write where a node lets train.py write."""
    from ballot.engines.ray import node

    started = node.Attempt._start

    def start(self, log):
        self._outputs.mkdir(exist_ok=True)
        self._job = {**self._job, "command": f"{self._job['command']} {self._outputs}"}
        return started(self, log)

    monkeypatch.setattr(node.Attempt, "_start", start)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the cluster")


def test_all_of_a_run_comes_home_and_nothing_stays(tmp_path, home, monkeypatch):
    places = tmp_path / "places"
    places.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(places))
    outcome = run_trial(job_of(tmp_path), home)
    assert outcome["exit"] == 0
    assert [said.get("score") for said in outcome["reports"]] == [0.1, 0.2, 0.3, None]
    run = tmp_path / "outputs" / "s-004-t1"
    assert {path.name for path in run.iterdir()} == {"best.pt", "result.json"}
    assert (run / "result.json").read_text() == "done"
    assert run.with_name("s-004-t1.csv").read_text() == "ballot"
    assert not (tmp_path / "outputs" / ".collect").exists()
    assert list(places.iterdir()) == []


def test_a_later_attempt_goes_on_where_the_first_one_was(tmp_path, home):
    run = tmp_path / "outputs" / "s-004-t1"
    run.mkdir(parents=True)
    (run / "last.pt").write_text("2")
    outcome = run_trial(job_of(tmp_path), home)
    assert [said.get("score") for said in outcome["reports"]] == [0.3, None]


def test_a_trial_that_goes_on_from_another_run_finds_its_files_and_sends_its_own(tmp_path, home):
    old = tmp_path / "outputs" / "s-001-t0"
    old.mkdir(parents=True)
    (old / "last.pt").write_text("2")
    take = "(run.parent / 's-001-t0' / 'last.pt').read_text() == '2' or sys.exit(9)"
    job = job_of(tmp_path, take)
    job["parameters"]["continues"] = "s-001-t0"
    assert run_trial({**job, "is_new": True}, home)["exit"] == 0
    assert [path.name for path in old.iterdir()] == ["last.pt"]
    assert (tmp_path / "outputs" / "s-004-t1" / "best.pt").exists()


def test_what_a_trial_has_so_far_comes_home_while_it_runs(tmp_path, home):
    run = tmp_path / "outputs" / "s-004-t1"
    then = "time.sleep(60) if epoch == 2 else None"
    thread = threading.Thread(target=run_trial, args=(job_of(tmp_path, then), home))
    thread.start()
    deadline = time.monotonic() + 20
    while not (run / "last.pt").exists() or (run / "last.pt").read_text() != "2":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    home.ask("order", "t1", "stop")
    thread.join(20)
    assert (run / "result.json").read_text() == "stopped"  # it was told, and could write


def test_an_attempt_that_another_one_follows_ends(tmp_path, home):
    caught = []

    def run():
        try:
            run_trial(job_of(tmp_path, "time.sleep(60)"), home)
        except Over as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not home.ask("news", 1.0):
        pass
    home.ask("expect", "t1", 2)
    thread.join(30)
    assert caught and not thread.is_alive()


def test_the_words_of_a_trial_that_fails_are_kept_and_hold_no_token(tmp_path, home):
    outcome = run_trial(job_of(tmp_path, status=1), home)
    assert outcome["exit"] == 1
    assert outcome["words"] == "secret: None\n"


@pytest.mark.parametrize("name", ["../other.csv", "/etc/passwd", "a/../../b", "", ".hidden"])
def test_a_name_that_leaves_the_runs_folder_is_refused(name):
    with pytest.raises(ValueError, match="is not a file of"):
        checked("s-004-t1", name)


def test_a_file_that_did_not_arrive_whole_takes_no_place(tmp_path, home):
    home.put("s-004-t1", "val.csv", 0, b"half")
    with pytest.raises(ValueError, match="did not arrive"):
        home.commit("s-004-t1", {"val.csv": 8}, [], {})
    assert not (tmp_path / "outputs" / "s-004-t1").exists()


def test_data_that_a_node_lacks_come_once_in_pieces_and_go(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(data, "PIECE", 10)
    here = tmp_path / "data"
    contents = {"a/large.jpg": bytes(range(25)), "a/empty.jpg": b"", "b/small.jpg": b"abc"}
    for name, content in contents.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(content)
    home = Home(Receiver(str(tmp_path / "outputs"), str(here)))
    assert data.data_folder(home, "has", str(here)) == here
    copied = data.data_folder(home, "lacks", "/nowhere")
    assert copied != here
    assert {n: (copied / n).read_bytes() for n in facts.listing(str(copied))} == contents
    (copied / "b" / "small.jpg").write_bytes(b"new")
    assert data.data_folder(home, "lacks", "/nowhere") == copied
    assert (copied / "b" / "small.jpg").read_bytes() == b"new"  # it was not copied again
    data.remove_data("lacks")
    assert not copied.exists() and here.exists()


def test_data_without_room_for_them_are_refused_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(data, "SPARE", 1e18)
    (tmp_path / "data").mkdir()
    home = Home(Receiver(str(tmp_path / "outputs"), str(tmp_path / "data")))
    with pytest.raises(UserError, match=r"of data do not fit in .*; set TMPDIR for ray start"):
        data.data_folder(home, "s", "/nowhere")


def test_who_is_not_expected_is_told_that_it_is_over(tmp_path):
    receiver = Receiver(str(tmp_path))
    assert asyncio.run(receiver.orders("t1", 1)) == OVER
    assert asyncio.run(receiver.report("t1", 1, {"score": 1.0})) is False


def test_a_trial_is_told_which_one_it_is(tmp_path, monkeypatch):
    from ballot.engines.choose import current_trial, outside_trials

    told = {"parameters": {"lr": 1}, "id": "t1", "search": "s", "sequence": 4}
    place = tmp_path / "trial.json"
    place.write_text(json.dumps({**told, "searched": ["lr"], "has_gpus": True}))
    monkeypatch.setenv("BALLOT_RAY_TRIAL", str(place))
    trial = current_trial()
    assert (trial.name, trial.parameters, trial.has_gpus) == ("s-004-t1", {"lr": 1}, True)
    trial.report_final(0.5, failed=True)
    said = (tmp_path / "reports.jsonl").read_text()
    assert json.loads(said) == {"final": 0.5, "failed": True}
    assert outside_trials(os.environ).keys() == os.environ.keys() - {"BALLOT_RAY_TRIAL"}
