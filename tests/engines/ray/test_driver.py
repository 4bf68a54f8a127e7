"""The driver on a cluster that is a list: what becomes of trials, without Ray and without time."""

import itertools
import json
from types import SimpleNamespace

import pytest

from ballot.engines.ray import cluster, control, driver
from ballot.engines.ray.cluster import Ended
from ballot.engines.ray.driver import Driver
from ballot.engines.ray.search import RaySearch

SPACE = {"lr": {"_type": "uniform", "_value": [0.0, 1.0]}}
OUT_OF_MEMORY = "Task was killed due to the node running low on memory"


class Runner:
    """What was submitted and ordered; the test says what comes of it."""

    def __init__(self):
        self.jobs, self.orders, self.withdrawn = [], [], []
        self.news, self.ends = [], []
        self.known = [{"id": "n1", "name": "one", "alive": True, "has": {"CPU": 4.0}}]

    def submit(self, job):
        self.jobs.append(job)

    def wait(self, patience):  # noqa: ARG002
        news, ends, self.news, self.ends = self.news, self.ends, [], []
        return news, ends

    def order(self, trial, word):
        self.orders.append((trial, word))

    def withdraw(self, trial):
        self.withdrawn.append(trial)

    def nodes(self):
        return self.known

    def say(self, job, **said):
        self.news.append({"trial": job["id"], "attempt": job["attempt"], **said})

    def begin(self, job):
        self.say(job, began=True, machine="one")

    def end(self, job, status=0, reports=(), words=""):
        outcome = {"exit": status, "stopped": False, "reports": list(reports), "words": words}
        self.ends.append(Ended(job["id"], job["attempt"], outcome))

    def lose(self, job, how="lost", why="its node died"):
        self.ends.append(Ended(job["id"], job["attempt"], None, how, why))


def spec_of(**more):
    return {
        "search": "s",
        "command": "python3 train.py",
        "code": ".",
        "outputs": "outputs",
        "max_trials": 3,
        "max_seconds": None,
        "concurrency": 2,
        "maximize": True,
        "resources": {"address": "auto", "cpus": 2.0, "gpus": 0.5, "memory": None},
        "asked": "2 CPUs",
        "space": SPACE,
        "searched": ["lr"],
        "tuner": {"seed": 1},
        "assessor": None,
        "defaults": None,
        "epochs": 9,
        "warm_start": [],
        **more,
    }


@pytest.fixture
def started(tmp_path):
    """Start a driver in a folder; again in the same one it goes on with the search."""

    def start(**more):
        spec = spec_of(**more)
        (tmp_path / "spec.json").write_text(json.dumps(spec))
        runner = Runner()
        return Driver(tmp_path, spec, runner), runner, RaySearch(tmp_path)

    return start


def test_trials_begin_up_to_the_concurrency_and_end_the_search(started):
    search_driver, runner, search = started()
    for number in itertools.count():
        search_driver.step()
        if search_driver.state == "done":
            break
        assert len(runner.jobs) - number <= 2
        job = runner.jobs[number]
        runner.begin(job)
        runner.say(job, score=0.5)
        runner.end(job, reports=[{"score": 0.5}, {"final": 0.7, "failed": False}])
    assert [t.status for t in search.trials()] == ["succeeded"] * 3
    assert [t.final for t in search.trials()] == [0.7] * 3
    assert [t.scores for t in search.trials()] == [[0.5]] * 3
    assert runner.jobs[0]["threads"] == 2 and runner.jobs[0]["has_gpus"]
    assert len({json.dumps(job["parameters"]) for job in runner.jobs}) == 3


def test_a_trial_whose_node_is_lost_goes_on_with_the_same_parameters(started):
    search_driver, runner, search = started(max_trials=1)
    search_driver.step()
    (first,) = runner.jobs
    runner.begin(first)
    runner.lose(first)
    search_driver.step()
    _, second = runner.jobs
    assert second["parameters"] == first["parameters"] and second["id"] == first["id"]
    runner.say(first, score=0.9)  # of the attempt that is over
    runner.begin(second)
    search_driver.step()
    assert search.trials()[0].scores == []
    assert control.news_after(search.folder, 0)[0] == [
        f"trial 0 ({first['id']}) lost its node; it goes on"
    ]


