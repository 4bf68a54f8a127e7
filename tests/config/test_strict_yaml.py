"""Keys of YAML and JSON: each stands once and is text."""

import pytest

from ballot.config.command_line import build_parser, parse_command_line
from ballot.config.files import read_config_file
from ballot.config.parsing import parse_yaml
from ballot.engines.nni import config
from ballot.errors import UserError


@pytest.mark.parametrize(
    "text, message",
    [
        ("lr: 1\nepochs: 2\nlr: 3\n", "line 3: duplicate key 'lr'; keep one"),
        ("a: {b: 1, b: 2}\n", "line 1: duplicate key 'b'"),
        ("a:\n- b: 1\n  b: 1\n", "line 3: duplicate key 'b'"),
        ('"lr": 1\nlr: 1\n', "duplicate key 'lr'"),
        ("1: a\n", "line 1: the key 1 is no text; put it in quotes"),
        ("on: a\n", "the key on is no text"),
        ("? [a, b]\n: 1\n", "the key of kind sequence is no text"),
        ("null: 1\n", "the key null is no text"),
        ("2020-01-01: 1\n", "the key 2020-01-01 is no text"),
    ],
)
def test_a_key_of_yaml_that_would_get_lost_is_an_error_with_file_and_line(tmp_path, text, message):
    path = tmp_path / "a.yml"
    path.write_text(text)
    for read in (read_config_file, config.read_content):
        with pytest.raises(UserError) as error:
            read(path)
        assert str(error.value).startswith(f"{path}: ") and message in str(error.value)


def test_nul_in_a_configuration_is_an_error_with_its_file(tmp_path):
    path = tmp_path / "a.yml"
    path.write_text('trial: {command: ["a\\0b"]}\n')
    for read in (read_config_file, config.read_content):
        with pytest.raises(UserError, match=r"a\.yml: 'a\\x00b' contains NUL"):
            read(path)


def test_a_merge_may_replace_a_key_of_what_is_merged():
    text = "base: &b {x: 1, y: 2}\na: &a\n  <<: *b\n  x: 3\nc: {<<: *a, y: 4}\n"
    assert parse_yaml(text, "a.yml")["a"] == {"x": 3, "y": 2}
    assert parse_yaml(text, "a.yml")["c"] == {"x": 3, "y": 4}


def test_of_several_merged_mappings_the_first_wins():
    text = "a: &a {rate: 1}\nb: &b {rate: 2, size: 3}\nc: {<<: [*a, *b]}\nd: {size: 4, <<: *b}\n"
    read = parse_yaml(text, "a.yml")
    assert read["c"] == {"rate": 1, "size": 3} and read["d"] == {"rate": 2, "size": 4}


def test_a_merge_of_something_else_is_an_error():
    with pytest.raises(UserError, match="line 2: << merges mappings, not a scalar"):
        parse_yaml("a: &a 1\nb: {<<: *a}\n", "a.yml")


@pytest.mark.parametrize("text", ['{"lr": 1, "lr": 2}', '{"a": [{"lr": 1, "lr": 1}]}'])
def test_a_key_of_json_that_stands_twice_is_an_error_with_its_file(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"a\.json: duplicate key 'lr'; keep one"):
        read_config_file(path)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--model_args", '{"a": 1, "a": 2}'], "--model_args: duplicate key 'a'"),
        (["--model_args.x", '{"a": 1, "a": 2}'], "duplicate key 'a'"),
        (["--model_args", '{"a": ' + "1" * 5000 + "}"], "--model_args: cannot be read as JSON"),
    ],
)
def test_json_of_the_command_line_is_read_as_strictly(words, message):
    with pytest.raises(UserError, match=message):
        parse_command_line(build_parser("train.py", ""), words)
