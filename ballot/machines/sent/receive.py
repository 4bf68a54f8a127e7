"""What other machines run for `--install` and `--sync_data`. Sent there as it is, as `facts`."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys

STAMP = "ballot-requirements"  # in the environment: a hash of what was installed into it


def tell(**facts: object) -> None:
    """Write a line of JSON."""
    print(json.dumps(facts), flush=True)


def run(*words: str) -> bool:
    """Run a program whose words go to our reader; return whether it was well."""
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    return done.returncode == 0


def make_venv(venv: str, requirements: str) -> None:
    """Make a virtual environment, or bring it up to date; tell `changed`, or an `error`."""
    venv = os.path.expanduser(os.path.expandvars(venv))
    python, stamp = os.path.join(venv, "bin", "python"), os.path.join(venv, STAMP)
    if os.path.isdir(venv) and not os.path.exists(os.path.join(venv, "pyvenv.cfg")):
        return tell(error=venv + " is no virtual environment; name another one")
    os.makedirs(os.path.dirname(venv), exist_ok=True)
    with open(venv + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # machines may share a home
        digest = hashlib.sha256(requirements.encode()).hexdigest()
        if _is_up_to_date(python, stamp, digest):
            return tell(changed=False)
        has_pip = os.path.exists(python) and run(python, "-m", "pip", "--version")
        if not has_pip and not run(sys.executable, "-m", "venv", "--clear", venv):
            return tell(error="python3 -m venv failed; install the package python3-venv there")
        wanted, log = stamp + ".txt", os.path.join(os.path.dirname(venv), "pip.log")
        with open(wanted, "w") as file:
            file.write(requirements)
        if not run(
            python,
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-input",
            "--progress-bar",
            "off",
            "--log",
            log,
            "-r",
            wanted,
        ):
            return tell(error="pip failed; its log is there, in " + log)
        with open(stamp, "w") as file:
            file.write(digest)
        return tell(changed=True)


def _is_up_to_date(python: str, stamp: str, digest: str) -> bool:
    if not os.path.exists(stamp):
        return False
    with open(stamp) as file:
        return file.read() == digest and run(python, "-c", "")


def free_for(folder: str) -> int:
    """Return the bytes that can be written into a folder that need not be there yet."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder) or "."
    return shutil.disk_usage(folder).free


def receive(folder: str) -> None:
    """Read files, each behind a line with its name and size; tell how many are in place.

    A file appears under its name when it is whole.
    """
    folder = os.path.expanduser(os.path.expandvars(folder))
    count, source = 0, sys.stdin.buffer
    own = ".ballot-%s-%d" % (os.uname().nodename, os.getpid())  # machines may share a folder
    for line in iter(source.readline, b""):
        name, size = json.loads(line.decode())
        path = os.path.join(folder, name)
        part = os.path.join(os.path.dirname(path), own)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(part, "wb") as file:
                while size:
                    piece = source.read(min(size, 1 << 20))
                    if not piece:
                        return  # the cable was cut
                    size -= len(piece)
                    file.write(piece)
            os.replace(part, path)
        except OSError as error:
            return tell(error="%s cannot be written (%s)" % (path, error.strerror))
        finally:
            if os.path.exists(part):
                os.remove(part)
        count += 1
    return tell(files=count)
