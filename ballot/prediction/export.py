"""One file that other programs run: a network, or a vote of several, from pixels to probabilities.

The file takes images float32 [N, 3, S, S] in 0..1 (RGB) and gives probabilities [N, C]; it
normalises inside, so that members with different means go into one file. What comes before it (how
an image is cut and brought to size) stands in a JSON file beside it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ballot.data.images import Geometry
from ballot.errors import UserError, suggest
from ballot.prediction import tta
from ballot.prediction.predictor import Predictor, answer
from ballot.runs.files import write_json
from ballot.values import Json
from ballot.vote.combine import TINY

FORMATS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": ()}  # and what each needs
ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}
TOLERANCE = 1e-4


class Voting(nn.Module):
    """The networks of a vote as one module: [N, 3, S, S] in 0..1 to probabilities [N, C]."""

    columns: torch.Tensor

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        electorate, recipe = predictor.electorate, predictor.electorate.recipe
        self.models = nn.ModuleList(network.model for network in predictor.flat)
        self.shares: list[tuple[int, float]] = []  # voter, and the network's part of it
        for number, runs in enumerate(predictor.networks):
            self.shares += [(number, 1 / len(runs) / len(run)) for run in runs for _ in run]
        self.temperatures = recipe.temperatures or [1.0] * len(recipe.weights)
        self.weights = [weight / math.fsum(recipe.weights) for weight in recipe.weights]
        self.geometric = recipe.method == "geometric"
        self.views = [network.checkpoint.tta for network in predictor.flat]
        place = {name: number for number, name in enumerate(electorate.classes)}
        for number, network in enumerate(predictor.flat):
            saved = network.checkpoint
            self.register_buffer(f"mean{number}", torch.tensor(saved.mean).view(1, 3, 1, 1))
            self.register_buffer(f"scale{number}", 1 / torch.tensor(saved.std).view(1, 3, 1, 1))
            self.register_buffer(f"order{number}", torch.tensor(network.order))
        self.register_buffer("columns", torch.tensor([place[n] for n in electorate.columns]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        parts = []
        for voter, (weight, temperature) in enumerate(zip(self.weights, self.temperatures)):
            own = [self._of(k, images) for k, (who, _) in enumerate(self.shares) if who == voter]
            probs = torch.stack(own).sum(dim=0)
            if temperature != 1:
                probs = (probs.clamp(min=TINY).log() / temperature).softmax(dim=1)
            parts.append(weight * (probs.clamp(min=TINY).log() if self.geometric else probs))
        total = torch.stack(parts).sum(dim=0)
        total = total.softmax(dim=1) if self.geometric else total
        return total.index_select(1, self.columns)

    def _of(self, number: int, images: torch.Tensor) -> torch.Tensor:
        """One network's share of its voter's probabilities."""
        mean, scale = getattr(self, f"mean{number}"), getattr(self, f"scale{number}")
        views = tta.views((images - mean) * scale, self.views[number])
        each = [self.models[number](view).float().softmax(dim=1) for view in views]
        probs = torch.stack(each).mean(dim=0) if len(each) > 1 else each[0]
        return self.shares[number][1] * probs.index_select(1, getattr(self, f"order{number}"))


def check_export(kind: str, out: str | None) -> None:
    """Refuse an unknown format, another ending than its own, and packages that are missing."""
    if kind not in FORMATS:
        raise UserError(f"--export: unknown {kind!r}{suggest(kind, FORMATS)}")
    if out is None or not out.endswith(ENDINGS[kind]):
        raise UserError(f"--export: where to? give --out with a file that ends in {ENDINGS[kind]}")
    missing = [name for name in FORMATS[kind] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--export: {kind} needs {', '.join(missing)}; pip install -r requirements-extra.txt"
        )


def check_exportable(predictor: Predictor) -> Geometry:
    """Return how the images of all members are brought to size, or say what cannot be one file."""
    recipe = predictor.electorate.recipe
    if recipe.stack is not None or recipe.method not in ("mean", "geometric"):
        how = "stacked" if recipe.stack is not None else f"counted by {recipe.method}"
        raise UserError(
            f"--export: a vote that is {how} cannot be one file; mean and geometric can"
        )
    if any(n.recipe.steps or n.recipe.normalised for n in predictor.flat):
        raise UserError(
            "--export: the run's pipeline does more to test images than cut and resize "
            "them, which no file holds; predict.py does it"
        )
    geometries = predictor.geometries
    if len(geometries) > 1:
        what = " and ".join(sorted(_worded(shape) for shape in geometries))
        raise UserError(
            f"--export: members that see images differently cannot be one file ({what})"
            "; export them one by one"
        )
    return geometries[0]


def _worded(shape: Geometry) -> str:
    cut = f" of the centre {shape.crop}" if shape.crop else ""
    return f"{shape.size} pixels{cut}" + (f", shorter side {shape.edge}" if shape.edge else "")


def export(
    predictor: Predictor, kind: str, out: Path, source: str, sample: np.ndarray | None = None
) -> Json:
    """Write the file and the JSON beside it, once it has given the same probabilities to 1e-4.

    `sample` is uint8 [N, 3, S, S] to compare on; random images otherwise. The networks have to be
    on the CPU. Nothing appears under the name of a file that differs.
    """
    shape = check_exportable(predictor)
    for network in predictor.flat:
        network.model.to(memory_format=torch.contiguous_format)
    module = Voting(predictor).eval()
    if sample is None:
        drawn = np.random.default_rng(0).integers(0, 256, (5, 3, shape.size, shape.size))
        sample = drawn.astype(np.uint8)
    images = torch.from_numpy(sample)
    expected = answer(predictor, {shape: images})
    place = {name: k for k, name in enumerate(predictor.electorate.classes)}
    expected = expected[:, [place[name] for name in predictor.electorate.columns]]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export") as folder:
        file = Path(folder, out.name)
        with _quietly(out):
            run = _WRITERS[kind](module, shape.size, file)
            # One image alone too: a file that only takes the traced number of them is none.
            found = np.concatenate([run(images[:1] / 255), run(images[1:] / 255)])
        worst = float(np.abs(found - expected).max())
        if not worst <= TOLERANCE:
            raise UserError(
                f"{out}: the exported model differs by {worst:.2g} from the run's own "
                f"probabilities, more than {TOLERANCE:g}; not written"
            )
        os.replace(file, out)  # noqa: PTH105
    facts = describe(predictor, kind, shape, source)
    facts["checked"] = {"images": len(images), "largest_difference": worst}
    write_json(out.with_suffix(".json"), facts)
    return facts


def describe(predictor: Predictor, kind: str, shape: Geometry, source: str) -> Json:
    """Say all that is needed to use the file without this project."""
    networks = [n.checkpoint for n in predictor.flat]
    before = ["decode to 8-bit RGB, turned upright by EXIF, on white where it is clear"]
    if shape.edge:
        before.append(f"bring the shorter side to {shape.edge} pixels, cut the centre")
    elif shape.crop:
        before.append(f"of a longer side keep the {shape.crop} pixels in the centre")
    before += [
        f"resize to {shape.size} x {shape.size} (bilinear, antialias, rounded to 8 bits)",
        "divide by 255; the file does the rest: (x - mean) / std, softmax",
    ]
    return {
        "format": kind,
        "source": source,
        "classes": predictor.electorate.columns,
        "input": {
            "name": "images",
            "shape": ["batch", 3, shape.size, shape.size],
            "dtype": "float32",
            "range": [0, 1],
            "channels": "RGB",
        },
        "output": {"name": "probs", "shape": ["batch", len(predictor.electorate.columns)]},
        "preprocessing": before,
        "image_size": shape.size,
        "crop": shape.crop,
        "edge": shape.edge,
        "mean": list(networks[0].mean) if len(networks) == 1 else [list(n.mean) for n in networks],
        "std": list(networks[0].std) if len(networks) == 1 else [list(n.std) for n in networks],
        "normalised_inside": True,
        "views": list(networks[0].tta) if len(networks) == 1 else [list(n.tta) for n in networks],
        "models": [n.config.model for n in networks],
        "torch": torch.__version__,
    }


Run = Callable[[torch.Tensor], np.ndarray]


def _write_torch(module: nn.Module, size: int, file: Path) -> Run:
    program = torch.export.export(
        module, (torch.rand(2, 3, size, size),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, file)
    loaded = torch.export.load(file).module()
    return lambda images: loaded(images).detach().numpy()


def _write_onnx(module: nn.Module, size: int, file: Path) -> Run:
    import onnxruntime

    torch.onnx.export(
        module,
        (torch.rand(2, 3, size, size),),
        file,
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["probs"],
        external_data=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probs"], {"images": images.numpy()})[0]


_WRITERS: dict[str, Callable[[nn.Module, int, Path], Run]] = {
    "torch": _write_torch,
    "onnx": _write_onnx,
}


@contextlib.contextmanager
def _quietly(out: Path) -> Iterator[None]:
    """Keep the exporters' own reports back; what they cannot do is a `UserError` in one line."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Exception as error:  # exporters raise whatever a network makes them stumble over
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise UserError(
            f"{out}: this model cannot be exported ({type(error).__name__}: {reason})"
        ) from error
