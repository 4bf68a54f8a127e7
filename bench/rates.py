"""Training, validation and memory against the usual loops, on photos made here, taking turns.

    python bench/rates.py [--full]

The usual loop reads by PIL and torchvision's first transforms in a `DataLoader` of two workers and
asks for the loss and the accuracy of every batch. Beside it a loop as timm's training script has it
(its loader, optimiser and meters; the script itself is in no wheel) and Lightning's `Trainer`, each
with the same network, photos and batch; and, as the limit of the machine, our network on one batch
that is ready. Every round is a whole epoch, so that nobody's workers read ahead in somebody else's
turn.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from data import MEAN, STD, make_images, row  # noqa: E402 - beside this file
from steps import step_of  # noqa: E402

from assembly import build_state, shaped  # noqa: E402 - the repository is no installed package
from ballot.config.schema import Config  # noqa: E402
from ballot.training import loop  # noqa: E402
from ballot.training.process import seed_everything  # noqa: E402
from dataset import load_data  # noqa: E402
from model import create_model  # noqa: E402

# Network, side of the images, batch, photos of an epoch (quick, full)
CASES = (
    ("simple_cnn", 64, 64, 512, 2048),
    ("resnet18", 64, 64, 128, 512),
    ("Efficientnet_b0", 128, 16, 64, 256),
)
Epoch = Callable[[], int]  # trains or reads an epoch and returns its number of images


class Ours:
    """A trial's own parts, over one folder of photos."""

    def __init__(self, root: Path, name: str, size: int, batch: int) -> None:
        self.config = Config(
            data_dir=str(root / "images"),
            cache=str(root / "cache"),
            mean=MEAN,
            std=STD,
            image_size=size,
            batch_size=batch,
            augmentation_args={"flip": 0.5},
            val_ratio=0.5,
            model=name,
            pretrained="no",
        )
        self.data = load_data(self.config, input_size=size)
        self.fold, self.epochs = self.data.folds[0], 0
        device = torch.device("cpu")
        self.state = build_state(self.config, self.data, self.fold, device, None)

    def train(self) -> int:
        """Train an epoch as train.py does."""
        self.epochs += 1
        seed_everything(0, self.epochs)
        batches = self.fold.train.batches(self.config.batch_size, epoch=self.epochs, train=True)
        loop.train_one_epoch(self.state, shaped(self.state, batches))
        return len(self.fold.train)

    def predict(self) -> int:
        """Predict the rows held out."""
        batches = self.fold.val.batches(self.config.batch_size)
        loop.predict(self.state.scored, shaped(self.state, batches), None, self.state.criterion)
        return len(self.fold.val)


def network(name: str, size: int) -> nn.Module:
    """Return the network as its library makes it."""
    if not name.startswith("Efficientnet"):
        return create_model(name, 2, pretrained="no", image_size=size)[0]
    from efficientnet_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-b0", num_classes=2, image_size=size)


