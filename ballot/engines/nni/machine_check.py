"""What NNI needs of another machine: its packages, a way to send the code, an interpreter."""

from __future__ import annotations

from collections.abc import Sequence

from ballot.machines.machine import Machine
from ballot.machines.ssh import Link
from ballot.problems import Problem
from ballot.values import Values

INSTALL = "--install makes an environment with everything"
SFTP_HELLO = b"\0\0\0\5\1\0\0\0\3"  # SSH_FXP_INIT, version 3


class NniMachineCheck:
    """What is asked of a machine for NNI's sake; `guarded` as in docs/nni.md."""

    packages: Sequence[str] = ("nni", "setuptools")
    modules: Sequence[str] = ("nni_node",)  # NNI's other half
    interpreter_key = "pythonPath"
    ignore_file = ".nniignore"

    def __init__(self, *, guarded: bool) -> None:
        self.guarded = guarded

    def interpreter_of_trials(self, machine: Machine, named: str) -> str:
        """Return what runs the trials there, where the trial command names `named`.

        Under the guard a bare python3 is that of pythonPath (sent/on_machine.py).
        """
        is_bare = self.guarded and "/" not in named
        return machine.interpreter if is_bare else named or machine.interpreter

    def command_problems(self, named: str) -> list[Problem]:
        """Say which interpreter NNI as it ships runs."""
        if not named or "/" in named or self.guarded:
            return []
        what = f"runs the {named} of each machine's PATH, whatever its pythonPath is"
        remedy = 'name it, as in exec "$HOME/.ballot/venv/bin/python" train.py'
        return [Problem("trial command", what, remedy, fatal=False)]

    def link_problems(self, link: Link) -> list[Problem]:
        """Return what is wrong with the way to a machine."""
        found = sftp_problems(link, fatal=not self.guarded)
        if (link.machine.python or "").startswith("~"):
            what = f"NNI does not expand the ~ of pythonPath {link.machine.python}"
            found.append(Problem(link.name, what, "write $HOME instead"))
        return found

    def package_problems(self, name: str, facts: Values) -> list[Problem]:
        """Return which of NNI's packages are there in a version that does not work."""
        found, have = [], facts["packages"]
        version, whole = have["setuptools"], facts["modules"]["nni_node"]
        if have["nni"] != "3.0" or not whole:
            part = "" if whole else ", and not all of it,"
            what = f"nni {have['nni']}{part} is installed there, 3.0 is needed"
            found.append(Problem(name, what, INSTALL))
        if int(version.partition(".")[0]) >= 81:
            what = f"setuptools {version} is installed there, but NNI needs one before 81"
            found.append(Problem(name, what, INSTALL))
        return found


def sftp_problems(link: Link, fatal: bool) -> list[Problem]:
    """Say hello to the sftp server, through which NNI as it ships sends the code."""
    answer = link.subsystem("sftp", SFTP_HELLO)
    if answer[4:5] == b"\2":
        return []
    if words := answer.decode("utf-8", "replace").split():
        what = f"its login shell prints {words[0][:20]!r} where sftp should speak"
        remedy = "let ~/.bashrc there print nothing without a terminal"
        return [Problem(link.name, what, remedy, fatal)]
    remedy = "its sshd_config needs: Subsystem sftp internal-sftp"
    return [Problem(link.name, "has no sftp, through which NNI sends the code", remedy, fatal)]