def test_a_trial_that_loses_every_node_fails_in_the_end(started):
    search_driver, runner, search = started(max_trials=1)
    search_driver.step()
    for _ in range(driver.MOVES + 1):
        runner.lose(runner.jobs[-1])
        search_driver.step()
    (trial,) = search.trials()
    assert trial.status == "failed"
    assert search_driver.state == "done"
    assert [each.state for each in search_driver._tuner.trials()] == ["failed"]
    assert search.last_words(trial.id) == "its node died"


def test_a_trial_out_of_memory_runs_once_more_and_then_teaches(started):
    search_driver, runner, search = started(max_trials=1)
    search_driver.step()
    for _ in range(2):
        runner.begin(runner.jobs[-1])
        runner.lose(runner.jobs[-1], "crashed", OUT_OF_MEMORY)
        search_driver.step()
    assert len(runner.jobs) == 2
    (trial,) = search.trials()
    assert trial.status == "failed"
    assert search.last_words(trial.id) == OUT_OF_MEMORY
    assert OUT_OF_MEMORY in search.retries()[trial.id]


def test_bad_input_is_not_tried_twice(started):
    search_driver, runner, search = started(max_trials=1)
    search_driver.step()
    runner.end(runner.jobs[0], status=2, words="looking\nerror: lr: is wrong\n")
    search_driver.step()
    assert len(runner.jobs) == 1
    assert search.last_words(runner.jobs[0]["id"]) == "error: lr: is wrong"


def test_a_weak_trial_is_stopped_early_and_is_recorded_so(started):
    search_driver, runner, search = started(assessor={"start_step": 1, "min_trials": 2})
    search_driver.step()
    good, bad = runner.jobs
    for job, score in ((good, 0.9), (bad, 0.1)):
        runner.begin(job)
        runner.say(job, score=score)
    search_driver.step()
    assert runner.orders == [(bad["id"], "stop")]
    runner.end(bad, status=-15, reports=[{"score": 0.1}, {"final": 0.1, "failed": False}])
    search_driver.step()
    assert [t.status for t in search.trials()][1] == "early_stopped"


def test_stopped_trials_wait_and_go_on_when_the_search_is_resumed(started):
    search_driver, runner, search = started()
    search_driver.step()
    running, waiting = runner.jobs
    runner.begin(running)
    search_driver.step()
    control.ask(search.folder, "stop")
    search_driver.step()
    assert runner.withdrawn == [waiting["id"]] and runner.orders == [(running["id"], "stop")]
    runner.end(running, status=-15, reports=[{"final": 0.5, "failed": False}])
    search_driver.step()
    assert search_driver.is_empty() and search_driver.state == "stopping"
    search_driver.close()
    again, runner, _ = started()
    again.step()
    assert [job["id"] for job in runner.jobs] == [running["id"], waiting["id"]]
    assert [job["parameters"] for job in runner.jobs] == [
        running["parameters"],
        waiting["parameters"],
    ]


def test_limits_and_the_end_of_the_time_are_heard(started):
    search_driver, runner, search = started(max_trials=9)
    control.ask(search.folder, "limits", concurrency=3, max_trials=None)
    search_driver.step()
    assert len(runner.jobs) == 3
    control.ask(search.folder, "close")
    control.ask(search.folder, "cancel", id=runner.jobs[0]["id"])
    search_driver.step()
    assert len(runner.jobs) == 3 and search_driver.state == "all_started"
    assert search.trials()[0].status == "cancelled"


def test_posted_trials_run_without_a_tuner(started):
    posted = [{"lr": 0.25, "all_rows": True}]
    search_driver, runner, _ = started(posted=posted, again=[])
    search_driver.step()
    assert [job["parameters"] for job in runner.jobs] == posted
    runner.end(runner.jobs[0])
    search_driver.step()
    assert search_driver.state == "done"


