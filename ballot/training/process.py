"""The process: device, precision, seeds, logging, signals, and its place among several."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ballot.errors import TrialFailed, UserError
from ballot.training.group import Group, launched

log = logging.getLogger(__name__)


def setup_logging() -> None:
    """Log to standard output: plain lines, for a terminal, a pipe and NNI's trial.stdout alike.

    Of several processes the first one speaks for all; the others say what went wrong.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Formatter("%(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO if launched()[0] == 0 else logging.ERROR)
    for noisy in ("PIL", "matplotlib", "nni", "timm", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.lower()}: {text}" if record.levelno > logging.INFO else text


def on_terminal() -> bool:
    """Whether a person watches: progress bars are for them alone."""
    watched = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    return watched and launched()[0] == 0


def pick_device(name: str, group: Group | None = None) -> torch.device:
    """Return the device of that name; `auto` is the best there is, for each process its own GPU."""
    if group is not None and group.size > 1:
        name = group.device_name(name)
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(
            f"device: {name!r} is not to be had here; auto takes what there is"
        ) from None
    return device


def pick_amp(mode: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype of autocast, or None for full precision.

    `auto` is bfloat16 on GPUs that have it, float16 on older ones and full precision on a CPU:
    without instructions of its own, bfloat16 is several times slower there than float32.
    """
    if mode == "off" or (mode == "auto" and device.type != "cuda"):
        return None
    if mode == "auto":
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float16
    if mode == "fp16" and device.type == "cpu":
        raise UserError("amp: fp16 needs a GPU; choose bf16 or off")
    if mode == "bf16" and device.type == "cpu" and not has_bfloat16():
        log.warning(
            "amp: this processor has no instructions for bfloat16; off is several times as fast"
        )
    return {"bf16": torch.bfloat16, "fp16": torch.float16}[mode]


def has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Tell whether the processor multiplies bfloat16 by itself; True where nobody says."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return True
    flags = [line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Feat"))]
    return not flags or bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags[0]))


def be_deterministic() -> None:
    """Take no algorithm that may give other bits another time; on a CPU all of ours are such.

    An operation that has none then raises, see `lacks_determinism`.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def lacks_determinism(error: RuntimeError) -> bool:
    """Tell whether an operation was refused because it has no deterministic algorithm."""
    return "does not have a deterministic implementation" in str(error)


def seed_everything(seed: int, *more: int) -> None:
    """Seed Python, NumPy and PyTorch from `seed` and, say, the epoch.

    Each epoch is seeded anew, so that its random numbers depend on nothing that happened before:
    a resumed run needs no saved random states to repeat an undisturbed one.
    """
    state = int(np.random.SeedSequence([seed, *more]).generate_state(1, np.uint32)[0])
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)


def precision(images: torch.Tensor, amp: torch.dtype | None) -> torch.autocast:
    """Compute in `amp` inside, where it is given."""
    return torch.autocast(images.device.type, amp, enabled=amp is not None)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an allocation failed, on a GPU or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


@contextlib.contextmanager
def memory_failures(reason: str) -> Iterator[None]:
    """Turn an allocation that fails inside into a `TrialFailed` with this reason."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrialFailed(f"out of memory: {reason}") from None
