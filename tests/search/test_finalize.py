"""The best configurations on every fold: who is taken, what is trained, how they stand."""

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from searches_for_tests import (
    ROOT,
    environment,
    home_of_its_own,
    managers_and_trials,
    only_experiment,
    search,
    write_config,
)

import ensemble
from ballot.engines.choose import load_engine
from ballot.engines.nni.database import read_trials
from ballot.errors import UserError
from ballot.runs.results import Results
from ballot.runs.trials import TrialRecord, is_final
from ballot.search.finalize import Finalist, choose, find_work, rank, table


def finish(folder, trial, score, status="done", seed=42, ballot=True, **values):
    """Write what a trial leaves: its run folder and its ballot."""
    run = folder / f"exp-{trial.sequence:03d}-{trial.id}"
    run.mkdir(parents=True)
    result = {"status": status, "score": score, "experiment": "exp", "monitor": "val_acc"}
    (run / "result.json").write_text(json.dumps(result))
    (run / "config.json").write_text(json.dumps({"values": {"seed": seed, **values}}))
    (run / "val.csv").write_text("id,label,a,b\n")
    if ballot:
        run.with_name(f"{run.name}.csv").write_text("id,a,b\n")


def ended(number, status="succeeded", **parameters):
    return TrialRecord(f"t{number}", number, status=status, parameters=parameters)


def results_in(folder, trials, maximize=True):
    results = Results("exp", folder, maximize=maximize, words=lambda _: "")
    results.read(trials, over=True)
    return results


def test_the_best_are_taken_equal_ones_once_and_only_with_a_whole_ballot(tmp_path):
    trials = [ended(n, lr=lr) for n, lr in enumerate((0.1, 0.2, 0.1, 0.4, 0.5, 0.6))]
    for trial, score in zip(trials, (0.90, 0.80, 0.91, 0.99, 0.98, 0.70)):
        status = {0.98: "failed", 0.8: "stopped"}.get(score, "done")
        finish(tmp_path, trial, score, status, ballot=score != 0.99)
    results = results_in(tmp_path, trials)
    found = choose(results, trials, 3, None)
    assert [each.name for each in found] == ["exp-002-t2", "exp-001-t1", "exp-005-t5"]
    assert found[0].parameters == {"lr": 0.1} and found[0].words == "lr=0.1"
    results.maximize = False
    assert [each.name for each in choose(results, trials, 2, None)] == ["exp-005-t5", "exp-001-t1"]
    among = {"exp-000-t0", "exp-001-t1"}
    assert choose(results_in(tmp_path, trials), trials, 1, among)[0].name == "exp-000-t0"
    with pytest.raises(UserError, match="has 3 configurations with a score"):
        choose(results, trials, 4, None)


def test_runs_without_test_rows_are_finalised_by_their_validation_rows(tmp_path):
    trials = [ended(n, lr=lr) for n, lr in enumerate((0.1, 0.2))]
    for trial, score in zip(trials, (0.90, 0.80)):
        finish(tmp_path, trial, score, ballot=False)
    (best,) = choose(results_in(tmp_path, trials), trials, 1, None)
    assert best.name == "exp-000-t0"
    wanted = [best.on_fold(k, 2) for k in range(2)]
    folds = [ended(7 + k, **parameters) for k, parameters in enumerate(wanted)]
    finish(tmp_path, folds[0], 0.7, ballot=False)
    finish(tmp_path, folds[1], 0.6, ballot=False, status="stopped")
    results = results_in(tmp_path, [*trials, *folds])
    assert find_work(results, folds, wanted).missing == wanted[1:]
    (standing,) = rank(results, [*trials, *folds], [best], 2)
    assert standing.ballots == [tmp_path / "exp-007-t7" / "val.csv"]
    assert "exp-007-t7" in table([standing], 2)[1]


def test_each_fold_has_a_seed_of_its_own_and_all_share_the_split():
    finalist = Finalist("x", 0.9, {"lr": 0.1, "seed": 3}, "", seed=3, split_seed=7)
    trials = [finalist.on_fold(k, 3) for k in range(3)]
    assert [each["fold"] for each in trials] == [0, 1, 2]
    assert {each["folds"] for each in trials} == {3}
    assert {each["split_seed"] for each in trials} == {7}
    assert len({each["seed"] for each in trials} | {3}) == 4
    assert all(each["lr"] == 0.1 for each in trials)
    assert Finalist("x", 0.9, {}, "", 2**32 - 1, 0).on_fold(0, 2)["seed"] == 0


def test_the_split_is_that_of_the_search(tmp_path):
    trials = [ended(0, lr=0.1), ended(1, lr=0.2)]
    finish(tmp_path, trials[0], 0.9, seed=5)
    finish(tmp_path, trials[1], 0.8, seed=5, split_seed=6)
    found = choose(results_in(tmp_path, trials), trials, 2, None)
    assert [each.split_seed for each in found] == [5, 6]


def test_only_what_is_not_there_is_trained_and_what_was_halted_goes_on(tmp_path):
    finalist = Finalist("x", 0.9, {"lr": 0.1}, "", 1, 1)
    wanted = [finalist.on_fold(k, 5) for k in range(5)]
    statuses = ("succeeded", "running", "failed", "cancelled")
    trials = [ended(k, status, **wanted[k]) for k, status in enumerate(statuses)]
    finish(tmp_path, trials[0], 0.9)
    finish(tmp_path, trials[1], 0.5, status="stopped")
    finish(tmp_path, trials[2], None, status="failed", ballot=False)
    finish(tmp_path, trials[3], 0.5, status="stopped")
    work = find_work(results_in(tmp_path, trials), trials, wanted)
    assert work.again == ["t1"] and work.missing == wanted[2:]
    assert all(is_final(trial) for trial in trials) and not is_final(ended(9, lr=0.1, seed=3))
    with pytest.raises(UserError, match="has 0 configurations"):  # a fold is no candidate
        choose(results_in(tmp_path, trials), trials, 1, None)


