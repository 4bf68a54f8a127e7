"""The best configurations on all rows: which, how many, and what say they have."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ballot.runs.results import OVER, Results
from ballot.runs.trials import TrialRecord
from ballot.search.refit import BEST, beginning, candidates, refits_of, runs_to_make
from ballot.vote.ballots import read_ballot, write_ballot
from ballot.vote.options import Refit, VoteOptions
from ballot.vote.run import run_vote


@pytest.fixture
def search(tmp_path):
    """Four trials: two good ones of 10 and 20 seconds, a quick probe, and one that was stopped."""
    trials = []
    for number, (score, seconds, status, recipe) in enumerate(
        [
            (0.8, 10, "done", "auto"),
            (0.9, 20, "done", "auto"),
            (0.7, 2, "done", "probe"),
            (0.95, 5, "stopped", "auto"),
        ]
    ):
        values = {"recipe": {"_name": recipe, "lr": 0.1 * (number + 1)}}
        trial = TrialRecord(f"t{number}", number, "succeeded", parameters=values)
        run = tmp_path / f"exp-{number:03d}-t{number}"
        run.mkdir()
        result = {"status": status, "score": score, "seconds": seconds}
        (run / "result.json").write_text(json.dumps(result))
        (run / "config.json").write_text(json.dumps({"values": {"seed": 42, "recipe": recipe}}))
        trials.append(trial)
    results = Results("exp", tmp_path, maximize=True, words=lambda _: "")
    results.read(trials, over=True)
    return results, trials


def test_the_best_that_came_to_their_end_are_trained_again_in_turn(search):
    results, trials = search
    ranked = candidates(results, trials)
    assert [each.run for each in ranked] == ["exp-001-t1", "exp-000-t0", "exp-002-t2"]
    made = runs_to_make(ranked, seconds=60.0, concurrency=1)  # 54 s: 23 + 11.5 + 2.3, then 11.5
    assert [values["recipe"]["lr"] for values in made] == pytest.approx([0.2, 0.1, 0.3, 0.1])
    assert all(values["all_rows"] and values["split_seed"] == 42 for values in made)
    assert len({(v["recipe"]["lr"], v["seed"]) for v in made}) == len(made)
    assert runs_to_make(ranked, seconds=5.0, concurrency=1) == [made[2]]


def test_what_the_end_of_the_time_has_cut_is_trained_again_in_the_time_of_the_whole(search):
    results, trials = search
    results.rows[3]["reason"] = OVER
    assert candidates(results, trials)[0].run == "exp-001-t1"  # no epoch
    facts = {"epochs": 2, "epochs_planned": 8}
    path = results.folder_of(trials[3]) / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    first = candidates(results, trials)[0]
    assert (first.run, first.seconds) == ("exp-003-t3", 20.0)


def test_where_the_best_take_too_long_the_next_ones_are_trained_again(search):
    slow = [replace(each, seconds=600.0) for each in candidates(*search)] * 2
    quick = [replace(slow[0], seconds=20.0), replace(slow[1], seconds=10.0)]
    made = runs_to_make([*slow[:BEST], *quick], seconds=60.0, concurrency=1)
    assert [values["recipe"]["lr"] for values in made] == pytest.approx([0.2, 0.1, 0.1])
    assert runs_to_make(slow, seconds=60.0, concurrency=1) == []


def test_a_search_without_a_time_limit_trains_as_many_as_are_wanted(search):
    ranked = candidates(*search)
    made = runs_to_make(ranked, seconds=float("inf"), concurrency=1)
    assert len(made) > len(ranked)
    assert beginning(1, float("inf")) == "training the best again on all rows: 1 run ..."
    assert beginning(2, 65.0) == "training the best again on all rows: 2 runs in at most 1:05 ..."


def test_runs_on_all_rows_have_half_of_the_say_by_what_they_repeat(tmp_path):
    rng = np.random.default_rng(0)
    classes, ids = ["a", "b"], [f"{k}" for k in range(60)]
    truth = rng.integers(0, 2, 60)

    def ballot(name, noise, labels=None):
        odds = np.eye(2)[truth] + rng.normal(0, noise, (60, 2))
        probs = (np.exp(odds) / np.exp(odds).sum(1, keepdims=True)).astype(np.float32)
        run = tmp_path / "outputs" / name
        run.mkdir(parents=True, exist_ok=True)
        if labels:
            write_ballot(run / "val.csv", ids, classes, probs, labels)
            (run / "result.json").write_text(json.dumps({"status": "done", "classes": classes}))
        write_ballot(run.with_name(f"{name}.csv"), ids, classes, probs)
        return run.with_name(f"{name}.csv")

    labels = [classes[k] for k in truth]
    members = [ballot("good", 0.5, labels), ballot("fair", 0.7, labels)]
    again, foreign = ballot("good-again", 0.5), ballot("foreign", 0.5)
    options = VoteOptions(out_dir=str(tmp_path / "vote"), select="auto")
    alone = run_vote(members, options)
    report = run_vote(members, options, [Refit(again, "good"), Refit(foreign, "nobody")])
    shares = {member.name: member.weight for member in report.members}
    assert shares["good-again"] == pytest.approx(0.5) and "foreign" not in shares
    before = {member.name: member.weight for member in alone.members}
    assert shares["good"] == pytest.approx(before["good"] / 2)
    expected = 0.5 * alone.probs + 0.5 * read_ballot(again).probs
    np.testing.assert_allclose(report.probs, expected, atol=1e-5)
    for name, values in {  # of the files alone, their configurations tell what they repeat
        "good": {"lr": 0.1, "seed": 1, "all_rows": False},
        "fair": {"lr": 0.2, "seed": 1, "all_rows": False},
        "good-again": {"lr": 0.1, "seed": 2, "all_rows": True},
    }.items():
        (tmp_path / "outputs" / name / "config.json").write_text(json.dumps({"values": values}))
    told = tmp_path / "outputs" / "good-again" / "result.json"
    told.write_text(json.dumps({"status": "stopped", "classes": classes}))  # cut by the time
    np.testing.assert_array_equal(run_vote([*members, again], options).probs, alone.probs)
    told.write_text(json.dumps({"status": "done", "classes": classes}))
    np.testing.assert_array_equal(run_vote([*members, again], options).probs, report.probs)


def test_a_run_on_all_rows_is_known_by_the_configuration_that_it_repeats(search):
    results, trials = search
    values = {**trials[1].parameters, "all_rows": True, "seed": 43, "split_seed": 42}
    again = TrialRecord("t9", 9, "succeeded", parameters=values)
    run = results.folder_of(again)
    run.mkdir()
    (run / "result.json").write_text('{"status": "done"}')
    assert refits_of(results, [*trials, again]) == []  # without its weights
    (run / "best.pt").touch()
    assert refits_of(results, [*trials, again]) == [Refit(run / "val.csv", "exp-001-t1")]
