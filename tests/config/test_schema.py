"""Layers, origins, and what is said of a bad value."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ballot.config.command_line import build_parser, parse_command_line
from ballot.config.files import read_config_file
from ballot.config.layers import merge
from ballot.config.schema import FIELDS, Config, parse_monitor
from ballot.errors import UserError
from ballot.values import Layer

ROOT = Path(__file__).resolve().parents[2]


def command_line(*words):
    return parse_command_line(build_parser("train.py", ""), list(words))[0]


def test_each_layer_wins_over_the_ones_below_and_is_named_as_origin():
    config, origin = merge(
        [
            Layer("a.json", {"lr": 0.1, "epochs": 3, "seed": 1}),
            command_line("--lr", "0.2", "--epochs", "4"),
            Layer("tuner", {"lr": 0.3}),
        ]
    )
    assert (config.lr, config.epochs, config.seed, config.batch_size) == (0.3, 4, 1, 64)
    assert origin["lr"] == "tuner" and origin["epochs"] == "command line"
    assert origin["seed"] == "a.json" and origin["batch_size"] == "default"


def test_every_field_is_a_flag_in_snake_and_kebab_case_with_its_default_in_the_help():
    text = " ".join(build_parser("train.py", "").format_help().split())
    for name in FIELDS:
        assert f"--{name}" in text or f"--no_{name}" in text
    assert "(default: 0.001)" in text and "default: all folds --all_rows" in text
    assert command_line("--batch-size=8").values == {"batch_size": 8}
    assert "steps" not in command_line("--no-tensorboard").values
    assert merge([command_line("--no-tensorboard")])[0].tensorboard is False


def test_help_begins_with_ten_options_and_loads_no_torch():
    code = (
        "import runpy, sys; sys.argv = ['train.py', '--help']\n"
        "try: runpy.run_path('train.py', run_name='__main__')\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "False\n")
    flags = re.findall(r"^  (--\w+)", ran.stdout, re.M)
    assert flags[:3] == ["--data_dir", "--model", "--epochs"] and flags[10] == "--version"


def test_a_dotted_key_adds_to_the_arguments_of_the_layer_below():
    config, origin = merge(
        [
            Layer("a.json", {"optimizer": "SGD", "optimizer_args": {"nesterov": True}}),
            command_line("--optimizer_args.momentum", "0.9"),
        ]
    )
    assert config.optimizer_args == {"nesterov": True, "momentum": 0.9}
    assert origin["optimizer_args.momentum"] == "command line"


def test_naming_another_component_forgets_the_arguments_of_the_old_one():
    below = Layer("a.json", {"optimizer": "SGD", "optimizer_args": {"momentum": 0.9}})
    assert merge([below, Layer("t", {"optimizer": "AdamW"})])[0].optimizer_args == {}
    assert merge([below, Layer("t", {"optimizer": "SGD"})])[0].optimizer_args == {"momentum": 0.9}


@pytest.mark.parametrize(
    "nested",
    [
        {"optimizer": {"type": "Adam", "args": {"lr": 0.5, "amsgrad": True}}},
        {"optimizer": {"_name": "Adam", "lr": 0.5, "amsgrad": True}},
        {"optimizer.amsgrad": True, "optimizer": "Adam", "lr": 0.5},
    ],
)
def test_nested_and_dotted_forms_mean_the_same(nested):
    config, _ = merge([Layer("file", nested)])
    assert (config.optimizer, config.lr, config.optimizer_args) == ("Adam", 0.5, {"amsgrad": True})


@pytest.mark.parametrize(
    "values, message",
    [
        ({"batchsize": 1}, "f: unknown option 'batchsize'; did you mean 'batch_size'"),
        ({"learning_rate": 1}, "did you mean 'lr'"),
        ({"epochs": 0}, "f: epochs is 0; it must be at least 1"),
        ({"epochs": -3}, "at least 1"),
        ({"epochs": 2.5}, "a whole number"),
        ({"epochs": True}, "a whole number"),
        ({"lr": "fast"}, "lr is 'fast'; it takes a number"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": float("inf")}, "lr is inf"),
        ({"val_ratio": 1}, "less than 1"),
        ({"amp": "bf17"}, "did you mean 'bf16'"),
        ({"std": [0.5, 0]}, "greater than 0"),
        ({"lr.x": 1}, "'lr' has no arguments"),
        ({"optimizer": {"lr": 1}}, "optimizer needs exactly one name"),
        ({"model_args": 3}, "an object"),
    ],
)
def test_a_bad_value_is_named_with_its_source_and_what_would_be_right(values, message):
    with pytest.raises(UserError) as caught:
        merge([Layer("f", values)])
    assert message in str(caught.value)


def test_numbers_of_a_tuner_that_are_whole_become_whole_numbers():
    config, _ = merge([Layer("tuner", {"batch_size": 32.0, "lr": 1})])
    assert config.batch_size == 32 and isinstance(config.batch_size, int)
    assert config.lr == 1.0 and isinstance(config.lr, float)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--batchsize", "3"], "unknown flag '--batchsize'; did you mean '--batch_size'"),
        (["--learning_rate", "3"], "did you mean '--lr'"),
        (["digits"], "'digits' belongs to no flag"),
        (["--model_args", "{"], "--model_args: is not valid JSON"),
        (["--optimizer.momentum"], "needs a value"),
        (["--lr"], "expected one argument"),
        (["--epochs", "many"], "epochs is 'many'; it takes a whole number"),
    ],
)
def test_a_bad_command_line_is_one_line(words, message):
    with pytest.raises(UserError) as caught:
        merge([command_line(*words)])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "name, text, message",
    [
        (
            "a.json",
            "{",
            "is not valid JSON; Expecting property name enclosed in double quotes at line 1",
        ),
        ("a.json", "[1]", "contains a list"),
        ("a.yml", "a: [", "is not valid YAML"),
        ("a.yml", "", "contains a NoneType"),
        ("a.json", "\xff", "is not valid JSON"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_config_file(path)
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no\.json: cannot be read"):
        read_config_file(tmp_path / "no.json")


def test_the_config_json_of_a_run_is_a_config_file_too(tmp_path):
    values = dataclasses.asdict(Config(lr=0.5))
    (tmp_path / "config.json").write_text(json.dumps({"values": values, "origin": {}}))
    assert merge([read_config_file(tmp_path / "config.json")])[0] == Config(lr=0.5)


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().lr = 1


@pytest.mark.parametrize(
    "text, lower, wanted",
    [
        ("val_acc", False, ("val_acc", "max")),
        ("val_loss", True, ("val_loss", "min")),
        ("min val_acc", False, ("val_acc", "min")),
    ],
)
def test_a_monitor_may_say_which_way_is_better(text, lower, wanted):
    assert parse_monitor(text, lower) == wanted
    with pytest.raises(UserError, match=r"monitor: .* is invalid"):
        parse_monitor("smaller val_acc", False)


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 100_000, '{"lr": ' + "9" * 5000 + "}"])
def test_json_that_python_gives_up_on_is_a_line(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_config_file(path)


BOMB = "a0: &a0 [1, 1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))


@pytest.mark.parametrize("text", ["[" * 20_000, "a: &a [*a]", "lr: " + "9" * 5000, BOMB])
def test_yaml_that_python_gives_up_on_is_a_line(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError):
        merge([read_config_file(path)])


@pytest.mark.parametrize(
    "key, value", [("out_dir", "a\0b"), ("log_config", "\0"), ("plugins", ["\0"])]
)
def test_a_path_with_a_nul_is_refused_by_its_key(key, value):
    with pytest.raises(UserError, match=f"^here: {key} is "):
        merge([Layer("here", {key: value})])


@pytest.mark.parametrize("key, value", [("out_dir", "o\udce4"), ("plugins", ["a", "o\udce4"])])
def test_a_path_that_is_no_utf_8_is_refused_by_its_key(key, value):
    with pytest.raises(UserError, match=rf"^here: {key}: 1 name is not UTF-8, as 'o\\xe4'"):
        merge([Layer("here", {key: value})])
