"""CSV files of anybody's making, as data, as truth and as images to predict."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from ballot.config.schema import Config
from ballot.data.layouts import read_csv, sorted_classes
from ballot.errors import UserError
from ballot.prediction.inputs import find_images
from ballot.runs.files import read_json
from ballot.scripts import script_main
from ballot.vote.members import find_files, name_members
from ballot.vote.run import check_out_dir
from ballot.vote.truth import find_submission, read_splits, read_truth
from dataset import find_table


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "holds no rows"),
        (b"id,label\n", "holds no rows"),
        (b"id,label,label\nx,a,b\n", "two columns are called 'label'; keep one"),
        (b"id,label, label \nx,a,b\n", "two columns are called 'label'"),
        (b"id,label\nx,a\ny,caf\xe9\n", r"is no text in UTF-8 \(byte 0xe9\); save it as UTF-8"),
        (b"id,label\nx,a\ny\n", "1 lines have not 2 fields: 3"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_table_is_named_with_its_file(tmp_path, data, message):
    path = tmp_path / "t.csv"
    path.symlink_to("t.csv") if data is None else path.write_bytes(data)
    with pytest.raises(UserError, match=rf"t\.csv: .*{message}"):
        read_csv(path)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"id,label,label\nx,a,b\n", "two columns are called 'label'; keep one"),
        (b"id,label\n" + b"x,a\n" * 20000 + b"y,\xe9\n", "no text in UTF-8"),
    ],
)
def test_a_truth_that_cannot_be_read_is_named_with_its_file(tmp_path, data, message):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(UserError, match=rf"t\.csv: .*{message}"):
        read_truth(tmp_path / "t.csv", ["a", "b"], {})


def test_a_field_of_any_length_is_read(tmp_path):
    (tmp_path / "t.csv").write_text(f"id,label,note\nx,a,{'n' * 200_000}\n")
    assert read_csv(tmp_path / "t.csv")[1][0]["label"] == "a"
    assert read_truth(tmp_path / "t.csv", ["a", "b"], {}) == {"x": "a"}


def folders(root, classes=("cat", "dog")):
    for name in classes:
        (root / name).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(root / name / "0.png")
    return Config(data_dir=str(root))


def test_an_empty_table_beside_class_folders_does_not_matter(tmp_path):
    config = folders(tmp_path)
    (tmp_path / "labels.csv").touch()
    assert find_table(config).classes == ["cat", "dog"]


@pytest.mark.parametrize("header", ["path,label,label", "path,path,label"])
def test_a_table_beside_class_folders_that_cannot_be_meant_is_refused(tmp_path, header):
    config = folders(tmp_path)
    (tmp_path / "labels.csv").write_text(f"{header}\ncat/0.png,cat,x\n")
    with pytest.raises(UserError, match="two columns are called"):
        find_table(config)


def test_a_folder_with_nothing_but_a_broken_table_says_what_is_wrong_with_it(tmp_path):
    (tmp_path / "labels.csv").symlink_to("labels.csv")
    with pytest.raises(UserError, match=r"labels\.csv: cannot be read"):
        find_table(Config(data_dir=str(tmp_path)))


@pytest.mark.parametrize(
    "names, expected",
    [
        (["10", "9", "-1"], ["-1", "9", "10"]),
        (["--1", "1"], ["--1", "1"]),
        (["1" * 5000, "2"], ["1" * 5000, "2"]),
    ],
)
def test_classes_are_sorted_as_numbers_where_all_are_some(names, expected):
    assert sorted_classes(names) == expected


def test_names_that_are_no_utf_8_are_refused_by_name(tmp_path):
    config = folders(tmp_path, (b"c\xe4t".decode(errors="surrogateescape"), "dog"))
    for find in (lambda: find_table(config), lambda: find_images([tmp_path])):
        with pytest.raises(UserError, match=r"not UTF-8, as '.*c\\xe4t"):
            find()


def test_what_a_terminal_would_act_on_is_shown_as_escapes(capsys):
    @script_main
    def main(_):
        raise UserError("a\x00b\x1b[2J\u202e: is not there")

    assert main([]) == 2
    assert capsys.readouterr().err == "error: a\\x00b\\x1b[2J\\u202e: is not there\n"


def voters(folder, **result):
    """Two runs, of which the first has a strange result.json."""
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / f"{name}.csv").write_text("id,a,b\nx,0.5,0.5\n")
    (folder / "one" / "result.json").write_text(json.dumps(result))
    return [str(folder / "one.csv"), str(folder / "two.csv")]


@pytest.mark.parametrize(
    "result", [{"submission": 3}, {"submission": {"columns": 3}}, {"classes": 3}, {"classes": {}}]
)
def test_a_strange_result_of_a_run_words_no_answer(tmp_path, result):
    files = find_files(voters(tmp_path, **result))[0]
    submission, _ = find_submission(name_members(files, None), ["a", "b"])
    assert submission.columns == ("id", "label") and submission.words == {"a": "a", "b": "b"}


def test_json_of_thousands_of_brackets_is_named_with_its_file(tmp_path):
    (tmp_path / "result.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"result\.json: is no JSON"):
        read_json(tmp_path / "result.json")


def test_a_ballot_that_is_a_link_to_itself_is_named(tmp_path):
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    with pytest.raises(UserError, match=r"loop\.csv: is a link that leads to itself"):
        find_files([str(tmp_path / "loop.csv")])


def test_a_vote_refuses_a_folder_that_no_file_can_be_written_to(tmp_path):
    members = name_members(find_files(voters(tmp_path))[0], None)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=r"loop: is a link that leads to itself; name another"):
        check_out_dir(tmp_path / "loop", members)
    with pytest.raises(UserError, match=r"--out_dir: 1 name is not UTF-8, as '.*v\\xe4'"):
        check_out_dir(tmp_path / "v\udce4", members)


def test_a_ballot_whose_name_is_no_utf_8_is_refused(tmp_path):
    (tmp_path / "v\udce4.csv").write_text("id,a,b\nx,0.5,0.5\n")
    with pytest.raises(UserError, match=r"not UTF-8, as '.*v\\xe4.csv'"):
        find_files([tmp_path / "v\udce4.csv"])


def test_a_split_with_a_field_of_any_length_is_read(tmp_path):
    files = find_files(voters(tmp_path))[0]
    (tmp_path / "one" / "split.csv").write_text(f"id,label,split,n\nx,a,test,{'n' * 200_000}\n")
    csv.field_size_limit(131_072)
    assert read_splits(name_members(files, None)).truth == {"x": "a"}
