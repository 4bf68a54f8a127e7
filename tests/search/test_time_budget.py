"""The time of a search: whole at its end, and no trial begun in vain."""

import json
import time

import pandas as pd
import pytest
from searches_for_tests import home_of_its_own, managers_and_trials, results, search, write_config

from ballot.runs.results import OVER
from ballot.runs.trials import TrialRecord
from ballot.search import time_budget
from ballot.search.time_budget import Budget, how_time_cut, time_before, usual_seconds


def ended(seconds, status="succeeded", began=100.0, **more):
    facts = {"started": began, "resumed": began, "ended": began + seconds, "scores": [0.5], **more}
    return TrialRecord("x", 0, status=status, **facts)


def test_trials_are_cut_so_early_that_stopping_voting_and_reporting_fit_in():
    clock = Budget(limit=600, began=1000)
    assert clock.left(1000) == 600 and clock.spent(1200) == 200
    assert clock.left_for_trials(1000) == 600 - clock.ending
    assert (
        clock.ending
        == time_budget.STOP_S
        + time_budget.USUAL_WRITE_S
        + time_budget.VOTE_S
        + time_budget.REPORT_S
    )
    assert Budget(60, 0).ending == Budget(600, 0).ending - time_budget.REPORT_S + 6  # a tenth of it


def test_without_a_limit_nothing_is_cut_and_every_trial_may_begin():
    clock = Budget(None, 1000)
    assert clock.left_for_trials(10**9) == float("inf")
    assert not clock.is_too_late([ended(10**6)], 10**9)


def test_a_trial_begins_only_where_half_of_the_usual_time_is_left():
    clock, trials = Budget(600, 0), [ended(100), ended(40), ended(90)]  # the median is 90
    last = clock.left_for_trials(0) - 45
    assert not clock.is_too_late(trials, last - 1) and clock.is_too_late(trials, last + 1)


def test_of_no_trial_that_has_ended_nothing_is_known_and_one_may_begin():
    running = TrialRecord("x", 0, status="running", started=1.0, resumed=1.0)
    assert usual_seconds([running, ended(3, "failed"), ended(5, "cancelled")]) is None
    assert not Budget(60, 0).is_too_late([running], 55)


def test_failed_resumed_and_crashed_trials_do_not_say_how_long_one_takes():
    odd = [ended(1, scores=[]), ended(2, resumed=101.0), ended(3, "failed")]
    assert usual_seconds([*odd, ended(50), ended(70, "early_stopped")]) == 60


def test_what_the_runs_wrote_says_how_long_the_end_takes(tmp_path):
    run = tmp_path / "e-000-a"
    run.mkdir()
    (run / "result.json").write_text(json.dumps({"status": "done", "seconds": 26.0}))
    (run / "history.csv").write_text("epoch,seconds\n1,10.0\n2,10.0\n")
    clock = Budget(600, 0)
    before = clock.ending
    clock.look([run])  # 6 s beside the epochs, and half as much again
    assert clock.ending == pytest.approx(before - time_budget.USUAL_WRITE_S + 9)
    (run / "val.csv").write_text("x" * 2_000_000)
    clock.look([run])
    assert clock.ending == pytest.approx(
        before - time_budget.USUAL_WRITE_S + 9 + 1.5 * 2 * time_budget.VAL_S
    )
    (run / "result.json").write_text("{")  # half a file is none
    clock.look([run])
    assert clock.ending < before + 2


def test_a_run_that_has_not_changed_is_not_read_again(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({"status": "done", "seconds": 26.0}))
    (tmp_path / "history.csv").write_text("epoch,seconds\n1,20.0\n")
    clock = Budget(600, 0)
    clock.look([tmp_path])
    before = clock.ending
    (tmp_path / "history.csv").write_text("epoch,seconds\n1,16.0\n")
    clock.look([tmp_path])
    assert clock.ending == before
    (tmp_path / "result.json").write_text(json.dumps({"status": "done", "seconds": 26.5}))
    clock.look([tmp_path])
    assert clock.ending == pytest.approx(before + 1.5 * 4.5)


def test_the_time_of_earlier_commands_counts():
    assert time_before({}, 33.0, runs=False, now=500) == 33
    assert time_before({"spent": 50.0, "began": 100}, 33.0, runs=False, now=500) == 50
    assert time_before({"spent": 50.0, "began": 100}, 33.0, runs=True, now=500) == 400


def test_what_was_cut_is_said():
    def row(status, reason=None, score=0.5):
        return {"status": status, "reason": reason, "score": score}

    assert how_time_cut([row("done"), row("stopped", "SIGINT")]) == ""
    said = how_time_cut([row("done"), row("stopped", OVER), row("stopped", OVER, None)])
    assert said == f"{OVER}: 2 of 3 trials were cut, 1 of them with a result"
    assert "none had come to its end" in how_time_cut([row("stopped", OVER)])


@pytest.fixture
def home(tmp_path):
    with home_of_its_own(tmp_path) as folder:
        yield folder


@pytest.mark.slow
def test_a_search_has_voted_when_its_time_is_over(home):
    write_config(home, epochs=2000, maxTrialNumber=50)
    began = time.monotonic()
    process = search(home, "--config", "config.yml", "--no_probe", "--max_duration", "50s")
    said = process.communicate(timeout=200)[0]
    took = time.monotonic() - began
    assert process.returncode == 0, said
    assert took < 50 + 15 and took > 25, said  # the machine of a test may be busy
    assert "2 of 2 trials were cut, 2 of them with a result" in said and "vote of 2" in said
    assert all(result["status"] == "stopped" for result in results(home).values())
    rows = pd.read_csv(home / "results.csv")
    assert rows["status"].tolist() == ["stopped"] * 2 and set(rows["reason"]) == {OVER}
    assert (home / "report.html").exists() and managers_and_trials(home) == []
    said = search(home, "--resume").communicate(timeout=300)[0]  # nothing is left to run in
    assert "is complete; a larger --max_duration goes on with it" in said
    assert pd.read_csv(home / "results.csv")["reason"].tolist() == [OVER] * 2
