"""Two machines without machines: namespaces with an address, a user, a home and an sshd each.

    def test_x(lab):                    # `lab` skips, saying why, where this is not permitted
        lab.boxes[0].cut()              # its cable
        Link(machine, ssh_options=lab.ssh_options)

A box has its own processes, network, host name, /home, /tmp, /run and accounts; the rest of the
disk is this machine's, so that the tests' interpreter runs there too. It ends with the tests.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from ballot.machines.machine import Machine

USER, UID = "ann", 4711
TOOLS = ("unshare", "nsenter", "ip", "ssh", "ssh-keygen", "ssh-agent")

SETUP = """
set -e
umask 022
hostname {name}
keep={folder}
mkdir -p $keep/mnt
for place in {shared}; do  # folders that the tests' interpreter lies in, by their own names
    number=$((number + 1)); mkdir -p $keep/mnt/$number; mount --bind "$place" $keep/mnt/$number
done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lab /run/sshd
mount --rbind $keep /run/lab
mount --bind /run/lab/passwd /etc/passwd
mount --bind /run/lab/shadow /etc/shadow
mount -t tmpfs -o size={home_size},mode=755 tmpfs /home
mount -t tmpfs -o mode=755 tmpfs /root
mount -t tmpfs -o mode=1777 tmpfs /tmp
number=0
for place in {shared}; do
    number=$((number + 1)); mkdir -p "$place"; mount --bind /run/lab/mnt/$number "$place"
done
mkdir -p /home/{user}/.ssh
cp /run/lab/authorized_keys /home/{user}/.ssh/
chown -R {uid}:{uid} /home/{user}
chmod 700 /home/{user} /home/{user}/.ssh
echo 'PATH={pythons}:$PATH' >/home/{user}/.profile
ip link set lo up
echo ready
while read -r _; do :; done  # until the test process ends; bash also reaps what others leave
"""

SSHD = """Port 22
HostKey /run/lab/host_key
PidFile none
AuthorizedKeysFile .ssh/authorized_keys
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
LogLevel VERBOSE
Subsystem sftp internal-sftp
SetEnv OMP_NUM_THREADS=1
"""


def why_not() -> str | None:
    """Say why there can be no boxes here; None where there can."""
    if os.geteuid() != 0:
        return "only root may make namespaces"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or sshd_program() is None:
        return f"{', '.join(missing) or 'sshd'} is not installed"
    tried = _run("unshare", "--net", "--mount", "--pid", "--uts", "--fork", "true", check=False)
    return f"namespaces are not permitted: {tried.stderr.strip()}" if tried.returncode else None


def sshd_program() -> str | None:
    return shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def _run(*words, check=True, **how) -> subprocess.CompletedProcess:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=60, **how)
    if check and done.returncode:
        raise RuntimeError(f"{shlex.join(done.args)}: status {done.returncode}, {done.stderr}")
    return done


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    """Make a key pair; `path` is the private one."""
    _run("ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", path.name, "-f", path)
    return path


# A network, a file system and processes of its own, which end with the one that started them.
UNSHARE = shlex.split(
    "unshare --net --mount --pid --uts --fork --kill-child --mount-proc --propagation private"
)


class Box:
    """One machine; `home` is its user's home as seen from outside."""

    def __init__(self, name: str, address: str, folder: Path, home_size: str) -> None:
        self.name, self.address, self.folder = name, address, folder
        self.cable = ""
        folder.mkdir()
        make_key(folder / "host_key")
        account = f"{USER}:x:{UID}:{UID}::/home/{USER}:/bin/bash\n"
        privileges = (
            ""
            if "sshd:" in Path("/etc/passwd").read_text()
            else ("sshd:x:4710:65534::/run/sshd:/usr/sbin/nologin\n")
        )
        (folder / "passwd").write_text(Path("/etc/passwd").read_text() + account + privileges)
        (folder / "shadow").write_text(f"root:*:1::::::\n{USER}:*:1::::::\n")
        (folder / "sshd_config").write_text(SSHD)
        shutil.copy(folder.parent / "authorized_keys", folder)
        shared = {sys.prefix, sys.base_prefix, str(Path(__file__).resolve().parents[2])}
        setup = SETUP.format(
            name=name,
            folder=shlex.quote(str(folder)),
            user=USER,
            uid=UID,
            home_size=home_size,
            pythons=Path(sys.base_prefix, "bin"),
            shared=shlex.join(sorted(shared)),
        )
        self._process = subprocess.Popen(
            [*UNSHARE, "bash", "-c", setup],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "setup.log").open("w"),
            text=True,
            start_new_session=True,
        )
        if self._process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"no box: {(folder / 'setup.log').read_text()}")
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        self.pid = int(children.split()[0])
        self.home = Path(f"/proc/{self.pid}/root/home/{USER}")

    def inside(self, *words, user: bool = False, check: bool = True, **how):
        """Run a command in the box, as root or as its user."""
        enter = ["nsenter", "-t", self.pid, "-m", "-n", "-p", "-u"]
        if user:
            enter += ["-S", UID, "-G", UID]
            how["env"] = {"PATH": os.environ["PATH"], "HOME": f"/home/{USER}", "USER": USER}
        return _run(*enter, "--", *words, check=check, **how)

    def plug_in(self, bridge: str) -> None:
        """Connect it to the others."""
        self.cable, there = f"{bridge}-{self.name}"[:15], "eth0"
        ends = ["type", "veth", "peer", "name", there, "netns", self.pid]
        _run("ip", "link", "add", self.cable, *ends)
        _run("ip", "link", "set", self.cable, "master", bridge, "up")
        self.inside("ip", "address", "add", f"{self.address}/24", "dev", there)
        self.restore()

    def cut(self) -> None:
        """Cut its cable: packets vanish, nobody is told."""
        self.inside("ip", "link", "set", "eth0", "down")

    def restore(self) -> None:
        """Mend its cable."""
        self.inside("ip", "link", "set", "eth0", "up")

    def start_sshd(self) -> None:
        """Start its sshd, and wait until it answers."""
        self.inside(sshd_program(), "-f", "/run/lab/sshd_config", "-E", "/run/lab/sshd.log")
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            listening = self.inside("cat", "/proc/net/tcp").stdout
            if ":0016 00000000:0000 0A" in listening:
                return
            time.sleep(0.1)
        raise RuntimeError(f"no sshd: {(self.folder / 'sshd.log').read_text()}")

    def kill_all(self) -> None:
        """Kill its sshd and everything that was started through it, as a power cut does."""
        self.inside("bash", "-c", "kill -9 -1", check=False)

    def processes(self) -> list[str]:
        """Return the command lines of what runs in it."""
        said = self.inside("ps", "-eo", "args", "--no-headers", check=False).stdout
        return [line for line in said.splitlines() if not line.startswith(("ps ", "bash -c"))]

    def listening(self) -> set[str]:
        """Return the addresses and ports that something in it listens on."""
        return {line.split()[3] for line in self.inside("ss", "-Hltn").stdout.splitlines()}

    def machine(self, **changes) -> Machine:
        """Return it as the configuration names it."""
        key = str(self.folder.parent / "id_ed25519")
        given = {"host": self.address, "user": USER, "key_file": key, "python": sys.executable}
        return Machine(**{**given, **changes})

    def entry(self, **changes) -> dict:
        """Return it as an entry of NNI's machineList."""
        machine = self.machine()
        given = {
            "host": machine.host,
            "user": USER,
            "sshKeyFile": machine.key_file,
            "pythonPath": str(Path(sys.executable).parent),
        }
        return {**given, **changes}

    def close(self) -> None:
        """Switch it off for good; its processes end with it."""
        # The kernel removes a cable with its network, but only some time after the last process.
        _run("ip", "link", "delete", self.cable, check=False)
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._process.wait()


