"""GPUs under locks, with faked devices and real processes that hold them and die."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ballot.errors import UserError
from ballot.gpus import (
    Gpu,
    Lease,
    _best,
    choose_device,
    lock_folder,
    memory_used,
    on_several,
    take,
    tempfile,
    visible_gpus,
)

ROOT = Path(__file__).resolve().parents[1]
HOLDER = """
import logging, os, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from ballot import gpus as devices
logging.basicConfig(format="%(message)s", stream=sys.stdout)
gpus = [devices.Gpu(i, f"gpu{i}") for i in range(int(sys.argv[3]))]
lease = devices.take(gpus, int(sys.argv[4]), Path(sys.argv[2]), lambda gpu: 0.0, poll=0.02)
if "fork" in sys.argv and os.fork() == 0:
    time.sleep(60)
    os._exit(0)
print(lease.name, flush=True)
sys.stdin.readline()
sys.exit("raise" in sys.argv)
"""


@pytest.fixture
def hold(tmp_path):
    """Start a process that takes one of `gpus` faked GPUs and holds it until it is told to end."""
    started = []

    def start(gpus, slots=1, *words):
        command = [sys.executable, "-c", HOLDER, str(ROOT), str(tmp_path), str(gpus), str(slots)]
        process = subprocess.Popen(
            [*command, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()


def idle(_gpu):
    return 0.0


def said(process):
    return process.stdout.readline().strip()


def free(tmp_path, gpus, slots=1):
    """Names of the faked GPUs with a free slot, without waiting."""
    found = []
    for i in range(gpus):
        taken = _best([Gpu(i, f"gpu{i}")], slots, tmp_path, idle)
        if taken:
            found.append(f"cuda:{taken[0].index}")
            os.close(taken[1])
    return found


def test_each_trial_takes_a_gpu_of_its_own(hold, tmp_path):
    holders = [hold(3) for _ in range(3)]
    assert sorted(map(said, holders)) == ["cuda:0", "cuda:1", "cuda:2"]
    assert free(tmp_path, 3) == []


def test_a_trial_without_a_gpu_waits_says_so_once_and_takes_the_next_that_is_free(hold):
    first = hold(1)
    assert said(first) == "cuda:0"
    second = hold(1)
    assert said(second) == "the GPU is taken by other trials; waiting for one to end"
    time.sleep(0.2)  # ten more looks
    assert second.poll() is None
    first.communicate("\n", timeout=10)
    assert said(second) == "cuda:0"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_killed_trial_frees_its_gpu(hold, tmp_path, number):
    holder = hold(1)
    assert said(holder) == "cuda:0" and free(tmp_path, 1) == []
    os.kill(holder.pid, number)
    holder.wait(timeout=10)
    assert free(tmp_path, 1) == ["cuda:0"]


def test_a_trial_that_raises_frees_its_gpu(hold, tmp_path):
    holder = hold(1, 1, "raise")
    assert said(holder) == "cuda:0"
    holder.communicate("\n", timeout=10)
    assert holder.returncode == 1 and free(tmp_path, 1) == ["cuda:0"]


def test_a_worker_that_outlives_its_killed_trial_does_not_keep_the_gpu(hold, tmp_path):
    holder = hold(1, 1, "fork")
    assert said(holder) == "cuda:0"
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait(timeout=10)
    deadline = time.monotonic() + 5  # the child may not have run yet
    while not free(tmp_path, 1) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(holder.pid, 0)  # it is there still
    assert free(tmp_path, 1) == ["cuda:0"]


def test_slots_are_spread_over_the_gpus_before_any_is_shared(hold, tmp_path):
    names = []
    for _ in range(4):  # one after the other: whoever comes later sees the earlier ones
        holder = hold(2, 2)
        names.append(said(holder))
    assert names == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert free(tmp_path, 2, 2) == []


def test_a_gpu_with_fewer_trials_comes_before_one_with_less_load(tmp_path):
    gpus = [Gpu(0, "a"), Gpu(1, "b")]
    load = {"a": 0.1, "b": 0.7}
    leases = [take(gpus, 2, tmp_path, lambda gpu: load[gpu.id]) for _ in range(3)]
    assert [lease.name for lease in leases] == ["cuda:0", "cuda:1", "cuda:0"]
    leases[0].release()
    leases[2].release()
    assert take(gpus, 2, tmp_path, lambda gpu: load[gpu.id]).name == "cuda:0"
    leases[1].release()


def test_trials_that_see_other_devices_agree_on_which_is_which(tmp_path):
    first = take([Gpu(0, "a"), Gpu(1, "b")], 1, tmp_path, idle)
    # CUDA_VISIBLE_DEVICES=1,0: the same GPUs, counted the other way round
    second = take([Gpu(0, "b"), Gpu(1, "a")], 1, tmp_path, idle)
    assert (first.name, second.name) == ("cuda:0", "cuda:0")


def test_many_trials_at_once_never_share_a_slot(hold):
    holders = [hold(2) for _ in range(4)]
    names = []
    waiting = list(holders)
    deadline = time.monotonic() + 30
    while waiting and time.monotonic() < deadline:
        holder = waiting.pop(0)
        line = said(holder)
        if not line.startswith("cuda"):
            waiting.append(holder)
            continue
        names.append(line)
        holder.communicate("\n", timeout=10)
    assert len(names) == 4 and set(names) <= {"cuda:0", "cuda:1"}


def test_the_holder_is_named_in_the_lock_for_people(tmp_path):
    lease = take([Gpu(0, "a")], 1, tmp_path, idle, holder="abcde")
    assert (tmp_path / "a.0").read_text() == f"{os.getpid()} abcde\n"
    lease.release()


def test_the_folder_of_locks_is_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = lock_folder()
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
    assert lock_folder() == folder


@pytest.mark.parametrize("taken", ["open", "link", "file"])
def test_whoever_takes_the_name_of_the_folder_of_locks_stops_no_trial(tmp_path, monkeypatch, taken):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / f"ballot-{os.getuid()}"
    if taken == "open":
        folder.mkdir()
        folder.chmod(0o777)
    elif taken == "link":
        folder.symlink_to(tmp_path)
    else:
        folder.touch()
    other = lock_folder()
    assert other == lock_folder() and tmp_path / "cache" in other.parents
    assert other.stat().st_mode & 0o777 == 0o700
    other.chmod(0o755)
    with pytest.raises(UserError, match="mode 700"):
        lock_folder()


@pytest.mark.parametrize("name, among_trials", [("cpu", True), ("cuda:1", True), ("auto", False)])
def test_no_lock_where_a_person_chose_or_there_is_no_search(name, among_trials):
    lease = choose_device(name, trials_per_gpu=1, among_trials=among_trials)
    assert lease == Lease(name)


@pytest.mark.gpu
def test_two_trials_on_a_real_gpu_take_turns(tmp_path, monkeypatch, caplog):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus = visible_gpus()
    assert all(0 <= memory_used(gpu) <= 1 for gpu in gpus)
    lease = choose_device("auto", trials_per_gpu=1, among_trials=True)
    assert torch.empty(1, device=lease.name).is_cuda
    held = [g for g in gpus if f"cuda:{g.index}" == lease.name]
    assert _best(held, 1, lock_folder(), memory_used) is None
    with caplog.at_level(logging.WARNING):
        lease.release()
        again = choose_device("auto", trials_per_gpu=1, among_trials=True)
    assert again.name.startswith("cuda:") and not caplog.records
    again.release()


def test_a_list_of_gpus_is_a_process_of_torchruns_for_each():
    command = on_several("0,2", 3, ["train.py", "--device", "0,2"])
    assert command[0] == "--standalone"
    assert command[command.index("--nproc_per_node") + 1] == "2"
    assert command[-2:] == ["--device", "cuda"]  # the last one wins
    assert on_several("cuda:1", 3, []) is None and on_several("auto", 0, []) is None
    with pytest.raises(UserError, match="this machine has 2"):
        on_several("0,2", 2, [])
