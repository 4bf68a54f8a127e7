"""The command of a trial, taken apart."""

import json
import sys
from pathlib import Path

import pytest

from ballot.config.out_dir import outputs_of
from ballot.config.trial_command import command_problems, parse_command
from ballot.training.options import own_problems, read_options

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("text", ["a; b", "a && b", "a | b", "a & b", "(a)", "a\nb", "a $(b)"])
def test_several_commands_are_refused(text):
    (problem,) = command_problems(text, "c.yml")
    assert "several commands" in problem.what and problem.fatal


@pytest.mark.parametrize("text", ["python3 train.py", "exec a --x 'b; c'", "a > log 2>&1", ""])
def test_one_command_is_not(text):
    assert command_problems(text, "c.yml") == []


def test_a_quotation_mark_without_its_partner_is_refused():
    (problem,) = command_problems("a 'b", "c.yml")
    assert "cannot be split" in problem.what


@pytest.mark.parametrize(
    "text, words, environment",
    [
        ("python3 train.py --lr 1", [sys.executable, "train.py", "--lr", "1"], {}),
        ("A=1 exec python train.py", [sys.executable, "train.py"], {"A": "1"}),
        ("$PLACE/python3.11 -u train.py", ["/opt/python3.11", "-u", "train.py"], {}),
        (
            "python3 -m ballot.preload train.py",
            [sys.executable, "-m", "ballot.preload", "train.py"],
            {},
        ),
        ("nice -n 5 python3 train.py", ["nice", "-n", "5", "python3", "train.py"], {}),
    ],
)
def test_our_script_is_found_behind_what_starts_it(text, words, environment, monkeypatch):
    monkeypatch.setenv("PLACE", "/opt")
    command = parse_command(text, ROOT)
    assert command.words == words and command.environment == environment
    assert command.words[command.script] == "train.py"


@pytest.mark.parametrize(
    "text",
    ["python3 mine.py", "sh train.py", "train.py", "python -m torch.distributed.run train.py"],
)
def test_what_does_not_run_our_script_directly_is_another_script(text):
    assert parse_command(text, ROOT).script == -1


def test_another_projects_train_py_is_another_script(tmp_path):
    (tmp_path / "train.py").write_text("")
    assert parse_command("python3 train.py", tmp_path).script == -1


def test_every_wrong_option_is_found_and_the_good_ones_are_kept():
    text = "python3 train.py --epoch 3 --foo --lr -3 --batch-size 0 --resume auto"
    options, problems = read_options(parse_command(text, ROOT), ROOT, "c.yml")
    assert [str(problem) for problem in problems] == [
        "c.yml: trial command: unknown flag '--epoch'; did you mean '--epochs'?",
        "c.yml: trial command: unknown flag '--foo'; did you mean '--fold'?",
        "c.yml: trial command: lr is -3.0; it must be greater than 0",
        "c.yml: trial command: batch_size is 0; it must be at least 1",
    ]
    assert options.config is None
    assert options.command.options == ["--lr", "-3", "--batch-size", "0", "--resume", "auto"]


def test_a_file_of_options_is_read_from_where_trials_run(tmp_path):
    (tmp_path / "ballot").mkdir()
    (tmp_path / "o.json").write_text('{"monitor": "min val_loss", "lr": 0.5}')
    command = parse_command("python3 train.py --config o.json --lr 0.25", tmp_path)
    options, problems = read_options(command, tmp_path, "c.yml")
    assert problems == [] and options.config.monitor == "min val_loss" and options.config.lr == 0.25
    (tmp_path / "o.json").write_text('{"lrr": 0.5}')
    (problem,) = read_options(command, tmp_path, "c.yml")[1]
    assert problem.where == str(tmp_path / "o.json") and "did you mean 'lr'" in str(problem)


def test_the_folder_of_runs_is_that_of_the_command_or_of_its_files(tmp_path):
    (tmp_path / "ballot").mkdir()
    old = {"name": "Mask", "arch": {"type": "LeNet"}, "trainer": {"save_dir": "saved/"}}
    (tmp_path / "config.json").write_text(json.dumps(old))
    command = "python3 train.py -c config.json"
    assert outputs_of(command, tmp_path) == tmp_path / "saved" / "Mask"
    assert outputs_of(f"{command} --out_dir o", tmp_path) == tmp_path / "o"
    assert outputs_of("python3 train.py -c none.json", tmp_path) == tmp_path / "outputs"


def test_a_name_for_all_runs_is_refused_and_a_missing_resume_is_noted():
    command = parse_command("python3 train.py --run_name a", ROOT)
    options, _ = read_options(command, ROOT, "c.yml")
    named, resumed = own_problems(options.config, "c.yml")
    assert named.fatal and "--run_name" in named.what
    assert not resumed.fatal and "--resume auto" in resumed.remedy


def test_several_processes_for_each_trial_are_refused():
    command = parse_command("python3 train.py --processes 2 --resume auto", ROOT)
    (problem,) = own_problems(read_options(command, ROOT, "c.yml")[0].config, "c.yml")
    assert problem.fatal and "--processes 1" in problem.remedy
