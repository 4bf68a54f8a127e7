"""The process: device, precision, seeds, logging and signals."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import sys
from collections.abc import Iterator

import numpy as np
import torch

from harness.errors import UserError


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM: a person, or NNI's assessor, ends this trial."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise `Stopped` at the first SIGINT or SIGTERM; a second one ends the process at once."""

    def stop(signum: int, _frame: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(signum)

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def die_of(signum: int) -> None:
    """End as the signal would have: by that NNI tells a stopped trial from a failed one."""
    sys.stdout.flush()
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


def setup_logging() -> None:
    """Log to standard output: plain lines, for a terminal, a pipe and NNI's trial.stdout alike."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Formatter("%(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for noisy in ("PIL", "matplotlib", "nni", "timm", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.lower()}: {text}" if record.levelno > logging.INFO else text


def on_terminal() -> bool:
    """Whether a person watches: progress bars are for them alone."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def pick_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is the best there is."""
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
    return {"bf16": torch.bfloat16, "fp16": torch.float16}[mode]


def seed_everything(seed: int, *more: int) -> None:
    """Seed Python, NumPy and PyTorch from `seed` and, say, the epoch.

    Each epoch is seeded anew, so that its random numbers depend on nothing that happened before:
    a resumed run needs no saved random states to repeat an undisturbed one.
    """
    state = int(np.random.SeedSequence([seed, *more]).generate_state(1, np.uint32)[0])
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)
