"""The version, its one line, and a Python that the scripts do not run on."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ballot import installed
from ballot.installed import PYTHON_NAMES, PYTHON_RANGE, PYTHONS
from ballot.scripts import script_main
from ballot.version import VERSION

ROOT = Path(__file__).resolve().parents[2]


def test_the_package_and_the_changelog_have_the_same_version():
    project = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.+)"$', project, re.MULTILINE)[1] == VERSION
    assert f"\n## {VERSION}\n" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("name", ["collect", "ensemble", "report", "search"])
def test_every_script_that_trains_nothing_says_its_version(script, name):
    done = script(f"{name}.py", "--version")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"ballot {re.escape(VERSION)} \(Python .+\)\n", done.stdout)


def test_the_parser_of_a_trial_says_its_version(capsys):
    from ballot.config.command_line import build_parser

    with pytest.raises(SystemExit) as ended:
        build_parser("train.py", "").parse_args(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"ballot {VERSION} ")


def test_a_missing_package_is_one_line_that_says_what_to_run(capsys):
    with pytest.raises(SystemExit) as ended:
        installed.require("sys", "no_such_package")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said == (
        f"error: {sys.executable}: no_such_package is not installed; "
        "run make setup, then source .venv/bin/activate\n"
    )


@pytest.mark.parametrize("version, fits", [((3, 9), False), ((3, 10), True), ((3, 14), False)])
def test_a_python_that_does_not_fit_is_named(monkeypatch, version, fits):
    monkeypatch.setattr(sys, "version_info", (*version, 1))
    assert (installed.what_is_missing(["sys"]) == "") == fits


def test_a_package_that_is_missed_later_is_one_line_and_a_module_of_ours_is_a_defect(capsys):
    @script_main
    def main(argv):
        raise ModuleNotFoundError("No module named 'x'", name=argv[0])

    assert main(["no_such_package.part"]) == 2
    assert "no_such_package.part is not installed" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError):
        main(["ballot.no_such_module"])


@pytest.mark.parametrize("file", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda f: f.name)
def test_files_for_github_are_yaml(file):
    import yaml

    assert isinstance(yaml.safe_load(file.read_text()), dict)


def test_the_workflow_runs_what_ci_runs():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "run: .ci/run" in workflow and (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_make_without_a_target_lists_the_targets_and_starts_nothing():
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make"], cwd=ROOT, capture_output=True, text=True, timeout=60, env=clean
    )  # of a make that runs the tests, it would say the folder
    assert done.returncode == 0 and done.stdout.startswith("make search "), done
    assert "make test" in done.stdout and "make watch" in done.stdout


def test_the_makefile_and_pyproject_name_the_pythons_that_the_scripts_run_on():
    first, after = (".".join(map(str, version)) for version in PYTHONS)
    assert f'requires-python = ">={first},<{after}"' in (ROOT / "pyproject.toml").read_text()
    makefile = (ROOT / "Makefile").read_text()
    assert f"not {PYTHONS[0]} <= sys.version_info < {PYTHONS[1]}" in makefile
    assert f"for p in python3 {' '.join(PYTHON_NAMES)};" in makefile and PYTHON_RANGE in makefile
