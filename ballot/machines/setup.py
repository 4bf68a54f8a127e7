"""An environment and the data for every machine of a search: `--install` and `--sync_data`."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ballot import walking
from ballot.errors import UserError
from ballot.installed import PYTHON_NAMES, PYTHON_RANGE, PYTHONS
from ballot.machines.sent import facts, receive
from ballot.machines.ssh import Link, on_all, pipes_of, shell_word
from ballot.problems import Problem, as_problem
from ballot.values import Json
from ballot.wording import size, span, terminal_width

VENV = "$HOME/.ballot/venv"  # where the configuration names no other
SPARE = 200e6  # bytes of disk that the data leave to the trials, at least

# Prints an interpreter that trials run on; a login shell's PATH may know more of them.
FIND_PYTHON = r"""
good='import sys, venv, ensurepip; sys.exit(not FIRST <= sys.version_info < AFTER)'
login=$("${SHELL:-sh}" -lc 'printf "\nPATH:%s\n" "$PATH"' 2>/dev/null | sed -n 's/^PATH://p')
for path in "$PATH" "$login"; do
    for name in python3 NAMES; do
        found=$(PATH=$path; command -v $name) || continue
        "$found" -c "$good" 2>/dev/null && printf '\n%s\n' "$found" && exit 0
    done
done
exit 1
"""
_WORDS = {"NAMES": " ".join(PYTHON_NAMES), "FIRST": str(PYTHONS[0]), "AFTER": str(PYTHONS[1])}


class Ticker:
    """What several machines do at once: a passing line for a person, and lines that stay."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now: dict[str, str] = {}
        self._shows = sys.stdout.isatty()

    def show(self, name: str, text: str) -> None:
        """Show what a machine is doing."""
        with self._lock:
            self._now[name] = text
            if self._shows:
                width = terminal_width() - 1
                line = " | ".join(f"{name}: {text}" for name, text in self._now.items())
                print(f"\r\x1b[K{line[:width]}", end="", flush=True)

    def say(self, name: str, text: str) -> None:
        """Say something of a machine that stays."""
        with self._lock:
            self._now.pop(name, None)
            print(("\r\x1b[K" if self._shows else "") + f"{name}: {text}", flush=True)


def install(links: Sequence[Link], requirements: Path) -> list[Problem]:
    """Make or update an environment on each machine, where engine and trials look for it."""
    text = requirements.read_text(encoding="utf-8")
    return _everywhere(links, lambda link, ticker: _install(link, text, ticker))


def sync_data(links: Sequence[Link], local: Path, there: str) -> list[Problem]:
    """Copy the files of a folder that a machine's folder lacks or has in another size.

    Nothing is deleted there; hidden files are left out.
    """
    if not local.is_dir():
        raise UserError(f"sync_data: {local} is not a folder; give the folder with the data")
    files = facts.listing(str(local))
    return _everywhere(links, lambda link, ticker: _sync(link, local, there, files, ticker))


def _everywhere(links: Sequence[Link], work: Callable[[Link, Ticker], None]) -> list[Problem]:
    ticker = Ticker()

    def one(link: Link) -> Problem | None:
        try:
            work(link, ticker)
        except UserError as error:
            return as_problem(error)
        return None

    return [problem for problem in on_all(links, one) if problem is not None]


def venv_of(link: Link) -> str:
    """Return the environment that the configuration names for a machine, as it names it."""
    python = link.machine.python
    if python is None:
        return VENV
    folder = PurePosixPath(link.machine.interpreter).parent
    if folder.name != "bin":
        raise UserError(
            f"{link.name}: {python} is no environment to install into; write {VENV}/bin"
        )
    return str(folder.parent)


def find_python(link: Link) -> str:
    """Return an interpreter of a machine that trials run on."""
    script = re.sub("|".join(_WORDS), lambda found: _WORDS[found[0]], FIND_PYTHON)
    done = link.run(script, timeout=60)
    if done.status:
        raise UserError(f"{link.name}: has no Python from {PYTHON_RANGE}; install one there")
    return done.stdout.decode().strip().splitlines()[-1]


