"""Images a second of the data layer against the usual way, alternating in one run.

The usual way is PIL, torchvision's first transforms and a `DataLoader` of two worker processes:
centre crop 350, resize 224, mirror, normalise, batches of 64. Images are 384x512 JPEGs made here.

    python bench/data.py [--quick]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ballot.config.schema import Config
from ballot.data.batches import Subset
from dataset import load_data

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 64


def measure(full: bool) -> list[dict[str, Any]]:
    """Measure and return rows with the keys what, ours, other, ratio and spread.

    `ours` and `other` are medians in images/s, `ratio` is the median of the rounds' ratios and
    `spread` their range. `full` takes more images and rounds.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_images(root / "images", 1000 if full else 300)
        return measure_reading(root, 7 if full else 3) + measure_training(root, 7 if full else 3)


def make_images(root: Path, count: int) -> None:
    """Write `count` JPEGs of 384x512 in two class folders: soft shapes and grain, as photos are."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for k in range(count):
        soft = rng.integers(0, 256, (16, 12, 3), dtype=np.uint8)
        picture = Image.fromarray(soft).resize((384, 512), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 6, (512, 384, 1))
        array = np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8)
        path = root / f"class{k % 2}" / f"{k:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path, quality=85)


def measure_reading(root: Path, rounds: int) -> list[dict[str, Any]]:
    """Compare an epoch of reading: decoding in threads, and the cache, with the usual way."""
    usual = usual_loader(root / "images")
    decoded = open_data(root, "off", BATCH)
    cached = open_data(root, str(root / "cache"), BATCH)
    count = len(cached)
    ways: dict[str, Callable[[int], int]] = {
        "usual": lambda _: sum(len(images) for images, _ in usual),
        "decoded": lambda epoch: run_epoch(decoded, epoch),
        "cached": lambda epoch: sum(run_epoch(cached, 10 * epoch + k) for k in range(10)),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for epoch in range(rounds + 1):
        for name, run in ways.items():
            start = time.perf_counter()
            seen = run(epoch)
            if epoch:  # the first round warms up workers, buffers and the system's cache
                rates[name].append(seen / (time.perf_counter() - start))
    return [
        row(f"{what} ({count} images)", rates[name], rates["usual"])
        for what, name in (("reading without a cache", "decoded"), ("reading the cache", "cached"))
    ]


def usual_loader(root: Path) -> torch.utils.data.DataLoader:
    """The loader that most projects have."""
    from torchvision import datasets, transforms

    steps = [
        transforms.CenterCrop(350),
        transforms.Resize((224, 224)),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    images = datasets.ImageFolder(str(root), transforms.Compose(steps))
    return torch.utils.data.DataLoader(
        images, batch_size=BATCH, shuffle=True, num_workers=2, persistent_workers=True
    )


def open_data(root: Path, cache: str, batch: int, **options: Any) -> Subset:
    """Training rows as a trial would have them, mirrored at random."""
    config = Config(
        data_dir=str(root / "images"),
        cache=cache,
        mean=MEAN,
        std=STD,
        workers=2,
        augmentation_args={"flip": 0.5},
        val_ratio=max(0.05, 2 / batch),
        **options,
    )
    return load_data(config, input_size=224).folds[0].train


def run_epoch(subset: Subset, epoch: int) -> int:
    """Read every batch of an epoch as training does and return the number of images."""
    return sum(len(images) for images, _ in subset.batches(BATCH, epoch=epoch, train=True))


def measure_training(root: Path, rounds: int = 7, steps: int = 4) -> list[dict[str, Any]]:
    """Compare training Efficientnet_b0 at 128 from the cache with training on random tensors.

    The two take turns at every step, so that whatever else the machine does meets both.
    """
    from model import create_model

    model, _ = create_model("Efficientnet_b0", 2, pretrained="no", image_size=128)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    cached = open_data(root, str(root / "cache"), 16, image_size=128)
    dummy = {"dataset": "dummy", "dataset_args": {"num_classes": 2}}
    config = Config(**dummy, image_size=128, augmentation_args={"flip": 0.5})
    streams = {"cached": forever(cached), "dummy": forever(load_data(config).folds[0].train)}
    rates: dict[str, list[float]] = {name: [] for name in streams}
    for number in range(rounds + 1):
        seconds = dict.fromkeys(streams, 0.0)
        for step in range(steps):
            for name in sorted(streams, reverse=bool(step % 2)):
                start = time.perf_counter()
                images, targets = next(streams[name])
                loss = torch.nn.functional.cross_entropy(model(images), targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                seconds[name] += time.perf_counter() - start
        for name in streams if number else ():  # the first round warms up
            rates[name].append(16 * steps / seconds[name])
    return [row("training Efficientnet_b0 at 128 / dummy", rates["cached"], rates["dummy"])]


def forever(subset: Subset) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of 16 training images without an end."""
    epoch = 0
    while True:
        yield from (b for b in subset.batches(16, epoch=epoch, train=True) if len(b[0]) == 16)
        epoch += 1


def row(what: str, ours: list[float], other: list[float]) -> dict[str, Any]:
    """Sum rounds up: medians of the rates and of their ratio, and the ratio's range."""
    ratios = [a / b for a, b in zip(ours, other)]
    return {
        "what": what,
        "ours": round(statistics.median(ours), 1),
        "other": round(statistics.median(other), 1),
        "ratio": round(statistics.median(ratios), 2),
        "spread": f"{min(ratios):.2f}-{max(ratios):.2f}",
    }


def main(argv: list[str] | None = None) -> int:
    """Print the rows as a table."""
    words = sys.argv[1:] if argv is None else argv
    print(f"{'what':48} {'ours':>10} {'other':>10} {'ratio':>7}  spread   (images/s)")
    for line in measure(full="--quick" not in words):
        print(
            f"{line['what']:48} {line['ours']:10.1f} {line['other']:10.1f} {line['ratio']:7.2f}  "
            f"{line['spread']}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
