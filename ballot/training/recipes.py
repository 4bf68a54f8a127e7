"""What the data and the machine decide where a person has said nothing: the layer `recipe`.

The recipes themselves stand in `recipes.yml`; here is only who may look, and what is said of it.
No torch: the process of a search's tuner decides as its trials do.
"""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ballot.config.layers import merge
from ballot.config.parsing import parse_yaml
from ballot.config.schema import Config
from ballot.cpus import count_cores
from ballot.data.survey import Survey, survey
from ballot.errors import UserError
from ballot.runs.files import json_or_empty
from ballot.training.packaged import packaged_file
from ballot.values import Layer
from ballot.wording import plural

NAME = "recipe"
FILE = Path(__file__).with_name("recipes.yml")
WARM_UP = 0.2  # share of the epochs that a recipe's warm-up takes at most
HOSTS = {"timm:": "https://huggingface.co", "": "https://download.pytorch.org"}
SCRATCH = ("simple_cnn", "AlexNet", "ResNet")  # of which there are no pretrained weights


@dataclass(frozen=True)
class Situation:
    """What the conditions of `recipes.yml` are compared with."""

    data: Survey
    recipe: str  # as it was asked for: auto, or one by name
    model: str | None  # as it was named; None leaves the choice to the recipe
    pretrained: bool
    device: str
    cores: int


def with_recipe(
    layers: Sequence[Layer], *, saved: Path | None = None, base: Path | None = None
) -> tuple[list[Layer], str]:
    """Put the recipe's layer below all others; return them with a line that says what it did.

    `saved` is the folder of a run that may be there already and goes on: its recipe stays.
    Relative paths of the data start at `base`. What was written for another template is complete,
    unless a recipe is asked for by name.
    """
    config, origin = merge(layers)
    foreign = any(layer.notes for layer in layers) and origin["recipe"] == "default"
    if config.recipe == "none" or config.resume not in (None, "auto") or foreign:
        return list(layers), ""
    if saved is not None and (values := _of_run(saved)) is not None:
        return [Layer(NAME, values), *layers], ""
    situation = look(config, origin, base or Path())
    if situation is None:
        return list(layers), ""
    values = choose(situation, read_recipes())
    if config.pipeline:  # makes images of its own size
        own = ("image_size", "augmentation")
        values = {key: value for key, value in values.items() if not key.startswith(own)}
    whole, sources = merge([Layer(NAME, values), *layers])
    if sources["warmup_epochs"] == NAME:  # of a trial that was told to be short
        values["warmup_epochs"] = min(whole.warmup_epochs, WARM_UP * whole.epochs)
    return [Layer(NAME, values), *layers], sentence(situation, whole)


def look(config: Config, origin: Mapping[str, str], base: Path) -> Situation | None:
    """Find out what a recipe asks for; None where there is nothing that one is for."""
    data = survey(config, base)
    if data is None or not data.photos:
        return None
    named = config.model if origin["model"] != "default" else None
    wanted = config.pretrained != "no"
    if config.init_from is not None:
        pretrained = True
    elif named is None:
        pretrained = wanted and packaged_file("timm:tf_efficientnet_lite0") is not None
    else:
        backbone = str(config.model_args.get("backbone", "resnet50"))
        pretrained = wanted and can_be_had(backbone if named == "backbone_head" else named)
    device, cores = device_kind(config.device), count_cores()
    return Situation(data, config.recipe, named, pretrained, device, cores)


def can_be_had(model: str) -> bool:
    """Tell whether pretrained weights of a network lie on this machine, or can be fetched."""
    if model in SCRATCH:
        return False
    if packaged_file(model) is not None or _downloaded(model):
        return True
    host = next(url for prefix, url in HOSTS.items() if model.startswith(prefix))
    try:
        urllib.request.urlopen(urllib.request.Request(host, method="HEAD"), timeout=3).close()
    except urllib.error.HTTPError:
        return True  # an answer all the same
    except (OSError, ValueError):
        return False
    return True


def _downloaded(model: str) -> bool:
    """Tell whether a file named like the network lies where torch and the hub keep theirs."""
    home = Path(os.environ.get("TORCH_HOME") or "~/.cache/torch").expanduser()
    hub = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser() / "hub"
    bare = model.removeprefix("timm:").lower()
    names = {bare, bare.replace("_", "-")}
    files = (home / "hub" / "checkpoints").glob("*")
    if any(re.match(rf"{re.escape(n)}[-_.]", f.name.lower()) for f in files for n in names):
        return True
    return model.startswith("timm:") and any(hub.glob(f"models--timm--{bare.partition('.')[0]}*"))


def device_kind(wanted: str) -> str:
    """Tell whether a trial computes on a GPU of CUDA or on the processor."""
    if wanted != "auto":
        return "cpu" if wanted in ("cpu", "mps") else "cuda"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    return "cuda" if Path("/proc/driver/nvidia/version").exists() and not hidden else "cpu"


def read_recipes(path: Path = FILE) -> list[Mapping[str, Any]]:
    """Read the lines of recipes; a condition that nobody knows is a `UserError`."""
    lines = parse_yaml(path.read_text(encoding="utf-8"), path)
    for line in lines:
        for key in line.get("when", {}):
            if key not in CONDITIONS:
                raise UserError(f"{path}: unknown condition {key!r}; use {', '.join(CONDITIONS)}")
    return lines


CONDITIONS = {
    "recipe": lambda now, value: now.recipe == value,
    "chosen": lambda now, value: (now.model is None) == value,
    "model": lambda now, value: now.model is not None and bool(re.search(value, now.model)),
    "pretrained": lambda now, value: now.pretrained == value,
    "device": lambda now, value: now.device == value,
    "images_from": lambda now, value: now.data.images >= value,
    "images_to": lambda now, value: now.data.images <= value,
    "per_core_from": lambda now, value: now.data.images / now.cores >= value,
    "per_core_to": lambda now, value: now.data.images / now.cores <= value,
    "side_to": lambda now, value: now.data.side <= value,
    "uneven_from": lambda now, value: now.data.uneven >= value,
}


def choose(now: Situation, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the values of all lines whose conditions hold, the later over the earlier."""
    values: dict[str, Any] = {}
    for line in lines:
        if all(CONDITIONS[key](now, value) for key, value in line.get("when", {}).items()):
            values |= line["values"]
    return values


def sentence(now: Situation, config: Config) -> str:
    """Say what was found and what was decided, in one line."""
    data = now.data
    machine = "GPU" if now.device == "cuda" else f"{now.cores} cores"
    size = f" at {config.image_size} px" if config.image_size else ""
    start = "pretrained" if now.pretrained else "from scratch"
    kind = "grey photos" if data.grey else "photos"
    does = [
        f"{config.optimizer} {config.lr:g}",
        config.scheduler,
        plural(config.epochs, "epoch"),
        config.augmentation,
    ]
    does += ["EMA"] if config.ema else []
    return (
        f"{kind}, {data.classes} classes, {data.images:,} images, {machine}: "
        f"{config.model.removeprefix('timm:')} {start}{size}, {', '.join(does)}; "
        "--recipe none for plain defaults"
    )


def _of_run(folder: Path) -> dict[str, Any] | None:
    """Return what a run folder's recipe had set; None where there is no such run."""
    if not (folder / "config.json").is_file():
        return None
    said = json_or_empty(folder / "config.json")
    values, origin = said.get("values", {}), said.get("origin", {})
    known = {f.name for f in fields(Config)}
    found = {}
    for key, layer in origin.items():
        head, _, rest = key.partition(".")
        if layer == NAME and head in known:
            found[key] = values[head][rest] if rest else values[head]
    return found