def _install(link: Link, requirements: str, ticker: Ticker) -> None:
    venv, python, began = venv_of(link), find_python(link), time.monotonic()
    ticker.say(link.name, f"the environment {venv} ...")
    with _program(link, python, "make_venv", venv, requirements) as process:
        pipes_of(process)[0].close()
        answer = _answer(link, process, lambda line: ticker.show(link.name, line))
    done = (
        f"is ready after {span(time.monotonic() - began)}"
        if answer["changed"]
        else ("is up to date")
    )
    ticker.say(link.name, f"{venv} {done}")


def _sync(link: Link, local: Path, there: str, files: dict[str, int], ticker: Ticker) -> None:
    python, began = find_python(link), time.monotonic()
    source = f"{_source(walking)}\n{_source(facts)}\n{_source(receive)}\nfolder = expand(*args)\n"
    source += "print(json.dumps([listing(folder), free_for(folder)]))"
    have, free = link.python(source, there, interpreter=python, timeout=600)
    wanted = [name for name in sorted(files) if have.get(name) != files[name]]
    total = sum(files[name] for name in wanted)
    if not wanted:
        ticker.say(link.name, f"{there} is up to date ({len(files):,} files)")
        return
    if total > free - SPARE:
        raise UserError(
            f"{link.name}: {size(total)} of data do not fit in {there}, where "
            f"{size(free)} are free; make room there"
        )
    ticker.say(link.name, f"{len(wanted):,} of {len(files):,} files to {there}, {size(total)} ...")
    with _program(link, python, "receive", there) as process:
        sent, (pipe, _) = 0, pipes_of(process)
        with contextlib.suppress(BrokenPipeError):  # the answer says why
            for name in wanted:
                _send(pipe, local / name, name, files[name])
                sent += files[name]
                ticker.show(link.name, f"{sent / max(1, total):.0%}")
            pipe.close()
        answer = _answer(link, process)
    ticker.say(link.name, f"{answer['files']:,} files copied in {span(time.monotonic() - began)}")


def _send(pipe: IO[bytes], path: Path, name: str, count: int) -> None:
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    pipe.write(json.dumps([name, count]).encode() + b"\n")
    with file:
        while count:  # exactly as many as were announced
            piece = file.read(min(count, 1 << 20))
            if not piece:
                raise UserError(f"{path}: has changed while it was copied; try again")
            pipe.write(piece)
            count -= len(piece)


@contextlib.contextmanager
def _program(link: Link, python: str, function: str, *args: object) -> Iterator[subprocess.Popen]:
    """Run a function of `landing` there, with pipes to and from it."""
    call = f"\n{function}(*json.loads({json.dumps(args)!r}))"
    command = f"exec {shell_word(python)} -c {shlex.quote(_source(receive) + call)}"
    process = link.spawn(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        yield process
        process.wait(60)
    finally:
        process.kill()
        process.wait()
        for pipe in pipes_of(process):
            with contextlib.suppress(OSError):
                pipe.close()


def _answer(
    link: Link, process: subprocess.Popen, hear: Callable[[str], None] | None = None
) -> Json:
    """Return what a program tells as its result; pass on what it says before."""
    said, wrong = "the connection ended", ""
    for line in pipes_of(process)[1]:
        text = line.decode("utf-8", "replace").strip()
        if text.startswith("{"):
            answer = json.loads(text)
            if "error" in answer:
                what, *remedy = answer["error"].split("; ", 1)
                raise UserError("; ".join([f"{link.name}: {what}{wrong}", *remedy]))
            return answer
        said = text or said
        wrong = f" ({text.removeprefix('ERROR: ')})" if text.startswith("ERROR: ") else wrong
        if hear is not None and text:
            hear(text)
    raise UserError(f"{link.name}: {said}; run the same command again to continue")


def _source(module: Any) -> str:
    return Path(module.__file__).read_text(encoding="utf-8")
