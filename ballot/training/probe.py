"""A trial's side of the check before a search: a few steps of a configuration, timed.

`python train.py <options> --probe FILE` reads configurations from FILE and prints a line of JSON
for each; `ballot.preflight.examine` writes the file and reads the lines.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch

from ballot.data.batches import Batch
from ballot.errors import AboveBounds, TrialFailed, UserError
from ballot.training import loop
from ballot.training.state import TrainState
from ballot.values import Json

SECONDS = 0.4  # of steps that are timed, one at least and `STEPS` at most
STEPS = 16


@contextlib.contextmanager
def answer(number: int) -> Iterator[Json]:
    """Print what is found out about a configuration, also what a trial would die of."""
    facts: Json = {"probe": number}
    heard = _Warnings()
    logging.getLogger().addHandler(heard)
    try:
        yield facts
    except UserError as error:
        facts["error"] = str(error)
    except AboveBounds as error:
        facts["above"] = str(error)
    except TrialFailed as error:
        facts["failed"] = str(error)
    except Exception as error:  # a defect, or a component of a reader's own: the trial would crash
        words = str(error).splitlines()
        facts["error"] = f"{type(error).__name__}: {words[0] if words else 'without a word'}"
    finally:
        logging.getLogger().removeHandler(heard)
    facts["warnings"] = heard.lines
    print(json.dumps(facts), flush=True)


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def process_age() -> float:
    """Return the seconds since this process began: what importing everything costs a trial."""
    try:
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0.0
    return round(uptime - ticks / os.sysconf("SC_CLK_TCK"), 3)


def measure(
    state: TrainState,
    train: Callable[[int], Iterable[Batch]],
    val: Callable[[], Iterable[Batch]],
    device: torch.device,
) -> Json:
    """Time the first step, those after it and the prediction of a batch, in seconds.

    `train(epoch)` and `val()` begin to yield batches. `peak` is the most memory in bytes: of the
    device where it has its own, else of this process.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    loop.train_one_epoch(state, islice(train(0), 1))
    first = time.perf_counter() - began
    done, began = state.step, time.perf_counter()
    loop.train_one_epoch(state, _for_a_while(train(1)))
    step = (time.perf_counter() - began) / (state.step - done)
    began = time.perf_counter()
    loop.predict(state.scored, islice(val(), 1), state.amp)
    predict = time.perf_counter() - began
    return {
        "first_step": first,
        "step": step,
        "predict": predict,
        "peak": peak_memory(device),
        "parts": state.parts,
        "parameters": sum(p.numel() for p in state.model.parameters()),
        **device_facts(device),
    }


def _for_a_while(batches: Iterable[Batch]) -> Iterator[Batch]:
    end = time.perf_counter() + SECONDS
    for batch in islice(batches, STEPS):
        yield batch
        if time.perf_counter() > end:
            return


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that were in use at once."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): kilobytes, on macOS bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_facts(device: torch.device) -> Json:
    """Say what kind of device it is, how many of it there are and how much memory one has."""
    if device.type != "cuda":
        return {"device": device.type, "gpus": 0}
    total = torch.cuda.get_device_properties(device).total_memory
    return {"device": "cuda", "gpus": torch.cuda.device_count(), "memory": total}
