"""On a GPU: training from the cache against a bare loop on tensors that lie on the device.

    python bench/gpu.py [--full]

The bare loop does what a step must (forward, backward, optimiser, the same precision) on one batch
that was put there before: the most that the device gives. Trials at once on one GPU are compared
with the same trials one after another. Without a GPU every row says so.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from data import MEAN, STD, make_images, row  # noqa: E402 - beside this file

from assembly import build_state, shaped  # noqa: E402 - the repository is no installed package
from ballot.config.schema import Config  # noqa: E402
from ballot.training import loop  # noqa: E402
from ballot.training.blocks import ordered  # noqa: E402
from ballot.training.process import pick_amp  # noqa: E402
from ballot.training.state import TrainState  # noqa: E402
from dataset import load_data  # noqa: E402

# Network, side, batch, whether in channels-last order
CASES = (("Efficientnet_b4", 380, 64), ("timm:convnext_tiny", 224, 128))


def measure(full: bool) -> list[dict[str, Any]]:
    """Return a row a comparison; `ratio` above 1 says that ours does more."""
    if not torch.cuda.is_available():
        what = [
            f"training {name} at {size} in bf16, photos against resident tensors"
            for name, size, _ in CASES
        ]
        what.append("two and four trials at once on one GPU")
        return [{"what": line, "skipped": "no GPU here"} for line in what]
    logging.disable(logging.WARNING)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_images(root / "images", 4096 if full else 1024)
        for name, size, batch in CASES:
            rows += measure_training(root, name, size, batch, 7 if full else 3)
        rows += [measure_at_once(root, count) for count in (2, 4)]
    return rows


def measure_training(
    root: Path, name: str, size: int, batch: int, rounds: int
) -> list[dict[str, Any]]:
    """Compare an epoch from the cache with as many steps on one resident batch, and the orders."""
    device = torch.device("cuda")
    runs = {last: _prepared(root, name, size, batch, last) for last in (False, True)}
    images = torch.randn(batch, 3, size, size, device=device)
    targets = torch.randint(0, 2, (batch,), device=device)

    def cached(last: bool, epoch: int) -> float:
        rows, state = runs[last]
        batches = rows.batches(batch, device=device, epoch=epoch, train=True)
        return loop.train_one_epoch(state, shaped(state, batches)).images_per_second

    def bare(last: bool) -> float:
        rows, state = runs[last]
        return _resident(state, images, targets, len(rows) // batch)

    found: dict[Any, list[float]] = {key: [] for key in ((w, k) for w in "cb" for k in runs)}
    for number in range(rounds + 1):
        for last in runs:
            rates = {("c", last): cached(last, number), ("b", last): bare(last)}
            for key, rate in rates.items() if number else ():
                found[key].append(rate)
    what = f"training {name} at {size} in bf16"
    return [
        row(
            f"{what}, cached photos against resident tensors (images/s)",
            found["c", False],
            found["b", False],
        ),
        row(f"{what}, channels-last against not (images/s)", found["b", True], found["b", False]),
    ]


def _resident(state: TrainState, images: torch.Tensor, targets: torch.Tensor, steps: int) -> float:
    """Train on one batch that lies on the GPU; return images a second."""
    x = ordered(state.model, images)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        state.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(state.model(x), targets)
        loss.backward()
        state.optimizer.step()
    torch.cuda.synchronize()
    return len(x) * steps / (time.perf_counter() - began)


def _prepared(
    root: Path, name: str, size: int, batch: int, channels_last: bool
) -> tuple[Any, TrainState]:
    """Return the training rows and the state of a network, as train.py makes them."""
    device = torch.device("cuda")
    config = Config(
        data_dir=str(root / "images"),
        cache=str(root / "cache"),
        mean=MEAN,
        std=STD,
        model=name,
        image_size=size,
        batch_size=batch,
        pretrained="no",
        augmentation_args={"flip": 0.5},
        channels_last=channels_last,
    )
    data = load_data(config, input_size=size)
    state = build_state(config, data, data.folds[0], device, pick_amp("bf16", device))
    return data.folds[0].train, state


def measure_at_once(root: Path, count: int) -> dict[str, Any]:
    """Compare `count` short trials at once with the same ones after another: trials an hour."""
    words = [sys.executable, str(HERE.parent / "train.py"), "--data_dir", str(root / "images")]
    words += ["--cache", str(root / "cache"), "--model", "resnet18", "--image_size", "128"]
    words += ["--pretrained", "no", "--epochs", "5", "--no_tensorboard"]

    def start(number: int, way: str) -> subprocess.Popen:
        own = ["--out_dir", str(root / f"{way}{count}"), "--run_name", f"t{number}"]
        return subprocess.Popen([*words, *own], stdout=subprocess.DEVNULL)

    def checked(processes: list[subprocess.Popen]) -> None:
        if any(process.wait() for process in processes):
            raise RuntimeError("a trial failed")

    checked([start(0, "warm")])  # the cache is built once for both
    began = time.perf_counter()
    checked([start(number, "at_once") for number in range(count)])
    together = time.perf_counter() - began
    began = time.perf_counter()
    for number in range(count):
        checked([start(number, "alone")])
    alone = time.perf_counter() - began
    return row(
        f"{count} trials of resnet18 at 128 at once on one GPU (trials/h)",
        [3600 * count / together],
        [3600 * count / alone],
    )


def main() -> int:
    """Print the rows."""
    for found in measure("--full" in sys.argv):
        print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
