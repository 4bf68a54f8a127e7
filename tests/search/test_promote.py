"""Trials that were stopped early and go on: which, and that no epoch is trained twice."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from in_process_engine import InProcessEngine
from trials_for_tests import LAUNCH, fake_trial

from ballot.engines.interface import Limits, Plan
from ballot.runs.folder import ballots_of
from ballot.runs.results import Results
from ballot.runs.trials import TrialRecord
from ballot.search.promote import good_ones, promote, runs_to_make
from ballot.search.refit import candidates, refits_of
from ballot.search.refit import runs_to_make as runs_again
from ballot.search.resume import Record, decide
from ballot.search.status import table_of
from ballot.search.supervise import follow
from ballot.search.time_budget import Budget

ROOT = Path(__file__).resolve().parents[2]

EPOCHS = 10
LEARNS = {"lr": 0.005, "optimizer": "AdamW"}
TRAIN = ["train.py", "--epochs", str(EPOCHS), "--no_tensorboard", "--tta", "off"]


@pytest.fixture
def search(tmp_path):
    """Four finished trials, and four that were stopped after 3 of 10 epochs of 2 seconds."""
    trials = []
    for number, (score, status) in enumerate(
        [
            *((0.9, "done"), (0.5, "done"), (0.8, "done"), (0.7, "done")),
            *((0.7, "stopped"), (0.95, "stopped"), (0.69, "stopped"), (0.85, "stopped")),
        ]
    ):
        stopped = status == "stopped"
        record = "early_stopped" if stopped else "succeeded"
        trial = TrialRecord(f"t{number}", number, record, parameters={"lr": number})
        run = tmp_path / f"exp-{number:03d}-t{number}"
        run.mkdir()
        epochs = 3 if stopped else 10
        facts = {"status": status, "score": score, "epochs": epochs, "epochs_planned": 10}
        (run / "result.json").write_text(json.dumps({**facts, "seconds": 2 * epochs + 5.0}))
        (run / "history.csv").write_text("epoch,seconds\n" + "1,2.0\n" * epochs)
        (run / "last.pt").touch()
        trials.append(trial)
    results = Results("exp", tmp_path, maximize=True, words=lambda _: "")
    results.read(trials, over=True)
    return results, trials


def names(found):
    return [each.trial.id for each in found]


def test_stopped_trials_that_reached_the_third_of_the_finished_ones_go_on(search):
    found = good_ones(*search)
    assert names(found) == ["t5", "t7", "t4"]
    assert {each.seconds for each in found} == {5.0 + 7 * 2.0}


def test_where_less_is_better_the_order_is_the_other_one(search):
    results, trials = search
    other = Results("exp", results.outputs, maximize=False, words=lambda _: "")
    other.read(trials, over=True)
    assert names(good_ones(other, trials)) == ["t6", "t4"]


def test_what_cannot_go_on_or_does_so_already_is_no_candidate(search):
    results, trials = search
    (results.folder_of(trials[5]) / "last.pt").unlink()
    again = TrialRecord("t8", 8, "running", parameters={"lr": 7, "continues": "exp-007-t7"})
    results.read([*trials, again], over=True)
    assert names(good_ones(results, [*trials, again])) == ["t4"]
    results.reasons["t4"] = "the time of the search was over"
    results.read(trials, over=True)
    assert names(good_ones(results, trials)) == ["t7"]


def test_as_many_go_on_as_fit_into_the_time(search):
    ranked = good_ones(*search)  # of 19 s each
    made = runs_to_make(ranked, seconds=45.0, concurrency=1)
    assert made == [{"lr": n, "continues": f"exp-00{n}-t{n}"} for n in (5, 7)]
    assert len(runs_to_make(ranked, seconds=32.0, concurrency=2)) == 3
    assert runs_to_make(ranked, seconds=20.0, concurrency=8) == []


def test_a_trial_that_goes_on_is_no_further_one_of_the_search(tmp_path):
    own = TrialRecord("t0", 0, "early_stopped", parameters={"lr": 1})
    again = TrialRecord("t1", 1, "succeeded", parameters={"lr": 1, "continues": "exp-000-t0"})
    plan = Plan(None, "train.py", tmp_path, tmp_path, 2, 900.0, 1, maximize=True)
    record = Record(plan, {}, [own, again], "gone", is_running=False, seconds_counted=9.0)
    decision = decide(record, Limits(), time.time())
    assert decision.action == "restart" and decision.plan.max_trials == 3


def test_a_run_on_all_rows_repeats_the_trial_that_went_on(search):
    results, trials = search
    on_all_rows = {"lr": 5, "all_rows": True, "seed": 1, "split_seed": 0}
    again = TrialRecord("t8", 8, "succeeded", parameters={"lr": 5, "continues": "exp-005-t5"})
    best = TrialRecord("t9", 9, "succeeded", parameters=on_all_rows)
    for trial in (again, best):
        run = results.folder_of(trial)
        run.mkdir()
        (run / "result.json").write_text('{"status": "done", "score": 0.97, "seconds": 9}')
        (run / "best.pt").touch()
    every = [*trials, again, best]
    assert [each.of for each in refits_of(results, every)] == ["exp-005-t5"]  # it has no ballot
    (results.folder_of(again) / "val.csv").touch()
    assert [each.of for each in refits_of(results, every)] == ["exp-008-t8"]
    results.read(every, over=True)
    first = candidates(results, every)[0]
    assert first.run == "exp-008-t8" and "continues" not in runs_again([first], 99.0, 1)[0]


def trained_or_fake(record, search):
    """A trial that trains by train.py where it has a rate, and by nothing else."""
    if "score" in record.parameters:
        return (yield from fake_trial(record, search))
    place = search.folder / record.id / "trial.json"
    place.parent.mkdir()
    told = {"id": record.id, "search": search.id, "sequence": record.sequence, "has_gpus": False}
    told |= {"parameters": record.parameters, "searched": list(LEARNS)}
    place.write_text(json.dumps(told))
    words = [*TRAIN, "--resume", "auto", "--out_dir", str(search.plan().outputs)]
    process = start(words, search.plan().code, BALLOT_RAY_TRIAL=str(place))
    said, heard = place.with_name("reports.jsonl"), 0
    try:
        while process.poll() is None:
            time.sleep(0.02)
            reports = said.read_text().splitlines() if said.exists() else []
            for line in reports[heard:]:
                yield json.loads(line).get("score")
            heard = len(reports)
        assert process.returncode == 0, process.stdout.read()
        return json.loads(said.read_text().splitlines()[-1])["final"]
    finally:
        process.terminate()
        process.communicate(timeout=60)


def start(words, folder, **environment):
    return subprocess.Popen(
        [sys.executable, ROOT / words[0], *words[1:]],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_good_trial_goes_on_to_the_same_bits_and_votes_once(tmp_path, capsys):
    engine = InProcessEngine(trained_or_fake, [{"score": 0.3}, LEARNS])
    outputs = tmp_path / "outputs"
    plan = Plan(None, "train.py --resume auto", tmp_path, outputs, 2, 900.0, 1, maximize=True)
    search = engine.start(plan, LAUNCH, {"config": "x.yml"})
    search.stops = lambda record: record.sequence == 1 and len(record.scores) == 2
    results, budget = table_of(search, plan), Budget(plan.max_seconds, time.time())
    follow(search, plan, results, budget, LAUNCH, every=0.0)
    old = results.folder_of(search.trials()[1])
    before = pd.read_csv(old / "history.csv")
    assert 2 <= len(before) < EPOCHS and search.trials()[1].status == "early_stopped"
    assert promote(engine, search, plan, results, budget, LAUNCH) is not None
    assert "1 good trial that had been stopped early goes on" in capsys.readouterr().out
    trials = search.trials()
    assert [trial.status for trial in trials] == ["succeeded", "early_stopped", "succeeded"]
    new = results.folder_of(trials[2])
    history = pd.read_csv(new / "history.csv")
    assert history["epoch"].tolist() == list(range(1, EPOCHS + 1))
    pd.testing.assert_frame_equal(history[: len(before)], before)  # with their seconds
    rows = results.update(trials, over=True)
    assert [row["status"] for row in rows] == ["done", "stopped", "done"]
    assert "continues" not in rows[2] and rows[2]["epochs"] == EPOCHS
    words = [*TRAIN, "--run_name", "whole"]
    words += [word for key, value in LEARNS.items() for word in (f"--{key}", str(value))]
    whole = start(words, tmp_path)
    assert whole.communicate(timeout=300) and whole.returncode == 0
    for name in ("val.csv", "../{}.csv"):
        paths = [run / name.format(run.name) for run in (new, outputs / "whole")]
        assert paths[0].read_bytes() == paths[1].read_bytes()
    voters = ballots_of(map(results.folder_of, trials))
    assert [file.stem for file in voters] == [results.folder_of(trials[0]).name, new.name]
    assert promote(engine, search, plan, results, budget, LAUNCH) is None  # once
