"""What a machine says of itself. Sent there as it is: the standard library alone, any Python 3.

os.path and not pathlib, which takes several times as long where there are a million files.
"""

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import metadata

with contextlib.suppress(ImportError):  # on another machine its text stands before this one
    from ballot.walking import walk

GPU_QUERY = "--query-gpu=name,memory.total,memory.used"


def facts(packages: list, modules: list, paths: list, data: str) -> dict:
    """Return versions, GPUs, disk, clock; which of the paths are missing; what the data are.

    `packages` are names of distributions, `modules` of what is imported; `paths` and
    `data` may begin with ~ or hold $HOME.
    """
    home = os.path.expanduser("~")
    gpus = find_gpus()
    return {
        "python": list(sys.version_info[:3]),
        "packages": {name: version_of(name) for name in packages},
        "modules": {name: importlib.util.find_spec(name) is not None for name in modules},
        "gpus": gpus,
        "cuda": torch_sees_gpus() if gpus else None,
        "home": home,
        "free": shutil.disk_usage(home).free,
        "unwritable": [where for where in (home, tempfile.gettempdir()) if not can_write(where)],
        "missing": [path for path in paths if not os.path.exists(expand(path))],
        "data": listing_digest(expand(data)) if data else None,
        "time": time.time(),
    }


def expand(path: str) -> str:
    """Expand variables and a leading ~."""
    return os.path.expanduser(os.path.expandvars(path))


def version_of(package: str) -> "str | None":
    """Return the version of a distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def find_gpus() -> list:
    """Return name, bytes and used bytes of each NVIDIA GPU, as its driver says."""
    command = ["nvidia-smi", GPU_QUERY, "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return []
    if said.returncode:
        return []
    found = []
    for line in said.stdout.decode("utf-8", "replace").splitlines():
        name, total, used = [part.strip() for part in line.rsplit(",", 2)]
        if total.isdigit() and used.isdigit():  # a slice of a GPU has neither
            found.append([name, int(total) << 20, int(used) << 20])
    return found


def torch_sees_gpus() -> "bool | None":
    """Return whether torch can use a GPU; None where there is no torch."""
    code = "import torch; print(torch.cuda.is_available())"
    try:
        said = subprocess.run(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=60,
        )
    except subprocess.SubprocessError:
        return None
    return said.stdout.strip() == b"True" if said.returncode == 0 else None


def can_write(folder: str) -> bool:
    """Try it: permissions do not tell of a full disk or a quota."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".ballot-") as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return False
    return True


def listing(folder: str) -> dict:
    """Return the bytes of each file below a folder, by its path; hidden ones are left out."""
    found = {}
    for where, folders, files in walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = os.path.join(where, name)
            if not name.startswith(".") and os.path.isfile(path):
                found[os.path.relpath(path, folder)] = os.path.getsize(path)
    return found


def listing_digest(folder: str) -> "list | None":
    """Return files, bytes and a hash of the names and sizes in a folder; None without it."""
    if not os.path.exists(folder):
        return None
    files = listing(folder) if os.path.isdir(folder) else {"": os.path.getsize(folder)}
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(os.fsencode(name) + b"\0%d\n" % files[name])
    return [len(files), sum(files.values()), digest.hexdigest()]