def test_those_within_one_standard_error_of_the_best_are_tied(tmp_path):
    found = [
        Finalist(n, 0.9, {"lr": lr}, f"lr={lr}", 1, 1)
        for n, lr in (("a", 0.1), ("b", 0.2), ("c", 0.3))
    ]
    scores = {0.1: (0.90, 0.94, 0.98), 0.2: (0.92, 0.92, 0.92), 0.3: (0.90, 0.90, 0.90)}
    trials = [
        ended(3 * i + k, **each.on_fold(k, 3)) for i, each in enumerate(found) for k in range(3)
    ]
    for trial in trials:
        finish(tmp_path, trial, scores[trial.parameters["lr"]][trial.parameters["fold"]])
    first, second, third = rank(results_in(tmp_path, trials), trials, found, 3)
    assert first.mean == pytest.approx(0.94) and first.deviation == pytest.approx(0.04)
    error = statistics.stdev(scores[0.1]) / math.sqrt(3)  # 0.0231
    assert error > 0.94 - 0.92 and second.tied and not third.tied
    lines = table([first, second, third], 3)
    shown = ["a", "3/3", "0.9400", "0.0400", "0.9000", "best", "exp-000-t0", "lr=0.1"]
    assert lines[1].split() == shown
    assert "tied" in lines[2] and "tied" not in lines[3] and "standard error" in lines[4]


def test_the_search_is_that_of_the_files(tmp_path, monkeypatch):
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    trials = [ended(0, lr=0.1)]
    finish(tmp_path, trials[0], 0.9)
    with pytest.raises(UserError, match="search 'exp': is not known"):
        ensemble.choose_search(load_engine("nni"), None, [tmp_path / "exp-000-t0.csv"])
    with pytest.raises(UserError, match="the files are of no search"):
        ensemble.choose_search(load_engine("nni"), "other", [tmp_path / "exp-000-t0.csv"])


@pytest.mark.parametrize(
    "words, message",
    [
        (["--finalize", "0"], "0 configurations on 5 folds; at least 1 on 2"),
        (["--finalize", "2", "--folds", "1"], "2 configurations on 1 folds; at least 1 on 2"),
        (["--finalize", "2", "--weights", "1"], "does not go with --soup or --weights"),
        (["--finalize", "2", "--search", "nowhere"], "search 'nowhere': is not known"),
        (["--finalize", "2"], "there is no search of this folder"),
    ],
)
def test_what_cannot_be_finalised_is_refused(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert ensemble.main(words) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture
def home(tmp_path):
    with home_of_its_own(tmp_path) as folder:
        yield folder


@pytest.mark.slow
def test_the_two_best_of_a_search_are_trained_on_two_folds_and_vote(home):
    write_config(home, epochs=2, maxTrialNumber=3, maxExperimentDuration="10m")
    process = search(home, "--config", "config.yml", "--no_probe")
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    before = (home / "outputs").glob("*.csv")
    before = {path.name for path in before}

    def run(*words):
        done = subprocess.run(
            [sys.executable, ROOT / "ensemble.py", "--finalize", *words, "--port", "18300"],
            cwd=home,
            env=environment(home),
            capture_output=True,
            text=True,
            timeout=300,
        )
        return done.returncode, done.stdout + done.stderr

    status, said = run("2", "--folds", "2")
    assert status == 0, said
    assert "4 more trials" in said and "2/2" in said and "vote of 2 members" in said
    trials = [trial for trial in read_trials(only_experiment(home)) if is_final(trial)]
    assert [trial.status for trial in trials] == ["succeeded"] * 4
    assert len({json.dumps(trial.parameters, sort_keys=True) for trial in trials}) == 4
    held_out: dict[float, list[str]] = {}
    for trial in trials:  # the folds of a configuration hold each row out once
        run_folder = next(home.glob(f"outputs/*-{trial.id}"))
        values = json.loads((run_folder / "config.json").read_text())["values"]
        assert all(values[key] == trial.parameters[key] for key in ("fold", "seed", "split_seed"))
        held_out.setdefault(values["lr"], []).extend(pd.read_csv(run_folder / "val.csv")["id"])
    assert all(len(ids) == len(set(ids)) == 1438 for ids in held_out.values())
    ballots = [
        pd.read_csv(next(home.glob(f"outputs/*-{t.id}.csv"))).set_index("id") for t in trials
    ]
    mean = sum(ballot.loc[ballots[0].index] for ballot in ballots) / 4
    vote = pd.read_csv(home / "ensemble" / "soft.csv").set_index("id").loc[mean.index, mean.columns]
    assert (vote - mean).abs().to_numpy().max() < 1e-6
    assert len(pd.read_csv(home / "results.csv")) == 7 and managers_and_trials(home) == []
    status, said = run("2", "--folds", "2")  # all is there: it only votes again
    assert status == 0 and "more trials" not in said and "vote of 2 members" in said, said
    said = search(home, "--resume").communicate(timeout=300)[0]  # the search itself is as it was
    assert "is complete" in said and "vote of 3 members" in said, said
    assert {path.name for path in Path(home, "outputs").glob("*.csv")} > before
