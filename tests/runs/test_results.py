"""The table of a search: what a row says, and what stays of other searches."""

import csv
import json
import os

import pandas as pd
import pytest

from ballot.errors import UserError
from ballot.report.trials import read_table_of
from ballot.runs.files import read_rows
from ballot.runs.results import OVER, Results, how_it_goes
from ballot.runs.table import FACTS, read_table, write_table
from ballot.runs.trials import NO_WORD, TrialRecord

SGD = {"lr": 0.1, "optimizer": {"_name": "SGD", "momentum": 0.9}}


def trial(name, sequence=0, status="succeeded", **more):
    return TrialRecord(name, sequence, status, **{"parameters": SGD, **more})


def leave(outputs, run, values=None, **result):
    """Leave what a trial leaves."""
    (outputs / run).mkdir(parents=True)
    (outputs / run / "result.json").write_text(json.dumps(result))
    if values:
        (outputs / run / "config.json").write_text(json.dumps({"values": values}))


def table(tmp_path, **more):
    return Results("exp", tmp_path / "outputs", maximize=True, words=lambda _: "boom", **more)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_is_what_the_trial_wrote_down_and_not_what_nni_recorded(tmp_path):
    leave(
        tmp_path / "outputs",
        "exp-000-a",
        {
            "lr": 0.123456789012345678,
            "device": "auto",
            "optimizer": "SGD",
            "optimizer_args": {"momentum": 0.5},
            "seed": 1,
        },
        status="done",
        score=0.75,
        epochs=3,
        seconds=9.5,
        machine="m",
        device="cuda:0",
    )
    results = table(tmp_path)
    results.update([trial("a", final=0.1)])
    (row,) = rows_of(tmp_path / "results.csv")
    assert list(row)[: len(FACTS)] == list(FACTS)
    assert list(row)[len(FACTS) :] == ["lr", "optimizer", "optimizer_args.momentum", "seed"]
    assert row["score"] == "0.75" and row["device"] == "cuda:0" and row["machine"] == "m"
    assert float(row["lr"]) == 0.123456789012345678
    assert row["optimizer_args.momentum"] == "0.5"


def test_a_trial_that_left_nothing_is_told_by_nnis_records(tmp_path):
    results = table(tmp_path)
    results.update([trial("a", status="failed", resumed=10.0, ended=12.5)])
    (row,) = rows_of(tmp_path / "results.csv")
    assert (row["status"], row["reason"], row["seconds"]) == ("failed", "boom", "2.5")
    assert (row["lr"], row["optimizer_args.momentum"], row["score"]) == ("0.1", "0.9", "")


def test_the_floor_that_a_failed_trial_reported_is_no_score(tmp_path):
    leave(tmp_path / "outputs", "exp-000-a", status="failed", reason="out of memory", score=None)
    (row,) = table(tmp_path).update([trial("a", final=0.0)])
    assert row["status"] == "failed" and row["score"] is None


@pytest.mark.parametrize(
    "nni, said, over, expected",
    [
        ("waiting", {}, False, ("waiting", None)),
        ("running", {}, False, ("running", None)),
        ("running", {"status": "running"}, False, ("running", None)),
        ("running", {"status": "running"}, True, ("stopped", "killed before it could write")),
        ("running", {}, True, ("stopped", "ended before it began")),
        ("running", {"status": "stopped", "reason": "SIGINT"}, True, ("stopped", "SIGINT")),
        ("running", {"status": "stopped", "reason": "SIGINT"}, False, ("running", None)),
        ("running", {"status": "done"}, False, ("done", None)),
        ("cancelled", {"status": "stopped", "reason": "SIGINT"}, False, ("stopped", "SIGINT")),
        (
            "cancelled",
            {"status": "running"},
            False,
            ("failed", "killed from outside before it could write"),
        ),
        ("early_stopped", {"status": "stopped"}, False, ("stopped", "early stopping")),
        ("failed", {"status": "running"}, False, ("failed", None)),
        ("succeeded", {"status": "failed", "reason": "memory"}, False, ("failed", "memory")),
        ("succeeded", {}, False, ("done", None)),
    ],
)
def test_the_status_is_one_of_five_words(nni, said, over, expected):
    assert how_it_goes(trial("a", status=nni), said, over) == expected