class Lab:
    """Two boxes, a client's keys and known hosts, and the cable between all of them."""

    def __init__(self, folder: Path, home_sizes: tuple[str, ...] = ("512m", "512m")) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.key = make_key(folder / "id_ed25519")
        self.rsa_key = make_key(folder / "id_rsa", "rsa")
        self.locked_key = make_key(folder / "id_locked", passphrase="open sesame")
        self.wrong_key = make_key(folder / "id_wrong")
        keys = (self.key, self.rsa_key, self.locked_key)
        public = "".join(key.with_suffix(".pub").read_text() for key in keys)
        (folder / "authorized_keys").write_text(public)
        self.known_hosts = folder / "known_hosts"
        self.ssh_config = folder / "ssh_config"
        self.ssh_options = ["-F", str(self.ssh_config)]
        self.boxes: list[Box] = []
        self.bridge, net = _free_net()
        _run("ip", "link", "add", self.bridge, "type", "bridge")
        try:
            _run("ip", "address", "add", f"{net}.1/24", "dev", self.bridge)
            _run("ip", "link", "set", self.bridge, "up")
            for number, size in enumerate(home_sizes, 1):
                box = Box(f"box{number}", f"{net}.{10 + number}", folder / f"box{number}", size)
                self.boxes.append(box)
                box.plug_in(self.bridge)
                box.start_sshd()
        except BaseException:
            self.close()
            raise
        self.address = f"{net}.1"  # of this machine, as the boxes see it
        self.know_all()
        self.configure()

    def know_all(self) -> None:
        """Write down every box's host key, as somebody who has compared it."""
        lines = [f"{box.address} {(box.folder / 'host_key.pub').read_text()}" for box in self.boxes]
        self.known_hosts.write_text("".join(lines))

    def configure(self, text: str = "") -> None:
        """Write the client's ~/.ssh/config, of which `text` comes first."""
        self.ssh_config.write_text(
            f"{text}\nHost *\n  UserKnownHostsFile {self.known_hosts}\n  GlobalKnownHostsFile "
            "/dev/null\n  HashKnownHosts no\n"
        )

    def machines(self) -> list[Machine]:
        """Return the boxes as the configuration names them."""
        return [box.machine() for box in self.boxes]

    def close(self) -> None:
        """Switch off everything."""
        for box in self.boxes:
            box.close()
        _run("ip", "link", "delete", self.bridge, check=False)


def _free_net() -> tuple[str, str]:
    """Return names for a bridge and a net that nobody uses; clear what a killed test left."""
    taken = _run("ip", "-o", "address").stdout
    for name in _run("ip", "-o", "link", "show", "type", "bridge").stdout.split():
        name = name.rstrip(":")
        left = name.removeprefix("blt")
        if name.startswith("blt") and left.isdigit() and not Path(f"/proc/{left}").exists():
            _run("ip", "link", "delete", name, check=False)
    number = next(
        n for n in range(os.getpid(), os.getpid() + 250) if f"10.213.{n % 250}." not in taken
    )
    return f"blt{os.getpid()}", f"10.213.{number % 250}"
