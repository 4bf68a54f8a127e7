"""The machine from which results come home, and what happens to its connections.

It is one of namespaces where these are permitted (tests/support/machines_for_tests.py), and
otherwise an sshd of this user on loopback, whose cable nobody can cut.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

from ballot.engines.nni.manager import free_port
from ballot.machines.machine import Machine
from tests.support.machines_for_tests import UID, USER, Lab, make_key, sshd_program, why_not

LOOPBACK = """ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/id.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
SetEnv HOME={folder}/home
"""


def missing() -> str | None:
    """Say why there can be no sshd here at all; None where there can."""
    tools = [tool for tool in ("ssh", "ssh-keygen") if shutil.which(tool) is None]
    tools += [] if sshd_program() else ["sshd"]
    return f"{', '.join(tools)} is not installed" if tools else None


class Loopback:
    """An sshd of this user."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir(parents=True)
        port, key = free_port(19400), make_key(folder / "id")
        make_key(folder / "host_key")
        (folder / "config").write_text(LOOPBACK.format(port=port, folder=folder))
        host_key = (folder / "host_key.pub").read_text()
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
        (folder / "ssh_config").write_text(f"Host *\n  UserKnownHostsFile {folder}/known_hosts\n")
        self.ssh_options = ["-F", str(folder / "ssh_config")]
        self.machine = Machine("127.0.0.1", port, None, str(key), sys.executable)
        if os.geteuid() == 0:  # an sshd of root insists on a folder that its service makes
            Path("/run/sshd").mkdir(mode=0o755, parents=True, exist_ok=True)
        self.switch_on()

    def switch_on(self) -> None:
        """Start the sshd, and wait until it answers."""
        log = self.folder / "log"
        log.write_text("")
        words = [str(sshd_program()), "-D", "-f", self.folder / "config", "-E", log]
        self._sshd = subprocess.Popen(words)
        for _ in range(100):
            if "listening on" in log.read_text():
                return
            time.sleep(0.05)
        raise RuntimeError(f"no sshd: {log.read_text()}")

    def switch_off(self) -> None:
        """Kill the sshd and all that was started through it."""
        self.drop()
        self._sshd.kill()
        self._sshd.wait()

    def drop(self) -> None:
        """Kill what serves each connection, and what was started through it."""
        for process in psutil.Process(self._sshd.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                process.kill()

    def own(self, folder: Path) -> None:
        """Leave files to its user."""

    cut = restore = None

    close = switch_off


class Elsewhere:
    """A machine of namespaces, with a cable."""

    def __init__(self, folder: Path) -> None:
        self._lab = Lab(folder, ("256m",))
        (box,) = self._lab.boxes
        self.home, self.machine, self.ssh_options = box.home, box.machine(), self._lab.ssh_options
        self.switch_on, self.switch_off = box.start_sshd, box.kill_all
        self.cut, self.restore, self.close = box.cut, box.restore, self._lab.close
        self._box = box

    def drop(self) -> None:
        """Kill what serves each connection, as a shortage of memory does."""
        self._box.inside("pkill", "-KILL", "-f", f"^sshd(-session)?: {USER}", check=False)

    def own(self, folder: Path) -> None:
        """Leave files to its user."""
        for path in (folder, *folder.rglob("*")):
            os.chown(path, UID, UID)


def machine(folder: Path) -> Loopback | Elsewhere:
    """Return a machine that answers."""
    return Loopback(folder) if why_not() else Elsewhere(folder)
