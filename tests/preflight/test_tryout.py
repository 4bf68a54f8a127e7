"""What a try of a few batches says of a search, from answers as a trial gives them."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from ballot import wording
from ballot.config.schema import Config
from ballot.config.trial_command import TrialCommand
from ballot.preflight import tryout
from ballot.preflight.tryout import Answers, Item

ITEMS = [
    Item("the smallest configuration", {"batch_size": 1}, True),
    Item("the largest configuration", {"batch_size": 2}, True),
]
FACTS = {
    "monitor": "val_acc",
    "mode": "max",
    "epochs": 10,
    "own_start": 4.0,
    "ready": 1.0,
    "first_step": 1.0,
    "step": 0.1,
    "predict": 0.05,
    "peak": 5e8,
    "parts": 1,
    "device": "cpu",
    "gpus": 0,
    "batches": {"train": 40, "val": 20, "test": 20},
    "folds": 1,
    "warnings": [],
}


def answers(*facts, status=0, words=(), late=False):
    return Answers(ITEMS, dict(enumerate(facts)), status, list(words), late)


def problems(found):
    return [(str(p), p.fatal) for p in tryout.problems_of(found, "c.yml", "space.json")]


def test_the_time_of_a_trial_is_its_start_its_epochs_and_its_answers():
    by_hand = 4 + 1 + 1 + tryout.REPORTING + 10 * (40 * 0.1 + 20 * 0.05) + 40 * 0.05
    assert tryout.seconds_of_trial(FACTS) == pytest.approx(by_hand)
    folds = {**FACTS, "folds": 3}
    assert tryout.seconds_of_trial(folds) == pytest.approx(by_hand + 2 * 52)


def test_the_search_takes_its_trials_times_their_mean(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(tryout, "REPORTING", 2.0)
    slow = {**FACTS, "own_start": 64.0, "peak": 2e9}
    text = tryout.estimate(answers(FACTS, slow), 12, 2, None)
    # 60 and 120 seconds: six rounds of 90 on average
    assert (
        text == "about 12 trials in 9 min, 2 at once: one takes 60 s to 2 min and 2.0 GB of memory"
    )


def test_a_limit_of_time_ends_the_search_before_its_trials(monkeypatch):
    monkeypatch.setattr(tryout, "REPORTING", 2.0)
    assert tryout.estimate(answers(FACTS), 100, 1, 600).startswith("about 9 trials in 10 min")
    assert tryout.estimate(answers(FACTS), None, 1, 600).startswith("about 9 trials in 10 min")
    assert "not one trial ends by itself in 60 s" in tryout.estimate(answers(FACTS), 9, 1, 60)
    assert tryout.estimate(answers(FACTS), None, 1, None) == ""
    assert tryout.estimate(answers({"error": "a: b", "warnings": []}), 3, 1, None) == ""


def test_a_good_answer_is_no_problem():
    assert problems(answers(FACTS, FACTS)) == []
    assert answers(FACTS, FACTS).aim == ("val_acc", "max")


@pytest.mark.parametrize(
    "error, said",
    [
        (
            "tuner: unknown criterion 'focall'; did you mean 'focal'?",
            "space.json: unknown criterion 'focall'; did you mean 'focal'?",
        ),
        ("command line: unknown model 'x'", "c.yml: trial command: unknown model 'x'"),
        ("data_dir: there are no images", "data_dir: there are no images"),
    ],
)
def test_an_error_is_said_once_and_of_the_file_it_comes_from(error, said):
    wrong = {"error": error, "warnings": []}
    assert problems(answers(wrong, wrong)) == [(said, True)]


def test_what_does_not_fit_stops_the_search_only_where_the_smallest_does_not():
    full = {"failed": "out of memory with a single image", "warnings": []}
    (large,) = problems(answers(FACTS, full))
    assert "the largest configuration would fail (out of memory" in large[0] and not large[1]
    assert problems(answers(full, full))[0][1]
    (parts,) = problems(answers(FACTS, {**FACTS, "parts": 4}))
    assert "in 4 parts" in parts[0] and not parts[1]


def test_a_trial_that_was_killed_or_never_started_is_told_apart():
    (killed,) = problems(answers(FACTS, status=-9))
    assert "killed by the system" in killed[0] and not killed[1]
    (broken,) = problems(answers(status=1, words=["ImportError: no torch"]))
    assert broken == ("c.yml: a trial does not start: ImportError: no torch", True)
    (late,) = problems(answers(FACTS, status=-9, late=True))
    assert "--no_probe" in late[0] and not late[1]


def test_warnings_of_a_trial_are_notes_said_once():
    warned = {**FACTS, "warnings": ["starts FROM SCRATCH"]}
    assert problems(answers(warned, warned)) == [("train.py: starts FROM SCRATCH", False)]


def test_what_was_not_measured_is_said_with_what_it_may_take(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    names = ["Efficientnet_b6", "Efficientnet_b0"]
    space = {
        "model": {"_type": "choice", "_value": names},
        "batch_size": {"_type": "choice", "_value": [8, 128]},
    }
    items = tryout.what_to_try(space, train=True)
    found = Answers(items, {0: FACTS}, 0, [], late=True)
    (note,) = tryout.unmeasured_notes(found, Config(), "space.json")
    assert str(note) == (
        "space.json: the largest configuration of Efficientnet_b6 and 1 more: memory and time were "
        "not measured, it may take up to about 8.0 GB: 16 times the smallest configuration, which "
        "takes 500 MB; a batch that does not fit is taken in parts, more slowly"
    )
    assert not note.fatal
    assert "one takes at least " in tryout.estimate(found, 4, 2, None)
    other = Answers(items[:1] + items[2:], {0: FACTS}, 0, [], late=True)
    (note,) = tryout.unmeasured_notes(other, Config(), "space.json")
    assert "of Efficientnet_b0: memory and time were not measured; a batch" in str(note)
    assert tryout.unmeasured_notes(answers(FACTS, FACTS), Config(), "") == []
    (note,) = tryout.elsewhere_notes(space, Config(), "space.json")
    assert "batches of 128 for 'Efficientnet_b6', 'Efficientnet_b0'" in str(note)
    assert tryout.elsewhere_notes({"lr": space["batch_size"]}, Config(), "") == []


def test_memory_is_counted_for_the_trials_that_run_at_once(monkeypatch):
    monkeypatch.setattr(tryout, "available_memory", lambda: 1.2e9)
    assert tryout.memory_notes(answers(FACTS), 2, "c.yml") == []
    (note,) = tryout.memory_notes(answers(FACTS), 3, "c.yml")
    assert "need 1.5 GB of 1.2 GB memory" in note.what and not note.fatal
    gpu = {**FACTS, "gpus": 2, "memory": 6e8}
    assert tryout.memory_notes(answers(gpu), 2, "c.yml") == []
    assert "GPU memory" in tryout.memory_notes(answers(gpu), 3, "c.yml")[0].what


@pytest.mark.parametrize(
    "cores, memory, at_once, wanted",
    [
        (2, 24e9, 2, ""),
        (
            2,
            24e9,
            4,
            "2 trials at once (2 cores, 24.0 GB of memory, a trial takes 500 MB), "
            "4 are to run at once; --concurrency 2 does as much",
        ),
        (8, 24e9, 5, ""),
        (
            8,
            24e9,
            4,
            "8 trials at once (8 cores, 24.0 GB of memory, a trial takes 500 MB), "
            "4 are to run at once; --concurrency 8 does more in the same time",
        ),
        (8, 1.2e9, 2, ""),
        (
            8,
            1.2e9,
            1,
            "2 trials at once (8 cores, 1.2 GB of memory, a trial takes 500 MB), "
            "1 are to run at once; --concurrency 2 does more in the same time",
        ),
        (
            1,
            float("inf"),
            2,
            "1 trial at once (1 core, a trial takes 500 MB), "
            "2 are to run at once; --concurrency 1 does as much",
        ),
    ],
)
def test_trials_at_once_are_suggested_by_cores_and_memory(
    monkeypatch, cores, memory, at_once, wanted
):
    monkeypatch.setattr(tryout, "available_memory", lambda: memory)
    monkeypatch.setattr(tryout, "count_cores", lambda: cores)
    notes = tryout.capacity_notes(answers(FACTS), at_once, "c.yml")
    assert [str(note) for note in notes] == [
        f"c.yml: this machine carries {wanted}" for _ in range(bool(wanted))
    ]
    assert not any(note.fatal for note in notes)
    gpu = {**FACTS, "device": "cuda", "gpus": 1}
    assert tryout.capacity_notes(answers(gpu), at_once, "c.yml") == []


def test_each_model_is_tried_large_and_each_component_is_made():
    space = {
        "batch_size": {"_type": "choice", "_value": [8, 32]},
        "model": {"_type": "choice", "_value": ["a", "b"]},
        "criterion": {"_type": "choice", "_value": ["x", "y"]},
    }
    items = tryout.what_to_try(space, train=True)
    trained = [(i.name, i.values["batch_size"], i.values["model"]) for i in items if i.steps]
    assert trained == [
        ("the smallest configuration", 8, "a"),
        ("the largest configuration of a", 32, "a"),
        ("the largest configuration of b", 32, "b"),
    ]
    made = [item.values for item in items if not item.steps]
    assert [(v["model"], v["criterion"]) for v in made] == [("b", "x"), ("a", "y")]
    assert not any(item.steps for item in tryout.what_to_try(space, train=False))


def test_a_try_runs_as_a_trial_would_and_a_late_one_is_ended(tmp_path, monkeypatch):
    fake = tmp_path / "fake.py"
    fake.write_text(
        "import json, os, subprocess, sys, time\n"
        "wanted = json.load(open(sys.argv[sys.argv.index('--probe') + 1]))\n"
        "print(json.dumps({'probe': 0, 'threads': os.environ['OMP_NUM_THREADS'],\n"
        "                  'mine': os.environ['MINE'], 'cwd': os.getcwd(), 'wanted': wanted}),\n"
        "      flush=True)\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "open('child', 'w').write(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.setattr(tryout, "PATIENCE", 2.0)
    command = TrialCommand("", {"MINE": "1"}, [sys.executable, str(fake)], 1)
    began = time.monotonic()
    found = tryout.start(command, tmp_path, ITEMS, 3).finish()
    assert time.monotonic() - began < 20 and found.late
    said = found.facts[0]
    assert (said["threads"], said["mine"], said["cwd"]) == ("3", "1", str(tmp_path))
    assert said["wanted"] == [{"values": i.values, "steps": True} for i in ITEMS]
    child = Path(f"/proc/{(tmp_path / 'child').read_text()}/stat")
    deadline = time.monotonic() + 5
    while child.exists() and child.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not child.exists() or child.read_text().split()[2] == "Z"


@pytest.mark.parametrize(
    "seconds, text",
    [(0.2, "1 s"), (89, "89 s"), (100, "2 min"), (7800, "2 h 10 min"), (7200, "2 h")],
)
def test_times_are_written_as_people_say_them(seconds, text):
    assert wording.span(seconds) == text


def test_an_answer_is_a_line_among_others(tmp_path):
    fake = tmp_path / "fake.py"
    fake.write_text(f"print('hello')\nprint({json.dumps({'probe': 0, 'warnings': []})!r})\n")
    command = TrialCommand("", {}, [sys.executable, str(fake)], 1)
    assert list(tryout.start(command, tmp_path, ITEMS[:1], 1).finish().facts) == [0]
