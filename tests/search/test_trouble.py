"""What is wrong with a search as a whole, and when it is said."""

import pytest

from ballot.engines.interface import Status
from ballot.runs.trials import TrialRecord
from ballot.search.trouble import SETTLE_S, Watch, crashed_in_a_row, overdue


def trial(name, status="running", ended=None, scores=(), resumed=0.0):
    return TrialRecord(name, 0, status, resumed, resumed, ended, list(scores))


def observe(eye, status="running", trials=(), *, lives=True, errors=(), seconds=60, start=1000):
    """Look every second; return the first trouble and after how long it came."""
    for now in range(start, start + seconds):
        trouble = eye.look(Status(status, tuple(errors)), list(trials), lambda: lives, float(now))
        if trouble:
            return trouble, now - start
    return None, seconds


def test_a_search_that_works_has_no_trouble():
    assert observe(Watch("x"), trials=[trial("a")], seconds=600)[0] is None
    for status in ("all_started", "exhausted"):
        assert observe(Watch("x"), status, [trial("a")])[0] is None


def test_a_manager_that_is_gone_is_noticed_at_once():
    trouble, after = observe(Watch("abc"), "gone")
    assert after == 0 and trouble.fatal
    assert "has died" in trouble.what and "--resume abc" in trouble.remedy


def test_a_manager_that_does_not_answer_is_noticed_within_a_minute():
    eye = Watch("x")
    trouble, after = observe(eye, "silent")
    assert trouble.fatal and 20 < after < 60 and "has not answered" in trouble.what
    eye = Watch("x")
    for start in range(1000, 1200, 25):  # late answers are no silence
        assert observe(eye, "silent", seconds=24, start=start)[0] is None
        assert observe(eye, "running", [trial("a")], seconds=1, start=start + 24)[0] is None


def test_an_error_of_nni_is_said_in_its_words():
    trouble, _ = observe(Watch("x"), "error", errors=["Tuner did not connect"])
    assert trouble.fatal and trouble.what == "Tuner did not connect"


def test_a_tuner_that_died_is_noticed_and_one_that_is_not_there_yet_is_waited_for():
    eye = Watch("x")
    assert observe(eye, trials=[trial("a")], lives=False, seconds=30)[0] is None  # still starting
    assert observe(eye, trials=[trial("a")], lives=True, seconds=5)[0] is None
    trouble, after = observe(eye, trials=[trial("a")], lives=False)
    assert trouble.fatal and after < 10 and "tuner has died" in trouble.what


def test_no_progress_is_said_within_a_minute_and_ends_the_search_later():
    eye = Watch("x")
    ended = [trial("a", "succeeded", ended=1.0, scores=[0.5])]
    trouble, after = observe(eye, trials=ended)
    assert not trouble.fatal and after < 60 and "no trial has run" in trouble.what
    assert observe(eye, trials=ended, start=1050, seconds=60)[0] is None  # said once
    trouble, _ = observe(eye, trials=ended, start=1110, seconds=120)
    assert trouble.fatal


def test_where_trials_may_wait_for_a_device_no_progress_ends_nothing():
    eye = Watch("x", may_wait=True)
    trouble, after = observe(eye)
    assert not trouble.fatal and "GPU" in trouble.remedy
    assert observe(eye, start=1000 + after + 1, seconds=3600)[0] is None


def test_three_crashes_in_a_row_end_the_search_with_the_last_one():
    crashed = [trial(name, "failed", ended=2000.0 + k) for k, name in enumerate("abc")]
    assert observe(Watch("x"), trials=[*crashed[:2], trial("d")], seconds=5)[0] is None
    trouble, _ = observe(Watch("x"), trials=[*crashed, trial("d")])
    assert trouble.fatal and [t.id for t in trouble.trials] == ["a", "b", "c"]
    late = Watch("x", since=2001.5)  # a resumed search starts to count anew
    assert observe(late, trials=[*crashed, trial("d")], seconds=5, start=2010)[0] is None


@pytest.mark.parametrize(
    "between",
    [
        trial("ok", "succeeded", ended=2.5),
        trial("trained", "failed", ended=2.5, scores=[0.5]),
        trial("killed", "cancelled", ended=2.5),
    ],
)
def test_a_row_of_crashes_is_broken_by_anything_else(between):
    a, b, c = (trial(name, "failed", ended=float(k)) for k, name in enumerate("abc", 1))
    assert [t.id for t in crashed_in_a_row([c, b, a])] == ["a", "b", "c"]  # by when they ended
    assert [t.id for t in crashed_in_a_row([a, b, between, c])] == ["c"]


def test_grid_search_that_has_tried_everything_is_done():
    eye, ended = Watch("x"), [trial("a", "succeeded", ended=1.0)]
    assert not eye.is_done("exhausted", [trial("b")], 10.0)
    assert not eye.is_done("exhausted", ended, 11.0)
    assert eye.is_done("exhausted", ended, 12.0 + SETTLE_S)
    assert eye.is_done("done", ended, 0.0)


def test_a_trial_hangs_that_writes_nothing_long_after_its_time():
    trials = [trial("a"), trial("b", "succeeded")]
    assert overdue(trials, None, {}, 1e9) == []
    assert overdue(trials, 200.0, {"a": 100.0}, 100 + 200 + 99) == []
    assert [t.id for t in overdue(trials, 200.0, {"a": 100.0}, 100 + 200 + 101)] == ["a"]
    assert overdue(trials, 200.0, {}, 1e9) == []  # it waits for a GPU
    assert overdue(trials, 200.0, {"a": 350.0}, 100 + 200 + 101) == []
