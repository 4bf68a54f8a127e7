"""Write `ballot/training/timm_models.csv`, from which `python model.py` lists timm's architectures.

    python bench/list_timm.py results-imagenet.csv

The argument is `results/results-imagenet.csv` of https://github.com/huggingface/pytorch-image-models
(Apache 2.0), which has the ImageNet top-1 accuracy of every published set of weights. Parameters
are counted at 1000 classes, on the meta device: no memory is taken and no weights are loaded.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import timm
import torch

TARGET = Path(__file__).resolve().parents[1] / "ballot" / "training" / "timm_models.csv"


def main() -> int:
    """Count, look up and write."""
    with Path(sys.argv[1]).open(newline="") as file:
        top1 = {row["model"]: row["top1"] for row in csv.DictReader(file)}
    rows = []
    for name in timm.list_models():
        cfg = timm.get_pretrained_cfg(name)
        try:
            with torch.device("meta"):
                model = timm.create_model(name, num_classes=1000)
        except Exception as error:  # one network less in a list; said, not hidden
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        tagged = f"{name}.{cfg.tag}" if cfg is not None and cfg.tag else name
        rows.append(
            {
                "name": f"timm:{name}",
                "params": sum(p.numel() for p in model.parameters()),
                "input_size": max(cfg.input_size[1:]) if cfg is not None else "",
                "top1": top1.get(tagged, ""),
            }
        )
    temporary = TARGET.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(TARGET)
    print(f"{len(rows)} architectures, {sum(bool(r['top1']) for r in rows)} with an accuracy")
    return 0


if __name__ == "__main__":
    sys.exit(main())
