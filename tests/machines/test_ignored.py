"""What an ignore file hides: as git says, and no file that trials need."""

import shutil
import subprocess
from pathlib import Path

import pytest

from ballot.machines.ignored import hidden_by, needed, needed_problems

ROOT = Path(__file__).resolve().parents[2]

FILES = ["train.py", "ballot/engines/nni/tuner.py", "nni/notes.txt", "a b/c.csv", "docs/x/y.md"]
LINES = [
    *("nni/", "/nni/", "nni", "/nni", "*.py", "/*.py", "ballot/**", "**/nni", "**/tuner.py"),
    *("ballot/*/nni", "ballot/**/tuner.py", "t?ain.py", "[st]rain.py", "[!s]rain.py", "a b/"),
    *("docs/*", "docs/*.md", "docs/**/y.md", "tuner.py/", "# nni", "\\#nni", "x", "engines/nni/"),
    *("*\n!train.py", "*.py\n!train.py", "ballot/\n!ballot/engines/nni/tuner.py", "*\n!*/"),
]


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.parametrize("text", LINES)
def test_a_pattern_hides_what_git_ignores(tmp_path, text):
    (tmp_path / ".gitignore").write_text(text + "\n")
    for file in FILES:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    words = ["git", "check-ignore", "--no-index", *FILES]
    said = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    hidden = [file for file in FILES if hidden_by(file, text.splitlines()) is not None]
    assert hidden == [line.strip('"') for line in said.stdout.splitlines()]


def test_our_own_file_hides_nothing_that_is_needed():
    assert needed_problems(ROOT, ".nniignore") == []
    assert {"train.py", "ballot/engines/nni/node/trials.js"} <= set(needed(ROOT))


def test_a_pattern_that_hides_a_part_of_the_program_is_named_with_a_file(tmp_path):
    for name in ("nni/a.py", "nni/b.py", "search/c.py"):
        (tmp_path / "ballot" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ballot" / name).touch()
    (tmp_path / ".nniignore").write_text("/search/\nnni/\n")
    (problem,) = needed_problems(tmp_path, ".nniignore")
    assert str(problem) == (
        f"{tmp_path}/.nniignore: 'nni/' hides ballot/nni/a.py and 1 more file, which trials on "
        "other machines need; write /nni/ for what lies at the top alone, or remove it"
    )
    shutil.rmtree(tmp_path / "ballot")  # another project's folder
    assert needed_problems(tmp_path, ".nniignore") == []
