"""Other machines, through the system's ssh: its agent, keys, known hosts, aliases and jump hosts.

A `Link` is one connection that everything else shares (ssh's ControlMaster). It ends with this
process, however that ends. Host keys are always checked; nothing secret is written down.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ballot.errors import UserError
from ballot.machines.machine import Machine
from ballot.machines.ssh_errors import (
    PassphraseNeeded,
    Unreachable,
    diagnose,
    host_keys,
    without_debug,
)

CONNECT_S = 10  # of TCP; the rest of a login has as long again
READY = "ballot-link-is-up"
OPTIONS = (
    "BatchMode=yes",
    "PreferredAuthentications=publickey",
    "UpdateHostKeys=no",
    "RemoteCommand=none",
    "PermitLocalCommand=no",
    "ControlPersist=no",
    f"ConnectTimeout={CONNECT_S}",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=8",
)


@dataclass(frozen=True)
class Done:
    """How a command ended on a machine."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def last_word(self) -> str:
        """The last line that it wrote, of its errors if there are any."""
        text = (self.stderr.strip() or self.stdout.strip()).decode("utf-8", "replace")
        return text.splitlines()[-1].strip() if text else f"exit status {self.status}"


def shell_word(path: str) -> str:
    """Quote a path for a machine's shell, where a leading `~` or `$HOME` is its own."""
    own = re.match(r"(?:~|\$HOME|\$\{HOME\})(/.*|$)", path)
    return f'"$HOME"{shlex.quote(own[1]) if own[1] else ""}' if own else shlex.quote(path)


class Agent:
    """An ssh-agent of our own: it holds unlocked keys in its memory while this process lives."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ballot-agent-", dir=_short_folder())
        self.socket = str(Path(self._folder.name, "agent"))
        # The agent ends with this `cat`, and that with our end of its pipe.
        self._process = subprocess.Popen(
            ["ssh-agent", "-a", self.socket, "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _ in range(50):
            if Path(self.socket).exists():
                return
            time.sleep(0.1)
        raise UserError("ssh-agent: does not start; unlock the key with ssh-add and try again")

    def add(self, key: str) -> None:
        """Ask for a key's passphrase on the terminal."""
        environment = {**os.environ, "SSH_AUTH_SOCK": self.socket}
        if subprocess.run(["ssh-add", key], env=environment).returncode:
            raise UserError(f"{key}: wrong passphrase; the key is still locked")

    def close(self) -> None:
        """Forget the keys."""
        _end(self._process)
        self._folder.cleanup()


