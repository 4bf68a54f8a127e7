"""The processors that this process may use, and how trials at once share them."""

from __future__ import annotations

import math
import os
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")
QUOTAS = (Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"))


def cpu_count() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_cores() -> int:
    """Return the cores that trials may compute on, one at least.

    Two hyperthreads are one core, as they share its arithmetic units. A container's quota counts.
    """
    if not hasattr(os, "sched_getaffinity"):
        return max(1, (os.cpu_count() or 2) // 2)
    allowed = os.sched_getaffinity(0)
    cores = {_siblings(number) or str(number) for number in allowed}
    return max(1, int(min(len(cores), _quota())))


def _siblings(number: int) -> str:
    try:
        return (CPUS / f"cpu{number}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return ""


def _quota() -> float:
    """Return the processors' worth of time that a container may use; `inf` without a limit."""
    new, old = QUOTAS
    try:
        if new.exists():
            quota, period = new.read_text().split()
        else:
            quota = old.read_text()
            period = old.with_name("cpu.cfs_period_us").read_text()
        return float(quota) / float(period) if float(quota) > 0 else math.inf
    except (OSError, ValueError):  # no container, or "max"
        return math.inf


def threads_told() -> int | None:
    """Return the threads that a person has set; an empty OMP_NUM_THREADS sets none."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdigit() and int(first) > 0 else None


def threads_each(at_once: int) -> int:
    """Return the threads for each of so many trials: more than cores would slow all of them down.

    Two trials of one thread do more than two in a row with two threads (bench/concurrency.py).
    """
    return max(1, count_cores() // at_once)
