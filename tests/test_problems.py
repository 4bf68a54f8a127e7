"""How what is wrong is shown."""

import pytest

from ballot.errors import UserError
from ballot.problems import Problem, as_problem, listed, note


@pytest.mark.parametrize(
    "text, problem",
    [
        ("a.yml: x is 1; it must be 2", Problem("a.yml", "x is 1", "it must be 2")),
        ("a.yml: is no YAML", Problem("a.yml", "is no YAML", "")),
        ("a: b; c; d", Problem("a", "b; c", "d")),
    ],
)
def test_an_error_is_taken_apart_and_put_together_again(text, problem):
    assert as_problem(UserError(text)) == problem and str(problem) == text


def test_a_list_is_numbered_wrapped_and_each_remedy_has_a_line():
    problems = [Problem("file.yml", "wrong " * 20, "mend it"), Problem("b", "c")]
    lines = listed(problems, "error: 2 things are wrong", 60).splitlines()
    assert lines[0] == "error: 2 things are wrong" and lines[1].startswith("  1. file.yml: wrong")
    assert "     -> mend it" in lines and lines[-1] == "  2. b: c"
    assert max(map(len, lines)) <= 60


def test_a_note_keeps_long_paths_whole():
    text = note(Problem("/a/" + "long-path/" * 12, "is so", fatal=False), 60)
    assert "/a/" + "long-path/" * 12 in text


def test_a_heading_keeps_a_long_path_whole():
    path = "/a/" + "long-path/" * 12
    assert path in listed([Problem("b", "c")], f"error: {path}: 2 things are wrong", 60)