class Link:
    """A connection to one machine, shared by every command on it."""

    def __init__(
        self,
        machine: Machine,
        accept_new_host_keys: bool = False,
        ssh_options: Sequence[str] = (),
        agent: Agent | None = None,
    ) -> None:
        self.machine = machine
        self.agent = agent
        self.news: list[str] = []  # what people should know of the last `open`
        self.ssh_options = list(ssh_options)
        self._options = [
            *ssh_options,
            "-o",
            "StrictHostKeyChecking=" + ("accept-new" if accept_new_host_keys else "yes"),
        ]
        self._folder: tempfile.TemporaryDirectory | None = None
        self._master: subprocess.Popen | None = None

    @property
    def name(self) -> str:
        """The machine's name."""
        return self.machine.name

    @property
    def environment(self) -> dict[str, str]:
        """The environment that ssh needs for this machine."""
        own = {"SSH_AUTH_SOCK": self.agent.socket} if self.agent else {}
        return {**os.environ, "SSH_ASKPASS_REQUIRE": "never", **own}

    def ssh_words(self, extra_options: Iterable[str] = ()) -> list[str]:
        """Return ssh's command line up to the host; of two settings ssh takes the first."""
        machine, words = self.machine, ["ssh", *extra_options, *self._options]
        for option in OPTIONS:
            words += ["-o", option]
        if machine.port is not None:
            words += ["-p", str(machine.port)]
        if machine.user is not None:
            words += ["-l", machine.user]
        if machine.key_file is not None:
            words += ["-i", machine.key_file, "-o", "IdentitiesOnly=yes"]
        return [*words, "-xaT", machine.host]

    def open(self, interactive: bool = False) -> None:
        """Connect; ask for a passphrase on the terminal where `interactive`.

        Raises `Unreachable` with what exactly is wrong, and what to do.
        """
        try:
            self._open()
        except PassphraseNeeded as error:
            if not interactive:
                raise
            self.agent = self.agent or Agent()
            self.agent.add(error.key)
            self._open()

    def _open(self) -> None:
        if self.alive():
            return
        self.close()
        key = self.machine.key_file
        if key is not None and not Path(key).is_file():
            raise Unreachable(
                f"{self.name}: its key file {key} is not there; correct sshKeyFile, or sshKeyPath "
                "in version 1"
            )
        self._folder = tempfile.TemporaryDirectory(prefix="ballot-ssh-", dir=_short_folder())
        words = self.ssh_words(["-v", "-M", "-S", self._socket, "-o", "ClearAllForwardings=yes"])
        with Path(self._folder.name, "log").open("wb") as log:
            self._master = subprocess.Popen(
                [*words, f"echo {READY}; exec cat >/dev/null"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )
        if _says(self._master, READY, 2 * CONNECT_S + 5):
            said = self._log()
            if "Permanently added" in said and (shown := host_keys(said)):
                self.news.append(f"its host key is now known: {shown[-1]}")
            return
        error = diagnose(self.machine, self._log(), self._locked_key)
        self.close()
        raise error

    def close(self) -> None:
        """Disconnect."""
        if self._master is not None:
            _end(self._master)
        if self._folder is not None:
            self._folder.cleanup()
        self._master = self._folder = None

    def alive(self) -> bool:
        """Whether the connection stands, as far as ssh has noticed."""
        return self._master is not None and self._master.poll() is None

    @property
    def _socket(self) -> str:
        return str(Path(self._folder.name, "link")) if self._folder else "none"

    def _log(self) -> str:
        if self._folder is None:
            return ""
        return Path(self._folder.name, "log").read_text("utf-8", "replace")

    def why(self) -> str:
        """Say why a connection that stood has ended."""
        lines = without_debug(self._log())
        return lines[-1] if lines else "the connection ended"

    def _locked_key(self) -> str | None:
        """Return the first key for this machine that a passphrase protects, if there is one."""
        keys = [self.machine.key_file] if self.machine.key_file else []
        if not keys:
            said = subprocess.run([*self.ssh_words(["-G"])], capture_output=True, text=True).stdout
            keys = re.findall(r"^identityfile (.+)$", said, re.MULTILINE)
        for key in [str(Path(key).expanduser()) for key in keys]:
            tried = subprocess.run(
                ["ssh-keygen", "-y", "-P", "", "-f", key], capture_output=True, text=True
            )
            if "incorrect passphrase" in tried.stderr:
                return key
        return None

    def words_for(self, command: str) -> list[str]:
        """Return the words that run a shell command there over this connection."""
        # Whatever the login shell is there, the command is read by sh.
        return [
            *self.ssh_words(["-S", self._socket, "-o", "ControlMaster=no"]),
            f"exec sh -c {shlex.quote(command)}",
        ]

    def spawn(self, command: str, **how: Any) -> subprocess.Popen:
        """Start a shell command there and return its process here."""
        return subprocess.Popen(
            self.words_for(command), env=self.environment, start_new_session=True, **how
        )

    def run(self, command: str, *, input: bytes | None = None, timeout: float = 60.0) -> Done:
        """Run a shell command there; raises `Unreachable` where the machine does not answer."""
        with self.spawn(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            try:
                out, err = process.communicate(input, timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                raise Unreachable(f"{self.name}: did not answer within {timeout:.0f} s") from None
            except BaseException:
                process.kill()
                raise
        done = Done(process.returncode, out, err)
        if done.status == 255:  # ssh's own
            raise diagnose(self.machine, err.decode("utf-8", "replace"), lambda: None)
        return done

    def subsystem(self, name: str, hello: bytes, patience: float = 30.0) -> bytes:
        """Return the first that a subsystem of its sshd, such as sftp, answers to `hello`."""
        words = self.ssh_words(["-S", self._socket, "-o", "ControlMaster=no", "-s"])
        process = subprocess.Popen(
            [*words, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self.environment,
        )
        to, back = pipes_of(process)
        try:
            to.write(hello)
            to.flush()  # and not closed: sftp would end without an answer
            ready = select.select([back], [], [], patience)[0]
            return os.read(back.fileno(), 4096) if ready else b""
        except BrokenPipeError:
            return b""
        finally:
            _end(process)

    @contextlib.contextmanager
    def way_back(self, own: int) -> Iterator[int | None]:
        """Lead some port of its loopback to a port of ours; None where it lets nobody do so."""
        spec = f"127.0.0.1:0:127.0.0.1:{own}"

        def control(what: str) -> bytes:
            words = self.ssh_words(["-S", self._socket, "-O", what, "-R", spec])
            return subprocess.run(
                words, capture_output=True, env=self.environment, timeout=60
            ).stdout

        port = control("forward").strip()
        yield int(port) if port.isdigit() else None
        control("cancel")

    def python(
        self, source: str, *args: object, interpreter: str | None = None, timeout: float = 60.0
    ) -> Any:
        """Run a program in an interpreter there; return the JSON that is its last line.

        The program has `args`, which are anything that JSON can hold, as its list `args`. Raises
        `UserError` with its last word where it fails.
        """
        program = f"import json\nargs = json.loads({json.dumps(args)!r})\n{source}"
        wanted = interpreter or self.machine.interpreter
        done = self.run(f"exec {shell_word(wanted)} -", input=program.encode(), timeout=timeout)
        lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
        if done.status == 0 and lines:
            with contextlib.suppress(ValueError):
                return json.loads(lines[-1])
        if done.status in (126, 127):
            raise UserError(f"{self.name}: there is no interpreter {wanted}")
        raise UserError(f"{self.name}: {wanted} failed: {done.last_word}")


def on_all(links: Sequence[Link], work: Callable[[Link], object]) -> list[Any]:
    """Do something on all machines at once; an interrupt disconnects them, which ends it."""
    with ThreadPoolExecutor(max(1, len(links))) as pool:
        try:
            return list(pool.map(work, links))
        except BaseException:
            for link in links:
                link.close()
            raise


def open_links(links: Sequence[Link], interactive: bool = False) -> list[UserError | None]:
    """Open all at once, then those that need a passphrase one by one; return what was wrong.

    A key that several machines share is asked for once.
    """

    def attempt(link: Link, interactive: bool = False) -> UserError | None:
        try:
            link.open(interactive)
        except UserError as error:
            return error
        return None

    found = on_all(links, attempt)
    agent = None
    for place, link in enumerate(links):
        if interactive and isinstance(found[place], PassphraseNeeded):
            if agent is not None:
                link.agent = agent
            found[place] = attempt(link) if agent else found[place]
            if isinstance(found[place], PassphraseNeeded):
                found[place] = attempt(link, interactive=True)
            agent = agent or link.agent
    return found


def has_terminal() -> bool:
    """Whether a person can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _short_folder() -> str | None:
    """Return a folder for sockets, whose names may have 107 letters: None is the usual one."""
    return "/tmp" if len(tempfile.gettempdir()) > 60 else None


def pipes_of(process: subprocess.Popen) -> tuple[IO[bytes], IO[bytes]]:
    """Return the pipes to and from a process that was started with both."""
    assert process.stdin is not None and process.stdout is not None
    return process.stdin, process.stdout


def _says(process: subprocess.Popen, word: str, patience: float) -> bool:
    """Wait for a process to write a line; False where it ends or falls silent."""
    deadline, heard = time.monotonic() + patience, b""
    _, back = pipes_of(process)
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([back], [], [], left)[0]:
            break
        piece = os.read(back.fileno(), 4096)
        if not piece:
            process.wait()
            return False
        heard += piece
        if word.encode() in heard:
            return True
    return False


def _end(process: subprocess.Popen) -> None:
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
