"""Files are whole or not there; a run folder has one writer."""

import json
import os

import numpy as np
import pandas as pd
import pytest

from ballot.errors import UserError
from ballot.runs import files, folder
from ballot.vote.ballots import write_ballot


def test_a_file_that_fails_half_way_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), files.replacing(path) as file:
        file.write("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("umask, mode", [(0o077, 0o600), (0o022, 0o644), (0o007, 0o660)])
def test_who_may_read_a_file_is_the_matter_of_the_umask(tmp_path, umask, mode):
    (tmp_path / "b.json").touch(0o644)
    before = os.umask(umask)
    try:
        for name in ("a.json", "b.json"):
            files.write_json(tmp_path / name, {"a": 1})
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("a.json", "b.json")]
    assert modes == [mode, mode]


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path):
    files.write_json(tmp_path / "a.json", {"a": [float("nan"), float("inf"), 1.5]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [None, None, 1.5]}


def test_a_name_that_no_file_can_hold_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"a\.json: cannot be written: 1 name is not UTF-8.*o\\xe4"):
        files.write_json(tmp_path / "a.json", {"folder": "o\udce4"})
    assert not list(tmp_path.iterdir())


def test_probabilities_come_back_bit_for_bit(tmp_path):
    probs = np.random.default_rng(0).dirichlet(np.ones(7), 100).astype(np.float32)
    ids = [f"row,{i}" for i in range(100)]
    write_ballot(tmp_path / "p.csv", ids, list("abcdefg"), probs, ["x,y"] * 100)
    table = pd.read_csv(tmp_path / "p.csv", dtype={"id": str})
    assert set(table["label"]) == {"x,y"}
    assert table["id"].tolist() == ids
    np.testing.assert_array_equal(table[list("abcdefg")].to_numpy(np.float32), probs)


def test_rows_come_back_as_they_were_written(tmp_path):
    rows = [{"id": 'a"b', "label": "x\ny"}, {"id": "c", "label": ""}]
    files.write_rows(tmp_path / "r.csv", rows)
    assert files.read_rows(tmp_path / "r.csv") == rows
    assert files.read_rows(tmp_path / "none.csv") == []


def test_a_run_folder_is_never_overwritten_unless_it_is_resumed(tmp_path):
    with folder.open_run(tmp_path / "run", resume=False, facts={}) as run:
        run.begin()
        run.finish("done", score=0.5)
    with (
        pytest.raises(UserError, match="exists already; --resume"),
        folder.open_run(tmp_path / "run", resume=False, facts={}),
    ):
        pass
    with folder.open_run(tmp_path / "run", resume=True, facts={}) as run:
        run.begin(status="running")
        assert run.result["seconds"] >= 0
    assert folder.read_result(tmp_path / "run")["status"] == "running"


def test_a_run_folder_has_one_writer(tmp_path):
    with (
        folder.open_run(tmp_path / "run", resume=True, facts={}),
        pytest.raises(UserError, match="another process"),
        folder.open_run(tmp_path / "run", resume=True, facts={}),
    ):
        pass


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "x" * 201, "a b", "-rf"])
def test_a_run_name_is_one_component_of_a_path(name):
    with pytest.raises(UserError, match="no name for a folder"):
        folder.run_name(name, "m", "c")


def test_a_run_without_a_name_gets_one_without_odd_characters():
    assert folder.run_name(None, "timm:resnet18.a1_in1k", "focal").startswith(
        "timm-resnet18.a1_in1k_focal_"
    )


def test_what_is_no_run_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="is no run folder"):
        folder.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        folder.read_config(tmp_path)


def test_of_a_table_that_was_cut_the_whole_rows_are_read(tmp_path):
    path = tmp_path / "history.csv"
    files.write_rows(path, [{"epoch": n, "val_acc": 0.25 * n} for n in (1, 2, 3)])
    whole, text = files.read_rows(path), path.read_text()
    for size in range(len(text) + 1):
        path.write_text(text[:size])
        found = files.read_rows(path)
        assert found == whole[: max(0, text[:size].count("\n") - 1)], size


def test_what_a_killed_run_was_just_writing_goes_when_it_is_continued(tmp_path):
    run = tmp_path / "run"
    (run / "fold1").mkdir(parents=True)
    halves = [
        run / ".best.pt.ece0a3b6",
        run / "fold1/.last.pt.00ff00ff",
        tmp_path / ".run.csv.0a1b2c3d",
    ]
    kept = [run / "best.pt", run / ".mine.pt.ece0a3bg", tmp_path / ".other.csv.0a1b2c3d"]
    for path in halves + kept:
        path.write_bytes(b"x")
    with folder.open_run(run, resume=True, facts={}):
        assert [path for path in halves if path.exists()] == []
        assert all(path.exists() for path in kept)
