"""Real searches that are killed in the middle, each part of them, and go on afterwards."""

import csv
import json
import signal
import time

import pandas as pd
import pytest
from searches_for_tests import (
    home_of_its_own,
    managers_and_trials,
    only_experiment,
    process_of,
    results,
    search,
    wait_for,
    wait_for_epochs,
    write_config,
)

from ballot.engines.nni import database

pytestmark = pytest.mark.slow

EPOCHS = 15


@pytest.fixture
def home(tmp_path):
    with home_of_its_own(tmp_path) as folder:
        yield folder


def begin(home, trials=2, epochs=EPOCHS):
    """Start a search, and wait until two trials are in the middle."""
    write_config(home, epochs=epochs, maxTrialNumber=trials)
    process = search(home, "--config", "config.yml", "--no_probe")
    wait_for_epochs(home, 2, 3)
    return process


def finish(home, *words):
    """Go on with the search, and return what it says."""
    process = search(home, "--resume", *words)
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 0, said
    return said


def assert_whole(home, before, trials=2):
    """As many trials as were asked for, none from the start again, no half file, no process."""
    after = results(home)
    assert [r["status"] for r in after.values()] == ["done"] * trials
    assert before.keys() <= after.keys() and len(after) == trials
    for run in after:
        assert pd.read_csv(run / "history.csv")["epoch"].tolist() == list(range(1, EPOCHS + 1))
        assert len(pd.read_csv(run.with_name(f"{run.name}.csv"))) == 359
        assert not [path for path in run.rglob(".*") if path.is_file()]
    for run, result in before.items():  # the part before counts, so it was not trained again
        assert after[run]["started"] == result["started"]
    with (home / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["run"]: row["status"] for row in rows} == {run.name: "done" for run in after}
    assert managers_and_trials(home) == []


def resumed_at(home):
    """The epochs after which trials went on, by trial."""
    found = {}
    for log in only_experiment(home).glob("environments/*/trials/*/trial.log"):
        for line in log.read_text().splitlines():
            if "resuming after epoch" in line:
                found[log.parent.name] = int(line.split("after epoch ")[1].split()[0])
    return found


def test_after_ctrl_c_a_search_goes_on_and_can_be_extended(home):
    process = begin(home)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 130 and "search.py --resume" in said
    assert "stopping" in said and "Traceback" not in said and "vote of 2" in said
    assert len(list(home.glob("outputs/*.csv"))) == 2 and managers_and_trials(home) == []
    before = results(home)
    assert [r["status"] for r in before.values()] == ["stopped"] * 2
    finish(home, "--max_trials", 3)
    assert_whole(home, before, trials=3)
    went_on = resumed_at(home)
    assert len(went_on) == 2 and all(epoch >= 3 for epoch in went_on.values())
    numbers = [trial.sequence for trial in database.read_trials(only_experiment(home))]
    assert numbers == [0, 1, 2]


def test_after_a_kill_of_the_manager_its_orphans_are_ended_and_the_trials_go_on(home):
    process = begin(home)
    began = time.monotonic()
    for manager in process_of(home, "main.js"):
        manager.kill()
    said = process.communicate(timeout=90)[0]
    assert time.monotonic() - began < 60
    assert (
        process.returncode == 1
        and "the manager of the trials has died" in said
        and "--resume" in said
    )
    assert managers_and_trials(home) == []
    before = results(home)
    finish(home)
    assert_whole(home, before)
    assert sorted(e >= 3 for e in resumed_at(home).values()) == [True, True]


def test_after_a_kill_of_search_py_the_running_search_is_watched_again(home):
    process = begin(home)
    process.kill()
    process.wait(10)
    managers = [p.pid for p in process_of(home, "main.js")]
    before = results(home)
    said = finish(home)
    assert "still runs" in said and len(managers) == 1
    assert_whole(home, before)
    assert resumed_at(home) == {}  # nothing was interrupted


def test_after_a_kill_at_its_start_no_search_goes_on_that_nobody_knows_of(home):
    write_config(home)
    process = search(home, "--config", "config.yml", "--no_probe")
    wait_for(lambda: process_of(home, "main.js"), "the manager", 60)
    process.kill()
    process.wait(10)
    wait_for(lambda: managers_and_trials(home) == [], "the end of the manager", 20)
    said = search(home, "--resume").communicate(timeout=60)[0]
    assert "there is no search of this folder" in said


def test_after_a_kill_of_both_nothing_is_lost(home):
    process = begin(home)
    for killed in (process, *process_of(home, "main.js")):
        killed.kill()
    process.wait(10)
    before = results(home)
    finish(home)
    assert_whole(home, before)
    assert sorted(e >= 3 for e in resumed_at(home).values()) == [True, True]


def test_a_trial_that_is_killed_runs_once_more_and_goes_on(home):
    process = begin(home)
    before = results(home)
    victim = process_of(home, "train.py", "--epochs")[0]
    name = victim.environ()["NNI_TRIAL_JOB_ID"]
    victim.kill()
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 0, said
    assert f"trial {name} was killed; it runs once more" in said
    assert_whole(home, before)
    assert list(resumed_at(home)) == [name] and resumed_at(home)[name] >= 3


def test_a_tuner_that_dies_is_noticed_and_what_there_is_votes(home):
    process = begin(home, trials=3)
    began = time.monotonic()
    for tuner in process_of(home, "--exp_params"):  # a shell and the tuner in it
        tuner.kill()
    said = process.communicate(timeout=90)[0]
    assert time.monotonic() - began < 60
    assert process.returncode == 1 and "tuner" in said and "what to do" in said
    assert "vote of 2" in said  # what there was has voted
    assert managers_and_trials(home) == []


def test_a_search_in_which_every_trial_fails_ends_with_the_reason(home):
    write_config(home, maxTrialNumber=20)
    config = home / "config.yml"
    config.write_text(config.read_text().replace("--epochs", "--plugins broken.py --epochs"))
    (home / "broken.py").write_text("import a_module_that_is_not_there\n")
    config.write_text(config.read_text().replace("broken.py", f"{home}/broken.py"))
    began = time.monotonic()
    process = search(home, "--config", "config.yml", "--no_probe")
    said = process.communicate(timeout=150)[0]
    assert time.monotonic() - began < 120
    assert process.returncode == 1 and "3 trials in a row" in said
    assert "a_module_that_is_not_there" in said
    assert managers_and_trials(home) == []


def test_a_running_search_is_listed_shown_and_stopped_from_elsewhere(home):
    process = begin(home, epochs=300)
    ident = only_experiment(home).name
    said = search(home, "--list").communicate(timeout=30)[0]
    assert ident in said and "running" in said and "0/2 trials done, 2 running" in said
    said = search(home, "--status", ident).communicate(timeout=30)[0]
    assert said.count("running") >= 3 and str(home / "outputs") in said
    second = search(home, "--resume", ident)
    said = second.communicate(timeout=30)[0]
    assert second.returncode == 2 and "another search.py watches it" in said
    stopper = search(home, "--stop", ident)
    assert stopper.communicate(timeout=60) and stopper.returncode == 0
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert [r["status"] for r in results(home).values()] == ["stopped"] * 2
    wait_for(lambda: managers_and_trials(home) == [], "the last process", 10)
    assert json.loads((only_experiment(home) / "search.json").read_text())["guarded"]
