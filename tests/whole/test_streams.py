"""Standard streams that are closed, full, read by nobody or in another encoding."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ballot.scripts import lasting_main, script_main
from ballot.streams import Lasting

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, sys
sys.path.insert(0, {root!r})
from ballot.installed import require
require("sys")
from ballot.scripts import {wrap}
@{wrap}
def main(argv):
    with open("result", "w") as file:
        print("x" * 100_000)
        file.write("whole")
    print("é", file=sys.stderr)
    return 0
sys.exit(main())
"""


def run(folder, redirect, wrap="lasting_main", **env):
    (folder / "p.py").write_text(PROGRAM.format(root=str(ROOT), wrap=wrap))
    command = f"{sys.executable} p.py {redirect}"
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=folder,
        timeout=60,
        capture_output=True,
        text=True,
        env={**os.environ, **env},
    )


@pytest.mark.parametrize(
    "redirect", [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full", "| true"]
)
def test_a_program_with_results_in_files_goes_on_whatever_its_streams_are(tmp_path, redirect):
    done = run(tmp_path, redirect)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "result").read_text() == "whole"
    assert ("cannot be written (No space" in done.stderr) == (redirect == ">/dev/full")


@pytest.mark.parametrize("redirect", [">/dev/full", "| true"])
def test_a_program_whose_product_is_its_output_says_that_it_is_lost(tmp_path, redirect):
    done = run(tmp_path, redirect, wrap="script_main")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert ("error: standard output: cannot be written" in done.stderr) == ("full" in redirect)


def test_a_locale_without_utf_8_is_one_line(tmp_path):
    done = run(tmp_path, "", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 2
    assert done.stderr == "error: locale: text is ascii here; set LC_ALL=C.UTF-8 or PYTHONUTF8=1\n"


def test_what_a_stream_cannot_encode_is_escaped():
    raw = io.BytesIO()
    stream = Lasting(io.TextIOWrapper(raw, encoding="ascii"), True)
    stream.write("caf\xe9\n")
    stream.flush()
    assert raw.getvalue() == b"caf\\xe9\n"


@pytest.mark.parametrize("wrap", [script_main, lasting_main])
def test_the_streams_are_put_back(wrap):
    before = sys.stdout, sys.stderr
    assert wrap(lambda _: 0)([]) == 0
    assert (sys.stdout, sys.stderr) == before
