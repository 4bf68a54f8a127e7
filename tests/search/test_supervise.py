"""A search from its first trial to its vote, on an engine that takes milliseconds."""

import csv
import os
import signal
import time

import pytest
from trials_for_tests import begin, see

from ballot.engines.interface import Limits
from ballot.errors import UserError
from ballot.runs.results import OVER
from ballot.search import supervise, trouble
from ballot.search.conclusion import conclude
from ballot.search.resume import Record, decide
from ballot.search.time_budget import Budget
from ballot.search.trouble import End

GOOD = [{"score": 0.6}, {"score": 0.95}, {"score": 0.8}]


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """What is waited for before something is said; a real search gives it longer."""
    monkeypatch.setattr(trouble, "SETTLE_S", 0.02)
    monkeypatch.setattr(trouble, "TUNER_S", 0.02)
    monkeypatch.setattr(supervise, "UPDATE_S", 0.0)


def statuses(search):
    return [trial.status for trial in search.trials()]


def table(search, results):
    results.update(search.trials(), over=True)
    with (search.plan().outputs.parent / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def record_of(search):
    return Record(
        search.plan(),
        search.note(),
        search.trials(),
        search.status().state,
        search.is_running(),
        search.seconds_counted(),
    )


def test_trials_run_one_after_the_other_and_vote(tmp_path, capsys):
    _, search = begin(tmp_path, GOOD)
    end, results = see(search)
    assert end == End() and statuses(search) == ["succeeded"] * 3
    assert not search.is_running() and search.note()["spent"] >= 0
    budget = Budget(None, time.time())
    assert conclude(search, search.plan(), results, end, tmp_path / "vote", budget) is not None
    said = capsys.readouterr().out
    assert "3/3 trials done, 0 running" in said and "vote" in said
    assert "reproduce the best trial: python train.py --score 0.95" in said
    scores = [float(row["score"]) for row in table(search, results)]
    assert scores == pytest.approx([0.6, 0.95, 0.8])
    assert (tmp_path / "vote" / "submission.csv").exists()


def test_a_tuner_that_knows_no_more_ends_the_search(tmp_path):
    _, search = begin(tmp_path, GOOD[:2], max_trials=9)
    end, _ = see(search)
    assert end == End() and statuses(search) == ["succeeded"] * 2


def test_three_crashes_in_a_row_end_it_with_their_words(tmp_path, capsys):
    crash = {"does": "crash"}
    _, search = begin(tmp_path, [*GOOD[:1], *[crash] * 9])
    end, results = see(search)
    assert end.trouble.what == "3 trials in a row crashed before their first epoch"
    assert statuses(search) == ["succeeded", *["failed"] * 3]
    budget = Budget(None, time.time())
    report = conclude(search, search.plan(), results, end, tmp_path / "vote", budget)
    assert [row.name for row in report.members] == ["s0-000-t0"]
    said = capsys.readouterr()
    assert "OSError: nowhere" in said.err and "--resume s0 goes on from here" in said.err
    assert "trial 3 (t3) failed: OSError: nowhere" in said.out


def test_a_search_without_a_ballot_says_where_the_trials_words_are(tmp_path, capsys):
    _, search = begin(tmp_path, [{"does": "crash"}])
    end, results = see(search)
    budget = Budget(None, time.time())
    assert conclude(search, search.plan(), results, end, tmp_path / "vote", budget) is None
    assert "no trial of s0 left predictions" in capsys.readouterr().err


def test_a_tuner_that_dies_is_noticed_while_trials_run(tmp_path):
    _, search = begin(tmp_path, [{"does": "hang"}] * 2)
    search.status()
    lives = [True] * 2  # it was seen first

    def seen():
        return lives.pop() if lives else False

    search.tuner_is_alive = seen
    end, _ = see(search, every=0.01)
    assert "the tuner has died" in end.trouble.what and end.trouble.of_tuner


def test_a_trial_that_hangs_is_ended_and_the_next_one_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(supervise, "overdue", lambda trials, *_: hanging(trials))
    _, search = begin(tmp_path, [{"does": "hang"}, *GOOD[:1]])
    _, results = see(search)
    assert statuses(search) == ["cancelled", "succeeded"]
    assert "trial 0 (t0) hangs; it is ended" in capsys.readouterr().out
    first, second = table(search, results)
    assert (first["status"], second["status"]) == ("stopped", "done")
    assert first["reason"] == "hung: it was ended long after its time limit"


def hanging(trials):
    return [t for t in trials if t.status == "running" and t.parameters.get("does") and t.scores]


def test_the_time_cuts_trials_that_write_what_they_have(tmp_path, capsys):
    _, search = begin(tmp_path, [{"does": "hang"}] * 5, max_seconds=60.0, concurrency=2)
    budget = Budget(60.0, time.time() - 60.0 + Budget(60.0, 0.0).ending + 0.1)
    end, _ = see(search, budget, every=0.02)
    assert end.over and f"{OVER}: 2 trials write what they have" in capsys.readouterr().out
    assert search.note()["reasons"] == {"t0": OVER, "t1": OVER}


@pytest.mark.parametrize("jump", [-3600.0, 365 * 86400.0])
def test_a_clock_that_is_set_takes_no_time_of_the_search(tmp_path, monkeypatch, jump):
    _, search = begin(tmp_path, GOOD, max_seconds=3600.0)
    search._begin = lambda: None  # no trial runs yet
    inner, now, looks = search.status, time.time, []

    def status():
        looks.append(1)
        if len(looks) == 3:
            monkeypatch.setattr(time, "time", lambda: now() + jump)
            del search._begin
        return inner()

    search.status = status
    end, _ = see(search, Budget(3600.0, now()))
    assert end == End() and statuses(search) == ["succeeded"] * 3
    assert 0 < search.note()["spent"] < 1800


def test_a_trial_that_writes_after_the_clock_was_set_back_does_not_hang(tmp_path):
    _, search = begin(tmp_path, GOOD[:1], command="python3 train.py --time_limit 1")
    inner, early = search.status, time.time() - 9e6

    def status():
        answer = inner()
        for file in tmp_path.glob("outputs/*/result.json"):
            epochs = len(search.trials()[0].scores)
            os.utime(file, (early + epochs, early + epochs))
            search.trials()[0].resumed = early
        return answer

    search.status = status
    see(search)
    assert statuses(search) == ["succeeded"]


def test_no_trial_begins_that_would_be_cut_before_it_is_of_use(tmp_path, capsys):
    _, search = begin(tmp_path, GOOD)
    search.status()
    first = search.trials()[0]
    while first.status == "running":
        search.status()
    first.started = first.resumed = first.ended - 1000.0
    began = time.time()
    budget = Budget(Budget(9000.0, 0.0).ending + 400.0, began)
    end, _ = see(search, budget)
    assert end == End() and len(search.trials()) < 3
    assert "no further trial is begun" in capsys.readouterr().out
    assert search.plan().max_seconds == budget.limit


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_trials_which_keep_what_they_have_and_go_on_later(tmp_path, signum):
    engine, search = begin(tmp_path, [{"epochs": 50}, *GOOD[:1]])
    inner = search.status

    def status():
        if search.trials() and len(search.trials()[0].scores) == 3:
            os.kill(os.getpid(), signum)
        return inner()

    search.status = status
    end, results = see(search)
    search.status = inner
    assert end.interrupted and statuses(search) == ["waiting"]
    assert results.update(search.trials(), over=True)[0]["status"] == "stopped"
    decision = decide(record_of(search), Limits(), time.time())
    assert decision.action == "restart"
    engine.resume(search, decision.plan, None)
    end, results = see(search)
    assert end == End() and statuses(search) == ["succeeded"] * 2
    assert len(search.trials()[0].scores) == 50, "what was trained is not trained again"


def test_a_stop_from_elsewhere_ends_it_as_ctrl_c_does(tmp_path):
    _, search = begin(tmp_path, [{"does": "hang"}])
    search.status()
    search._state = lambda: "stopping"
    end, _ = see(search)
    assert end.interrupted and not search.is_running()


def test_only_the_best_checkpoints_are_kept(tmp_path):
    _, search = begin(tmp_path, GOOD)
    search.amend_note(keep_checkpoints=1)
    for number in range(3):
        run = tmp_path / "outputs" / f"s0-{number:03d}-t{number}"
        run.mkdir(parents=True)
        (run / "best.pt").touch()
    see(search)
    assert [p.parent.name for p in tmp_path.glob("outputs/*/best.pt")] == ["s0-001-t1"]


def test_a_second_one_that_would_watch_is_refused(tmp_path):
    _, search = begin(tmp_path, GOOD)
    refused = pytest.raises(UserError, match="watches it already")
    with search.watched(), refused, search.watched():
        pass


def test_what_is_complete_is_not_run_again_and_more_of_it_is(tmp_path):
    engine, search = begin(tmp_path, GOOD, max_trials=2)
    see(search)
    decision = decide(record_of(search), Limits(), time.time())
    assert (decision.action, decision.more) == ("complete", "--max_trials")
    decision = decide(record_of(search), Limits(max_trials=3), time.time())
    assert decision.action == "restart" and decision.plan.max_trials == 3
    see(engine.resume(search, decision.plan, None))
    assert statuses(search) == ["succeeded"] * 3
    assert [trial.sequence for trial in search.trials()] == [0, 1, 2]
    with pytest.raises(UserError, match="3 trials have been started already"):
        decide(record_of(search), Limits(max_trials=2), time.time())


def test_what_runs_is_watched_and_told_of_new_limits(tmp_path):
    _, search = begin(tmp_path, GOOD)
    search.status()
    decision = decide(record_of(search), Limits(concurrency=2), time.time())
    assert decision.action == "watch" and decision.limits.concurrency == 2
    longer = decide(record_of(search), Limits(trial_seconds=60.0), time.time())
    assert longer.action == "restart" and longer.plan.command.endswith("--time_limit 60")


def test_trials_that_crashed_are_replaced_when_it_goes_on(tmp_path):
    engine, search = begin(tmp_path, [*[{"does": "crash"}] * 3, *GOOD], max_trials=3)
    see(search)
    decision = decide(record_of(search), Limits(), time.time())
    assert decision.action == "restart" and decision.plan.max_trials == 6
    search.amend_note(**decision.counts)
    see(engine.resume(search, decision.plan, None))
    assert statuses(search) == ["failed"] * 3 + ["succeeded"] * 3
    assert decide(record_of(search), Limits(), time.time()).action == "complete"


def test_a_search_whose_time_is_over_is_complete(tmp_path):
    _, search = begin(tmp_path, GOOD, max_trials=9, max_seconds=100.0)
    see(search)
    search.amend_note(spent=99.0)
    search.stop()
    decision = decide(record_of(search), Limits(), time.time())
    assert (decision.action, decision.more) == ("complete", "--max_duration")
    assert decide(record_of(search), Limits(max_seconds=900.0), time.time()).action == "restart"