def usual_loader(root: Path, size: int, batch: int, count: int, train: bool) -> Iterable[Any]:
    """The loader that most projects have, over the first `count` photos."""
    from torchvision import datasets, transforms

    steps = [transforms.CenterCrop(350), transforms.Resize((size, size))]
    steps += [transforms.RandomHorizontalFlip()] if train else []
    steps += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    images = datasets.ImageFolder(str(root / "images"), transforms.Compose(steps))
    rows = torch.utils.data.Subset(images, range(0, len(images), len(images) // count)[:count])
    return torch.utils.data.DataLoader(
        rows, batch_size=batch, shuffle=train, num_workers=2, persistent_workers=True
    )


def usual_training(model: nn.Module, loader: Iterable[Any]) -> Epoch:
    """The loop that most projects have: float32, loss and accuracy read at every batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def epoch() -> int:
        model.train()
        seen, loss_sum, right = 0, 0.0, 0
        for images, targets in loader:
            optimizer.zero_grad()
            output = model(images)
            loss = nn.functional.cross_entropy(output, targets)
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(images)
            right += (output.argmax(1) == targets).sum().item()
            seen += len(images)
        return seen

    return epoch


def usual_prediction(model: nn.Module, loader: Iterable[Any]) -> Epoch:
    """Validation as most projects have it."""

    @torch.no_grad()
    def epoch() -> int:
        model.eval()
        seen, loss_sum, right = 0, 0.0, 0
        for images, targets in loader:
            output = model(images)
            loss_sum += nn.functional.cross_entropy(output, targets).item()
            right += (output.argmax(1) == targets).sum().item()
            seen += len(images)
        return seen

    return epoch


def timm_training(root: Path, name: str, size: int, batch: int, count: int) -> Epoch:
    """An epoch as timm's train.py goes through it, of the parts that timm's wheel has."""
    from timm.data import ImageDataset, create_loader
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.utils import AverageMeter

    model = network(name, size)
    photos = ImageDataset(str(root / "images"))
    rows = torch.utils.data.Subset(photos, range(0, len(photos), len(photos) // count)[:count])
    rows.transform = None  # create_loader sets the transform of what it is given
    plain = {"use_prefetcher": False, "no_aug": True, "device": "cpu", "mean": MEAN, "std": STD}
    workers = {"num_workers": 2, "persistent_workers": True}
    loader = create_loader(rows, (3, size, size), batch, is_training=True, **plain, **workers)
    photos.transform = rows.transform
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3)
    criterion, meter = LabelSmoothingCrossEntropy(0.1), AverageMeter()

    def epoch() -> int:
        model.train()
        seen = 0
        for images, targets in loader:
            loss = criterion(model(images), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            meter.update(loss.item(), len(images))
            seen += len(images)
        return seen

    return epoch


def lightning_training(model: nn.Module, loader: Iterable[Any], count: int) -> Epoch | None:
    """An epoch of Lightning's `Trainer` with nothing switched on, or None where it is missing."""
    found = [n for n in ("pytorch_lightning", "lightning") if importlib.util.find_spec(n)]
    if not found:
        return None
    light = __import__(found[0])
    light = getattr(light, "pytorch", light)
    logging.getLogger(light.__name__).setLevel(logging.ERROR)

    class Module(light.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, _number: int) -> torch.Tensor:
            loss = nn.functional.cross_entropy(self.model(batch[0]), batch[1])
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    module = Module()

    def epoch() -> int:
        trainer = light.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            barebones=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader)
        return count

    return epoch


def ready_training(name: str, size: int, batch: int, count: int) -> Epoch:
    """An epoch of steps on one batch that is ready: the most that network and machine allow."""
    step = step_of((name, size, batch))

    def epoch() -> int:
        for _ in range(count // batch):
            step()
        return count

    return epoch


def in_turn(ways: dict[str, Epoch], rounds: int) -> dict[str, list[float]]:
    """Run one epoch of each way after another; images/s of each round but the first."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in list(ways) if number % 2 else reversed(list(ways)):
            began = time.perf_counter()
            seen = ways[name]()
            if number:
                rates[name].append(seen / (time.perf_counter() - began))
    return rates


def measure_case(root: Path, case: tuple[Any, ...], full: bool) -> list[dict[str, Any]]:
    """Compare one network's training and prediction."""
    name, size, batch, count = *case[:3], case[4 if full else 3]
    ours = Ours(root, name, size, batch)
    loader = usual_loader(root, size, batch, count, train=True)
    ways = {
        "ours": ours.train,
        "the usual loop": usual_training(network(name, size), loader),
        "timm's loop": timm_training(root, name, size, batch, count),
        "steps on one batch": ready_training(name, size, batch, count),
    }
    light = lightning_training(network(name, size), loader, count)
    if light is not None:
        ways["Lightning"] = light
    found = in_turn(ways, 5 if full else 3)
    rows = [
        row(
            f"training {name} at {size}, batch {batch}, against {way} (images/s)",
            found["ours"],
            rates,
        )
        for way, rates in found.items()
        if way != "ours"
    ]
    if light is None:
        rows.append({"what": f"training {name}, against Lightning", "skipped": "not installed"})
    held = usual_loader(root, size, batch, count, train=False)
    found = in_turn(
        {"ours": ours.predict, "usual": usual_prediction(network(name, size), held)},
        5 if full else 3,
    )
    return [
        *rows,
        row(
            f"predicting with {name} at {size}, batch {batch} (images/s)",
            found["ours"],
            found["usual"],
        ),
    ]


def memory_of(root: Path, which: str, case: tuple[Any, ...]) -> float:
    """Return the peak in MiB of a process that trains, its workers included (shared pages once)."""
    code = [sys.executable, __file__, "--memory", which, str(root), *map(str, case[:4])]
    process = subprocess.Popen(code)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(_share(pid) for pid in _family(process.pid)))
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"the {which} loop died while its memory was measured")
    return peak / 1024


def _family(pid: int) -> list[int]:
    found = [pid]
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [
                member for child in file.read_text().split() for member in _family(int(child))
            ]
        except OSError:
            continue
    return found


def _share(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def train_for_memory(which: str, root: Path, case: tuple[str, int, int, int]) -> None:
    """Train two epochs one way: what `memory_of` looks at."""
    name, size, batch, count = case
    if which == "ours":
        epoch = Ours(root, name, size, batch).train
    else:
        loader = usual_loader(root, size, batch, count, train=True)
        epoch = usual_training(network(name, size), loader)
    epoch()
    epoch()


def measure_memory(root: Path) -> dict[str, Any]:
    """Compare the peaks of memory of training resnet18 at 64."""
    if not Path("/proc/self/smaps_rollup").exists():
        return {"what": "memory of training", "skipped": "needs Linux's /proc"}
    pairs = [
        (memory_of(root, "ours", CASES[1]), memory_of(root, "usual", CASES[1])) for _ in range(2)
    ]
    ratios = [other / own for own, other in pairs]
    return {
        "what": "peak memory of training resnet18 at 64, workers included (MiB)",
        "ours": statistics.median(own for own, _ in pairs),
        "other": statistics.median(other for _, other in pairs),
        "ratio": statistics.median(ratios),
        "spread": (min(ratios), max(ratios)),
    }


def measure(full: bool) -> list[dict[str, Any]]:
    """Measure everything; `ratio` above 1 says that ours does more, or takes less memory."""
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    logging.disable(logging.WARNING)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            # Half of the photos are held out, so that training and prediction have as many.
            count, root = case[4 if full else 3], Path(folder, case[0])
            make_images(root / "images", 2 * count)
            rows += measure_case(root, case, full)
        rows.append(measure_memory(Path(folder, CASES[1][0])))
    return rows


def main() -> int:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="more photos and rounds")
    parser.add_argument("--memory", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        which, root, name, *numbers = args.memory
        train_for_memory(which, Path(root), (name, *map(int, numbers)))
        return 0
    for found in measure(args.full):
        print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