def test_a_search_that_goes_on_learns_nothing_from_posted_trials(started):
    search_driver, runner, _ = started(posted=[{"lr": 0.25, "all_rows": True}], again=[])
    search_driver.step()
    runner.end(runner.jobs[0])  # without a score, and it did not fail
    search_driver.step()
    search_driver.close()
    again, _, _ = started()
    assert again._tuner.trials() == []


def test_a_trial_that_waits_for_room_says_what_it_asks_for_and_what_there_is(started, monkeypatch):
    monkeypatch.setattr(driver, "WAITS_S", -1.0)
    search_driver, runner, search = started(max_trials=1)
    runner.known.append({"id": "n2", "name": "head", "alive": True, "has": {}})
    search_driver.step()
    search_driver._watched = 0.0
    search_driver.step()
    (line,), _ = control.news_after(search.folder, 0)
    there = "one: 4 CPUs; head: no CPUs"
    assert line == f"trial 0 waits for room: it asks for 2 CPUs; there is {there}"


def test_a_trial_whose_data_are_on_their_way_does_not_wait_for_room(started, monkeypatch):
    monkeypatch.setattr(driver, "WAITS_S", -1.0)
    search_driver, runner, search = started(max_trials=1, data="photos")
    search_driver._watched = float("inf")
    search_driver.step()
    (job,) = runner.jobs
    assert job["data"] and job["is_new"]
    runner.say(job, prepares=True)
    runner.say(job, copies="one", bytes=3_000_000)
    search_driver.step()
    search_driver._watched = 0.0
    search_driver.step()
    (line,), _ = control.news_after(search.folder, 0)
    assert line == "the data (3 MB) are copied to one ..."


def test_nodes_that_come_and_go_are_said(started):
    search_driver, runner, search = started()
    search_driver.step()
    runner.known = [
        {**runner.known[0], "alive": False},
        {"id": "n2", "name": "two", "alive": True, "has": {}},
    ]
    search_driver._watched = 0.0
    search_driver.step()
    assert control.news_after(search.folder, 0)[0] == [
        "one is lost; its trials go on elsewhere",
        "two has joined the cluster",
    ]


def test_a_record_that_was_cut_is_read_as_far_as_it_is_whole(started):
    search_driver, runner, search = started(max_trials=1)
    search_driver.step()
    search_driver.close()
    with (search.folder / "trials.jsonl").open("a") as file:
        file.write('{"at": 1, "id": "' + runner.jobs[0]["id"])
    again, runner, search = started(max_trials=1)
    again.step()
    runner.begin(runner.jobs[0])
    again.step()
    assert len(search.trials()) == 1


def test_a_search_whose_driver_lives_is_known_by_its_lock(started):
    _, _, search = started()
    assert not search.is_running() and search.status().state == "gone"
    with control.held(search.folder) as mine:
        assert mine and search.is_running()
        control.Board(search.folder).write("running")
        assert search.status().state == "running"
        with control.held(search.folder) as second:
            assert not second
    assert search.status().state == "gone"


class Dying(Exception):
    pass


class Receivers:
    """Ray, where the first `dead` receivers die as they start."""

    def __init__(self, dead):
        self.dead, self.started = dead, 0
        self.exceptions = SimpleNamespace(ActorDiedError=Dying)

    def start(self):
        self.started += 1
        number = self.started
        return SimpleNamespace(number=number, news=SimpleNamespace(remote=lambda _: number))

    def get(self, number):
        if number <= self.dead:
            raise Dying


def test_a_receiver_that_dies_at_its_start_is_started_again_but_not_for_ever(monkeypatch):
    monkeypatch.setattr(cluster, "RESTART_S", 0.0)
    ray = Receivers(dead=2)
    assert cluster.first_that_lives(ray, ray.start).number == 3
    ray = Receivers(dead=9)
    with pytest.raises(Dying):
        cluster.first_that_lives(ray, ray.start)
    assert ray.started == cluster.STARTS
