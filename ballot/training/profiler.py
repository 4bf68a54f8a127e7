"""Where an epoch went: seconds by what they were spent on, and a trace of a few steps."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")
PARTS = ("data", "forward", "backward", "step", "validation")  # the rest is scores and files
TRACED = 10  # steps in the trace, after two that warm up


class Clock:
    """Measures an epoch by its parts where it is told to; else its marks cost next to nothing.

    The first epoch of a process is traced, the second is measured: it is warm, and the profiler no
    longer looks on. A device is waited for at every mark, so that each part has its own time.
    """

    def __init__(self, device: torch.device | None = None, trace: Path | None = None) -> None:
        self._device, self._trace = device, trace
        self._epochs = 0
        self._seconds: dict[str, float] | None = None
        self._profiler: torch.profiler.profile | None = None
        self._began = 0.0

    def begin(self, *, last: bool) -> None:
        """Begin an epoch; `last` says that none follows."""
        if self._trace is None:
            return
        self._epochs += 1
        if self._epochs == 1:
            self._profiler = self._start()
        if self._epochs == 2 or (self._epochs == 1 and last):
            self._seconds = dict.fromkeys(PARTS, 0.0)
        self._began = time.perf_counter()

    def _start(self) -> torch.profiler.profile:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would say that there is no GPU
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        steps = torch.profiler.schedule(wait=0, warmup=2, active=TRACED, repeat=1)
        profiler = torch.profiler.profile(
            activities=kinds, schedule=steps, on_trace_ready=self._write
        )
        profiler.start()
        return profiler

    def _write(self, profiler: Any) -> None:
        assert self._trace is not None
        profiler.export_chrome_trace(str(self._trace))

    def end(self) -> str | None:
        """End an epoch; return its table if it was the one that is measured."""
        total = time.perf_counter() - self._began
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None
        if self._seconds is None:
            return None
        seconds, self._seconds = self._seconds, None
        seconds["report"] = total - sum(seconds.values())
        lines = [f"where the {total:.2f} s of this epoch went (the trace is {self._trace})"]
        lines += [
            f"  {name:<12} {spent:8.3f} s {spent / total:7.1%}" for name, spent in seconds.items()
        ]
        return "\n".join(lines)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what is done inside as this part of the epoch."""
        if self._seconds is None and self._profiler is None:
            yield
            return
        began = time.perf_counter()
        with torch.profiler.record_function(name):
            yield
            if self._device is not None and self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
        if self._seconds is not None:
            self._seconds[name] += time.perf_counter() - began

    def each(self, items: Iterable[T], name: str = "data") -> Iterator[T]:
        """Count the time until each item is there."""
        rest = iter(items)
        while True:
            with self.part(name):
                item = next(rest, None)
            if item is None:
                return
            yield item
            if self._profiler is not None:
                self._profiler.step()
