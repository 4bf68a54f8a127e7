"""A training step with each thing that is switched on for speed, and without it.

    python bench/run.py [--full] steps

Both networks train on one batch that is ready, taking turns at every step: whatever is kept has to
show here. Below 1 stands what is off: bfloat16 on a CPU without its instructions, and compiling.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ballot.training.blocks import arrange, ordered
from ballot.training.process import has_bfloat16
from model import create_model
from optim import create_optimizer

Step = Callable[[], None]
QUICK = (("simple_cnn", 64, 64), ("resnet18", 64, 64), ("Efficientnet_b0", 128, 16))
MORE = (
    ("timm:efficientnet_b0", 128, 16),
    ("timm:mobilenetv3_small_100", 128, 32),
    ("timm:convnext_atto", 128, 16),
    ("timm:resnet26", 64, 64),
    ("timm:vit_tiny_patch16_224", 224, 8),
)


def step_of(
    case: tuple[str, int, int],
    *,
    channels_last: bool | None = None,
    swish: bool = True,
    amp: torch.dtype | None = None,
    compiled: bool = False,
) -> Step:
    """Return a training step of a network on a batch that lies on the device."""
    name, size, batch = case
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, _ = create_model(name, 2, pretrained="no", image_size=size)
    model = arrange(model.to(device).train(), channels_last)
    if not swish:
        model.set_swish(memory_efficient=True)
    optimizer = create_optimizer("AdamW", model, lr=1e-3, weight_decay=0.01)
    images = ordered(model, torch.randn(batch, 3, size, size, device=device))
    targets = torch.randint(0, 2, (batch,), device=device)
    forward = torch.compile(model) if compiled else model

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, amp, enabled=amp is not None):
            loss = nn.functional.cross_entropy(forward(images), targets)
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def optimizer_step_of(case: tuple[str, int, int], args: dict[str, bool]) -> Step:
    """Return a step of AdamW alone, over the parameters and gradients of a network."""
    model, _ = create_model(case[0], 2, pretrained="no", image_size=case[1])
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    for parameter in model.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    optimizer = create_optimizer("AdamW", model, lr=1e-6, weight_decay=0.01, args=args)

    def step() -> None:
        optimizer.step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return step


def compare(what: str, case: tuple[str, int, int], limit: float, own: Step, other: Step) -> dict:
    """Take steps in turns for `limit` seconds; `ratio` above 1 says that the first is faster."""
    name, size, batch = case
    seconds: tuple[list[float], list[float]] = ([], [])
    for way in (own, other):  # chooses kernels and fills memory
        way()
    end = time.perf_counter() + limit
    for number in itertools.count():
        if number >= 6 and time.perf_counter() > end:
            break
        for which in (0, 1) if number % 2 else (1, 0):
            began = time.perf_counter()
            (own, other)[which]()
            seconds[which].append(time.perf_counter() - began)
    ratios = sorted(b / a for a, b in zip(*seconds))
    quarter = len(ratios) // 4
    return {
        "what": f"{what}: a step of {name} at {size}, batch {batch} (images/s)",
        "ours": batch / statistics.median(seconds[0]),
        "other": batch / statistics.median(seconds[1]),
        "ratio": statistics.median(seconds[1]) / statistics.median(seconds[0]),
        "spread": (ratios[quarter], ratios[-1 - quarter]),
    }


def measure(full: bool) -> list[dict[str, Any]]:
    """Return a row for each choice and network; the range is that of the middle half."""
    torch.manual_seed(0)
    limit, rows = 20.0 if full else 4.0, []
    for case in QUICK + (MORE if full else ()):
        plain = step_of(case, channels_last=False)
        last = step_of(case, channels_last=True)
        rows.append(compare("channels-last order", case, limit, last, plain))
    for case in QUICK:
        own, other = optimizer_step_of(case, {}), optimizer_step_of(case, {"foreach": False})
        rows.append(compare("AdamW alone, fused", case, limit / 4, own, other))
    case = QUICK[-1]
    saving = step_of(case, swish=False)
    rows.append(compare("PyTorch's SiLU, not the package's", case, limit, step_of(case), saving))
    half = step_of(case, amp=torch.bfloat16)
    rows.append(
        compare(
            f"bfloat16, {'with' if has_bfloat16() else 'without'} its instructions",
            case,
            0,
            half,
            step_of(case),
        )
    )
    if full:
        case = QUICK[0]
        compiled = step_of(case, compiled=True)
        rows.append(compare("compiled (after that)", case, limit, compiled, step_of(case)))
    return rows