@pytest.mark.parametrize(
    "nni, said, expected",
    [
        ("cancelled", {"status": "running", "score": 0.5}, ("stopped", OVER, 0.5)),
        ("cancelled", {}, ("stopped", OVER, None)),
        ("cancelled", {"status": "done", "score": 0.5}, ("done", None, 0.5)),
    ],
)
def test_a_trial_that_the_end_of_the_time_cut_has_not_failed(tmp_path, nni, said, expected):
    leave(tmp_path / "outputs", "exp-000-a", **said)
    results = table(tmp_path)
    results.reasons["a"] = OVER
    (row,) = results.update([trial("a", status=nni)])
    assert (row["status"], row["reason"], row["score"]) == expected


def test_a_trial_that_the_assessor_stopped_says_so_in_its_own_files(tmp_path):
    said = {"status": "stopped", "reason": "SIGINT", "score": 0.5}
    leave(tmp_path / "outputs", "exp-000-a", **said)
    leave(tmp_path / "outputs", "exp-001-b", **said)
    leave(tmp_path / "outputs", "exp-002-c", **(said | {"status": "running"}))
    trials = [
        trial("a", 0, "early_stopped"),
        trial("b", 1, "cancelled"),
        trial("c", 2, "early_stopped"),
    ]
    rows = table(tmp_path).update(trials)
    assert [row["reason"] for row in rows] == ["early stopping", "SIGINT", "early stopping"]
    reasons = [
        json.loads(path.read_text())["reason"]
        for path in sorted((tmp_path / "outputs").glob("*/result.json"))
    ]
    assert reasons == ["early stopping", "SIGINT", "SIGINT"]  # the last one is still writing


def test_rows_of_other_searches_stay_as_they_are(tmp_path):
    old = {
        "run": "old-000-x",
        "status": "done",
        "score": 0.5,
        "epochs": 2,
        "reason": '=1+"2"',
        "other": "kept",
    }
    write_table(tmp_path / "results.csv", list(old), [old])
    for score in (0.25, 0.75):  # the second time this search's own row takes the place of the first
        leave(tmp_path / "outputs", f"exp-000-a{score}", status="done", score=score)
        table(tmp_path).update([trial(f"a{score}")])
    rows = rows_of(tmp_path / "results.csv")
    assert [row["run"] for row in rows] == ["old-000-x", "exp-000-a0.75"]
    assert (
        rows[0]["reason"] == '=1+"2"' and rows[0]["other"] == "kept" and rows[0]["score"] == "0.5"
    )


def test_the_file_is_written_only_when_a_row_changed(tmp_path):
    leave(tmp_path / "outputs", "exp-000-a", status="running", epochs=1)
    results = table(tmp_path)
    results.update([trial("a", status="running")])
    first = results.path.stat().st_ino
    results.update([trial("a", status="running")])
    assert results.path.stat().st_ino == first
    results.update([trial("a", status="running", scores=[0.5])])
    assert results.path.stat().st_ino != first
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_only_what_changed_is_read_again(tmp_path):
    for name in "ab":
        leave(tmp_path / "outputs", f"exp-000-{name}", {"lr": 0.1}, status="running", score=0.5)
    results, trials = table(tmp_path), [trial(name, status="running") for name in "ab"]
    before = results.update(trials)
    for name in "ab":
        path = tmp_path / "outputs" / f"exp-000-{name}" / "config.json"
        stamp = path.stat().st_mtime_ns
        path.write_text(path.read_text().replace("0.1", "0.2"))
        os.utime(path, ns=(stamp + (name == "b"), stamp + (name == "b")))
    after = results.update(trials)
    assert after[0] is before[0] and [row["lr"] for row in after] == [0.1, 0.2]
    assert [row["lr"] for row in rows_of(results.path)] == ["0.1", "0.2"]


