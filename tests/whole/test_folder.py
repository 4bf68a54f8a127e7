"""From a folder to the answer, by the one command that a person types."""

import csv
import json
import subprocess
import sys
import time

import pytest
from images_for_tests import class_folders, save
from searches_for_tests import ROOT, environment, home_of_its_own

import search
from ballot.errors import UserError

QUICK = ("--image_size", "32", "--model", "simple_cnn", "--epochs", "2", "--no_tensorboard")


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """One search of generated photos, with a time that leaves some for training the best again."""
    home = tmp_path_factory.mktemp("home")
    root = class_folders(home / "photos" / "train", {"cat": 20, "dog": 20})
    class_folders(home / "photos" / "test", {"cat": 4, "dog": 4}, start=100)
    with home_of_its_own(home):
        began = time.monotonic()
        words = ["--data_dir", root.parent, "--max_duration", "150s", "--refit", "yes", *QUICK]
        words += ["--max_trials", "3", "--port", "18300"]
        done = subprocess.run(
            [sys.executable, ROOT / "search.py", *map(str, words)],
            cwd=home,
            env=environment(home),
            capture_output=True,
            text=True,
            timeout=300,
        )
        yield home, done, time.monotonic() - began


@pytest.mark.parametrize(
    "word, meant",
    [
        ("--max_durations", "--max_duration"),
        ("--prest", "--preset"),
    ],
)
def test_a_misspelt_flag_is_taken_for_the_nearest_of_all(word, meant):
    with pytest.raises(UserError, match=f"unknown flag '{word}'; did you mean '{meant}'"):
        search.read_command_line(["--data_dir", "photos", word, "2"])


def test_options_of_a_trial_are_no_misspelt_flags():
    words = ["--model", "resnet18", "--no_tensorboard", "--optimizer_args.momentum", "0.9"]
    assert search.read_command_line(["--data_dir", "photos", *words]).options == words


@pytest.mark.slow
def test_a_folder_becomes_an_answer_within_its_time(searched):
    home, done, seconds = searched
    assert done.returncode == 0, done.stdout + done.stderr
    place = home / "searches" / "photos-1"
    assert (place / "config.yml").is_file() and (place / "search_space.json").is_file()
    with (place / "ensemble" / "submission.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 8
    assert (place / "report.html").is_file() and (home / "report.html").is_symlink()
    last = done.stdout.splitlines()[-5:]
    starts = ("answer: accuracy ", "made of: ", "submission: ", "report: ", "new images: ")
    assert all(line.startswith(start) for line, start in zip(last, starts)), last
    assert seconds < 150 + 30  # the start and the end of a process on a busy machine


@pytest.mark.slow
def test_the_best_are_trained_again_on_all_rows_and_vote(searched):
    home, done, _ = searched
    record = json.loads((home / "ensemble" / "ensemble.json").read_text())
    on_all = [m for m in record["members"] if m["weight"] and not m["val"]]
    assert on_all and sum(m["weight"] for m in on_all) == pytest.approx(0.5)
    for member in on_all:
        run = home / "searches" / "photos-1" / "outputs" / member["name"]
        values = json.loads((run / "config.json").read_text())["values"]
        assert values["all_rows"] and not (run / "val.csv").exists()
        assert json.loads((run / "result.json").read_text())["score"] is None
    assert "on all rows" in done.stdout


@pytest.mark.slow
def test_the_command_that_it_names_answers_new_images(searched, tmp_path):
    home, done, _ = searched
    command = done.stdout.splitlines()[-1].removeprefix("new images: python ").split()
    new = save(tmp_path / "new" / "x.jpg", 7)
    words = [str(new.parent) if word == "PHOTOS" else word for word in command]
    subprocess.run([sys.executable, ROOT / words[0], *words[1:]], cwd=home, check=True, timeout=120)
    (row,) = csv.DictReader((home / "new.csv").open())
    assert float(row["cat"]) + float(row["dog"]) == pytest.approx(1)
