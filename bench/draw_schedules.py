"""Draw `docs/schedules.svg` from the schedules themselves: python bench/draw_schedules.py"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from optim import SCHEDULERS, create_scheduler  # noqa: E402

TARGET = ROOT / "docs" / "schedules.svg"
EPOCHS, STEPS, WARMUP = 30, 10, 4
WIDE, HIGH, GAP, LEFT, TOP = 250, 120, 46, 44, 66  # pixels of a panel and around it
INK, GREY, BLUE, ORANGE = "#24292f", "#8c959f", "#0969da", "#bc4c00"


def rates(name: str, warmup: float) -> list[float]:
    """Return the learning rate of every step as a share of `lr`."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = create_scheduler(
        name, optimizer, epochs=EPOCHS, steps_per_epoch=STEPS, warmup_epochs=warmup
    )
    seen = []
    for epoch in range(EPOCHS):
        for _ in range(STEPS):
            seen.append(schedule.lr)
            schedule.step_batch()
        schedule.step_epoch(min(0.1 * epoch, 0.8))  # a score that stops rising in epoch 9
    return seen


def line(values: list[float], x: float, y: float, color: str, style: str = "") -> str:
    """Return a polyline, less the points between two that are alike."""
    kept = [
        k
        for k, value in enumerate(values)
        if k in (0, len(values) - 1) or not (values[k - 1] == value == values[k + 1])
    ]
    points = " ".join(
        f"{x + WIDE * k / (len(values) - 1):.1f},{y + HIGH * (1 - values[k]):.1f}" for k in kept
    )
    return f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.8" {style}/>'


def text(x: float, y: float, words: str, color: str = INK, anchor: str = "start", size: int = 11):
    """Return a text."""
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" fill="{color}" text-anchor="{anchor}" '
        f'font-size="{size}">{words}</text>'
    )


def panel(name: str, x: float, y: float) -> list[str]:
    """Return one schedule without and with a warm-up."""
    parts = [text(x, y - 8, name, size=13)]
    for share, label in ((0, "0"), (0.5, "lr/2"), (1, "lr")):
        at = y + HIGH * (1 - share)
        parts.append(f'<path d="M{x} {at}h{WIDE}" stroke="#d0d7de" stroke-width="1"/>')
        parts.append(text(x - 6, at + 4, label, GREY, "end"))
    for epoch in (0, 10, 20, 30):
        parts.append(text(x + WIDE * epoch / EPOCHS, y + HIGH + 15, str(epoch), GREY, "middle"))
    parts.append(line(rates(name, WARMUP), x, y, ORANGE, 'stroke-dasharray="4 3"'))
    parts.append(line(rates(name, 0), x, y, BLUE))
    return parts


def main() -> int:
    """Draw all of them, three in a row."""
    names = SCHEDULERS.names()
    rows = -(-len(names) // 3)
    width, height = LEFT + 3 * (WIDE + GAP), TOP + rows * (HIGH + GAP + 10)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        text(LEFT, 24, f"Learning rate over {EPOCHS} epochs, default arguments", size=14),
        f'<path d="M{LEFT + 400} 20h26" stroke="{BLUE}" stroke-width="1.8"/>',
        text(LEFT + 432, 24, "as it is"),
        f'<path d="M{LEFT + 500} 20h26" stroke="{ORANGE}" stroke-width="1.8" '
        'stroke-dasharray="4 3"/>',
        text(LEFT + 532, 24, f"with --warmup_epochs {WARMUP}"),
    ]
    for k, name in enumerate(names):
        parts += panel(name, LEFT + k % 3 * (WIDE + GAP), TOP + k // 3 * (HIGH + GAP + 10))
    temporary = TARGET.with_suffix(".tmp")
    temporary.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")
    temporary.replace(TARGET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