def test_two_searches_that_write_in_turns_keep_each_others_rows(tmp_path):
    tables = [Results(name, tmp_path / "outputs", maximize=True, words=str) for name in "ab"]
    for score in (0.1, 0.2, 0.3):
        for number, results in enumerate(tables):
            results.update([trial(k, k, final=score + number) for k in range(3)])
    rows = rows_of(tmp_path / "results.csv")
    found = {row["run"]: float(row["score"]) for row in rows}
    assert (
        found == {f"{name}-{k:03d}-{k}": 0.3 + n for n, name in enumerate("ab") for k in range(3)}
        and len(rows) == 6
    )


def test_the_words_of_a_trial_are_asked_for_until_there_are_some(tmp_path):
    said, asked = {"a": NO_WORD, "b": "no memory"}, []
    results = Results(
        "exp",
        tmp_path / "outputs",
        maximize=True,
        words=lambda name: asked.append(name) or said[name],
    )
    trials = [trial(name, k, status="failed") for k, name in enumerate("ab")]
    assert [row["reason"] for row in results.update(trials)] == [NO_WORD, "no memory"]
    said["a"] = "killed"
    for _ in range(3):
        assert [row["reason"] for row in results.update(trials)] == ["killed", "no memory"]
    assert sorted(asked) == ["a", "a", "b"]


def test_every_cell_is_read_back_as_it_was(tmp_path):
    cells = [
        "=cmd|' /C calc'!A0",
        "+1",
        "-x",
        "@a",
        'say "hi", twice',
        "two\nlines",
        " ",
        "007",
        "ä→",
        "1e5",
        "nan",
        "None",
    ]
    rows = [
        {"run": f"r{k}", "status": "done", "reason": cell, "score": 0.1 + 0.2}
        for k, cell in enumerate(cells)
    ]
    path = tmp_path / "results.csv"
    write_table(path, ["run", "status", "reason", "score"], rows)
    for _ in range(2):  # what was read and written again too
        read = rows_of(path)
        assert [row["reason"] for row in read] == cells
        assert [float(row["score"]) for row in read] == [0.1 + 0.2] * len(cells)
        write_table(path, list(read[0]), read_table(path))
    read = pd.read_csv(path, float_precision="round_trip")
    assert read["score"].tolist() == [0.1 + 0.2] * len(cells)


def test_a_file_of_somebody_else_is_not_written_over(tmp_path):
    (tmp_path / "results.csv").write_text("mine\n1\n")
    with pytest.raises(UserError, match="is no table of a search"):
        table(tmp_path).update([trial("a")])
    assert (tmp_path / "results.csv").read_text() == "mine\n1\n"


@pytest.mark.parametrize("maximize, best", [(True, "b"), (False, "a")])
def test_the_best_trial_is_one_that_did_not_fail(tmp_path, maximize, best):
    for k, (name, status, score) in enumerate(
        [("a", "done", 0.2), ("b", "stopped", 0.6), ("c", "failed", 0.9 if maximize else 0.1)]
    ):
        leave(tmp_path / "outputs", f"exp-{k:03d}-{name}", status=status, score=score)
    results = Results("exp", tmp_path / "outputs", maximize=maximize, words=str)
    trials = [trial(name, k) for k, name in enumerate("abc")]
    results.update(trials)
    assert results.best(trials).id == best
    assert results.best([]) is None


@pytest.mark.parametrize("content", [b"run," + b"x" * 200_000 + b"\n", b"\xff\xfe\n"])
def test_a_file_that_is_no_csv_is_no_table_of_a_search(content, tmp_path):
    csv.field_size_limit(131_072)  # as Python starts
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"results.csv: is no table of a search"):
        read_table(path)


def test_rows_of_a_run_that_are_no_csv_are_a_user_error(tmp_path):
    csv.field_size_limit(131_072)  # as Python starts
    path = tmp_path / "history.csv"
    path.write_text("epoch," + "x" * 200_000 + "\n")
    with pytest.raises(UserError, match=r"history.csv: is no CSV"):
        read_rows(path)
    assert read_table_of(path) == []
