"""Real Ray nodes on loopback for tests: started, killed, and ended by their ids."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
SMALL = ["--object-store-memory=100000000", "--node-ip-address=127.0.0.1", "--block"]
READY_S = 240.0  # on a machine with much else to do
STARTS = 3  # of a node: Ray itself gives up after 30 s


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class RealCluster:
    """A head without CPUs, and nodes that come and go, all of one home and one token."""

    def __init__(self):
        self.home = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # sockets have short names
        token = self.home / ".ray" / "auth_token"
        token.parent.mkdir(mode=0o700)
        token.touch(mode=0o600)
        self.token = secrets.token_hex(32)
        token.write_text(self.token)
        self.environment = {
            # Coverage in Ray's workers hides the code folder that Ray gives them.
            **{k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "OMP_", "COV"))},
            "HOME": str(self.home),
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # other tests run beside these
            "BALLOT_PRELOAD": "60",
        }
        self.started = []  # all processes, also of nodes that are gone
        try:
            self.start_head()
        except BaseException:
            self.close()
            raise

    def start_head(self):
        def words():
            port, client = free_ports(2)
            self.address = f"127.0.0.1:{port}"
            options = [f"--port={port}", f"--ray-client-server-port={client}", "--num-cpus=0"]
            return ["--head", *options, "--include-dashboard=false", "--disable-usage-stats"]

        self.nodes = []
        self.head = self._start_until(1, words)

    def add_node(self, cpus=1, *options, **environment):
        """Start a node; its limits may be in its environment."""
        words = [f"--address={self.address}", f"--num-cpus={cpus}", *options]
        node = self._start_until(self.count_nodes() + 1, lambda: words, **environment)
        self.nodes.append(node)
        return node

    def _start_until(self, number, words, **environment):
        """Start a node until the cluster has so many, each in a folder of its own.

        In one folder, Ray would unpack the code of one node over that of another.
        """
        for _ in range(STARTS):
            (agent,) = free_ports(1)
            place = f"--temp-dir={self.home / f't{agent}'}"
            listens = f"--dashboard-agent-listen-port={agent}"
            node = self._start(*words(), listens, place, **environment)
            self.started.append(node)
            if self.await_nodes(number, node):
                return node
            self.end(place)
        raise AssertionError(self.words())

    def _start(self, *options, **environment):
        with (self.home / "ray.log").open("ab") as log:
            return subprocess.Popen(
                [*RAY, "start", *options, *SMALL, "--min-worker-port=0", "--max-worker-port=0"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment | environment,
                start_new_session=True,
            )

    def count_nodes(self):
        from ballot.engines.ray import asked

        said = asked._ask(self.address, self.environment)
        return len(said.get("nodes", ()))

    def await_nodes(self, number, node):
        """Wait for so many nodes; whether they came before the one that is started ended."""
        deadline = time.monotonic() + READY_S
        while self.count_nodes() != number:
            assert time.monotonic() < deadline, self.words()
            if node.poll() is not None:
                return False
            time.sleep(0.3)
        return True

    def words(self):
        return (self.home / "ray.log").read_text()[-3000:]

    def processes(self):
        """Return the ids of all that was started with this home."""
        mark = f"HOME={self.home}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def kill(self, node, *names):
        """Kill processes of a node by SIGKILL: those below its `ray start`, by their names."""
        for pid in self.processes():
            with contextlib.suppress(OSError):
                if Path(command_of(pid)[0]).name in names and is_below(pid, node.pid):
                    os.kill(pid, signal.SIGKILL)

    def end(self, *words):
        """Kill all processes whose command holds one of these words."""
        for pid in self.processes():
            if any(word in part for part in command_of(pid) for word in words):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def node_of(self, task):
        """Return the node that runs a task, by its name."""
        for pid in self.processes():
            if command_of(pid)[0].rstrip() == f"ray::{task}":
                return next((node for node in self.nodes if is_below(pid, node.pid)), None)
        return None

    def search(self, *words, **extra):
        return subprocess.Popen(
            [sys.executable, str(ROOT / "search.py"), *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.home,
            env=self.environment | extra,
            start_new_session=True,
        )

    def close(self):
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self.started:
                with contextlib.suppress(OSError):
                    process.send_signal(number)
            for process in self.started:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(4)
        for pid in self.processes():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.home, ignore_errors=True)


def command_of(pid):
    """Return the words of a command; of a process that is gone, none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return [""]


def is_below(pid, above):
    with contextlib.suppress(OSError):
        while pid > 1:
            if pid == above:
                return True
            text = Path(f"/proc/{pid}/stat").read_text()
            pid = int(text.rpartition(")")[2].split()[1])
    return False
