"""What is tried next, what becomes of results and failures, and that a search goes on."""

import itertools
import json
import math
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from spaces_for_tests import EVERY_TYPE

from ballot.errors import UserError
from ballot.tuning import tpe
from ballot.tuning.tpe import TPE, Exhausted, startup_jobs

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"x": {"_type": "choice", "_value": [1, 2, 3]}, "y": {"_type": "choice", "_value": "ab"}}
LINE = {"x": {"_type": "uniform", "_value": [0, 1]}}
RATE = {"lr": {"_type": "loguniform", "_value": [0.0001, 1]}}


def states(made):
    return [(trial.state, trial.loss) for trial in made.trials()]


@pytest.mark.parametrize("seed", range(3))
def test_every_type_is_drawn_within_its_range_before_and_after_the_start(seed):
    made = TPE(EVERY_TYPE, seed=seed, max_trials=10)
    for _ in range(60):
        values = made.ask()
        assert json.loads(json.dumps(values)) == values
        assert list(values) == list(EVERY_TYPE)
        inner = {"one": {"_name", "inner"}, "two": {"_name", "other"}, "none": {"_name"}}
        assert set(values["nested"]) == inner[values["nested"]["_name"]]
        assert values["nested"].get("other", 3) in (3, 4, 5)
        assert values["randint"] in range(-2, 9) and -1 <= values["uniform"] <= 1
        assert 0.1 <= values["quniform"] <= 0.95 and 0.0003 <= values["loguniform"] <= 0.7
        assert values["qloguniform"] in (1, *range(5, 101, 5))
        assert values["qnormal"] % 0.25 == 0 and values["qlognormal"] % 0.5 == 0
        assert values["lognormal"] > 0
        made.tell(values, "done", values["uniform"])


@pytest.mark.parametrize("mode, wanted", [("max", 0.8), ("min", 0.2)])
def test_it_finds_the_good_end_of_a_line(mode, wanted):
    made = TPE(LINE, seed=0, mode=mode, max_trials=25)
    tried = []
    for _ in range(25):
        values = made.ask()
        tried.append(values["x"])
        far = abs(values["x"] - wanted)
        made.tell(values, "done", -far if mode == "max" else far)
    assert min(abs(x - wanted) for x in tried) < 0.02
    assert sum(abs(x - wanted) < 0.25 for x in tried[-10:]) >= 7


def test_where_trials_fail_it_soon_does_not_go():
    made, failed = TPE(LINE, seed=0, max_trials=40), []
    for _ in range(40):
        values = made.ask()
        failed.append(values["x"] > 0.5)
        if failed[-1]:
            made.tell(values, "failed")
        else:
            made.tell(values, "done", values["x"])  # the best stands at the brink
    assert sum(failed[-30:]) <= 8


def test_trials_at_once_differ():
    made = TPE(LINE, seed=0, max_trials=20)
    for _ in range(10):
        values = made.ask()
        made.tell(values, "done", -((values["x"] - 0.5) ** 2))
    at_once = sorted(made.ask()["x"] for _ in range(4))
    assert all(b - a > 0.005 for a, b in itertools.pairwise(at_once))
    assert sorted(values["x"] for values in made.running) == at_once


def test_threads_may_ask_and_tell_at_once():
    made, told = TPE({"x": {"_type": "randint", "_value": [0, 40]}}, seed=0), []

    def work():
        for _ in range(10):
            values = made.ask()
            told.append(values["x"])
            made.tell(values, "done", values["x"])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == list(range(40)) and made.running == []
    assert sorted(states(made)) == sorted(("done", -x) for x in range(40))


def test_a_configuration_runs_once_and_then_there_are_no_more():
    made = TPE(SMALL, seed=0)
    assert len({json.dumps(made.ask()) for _ in range(6)}) == 6
    for _ in range(2):
        with pytest.raises(Exhausted):
            made.ask()


def test_values_that_are_the_same_after_rounding_run_once():
    made = TPE({"x": {"_type": "quniform", "_value": [0, 1, 0.25]}}, seed=0)
    assert sorted(made.ask()["x"] for _ in range(5)) == [0, 0.25, 0.5, 0.75, 1]
    with pytest.raises(Exhausted):
        made.ask()


@pytest.mark.parametrize("score", [math.nan, math.inf, None])
def test_a_score_that_is_none_is_a_failure(score):
    made = TPE(LINE, seed=0)
    made.tell(made.ask(), "done", score)
    assert states(made) == [("failed", None)]


