"""Anything at all as input: a result, or one clear line; never a traceback, never a wrong number.

Random input and mutated real input (Hypothesis). FUZZ=n multiplies the number of examples.
"""

import csv
import io
import json
import math
import os
import random
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ballot.config import search_space
from ballot.config.files import read_config_files
from ballot.config.layers import merge
from ballot.config.schema import FIELDS, Config
from ballot.engines.nni.config import outline, read_content
from ballot.engines.nni.database import read_trials
from ballot.errors import UserError
from ballot.report.trials import find_trials
from ballot.training.tensor_files import load_tensors, save_tensors
from ballot.values import Layer
from ballot.vote.ballots import read_ballot
from ballot.wording import natural
from dataset import find_table

ROOT = Path(__file__).resolve().parents[2]
MORE = int(os.environ.get("FUZZ") or 1)


def examples(number):
    """Say how often; the same examples each time unless more of them are asked for."""
    return settings(
        max_examples=number * MORE,
        deadline=None,
        derandomize=MORE == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def one_line(error):
    """The one that prints it joins lines, so that what comes out of input may hold some."""
    assert str(error).strip() and len(str(error)) < 2000, str(error)


WORDS = (
    b"nan",
    b"-1",
    b"1e999",
    b'"',
    b"\n",
    b"\0",
    b",",
    b"{",
    b"[",
    b"=cmd()",
    b"../../x",
    b"null",
    b"\xff\xfe",
    "é".encode(),
)


def mutated(data, rng):
    """Return bytes with some of them changed, removed, doubled or put elsewhere."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not data:
            break
        a, b = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
        b = min(b, a + 40)
        kind = rng.randrange(5)
        if kind == 0:
            data[a:b] = rng.randbytes(rng.randint(0, 8))
        elif kind == 1:
            del data[a:b]
        elif kind == 2:
            data[a:a] = data[a:b]
        elif kind == 3:
            del data[a:]
        else:
            data[a:b] = rng.choice(WORDS)
    return bytes(data)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["max", "min val_loss", "AdamW", "../..", "0", "1e999", "=cmd()", "\0"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(st.text(max_size=8), st.sampled_from(["type", "args", "_name"])),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)


@examples(300)
@given(st.dictionaries(st.one_of(st.sampled_from(sorted(FIELDS)), st.text(max_size=8)), VALUES))
@example({"lr": float("nan")})
@example({"epochs": True})
@example({"augmentation": {"args": 1.0, "type": ""}})
@example({"optimizer": {"args": [1], "type": "Adam"}})
def test_any_values_make_a_config_or_a_line(values):
    try:
        config, origin = merge([Layer("here", values)])
    except UserError as error:
        one_line(error)
        return
    assert isinstance(config, Config)
    for key in origin:
        name = key.partition(".")[0]
        limits = FIELDS[name].metadata
        value = getattr(config, name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            assert math.isfinite(value), key
            assert limits.get("low") is None or value >= limits["low"], key
            assert limits.get("high") is None or value <= limits["high"], key


CONFIGS = sorted([*ROOT.glob("examples/*/*.json"), *ROOT.glob("examples/*/*.yaml")])


@examples(250)
@given(st.sampled_from(CONFIGS), st.integers(0, 2**32))
def test_mutated_config_files_are_read_or_refused(tmp_path_factory, source, seed):
    path = tmp_path_factory.getbasetemp() / f"config{source.suffix}"
    path.write_bytes(mutated(source.read_bytes(), random.Random(seed)))
    try:
        merge(read_config_files([path]))
    except UserError as error:
        one_line(error)


@examples(200)
@given(st.sampled_from(["config_local.yml", "config_remote.yml"]), st.integers(0, 2**32))
def test_mutated_configurations_of_a_search_are_outlined_or_refused(tmp_path_factory, name, seed):
    path = tmp_path_factory.getbasetemp() / "search.yml"
    path.write_bytes(mutated((ROOT / name).read_bytes(), random.Random(seed)))
    try:
        _, problems = outline(read_content(path), path)
    except UserError as error:
        one_line(error)
        return
    for problem in problems:
        one_line(problem)


@examples(300)
@given(
    st.one_of(
        st.dictionaries(
            st.text(max_size=8),
            st.fixed_dictionaries(
                {
                    "_type": st.one_of(
                        SCALARS,
                        st.sampled_from(
                            ["choice", "randint", "uniform", "quniform", "loguniform", "normal"]
                        ),
                    ),
                    "_value": VALUES,
                }
            ),
        ),
        st.dictionaries(st.text(max_size=8), VALUES),
    )
)
def test_any_search_space_is_taken_or_its_faults_are_listed(found):
    problems = search_space.find_problems(found, "space.json", ours=False)
    for problem in problems:
        assert isinstance(problem, UserError)
        one_line(problem)
    if not problems:
        assert search_space.count(found) >= 0
        for values in (*search_space.corners(found), *search_space.each_component(found)):
            assert set(values) == set(found)


def ballot_text(rng):
    rows = [["id", "a", "b", "c"]]
    for k in range(rng.randint(1, 6)):
        p = rng.random()
        rows.append([f"row{k}", f"{p:.4f}", f"{1 - p:.4f}", "0.0000"])
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue().encode()


@examples(600)
@given(st.integers(0, 2**32))
def test_mutated_ballots_are_read_rightly_or_refused(tmp_path_factory, seed):
    rng = random.Random(seed)
    path = tmp_path_factory.getbasetemp() / "ballot.csv"
    path.write_bytes(mutated(ballot_text(rng), rng))
    try:
        ballot = read_ballot(path)
    except UserError as error:
        one_line(error)
        assert "ballot.csv" in str(error)
        return
    assert len(set(ballot.ids)) == len(ballot.ids) == len(ballot.probs) > 0
    assert ballot.probs.shape[1] == len(set(ballot.classes)) >= 2
    assert np.isfinite(ballot.probs).all() and (ballot.probs >= 0).all()
    assert np.allclose(ballot.probs.sum(axis=1), 1, atol=1e-3)


@examples(300)
@given(st.binary(max_size=200))
def test_any_bytes_are_no_ballot_or_one(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "bytes.csv"
    path.write_bytes(data)
    try:
        assert len(read_ballot(path).probs) > 0
    except UserError as error:
        one_line(error)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    save_tensors(path, {"model": {"w": torch.ones(40)}, "about": json.dumps({"epoch": 1})})
    return path.read_bytes()


@examples(200)
@given(st.integers(0, 2**32))
def test_mutated_checkpoints_are_read_or_refused(checkpoint, tmp_path_factory, seed):
    path = tmp_path_factory.getbasetemp() / "mutated.pt"
    path.write_bytes(mutated(checkpoint, random.Random(seed)))
    try:
        load_tensors(path)
    except UserError as error:
        one_line(error)


def test_a_checkpoint_from_a_stranger_runs_nothing(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    torch.save({"model": Attack()}, tmp_path / "best.pt")
    with pytest.raises(UserError, match="no checkpoint that can be read"):
        load_tensors(tmp_path / "best.pt")
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("database") / "nni.sqlite"
    with sqlite3.connect(path) as db:
        db.execute(
            "CREATE TABLE TrialJobEvent (timestamp, trialJobId, event, data, logPath, "
            "sequenceId, message, environmentId)"
        )
        db.execute(
            "CREATE TABLE MetricData (timestamp, trialJobId, parameterId, type, sequence, data)"
        )
        for k in range(5):
            given_ = json.dumps({"parameter_id": k, "parameters": {"lr": 0.1 * k}})
            for event in ("waiting", "running", "succeeded"):
                db.execute(
                    "INSERT INTO TrialJobEvent VALUES (?,?,?,?,'',?,'','')",
                    (1e12 + k, f"t{k}", event, given_, k),
                )
            db.execute(
                "INSERT INTO MetricData VALUES (?,?,?,'FINAL',0,?)",
                (1e12 + k, f"t{k}", str(k), json.dumps(json.dumps(0.5))),
            )
    db.close()
    return path.read_bytes()


@examples(200)
@given(st.integers(0, 2**32))
def test_a_damaged_database_shows_what_can_be_read(database, tmp_path_factory, seed):
    folder = tmp_path_factory.getbasetemp() / "experiment"
    (folder / "db").mkdir(parents=True, exist_ok=True)
    (folder / "db" / "nni.sqlite").write_bytes(mutated(database, random.Random(seed)))
    for trial in read_trials(folder):
        assert trial.final is None or isinstance(trial.final, float)


NAMES = st.text(
    st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=12
).filter(lambda name: name not in (".", ".."))


@examples(80)
@given(
    st.lists(
        st.tuples(NAMES, NAMES, st.sampled_from([".png", ".jpg", ".txt", "", ".PNG"])),
        min_size=1,
        max_size=8,
    )
)
def test_any_tree_of_files_is_data_or_a_line(tmp_path_factory, files):
    root = tmp_path_factory.mktemp("tree")
    for folder, name, suffix in files:
        path = root / folder / f"{name}{suffix}"
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"x")
        except OSError:  # a name that is too long, or a file where a folder is wanted
            continue
    try:
        table = find_table(Config(data_dir=str(root)))
    except UserError as error:
        one_line(error)
        return
    assert len(set(table.ids)) == len(table.ids) == len(table.labels)
    for name in table.ids:
        assert not name.startswith("/") and ".." not in Path(name).parts


@examples(120)
@given(
    st.sampled_from(["result.json", "config.json", "history.csv", "val.csv"]), st.integers(0, 2**32)
)
def test_mutated_run_folders_are_shown_or_left_out(tmp_path_factory, name, seed):
    outputs = tmp_path_factory.mktemp("outputs")
    run = outputs / "run"
    run.mkdir()
    given_ = {
        "result.json": json.dumps(
            {
                "run": "run",
                "status": "done",
                "score": 0.5,
                "seconds": 3.0,
                "monitor": "val_acc",
                "mode": "max",
                "classes": ["a", "b"],
            }
        ),
        "config.json": json.dumps({"values": {"lr": 0.1}, "origin": {"lr": "tuner"}}),
        "history.csv": "epoch,val_acc\n1,0.4\n2,0.5\n",
        "val.csv": "id,label,a,b\nx,a,0.6,0.4\ny,b,0.3,0.7\n",
    }
    for each, text in given_.items():
        (run / each).write_text(text)
    (run / name).write_bytes(mutated(given_[name].encode(), random.Random(seed)))
    try:
        found = find_trials(outputs)
    except UserError as error:
        one_line(error)
        return
    for trial in found.trials:
        assert trial.score is None or np.isfinite(trial.score)


def test_a_configuration_cannot_build_objects(tmp_path):
    (tmp_path / "a.yaml").write_text(f"!!python/object/apply:os.system ['touch {tmp_path}/ran']\n")
    with pytest.raises(UserError):
        read_config_files([tmp_path / "a.yaml"])
    with pytest.raises(UserError):
        read_content(tmp_path / "a.yaml")
    assert not (tmp_path / "ran").exists()
    assert yaml.safe_load("a: 1") == {"a": 1}


@pytest.mark.parametrize("name", ["1" * 5000, "--1", "²", "a" + "0" * 5000 + "7"])
def test_any_class_name_has_a_place_in_the_order(name):
    assert natural("2") < natural("10") and sorted([name, "2"], key=natural)
