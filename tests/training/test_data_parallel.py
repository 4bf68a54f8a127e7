"""Several processes that train one model do what one process does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import torch.multiprocessing
from torch import nn

from ballot.config.schema import Config
from ballot.data.batches import cut, piece
from ballot.errors import TrialFailed
from ballot.training.group import Group, joined
from ballot.training.loop import predict, train_one_epoch
from ballot.training.state import TrainState, make_ema
from dataset import load_data

ROOT = Path(__file__).resolve().parents[2]
SIZE = 3  # processes
CASES = {  # criterion, what else the state has
    "plain": (nn.CrossEntropyLoss(), {}),
    "weighted": (nn.CrossEntropyLoss(torch.tensor([1, 2, 0.5, 1]).double()), {"clip_grad": 0.3}),
    "of the whole batch": (lambda x, y: 1 - x.softmax(1)[:, 1].std() * y.sum(), {"ema": 0.9}),
}


class Still:
    """A schedule that leaves the learning rate alone."""

    def step_batch(self): ...

    def state_dict(self):
        return {}


class Hungry(nn.Module):
    """A layer that runs out of memory above two images, on one process alone."""

    def forward(self, images):
        if len(images) > 2 and os.environ["RANK"] == "1":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return images


def make_state(criterion, group, ema=0.0, **more):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3),
        nn.BatchNorm2d(5),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(20, 6),
        nn.BatchNorm1d(6, affine=False),
        nn.Linear(6, 4),
    ).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return TrainState(
        model, criterion, optimizer, Still(), ema=make_ema(model, ema), group=group, **more
    )


def batches(part=(0, 1), sizes=(8, 7, 3, 2)):  # the last is less than a row a process
    generator = torch.Generator().manual_seed(1)
    for n in sizes:
        images = torch.randn(n, 3, 4, 4, generator=generator, dtype=torch.float64)
        yield images[piece(n, *part)], torch.randint(0, 4, (n,), generator=generator)


def compare(case, group):
    """Train alone and together, and return the largest difference of anything that is kept."""
    criterion, more = CASES[case]
    part = (group.rank, group.size)
    alone, shared = (make_state(criterion, g, **more) for g in (Group(), group))
    one = [train_one_epoch(alone, batches()) for _ in range(2)][-1]
    many = [train_one_epoch(shared, batches(part)) for _ in range(2)][-1]
    seen = [predict(alone.scored, batches()), predict(shared.scored, batches(part), group=group)]
    pairs = [
        *zip(alone.scored.state_dict().values(), shared.scored.state_dict().values()),
        (one.step_losses, many.step_losses),
        (one.targets, many.targets),
    ]
    np.testing.assert_allclose(one.probs, many.probs, atol=1e-6)  # in single precision
    np.testing.assert_allclose(seen[0].probs, seen[1].probs, atol=1e-6)
    return max(np.abs(np.asarray(a) - np.asarray(b)).max() for a, b in pairs)


def try_everything(rank, port, folder):
    """What each process does; the first one writes down what was found."""
    torch.set_num_threads(1)
    said = {
        "TORCHELASTIC_RUN_ID": "test",
        "RANK": rank,
        "WORLD_SIZE": SIZE,
        "LOCAL_RANK": rank,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in said.items()})
    found = {}
    with joined() as group:
        for case in CASES:
            found[case] = float(compare(case, group))
        state = make_state(nn.CrossEntropyLoss(), group)
        state.model.insert(0, Hungry())
        train_one_epoch(state, batches((rank, SIZE), sizes=(8, 7)))
        found["parts"] = state.parts
        found["shared"] = group.share({"who": rank})
        try:
            with group.together():
                if rank == 2:
                    raise TrialFailed("no room")
        except TrialFailed as error:
            found["failed"] = str(error)
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(try_everything, (port, str(folder)), nprocs=SIZE)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(SIZE)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_weights_losses_and_answers_are_those_of_one_process(found, case):
    assert max(rank[case] for rank in found) < 1e-9


@pytest.mark.slow
def test_where_one_process_lacks_memory_all_take_batches_in_as_many_parts(found):
    assert [rank["parts"] for rank in found] == [2] * SIZE


@pytest.mark.slow
def test_what_one_process_knows_or_dies_of_all_know(found):
    assert [rank["shared"] for rank in found] == [{"who": 0}] * SIZE
    assert [rank["failed"] for rank in found] == ["no room"] * SIZE


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"augmentation": "AffineAugmentation", "augmentation_args": {"mixup": 0.4}},
    ],
)
def test_the_parts_of_a_batch_are_the_batch(more):
    rows = load_data(Config(dataset="digits", image_size=16, **more), input_size=16).folds[0].train
    whole = list(rows.batches(500, epoch=1, train=True))
    for (images, targets), *parts in zip(
        whole, *(rows.batches(500, epoch=1, train=True, part=(k, 3)) for k in range(3))
    ):
        torch.testing.assert_close(torch.cat([p[0] for p in parts]), images)
        assert all(torch.equal(p[1], targets) for p in parts)


def test_pieces_cover_a_batch_once_and_too_few_rows_go_to_everyone():
    rows = cut(np.arange(17), 7, join_last=True)[0]
    assert [rows[piece(7, k, 3)].tolist() for k in range(3)] == [[0, 1], [2, 3], [4, 5, 6]]
    assert [piece(2, k, 3) for k in range(3)] == [slice(0, 2)] * 3


TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc_per_node",
    "2",
    ROOT / "train.py",
    "--no_tensorboard",
]


FAKE_NNI = """
import pathlib
def say(*words): print(*words, file=pathlib.Path("reports.txt").open("a"), flush=True)
def get_next_parameter(): say("ask"); return {"lr": 0.002}
def report_intermediate_result(x): say("epoch", x)
def report_final_result(x): say("final", x)
"""


@pytest.mark.slow
def test_torchrun_gives_the_scores_of_one_process_and_writes_and_reports_once(tmp_path, script):
    words = ["--epochs", "2", "--batch_size", "100", "--run_name"]
    assert script("train.py", "--no_tensorboard", *words, "one", "--lr", 0.002).returncode == 0
    (tmp_path / "nni.py").write_text(FAKE_NNI)
    env = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "NNI_PLATFORM": "local",
        "NNI_TRIAL_JOB_ID": "abc",
        "NNI_EXP_ID": "exp",
        "NNI_TRIAL_SEQ_ID": "7",
    }
    done = subprocess.run(
        [*TORCHRUN, *words, "two"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2/2") == 1
    a, b = (pd.read_csv(tmp_path / "outputs" / name / "history.csv") for name in ("one", "two"))
    scores = [name for name in a if name.startswith(("train_", "val_"))]
    np.testing.assert_allclose(a[scores], b[scores], atol=1e-6)
    a, b = (pd.read_csv(tmp_path / "outputs" / f"{name}.csv") for name in ("one", "two"))
    assert a["id"].tolist() == b["id"].tolist()
    np.testing.assert_allclose(a.iloc[:, 1:], b.iloc[:, 1:], atol=1e-5)
    result = json.loads((tmp_path / "outputs" / "two" / "result.json").read_text())
    assert result["status"] == "done" and result["processes"] == 2
    told = (tmp_path / "reports.txt").read_text().splitlines()
    assert [line.split()[0] for line in told] == ["ask", "epoch", "epoch", "final"]


@pytest.mark.slow
def test_a_signal_to_torchrun_leaves_the_best_so_far(tmp_path):
    words = [*TORCHRUN, "--epochs", "500", "--run_name", "run"]
    process = subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    path = tmp_path / "outputs" / "run" / "result.json"
    deadline = time.monotonic() + 180
    while not (path.exists() and json.loads(path.read_text())["epochs"] > 1):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert json.loads(path.read_text())["status"] == "stopped"
    assert len(pd.read_csv(tmp_path / "outputs" / "run.csv")) > 300


FIVE = [*TORCHRUN, "--epochs", "5", "--resume", "auto", "--run_name"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The outputs of a run of two processes that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = subprocess.run([*FIVE, "run"], cwd=folder, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "outputs"


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_is_killed_ends_all_and_the_run_goes_on_to_the_same_end(
    tmp_path, undisturbed, rank
):
    say = {"cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = subprocess.Popen([*FIVE, "run"], **say)
    path = tmp_path / "outputs" / "run" / "result.json"
    deadline = time.monotonic() + 180
    while not (path.exists() and json.loads(path.read_text())["epochs"] >= 1):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    (victim,) = [
        child
        for child in psutil.Process(process.pid).children()
        if child.environ().get("RANK") == rank
    ]
    others = psutil.Process(process.pid).children(recursive=True)
    victim.kill()
    process.communicate(timeout=90)
    assert process.returncode != 0
    assert not [other for other in others if other.is_running()]
    assert json.loads(path.read_text())["epochs"] < 5
    done = subprocess.run([*FIVE, "run"], timeout=300, **say)
    assert done.returncode == 0, done.stderr
    for name in ("run.csv", "run/val.csv"):
        assert (tmp_path / "outputs" / name).read_bytes() == (undisturbed / name).read_bytes()