def test_outcomes_that_come_twice_late_or_from_nowhere_do_no_harm():
    made = TPE(LINE, seed=0)
    first, second, third, _ = (made.ask() for _ in range(4))
    made.tell(first, "done", 0.5)
    made.tell(first, "done", 0.9)
    made.tell({"x": 7}, "done", 0.9)
    made.tell({}, "failed")
    made.tell(second, "failed")
    made.tell(second, "done", 0.4)  # the score comes after the end
    made.tell(third, "stopped", 0.3)
    made.tell(third, "stopped")
    assert states(made) == [("done", -0.5), ("stopped", -0.4), ("stopped", -0.3), ("running", None)]


def test_a_stopped_trial_is_better_than_a_failed_one_and_never_a_good_one():
    made = TPE(LINE, seed=0, tpe_args={"gamma": 0.5})
    for score, state in ((0.1, "done"), (0.2, "done"), (0.9, "stopped"), (None, "failed")):
        made.tell(made.ask(), state, score)
    points = [trial.point for trial in made.trials()]
    good, others, failed = made._split(made.trials())
    assert (good, others, failed) == ([points[1], points[0]], [points[2]], [points[3]])


@pytest.mark.parametrize("liar, place", [("best", 1), ("mean", 2), ("worst", 3), (None, None)])
def test_a_trial_that_runs_counts_as_the_liar_says(liar, place):
    made = TPE(LINE, seed=0, tpe_args={"constant_liar_type": liar, "gamma": 0.01})
    for score in (0.9, 0.6, 0.1):  # where two are the same, the real one is first
        made.tell(made.ask(), "done", score)
    made.ask()
    good, others, _ = made._split(made.trials())
    order, running = [*good, *others], made.trials()[3].point
    assert (order.index(running) if running in order else None) == place


@pytest.mark.parametrize("trials, random", [(None, 10), (1, 5), (50, 8), (1000, 10)])
def test_the_random_start_is_a_part_of_the_budget(trials, random):
    assert startup_jobs(trials) == random
    assert TPE(LINE, max_trials=trials).args.n_startup_jobs == random


def test_a_persons_own_arguments_win():
    args = TPE(max_trials=12, tpe_args={"n_startup_jobs": 7}).args
    assert args.n_startup_jobs == 7 and args.constant_liar_type == "mean"
    with pytest.raises(TypeError):
        TPE(tpe_args={"startup": 7})
    for wrong in (
        {"mode": "maximize"},
        {"tpe_args": {"gamma": 2}},
        {"tpe_args": {"n_ei_candidates": 0}},
        {"tpe_args": {"constant_liar_type": "kind"}},
    ):
        with pytest.raises(ValueError):
            TPE(**wrong)


def test_the_defaults_are_moved_into_the_space_and_tried_first():
    space = json.loads((ROOT / "search_space.json").read_text())
    defaults = {"batch_size": 50, "criterion": "cross_entropy", "optimizer": "AdamW", "lr": 0.5}
    made = TPE(space, seed=0, defaults={**defaults, "weight_decay": 0.01})
    first, second = made.ask(), made.ask()
    assert first == {
        "batch_size": 64,
        "criterion": "cross_entropy",
        "optimizer": {"_name": "AdamW", "lr": 0.01, "weight_decay": 0.01},
    }
    assert second != first
    assert TPE(space, seed=0).ask() != first


FIRST = [{"x": 2, "y": "b"}, {"y": "a"}, {"x": 2, "y": "b"}, {"x": 3}]


def test_a_list_of_configurations_is_tried_after_the_defaults_in_its_order():
    made = TPE(SMALL, seed=0, defaults={"x": 1, "y": "a"}, first=FIRST)
    tried = [made.ask() for _ in range(3)]
    assert tried[:2] == [{"x": 1, "y": "a"}, {"x": 2, "y": "b"}]
    assert tried[2]["x"] == 3, "the second has run as the defaults, the third runs already"
    made = TPE(LINE, seed=0, first=[{"x": 0.123456789123}, {"x": 0.123456789123}, {"x": 0.5}])
    assert [made.ask()["x"], made.ask()["x"]] == [0.1234567891, 0.5]


@pytest.mark.parametrize("values, message", [({"x": 4}, "x is 4, outside"), ({"z": 1}, "z is not")])
def test_what_is_tried_first_must_lie_in_the_space(values, message):
    with pytest.raises(UserError, match=rf"^first\[1\]: {message}"):
        TPE(SMALL, first=[{"x": 1}, values])


