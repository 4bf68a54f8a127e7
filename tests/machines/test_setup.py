"""Environments and data for machines: a tiny environment, and files with every kind of name."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ballot.errors import UserError
from ballot.machines import setup
from ballot.machines.machine import Machine
from ballot.machines.sent import receive as receive_module
from ballot.machines.ssh import Link

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("python", "venv"),
    [
        (None, "$HOME/.ballot/venv"),
        ("$HOME/.ballot/venv/bin", "$HOME/.ballot/venv"),
        ("/opt/env/bin/python3", "/opt/env"),
    ],
)
def test_the_environment_is_where_the_configuration_looks_for_it(python, venv):
    assert setup.venv_of(Link(Machine("a", python=python))) == venv


def test_a_python_path_that_is_no_environment_is_refused():
    with pytest.raises(UserError, match=r"^a: /opt/pythons is no environment"):
        setup.venv_of(Link(Machine("a", python="/opt/pythons")))


def receive(folder, data):
    code = f"{Path(receive_module.__file__).read_text()}\nreceive({str(folder)!r})"
    return subprocess.run([sys.executable, "-c", code], input=data, capture_output=True).stdout


def test_files_are_in_place_when_they_are_whole(tmp_path):
    data = b'["a/one", 3]\nabc["two", 0]\n["b/cut", 10]\n12345'
    assert receive(tmp_path, data[:-19]) == b'{"files": 2}\n'
    assert (tmp_path / "a" / "one").read_bytes() == b"abc" and (tmp_path / "two").exists()
    assert receive(tmp_path, data) == b"", "it was cut"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b", "one", "two"]


def test_what_cannot_be_written_is_told(tmp_path):
    (tmp_path / "a").touch()
    assert b"File exists" in receive(tmp_path, b'["a/one", 3]\nabc')


# ---------------------------------------------------------------- real machines


@pytest.fixture
def links(lab):
    found = [Link(box.machine(python=None), ssh_options=lab.ssh_options) for box in lab.boxes]
    for link in found:
        link.open()
    yield found
    for link in found:
        link.close()


def put_wheel(folder, version):
    """Write a package without an index: a module that holds its version."""
    about = f"tiny-{version}.dist-info"
    with zipfile.ZipFile(folder / f"tiny-{version}-py3-none-any.whl", "w") as file:
        file.writestr("tiny.py", f"version = {version!r}\n")
        file.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n"
        )
        file.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{about}/RECORD", "")


@pytest.mark.slow
def test_an_environment_is_made_kept_and_brought_up_to_date(links, lab, tmp_path, capsys):
    wanted = tmp_path / "requirements.txt"
    for version in ("1.0", "2.0"):
        for box in lab.boxes:
            put_wheel(box.folder, version)
        wanted.write_text(f"--no-index\n/run/lab/tiny-{version}-py3-none-any.whl\n")
        assert setup.install(links, wanted) == []
        assert capsys.readouterr().out.count("is ready after") == 2
        for link in links:
            found = link.python(
                "import tiny\nprint(json.dumps(tiny.version))",
                interpreter="$HOME/.ballot/venv/bin/python",
            )
            assert found == version
    assert setup.install(links, wanted) == []
    assert capsys.readouterr().out.count("is up to date") == 2
    wanted.write_text("--no-index\nno-such-package\n")
    problems = setup.install(links, wanted)
    assert [p.where for p in problems] == [link.name for link in links]
    assert "pip failed (No matching distribution found for no-such-package)" in problems[0].what
    (lab.boxes[0].home / "plain" / "bin").mkdir(parents=True)
    plain = Link(lab.boxes[0].machine(python="~/plain/bin"), ssh_options=lab.ssh_options)
    plain.open()
    (problem,) = setup.install([plain], wanted)
    assert "is no virtual environment" in problem.what
    plain.close()


@pytest.mark.slow
def test_data_are_copied_where_they_are_missing_and_nothing_is_deleted(
    links, lab, tmp_path, capsys
):
    names = ["a/plain.png", "a/with ' \" \n $(touch x) ü.png", "b/empty", "-x", "deep/er/é"]
    for number, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(100_000 * number * (name != "b/empty")))
    Path(os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff\xfe")).write_bytes(b"no UTF-8")
    (tmp_path / ".hidden").touch()
    assert setup.sync_data(links, tmp_path, "~/the data") == []
    assert capsys.readouterr().out.count("6 of 6 files to ~/the data, 1 MB ...") == 2
    for box in lab.boxes:
        there = box.home / "the data"
        for name in names:
            assert (there / name).read_bytes() == (tmp_path / name).read_bytes()
        assert not (there / ".hidden").exists()
        assert sum(path.is_file() for path in there.rglob("*")) == 6
    own = lab.boxes[0].home / "the data" / "own"
    own.write_text("stays")
    (lab.boxes[0].home / "the data" / "-x").write_text("cut short")
    assert setup.sync_data(links, tmp_path, "~/the data") == []
    said = capsys.readouterr().out
    assert "1 of 6 files" in said and "is up to date (6 files)" in said
    assert own.read_text() == "stays"
    assert (lab.boxes[0].home / "the data" / "-x").read_bytes() == (tmp_path / "-x").read_bytes()


@pytest.mark.slow
def test_data_that_do_not_fit_or_are_not_there_are_refused(links, tmp_path):
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(600 << 20)  # a hole: it takes no room here
    problems = setup.sync_data(links, tmp_path, "~/big data")
    assert len(problems) == 2 and "629 MB of data do not fit" in problems[0].what
    with pytest.raises(UserError, match="is not a folder"):
        setup.sync_data(links, big, "~/x")


@pytest.mark.slow
def test_the_flags_are_for_other_machines(script):
    done = script("search.py", "--config", ROOT / "config_local.yml", "--install")
    assert done.returncode == 2 and "names no machines that are reached over ssh" in done.stderr
