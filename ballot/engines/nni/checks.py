"""What NNI needs of this machine: versions, a port, GPUs, a folder it can upload."""

from __future__ import annotations

import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from ballot.config.schema import Config
from ballot.engines.nni.config import uploaded
from ballot.engines.nni.ports import is_free
from ballot.installed import PYTHON_RANGE, PYTHONS
from ballot.problems import Problem
from ballot.wording import plural

UPLOAD = (2000, 300 * 1024**2)  # NNI's own limits: files, bytes


def version_problems() -> list[Problem]:
    """Return what is not installed, or in a version that NNI does not run with."""
    found = []
    if not PYTHONS[0] <= sys.version_info < PYTHONS[1]:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        what = f"Python {version} is not one of {PYTHON_RANGE}"
        found.append(Problem("python", what, "make setup chooses one"))
    have = {name: _version(name) for name in ("nni", "setuptools", "torch")}
    remedy = f"{sys.executable} -m pip install -r requirements.txt"
    if have["nni"] != "3.0":
        found.append(Problem("nni", f"{have['nni'] or 'none'} is installed, 3.0 is needed", remedy))
    setuptools = (have["setuptools"] or "0").partition(".")[0]
    if not have["setuptools"] or int(setuptools) >= 81:
        what = f"{have['setuptools'] or 'none'} is installed, but NNI needs one before 81"
        found.append(Problem("setuptools", what, remedy))
    if not have["torch"]:
        found.append(Problem("torch", "is not installed", remedy))
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def shell_problems(interpreter: str) -> list[Problem]:
    """Return why NNI without the guard does not start its tuner: a shell reads the path."""
    if shlex.quote(interpreter) == interpreter:
        return []
    what = f"{interpreter} holds characters that a shell reads, and NNI hands it to one"
    return [Problem("python", what, "leave --no_guard out, or move the environment")]


def port_problems(port: int, platform: str) -> list[Problem]:
    """Return what is wrong with NNI's port; other machines also need the one after it."""
    if not 0 < port < 65500:
        return [Problem("port", f"{port} is no port", "take one from 1024 to 65499")]
    if platform == "local":
        return []
    taken = [number for number in (port, port + 1) if not is_free(number)]
    if not taken:
        return []
    free = next((p for p in range(port + 2, 65500, 2) if is_free(p) and is_free(p + 1)), None)
    what = (
        f"{' and '.join(map(str, taken))} {'is' if len(taken) == 1 else 'are'} taken; other "
        f"machines need {port} and {port + 1}"
    )
    return [Problem("port", what.replace(";", ","), f"choose with --port {free}")]


def count_gpus() -> int:
    """Return how many NVIDIA GPUs there are, as NNI counts them."""
    try:
        import pynvml  # comes with NNI

        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except Exception:  # no library, no driver: no GPU
        return 0


def gpu_problems(
    config: Any, options: Config | None, gpus: int, where: str, *, guarded: bool = True
) -> list[Problem]:
    """Return what NNI's own assignment of GPUs would do wrong on this machine."""
    wanted = config.trial_gpu_number
    leave = "leave trialGpuNumber out: a trial takes a free GPU by itself"
    if wanted is None:
        return _sharing(config, options, gpus, where)
    if wanted == 0:
        on_cpu = options is not None and options.device == "cpu"
        what = f"trialGpuNumber: 0 hides the {plural(gpus, 'GPU')} from the trials, which "
        return [Problem(where, f"{what}train on the CPU", leave)] if gpus and not on_cpu else []
    if wanted > gpus:
        what = f"trialGpuNumber is {wanted}, but this machine has {gpus or 'no'} GPU"
        return [Problem(where, what + "s" * (gpus > 1) + ": NNI waits for ever", leave)]
    if wanted == gpus:
        what = f"trialGpuNumber is {wanted}, all GPUs of this machine: NNI without the guard hangs"
        return [Problem(where, what, leave, fatal=not guarded)]
    return []


def _sharing(config: Any, options: Config | None, gpus: int, where: str) -> list[Problem]:
    if not gpus or options is None or options.device != "auto":
        return []
    have = gpus * options.trials_per_gpu
    if config.trial_concurrency <= have:
        return []
    what = (
        f"{config.trial_concurrency} trials at once on {plural(gpus, 'GPU')}: "
        f"{config.trial_concurrency - have} would wait for one"
    )
    remedy = "lower trialConcurrency, or let them share with --trials_per_gpu in trialCommand"
    return [Problem(where, what, remedy, fatal=False)]


def upload_problems(code: Path) -> list[Problem]:
    """Return why NNI would refuse to send the trial's folder to other machines."""
    entries = uploaded(code)
    files = sum(number for number, _ in entries.values())
    total = sum(size for _, size in entries.values())
    found = []
    for have, most, unit, place in ((files, UPLOAD[0], "files", 0), (total, UPLOAD[1], "", 1)):
        if have <= most:
            continue
        large = sorted(entries, key=lambda name: -entries[name][place])[:3]
        amount = f"{have:,} {unit}" if unit else f"{have / 1024**2:,.0f} MB"
        limit = f"{most:,} {unit}" if unit else f"{most // 1024**2} MB"
        what = f"NNI would upload {amount} and takes {limit}, most are in {', '.join(large)}"
        found.append(Problem(str(code), what, "name what trials do not need in .nniignore"))
    return found