def test_another_search_space_leaves_out_of_the_list_what_is_not_in_it():
    made = TPE(SMALL, seed=0, first=[FIRST[0], {"x": 1}, {"x": 3}])
    assert made.ask() == FIRST[0]
    made.set_space({**SMALL, "x": {"_type": "choice", "_value": [2, 3, 4, 5]}})
    assert made.ask()["x"] == 3


def write_run(run, values, **result):
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"values": values, "origin": {}}))
    (run / "result.json").write_text(json.dumps({"mode": "max", **result}))


def test_earlier_runs_are_its_history(tmp_path):
    write_run(tmp_path / "run0", {"lr": 0.002}, status="done", score=0.9)
    write_run(tmp_path / "run1", {"lr": 0.5}, status="failed", score=None)
    write_run(tmp_path / "run2", {"lr": 0.003}, status="running", score=0.1)
    for folders in ([tmp_path], [tmp_path / "run0", tmp_path / "run1"]):
        made = TPE(RATE, warm_start=folders)
        assert states(made) == [("done", -0.9), ("failed", None)]
        assert [trial.values for trial in made.trials()] == [{"lr": 0.002}, {"lr": 0.5}]


def test_defaults_that_have_run_earlier_do_not_run_again(tmp_path):
    write_run(tmp_path / "run", {"lr": 0.001}, status="done", score=0.5)
    made = TPE(RATE, seed=0, defaults={"lr": 0.001}, warm_start=[tmp_path])
    assert made.ask() != {"lr": 0.001}


@pytest.mark.parametrize("space_first", [True, False])
def test_a_resumed_search_knows_all_and_goes_on_with_the_list(space_first):
    given = {"defaults": {"lr": 0.001}, "first": [{"lr": 0.01}, {"lr": 0.02}]}
    before = TPE(RATE, seed=0, **given)
    tried = [before.ask() for _ in range(2)]
    assert tried == [{"lr": 0.001}, {"lr": 0.01}]
    before.tell(tried[0], "done", 0.5)
    before.add({"lr": 0.2}, "failed")
    assert json.loads(before.state())[0] == [{"lr": 0.001}, "done", -0.5]
    after = TPE(RATE if space_first else None, seed=1, **given)
    after.restore(before.state())
    if not space_first:
        after.set_space(RATE)
    assert after.trials() == before.trials() and after.running == [{"lr": 0.01}]
    assert after.ask() == {"lr": 0.02}
    after.add({"lr": 0.01}, "done", 0.4)  # the one that ran has ended
    after.add({"lr": 0.001}, "done", 0.9)
    assert states(after)[:2] == [("done", -0.5), ("done", -0.4)]


def test_defaults_of_which_nothing_is_known_are_not_tried_again_where_a_search_goes_on():
    made = TPE(RATE, seed=0, defaults={"lr": 0.001})
    made.add({"lr": 0.5}, "done", 1.0)
    assert made.ask() != {"lr": 0.001}


@pytest.mark.parametrize("damaged", ["", "[[", "[1]", "[[1]]", "7"])
def test_a_damaged_state_changes_nothing(damaged):
    made = TPE(LINE, seed=0)
    made.ask()
    before = made.state()
    with pytest.raises(ValueError):
        made.restore(damaged)
    assert made.state() == before


def test_another_search_space_keeps_what_has_a_place_in_it():
    made = TPE(SMALL, seed=0)
    for _ in range(3):
        values = made.ask()
        made.tell(values, "done", values["x"])
    made.set_space({**SMALL, "x": {"_type": "choice", "_value": [2, 3, 4, 5]}})
    assert [trial.point is None for trial in made.trials()] == [
        trial.values["x"] == 1 for trial in made.trials()
    ]
    assert made.ask()["x"] in (2, 3, 4, 5)


def test_the_same_seed_gives_the_same_search():
    runs = []
    for _ in range(2):
        made = TPE(EVERY_TYPE, seed=3, max_trials=10)
        for k in range(12):
            made.tell(made.ask(), "done", k % 5)
        runs.append(made.state())
    assert runs[0] == runs[1]


def test_nothing_here_loads_torch_or_who_runs_the_trials():
    code = (
        f"import sys; sys.path.append({str(ROOT)!r})\n"
        "import ballot.tuning.tpe, ballot.tuning.asha\n"
        "sys.exit(bool({'torch', 'nni', 'ray'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd="/").returncode == 0
    assert Path(tpe.__file__).parent == ROOT / "ballot" / "tuning"
