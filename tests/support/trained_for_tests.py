"""Small runs trained in this process, for tests that need checkpoints."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

import train

COLOURS = {"blue": (40, 60, 200), "green": (60, 170, 60), "red": (200, 50, 50)}


def coloured(root: Path, counts: dict[str, int], size: int = 40, seed: int = 0) -> Path:
    """Write noisy images of three colours, so near each other that a network errs now and then."""
    random = np.random.default_rng(seed)
    grey = np.full(3, 110)
    for side, count in counts.items():
        for name, colour in COLOURS.items():
            folder = root / side / name
            folder.mkdir(parents=True, exist_ok=True)
            for k in range(count):
                tone = grey + (np.array(colour) - grey) * random.uniform(0.0, 0.5)
                pixels = tone + random.normal(0, 50, (size, size + 8, 3))
                image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
                image.save(folder / f"{name}-{k}.png")
    return root


def run(folder: Path, data: Path | None, name: str, *words: object) -> Path:
    """Train one run as the command line does, and return its folder."""
    command = [
        "--out_dir",
        folder / "outputs",
        "--run_name",
        name,
        "--no_tensorboard",
        "--device",
        "cpu",
        "--cache",
        folder / "cache",
        *words,
    ]
    # Of a few tiny pictures; a recipe would fine-tune a large network on them.
    command += ["--data_dir", data, "--recipe", "none"] if data else []
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        assert train.main([str(word) for word in command]) == 0
    finally:  # a script sets up the logging of its own process
        root.handlers[:], root.level = handlers, level
    return folder / "outputs" / name


def copy_run(run: Path, name: str) -> Path:
    """Copy a run and its ballot under another name."""
    twin = run.with_name(name)
    shutil.copytree(run, twin)
    shutil.copy(run.with_name(f"{run.name}.csv"), twin.with_name(f"{name}.csv"))
    return twin
