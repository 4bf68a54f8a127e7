"""Architectures: a name becomes a network that turns images `[N, 3, H, W]` into logits `[N, C]`.

`python model.py` lists them, `python model.py NAME` shows one, `python model.py '*b3*'` some.
"""

from __future__ import annotations

import csv
import fnmatch
import functools
import inspect
import logging
import re
import sys
import textwrap
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

if __name__ == "__main__":
    from ballot.installed import require

    require("numpy", "torch", "torchvision")

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torchvision.models import get_model_builder, get_model_weights, list_models

from ballot.config.command_line import Parser
from ballot.errors import UserError
from ballot.registry import Entry, Registry
from ballot.scripts import script_main
from ballot.training.blocks import blocks
from ballot.training.heads import Heads
from ballot.training.packaged import SHORT_NAMES, TIMM_MODELS, check_file, packaged_file
from ballot.training.weights import (
    WeightsUnavailable,
    cached_weights,
    check_reachable,
    fetch_weights,
    lite_names,
    load_weights,
    published_weights,
    read_weights,
)
from ballot.values import Json, Values

log = logging.getLogger(__name__)

MODELS = Registry("model")
HEADS = Registry("head")

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d)
NEARLY_ZERO = 1e-3  # factor of weights that must not be exactly zero


@dataclass(frozen=True)
class ModelSpec:
    """What a network was made for: the side of its images and their normalisation (in 0..1)."""

    input_size: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # ImageNet's
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


def model_spec(name: str, args: Values | None = None) -> ModelSpec:
    """Return the native input size and normalisation of `name`, without building it."""
    facts = _facts(name, args or {})
    return ModelSpec(**{k: facts[k] for k in ("input_size", "mean", "std") if k in facts})


def create_model(
    name: str,
    num_classes: int,
    *,
    pretrained: str = "auto",
    args: Values | None = None,
    init_from: str | Path | None = None,
    image_size: int | None = None,
    heads: Heads | None = None,
) -> tuple[nn.Module, bool]:
    """Build `name` for images of `image_size`; say whether it starts from loaded weights.

    With `init_from` (a run folder or a state dict) nothing else is looked up. Otherwise
    `pretrained` "yes" demands published weights, "auto" warns and does without, "no" does not ask.
    A network that cannot take such images is a `UserError`. With `heads` its classifier is theirs,
    and its output logits of the `num_classes` joint classes all the same.
    """
    args = dict(args or {})
    width = num_classes if heads is None else heads.width
    build = functools.partial(_build, name, width, args=args, image_size=image_size)
    if init_from is not None:
        model = build(pretrained=False)
        loaded = True
        fresh = bool(_start_from(model, init_from))
    else:
        model, loaded = _build_pretrained(name, build, args, pretrained)
        fresh = loaded and width != _facts(name, args).get("classes", 1000)
        fresh = fresh or (loaded and isinstance(model, BackboneHead))
    if fresh:
        start_classifier_at_zero(model)
    _check_forward(name, model, width, image_size or model_spec(name, args).input_size)
    if heads is not None:
        heads.attach(model)
    return model, loaded


def _build(
    name: str,
    num_classes: int,
    *,
    pretrained: bool,
    args: Values,
    image_size: int | None,
) -> nn.Module:
    parameters = inspect.signature(MODELS.entry(name).build).parameters
    # Only a few networks are built for one size; the others need not know of it.
    sized = {"image_size": image_size} if "image_size" in parameters and image_size else {}
    return MODELS.create(name, num_classes, pretrained, args=args, **sized)


def _build_pretrained(
    name: str, build: Callable[..., nn.Module], args: Values, pretrained: str
) -> tuple[nn.Module, bool]:
    published = bool(_facts(name, args).get("weights"))
    if pretrained == "yes" and not published:
        raise WeightsUnavailable(f"pretrained: {name!r} has no published weights; use auto or no")
    if pretrained == "no" or not published:
        return build(pretrained=False), False
    state = torch.get_rng_state()
    try:
        return build(pretrained=True), True
    except WeightsUnavailable as error:
        if pretrained == "yes":
            raise
        log.warning("%s starts FROM SCRATCH, without pretrained weights: %s", name, error)
    torch.set_rng_state(state)  # the same start as with pretrained "no"
    return build(pretrained=False), False


def _facts(name: str, args: Values) -> Values:
    """Return what is registered beside `name`; of a composed network, what its backbone has."""
    entry = MODELS.entry(name)
    if "like" not in entry.info:
        return entry.info
    part = entry.info["like"]
    default = inspect.signature(entry.build).parameters[part].default
    return _facts(args.get(part, default), args.get(f"{part}_args") or {})


def _start_from(model: nn.Module, path: str | Path) -> list[str]:
    """Load the weights of `path`; return the names of the classifier's that did not fit."""
    anew = load_weights(model, read_weights(path), str(path), head_names(model))
    if anew:
        log.warning(
            "init_from %s: the classifier does not fit and starts anew (%s)", path, ", ".join(anew)
        )
    return anew


@torch.no_grad()
def start_classifier_at_zero(model: nn.Module) -> None:
    """Make the new classifier of a pretrained backbone answer the same for every class.

    Random logits of a fresh classifier give a first loss far above ln C, and the first steps
    would tear the pretrained features apart.
    """
    for parent, layer in _last_layers(model):
        if isinstance(layer, CosineHead):  # which looks at directions: zero would have none
            middle = layer.weight.mean(0, keepdim=True)
            layer.weight.copy_(middle + (layer.weight - middle) * NEARLY_ZERO)
            continue
        # A ReLU behind the layer (SqueezeNet) passes no gradient at exactly zero.
        dead = isinstance(parent, nn.Sequential) and any(
            isinstance(other, nn.ReLU) for other in list(parent)[list(parent).index(layer) :]
        )
        for name, parameter in layer.named_parameters(recurse=False):
            parameter.mul_(NEARLY_ZERO if dead and name == "weight" else 0.0)


def linear_classifier(model: nn.Module) -> nn.Linear | None:
    """Return the one linear layer that gives the logits, if a network has one."""
    layers = [layer for _, layer in _last_layers(model)]
    only = layers[0] if len(layers) == 1 else None
    return only if isinstance(only, nn.Linear) else None


def dropout_before(model: nn.Module, layer: nn.Module) -> float:
    """Return the rate of the dropout that a network has right before its classifier `layer`."""
    if isinstance(layer, LinearWithDropout):
        return 0.0  # it drops by itself
    for found in (
        getattr(model, "drop_rate", None),
        getattr(getattr(model, "_dropout", None), "p", None),
    ):
        if isinstance(found, float):
            return found
    for parent in model.modules():
        if isinstance(parent, nn.Sequential) and layer in list(parent):
            before = list(parent)[: list(parent).index(layer)]
            return float(next((m.p for m in reversed(before) if isinstance(m, nn.Dropout)), 0.0))
    return 0.0


def _last_layers(model: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Return the layers that give the logits, each with its parent: several in distilled ones."""
    found: dict[str, tuple[str, nn.Module]] = {}
    names = {name.rpartition(".")[0] for name in head_names(model)}
    for root in _classifiers(model):
        inner = {id(module) for module in root.modules()}
        for name, module in model.named_modules():
            if id(module) in inner and isinstance(module, (*LINEAR, CosineHead)) and name in names:
                found[str(id(root))] = (name, module)
    if not found:
        name, module = _classifier(model)
        found[""] = (name, module)
    return [(model.get_submodule(n.rpartition(".")[0]), module) for n, module in found.values()]


def _classifiers(model: nn.Module) -> list[nn.Module]:
    """Return the modules that a network itself calls its classifier."""
    head = getattr(model, "head", None)
    if isinstance(head, nn.Module) and hasattr(model, "backbone"):
        return [head]
    if callable(find := getattr(model, "get_classifier", None)):
        wanted = find()
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        return [module for module in wanted if isinstance(module, nn.Module)]
    return []


def _check_forward(name: str, model: nn.Module, num_classes: int, size: int) -> None:
    """Refuse a network that does not turn `[2, 3, size, size]` into `[2, num_classes]`."""
    training = model.training
    model.eval()
    try:
        shape = _output_shape(model, size)
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
        raise UserError(
            f"image_size: model {name!r} cannot take images of {size} x {size} ({_line(error)}); "
            "choose another image_size"
        ) from error
    finally:
        model.train(training)
    if shape != (2, num_classes):
        raise UserError(
            f"model {name!r}: gives {list(shape)} for 2 images of {num_classes} classes; "
            f"it must give logits of shape [2, {num_classes}]"
        )


@torch.no_grad()
def _output_shape(model: nn.Module, size: int) -> tuple[int | str, ...]:
    """Return the shape of the output for two images, without arithmetic where that can be done."""
    images = torch.zeros(2, 3, size, size)
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    weights = {name: value.to("meta") for name, value in weights.items()}
    try:
        output = torch.func.functional_call(model, weights, images.to("meta"))
    except Exception:
        output = model(images)
    return tuple(output.shape) if isinstance(output, Tensor) else (type(output).__name__,)


# --------------------------------------------------------------------- what is trained, and when


def head_names(model: nn.Module) -> list[str]:
    """Return the names of the parameters of the classifier, everything else being the backbone.

    They are those below `head` where a network has a `backbone` and a `head`, timm's classifier,
    or the last block.
    """
    wanted, names = _classifiers(model), []
    for prefix, module in model.named_modules():
        if any(module is m for m in wanted):
            names += [f"{prefix}.{name}" for name, _ in module.named_parameters()]
    return names or blocks(model)[-1]


def freeze(model: nn.Module, what: str) -> None:
    """Stop training the `backbone`, or the first N blocks; their batch norms stop adapting too."""
    head = set(head_names(model))
    if what == "backbone":
        frozen = {name for name, _ in model.named_parameters()} - head
    else:
        parts = blocks(model)
        if not str(what).isdigit() or int(what) >= len(parts):
            raise UserError(
                f"freeze: {what!r} is not understood; use backbone, or 0 to {len(parts) - 1} "
                "for that many blocks"
            )
        frozen = {name for part in parts[: int(what)] for name in part}
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.register_forward_pre_hook(_rest_if_frozen)


def keep_statistics(model: nn.Module) -> None:
    """Let every batch norm use and keep the statistics that it was loaded with.

    Those of a small batch are far from the ones that the weights behind it were trained with.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.register_forward_pre_hook(_rest)


def _rest(norm: nn.Module, _inputs: object) -> None:
    norm.training = False


def unfreeze(model: nn.Module) -> None:
    """Train every parameter again, and let every batch norm adapt."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def _rest_if_frozen(norm: nn.Module, _inputs: object) -> None:
    """Use and keep the running statistics of a frozen batch norm, whatever `train()` said.

    A hook, because the loop calls `train()` on the whole network every epoch.
    """
    if norm.weight is not None and not norm.weight.requires_grad:
        norm.training = False


# ------------------------------------------------------------------------------- small networks


@MODELS.register("simple_cnn", input_size=32)
def simple_cnn(
    num_classes: int,
    pretrained: bool,  # noqa: ARG001
    *,
    image_size: int = 32,
    dropout: float = 0.0,
) -> nn.Module:
    """Two convolutions, 6 and 16 wide, and three linear layers (LeNet-5; LeCun et al., 1998)."""
    # ReLU after pooling is the same function with a quarter of the work.
    features = nn.Sequential(
        nn.Conv2d(3, 6, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(6, 16, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
    )
    classifier = nn.Sequential(
        nn.Linear(_width("simple_cnn", features, image_size), 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Dropout(_share("dropout", dropout)),
        nn.Linear(84, num_classes),
    )
    return nn.Sequential(OrderedDict(features=features, classifier=classifier))


@MODELS.register("AlexNet", input_size=224)
def alexnet(
    num_classes: int,
    pretrained: bool,  # noqa: ARG001
    *,
    image_size: int = 224,
    dropout: float = 0.5,
    hidden: int = 4096,
    lrn: Sequence[float] = (5, 1e-4, 0.75, 2.0),
    pool: int | None = None,
    init: str = "torch",
) -> nn.Module:
    """AlexNet as it was, with local response normalisation and two groups (Krizhevsky, 2012).

    `lrn` is its size, alpha, beta and k, `pool` the side that the last map is averaged to, and
    `init` paper starts from the paper's weights. torchvision's `alexnet` is the later, narrower
    one, and has published weights.
    """
    features = _alexnet_features(image_size, lrn, pool)
    share = _share("dropout", dropout)
    classifier = nn.Sequential(
        nn.Dropout(share),
        nn.Linear(_width("AlexNet", features, image_size), hidden),
        nn.ReLU(),
        nn.Dropout(share),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )
    model = nn.Sequential(OrderedDict(features=features, classifier=classifier))
    if _one_of("init", init, ("torch", "paper")) == "paper":
        _start_as_in_the_paper(model)
    return model


def _alexnet_features(image_size: int, lrn: Sequence[float], pool: int | None) -> nn.Sequential:
    # The paper's first map of 55 x 55: images of 227 as they are, or of 224 with a border.
    border = 0 if (image_size - 11) % 4 == 0 else 2
    return nn.Sequential(
        nn.Conv2d(3, 96, 11, stride=4, padding=border),
        nn.ReLU(inplace=True),
        _response_norm(lrn),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(96, 256, 5, padding=2, groups=2),
        nn.ReLU(inplace=True),
        _response_norm(lrn),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(256, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 384, 3, padding=1, groups=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1, groups=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2),
        *([] if pool is None else [nn.AdaptiveAvgPool2d(_whole("pool", pool))]),
        nn.Flatten(),
    )


def _response_norm(values: Any) -> nn.Module:
    numbers = isinstance(values, (list, tuple)) and len(values) == 4
    if not numbers or not all(isinstance(v, (int, float)) and v > 0 for v in values):
        raise UserError(
            f"model_args: lrn is {values!r}; it takes size, alpha, beta and k, as in "
            "[5, 0.0001, 0.75, 2.0]"
        )
    size, alpha, beta, k = values
    return nn.LocalResponseNorm(int(size), alpha=alpha, beta=beta, k=k)


def _start_as_in_the_paper(model: nn.Module) -> None:
    """Draw weights from N(0, 0.01^2); biases are 1 where the paper says so, else 0.

    They are 1 in the second, fourth and fifth convolution and in the hidden linear layers.
    """
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for number, layer in enumerate(layers):
        nn.init.normal_(layer.weight, std=0.01)
        if layer.bias is not None:
            nn.init.constant_(layer.bias, 0.0 if number in (0, 2, len(layers) - 1) else 1.0)


@MODELS.register("ResNet", input_size=224)
def resnet(
    num_classes: int,
    pretrained: bool,  # noqa: ARG001
    *,
    num_blocks: list[int] | tuple[int, ...] = (3, 4, 6, 3),
    block: str = "bottleneck",
    stem: str = "imagenet",
    dropout: float = 0.0,
) -> nn.Module:
    """ResNet by the number of blocks in its four stages (He et al., 2016), from scratch.

    `block` is bottleneck or basic; the `stem` small keeps the resolution of small images.
    """
    kinds = {
        "bottleneck": torchvision.models.resnet.Bottleneck,
        "basic": torchvision.models.resnet.BasicBlock,
    }
    counts = list(num_blocks) if isinstance(num_blocks, (list, tuple)) else []
    if len(counts) != 4 or not all(isinstance(n, int) and n > 0 for n in counts):
        raise UserError(f"model_args: num_blocks is {num_blocks!r}; as in [3, 4, 6, 3]")
    model = torchvision.models.ResNet(kinds[_one_of("block", block, kinds)], counts, num_classes)
    if _one_of("stem", stem, ("imagenet", "small")) == "small":
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return _with_dropout(model, dropout)


# ------------------------------------------------------------------------- efficientnet-pytorch

# Input size, dropout, parameters at 1000 classes and top-1 accuracy, as published by
# efficientnet-pytorch and Tan and Le (2019).
EFFICIENTNETS = (
    (224, 5_288_548, 76.3),
    (240, 7_794_184, 78.8),
    (260, 9_109_994, 79.8),
    (300, 12_233_232, 81.1),
    (380, 19_341_616, 82.6),
    (456, 30_389_784, 83.3),
    (528, 43_040_704, 84.0),
    (600, 66_347_960, 84.4),
)


def _efficientnet_builder(name: str, native: int) -> Callable[..., nn.Module]:
    def build(
        num_classes: int,
        pretrained: bool,
        *,
        image_size: int = native,
        dropout: float | None = None,
        drop_connect: float = 0.2,
    ) -> nn.Module:
        from efficientnet_pytorch import EfficientNet
        from efficientnet_pytorch.utils import url_map

        original = name.lower().replace("_", "-")
        state = published_weights(url_map[original]) if pretrained else None
        rate = {} if dropout is None else {"dropout_rate": _share("dropout", dropout)}
        model = EfficientNet.from_name(
            original,
            num_classes=num_classes,
            image_size=image_size,
            drop_connect_rate=_share("drop_connect", drop_connect),
            # The package's 0.99 is for ImageNet's many steps: after the few hundred of a small set
            # the statistics would still be those of the start, and validation at chance.
            batch_norm_momentum=0.9,
            **rate,
        )
        # PyTorch's own SiLU takes as little memory as the package's and is faster.
        model.set_swish(memory_efficient=False)
        return _loaded(model, state, original)

    build.__doc__ = f"efficientnet-pytorch's {name.lower().replace('_', '-')} (Tan and Le, 2019)."
    return build


for _b, (_size, _params, _top1) in enumerate(EFFICIENTNETS):
    MODELS.register(
        f"Efficientnet_b{_b}",
        input_size=_size,
        params=_params,
        top1=_top1,
        weights="efficientnet-pytorch",
    )(_efficientnet_builder(f"Efficientnet_b{_b}", _size))


# ---------------------------------------------------------------------------------- torchvision

# What builders fix themselves, or what no configuration file can hold.
_NOT_ARGUMENTS = {
    "self",
    "num_classes",
    "weights",
    "progress",
    "init_weights",
    "aux_logits",
    "transform_input",
    "block",
    "blocks_per_stage",
    "norm_layer",
    "conv_stem_configs",
    "image_size",
    "input_size",
    "drop_rate",
    "dropout",
}


def _register_torchvision() -> None:
    for name in list_models(module=torchvision.models):
        weights = get_model_weights(name).DEFAULT
        preset = weights.transforms.keywords
        MODELS.register(
            name,
            input_size=_crop_size(name),
            mean=tuple(preset.get("mean", ModelSpec.mean)),
            std=tuple(preset.get("std", ModelSpec.std)),
            params=weights.meta["num_params"],
            top1=weights.meta["_metrics"]["ImageNet-1K"]["acc@1"],
            weights=weights.url,
        )(_torchvision_builder(name))


def _torchvision_builder(name: str) -> Callable[..., nn.Module]:
    builder = get_model_builder(name)
    network = inspect.signature(builder).return_annotation
    takes = inspect.signature(network).parameters

    def build(
        num_classes: int,
        pretrained: bool,
        *,
        image_size: int | None = None,
        dropout: float | None = None,
        **args: object,
    ) -> nn.Module:
        state = published_weights(get_model_weights(name).DEFAULT.url) if pretrained else None
        if "aux_logits" in takes:  # inception_v3, googlenet: one output, and the weights' scaling
            args |= {"aux_logits": False, "transform_input": True, "init_weights": False}
        size = image_size or _crop_size(name)
        args |= {"image_size": size} if "image_size" in takes else {}
        args |= {"input_size": (size, size)} if "input_size" in takes else {}
        if dropout is not None and "dropout" in takes:
            args["dropout"], dropout = _share("dropout", dropout), None
        try:
            model = builder(num_classes=num_classes, **args)
        except (TypeError, ValueError, AssertionError) as error:
            raise UserError(f"model_args: model {name!r} refuses them; {_line(error)}") from error
        return _loaded(_with_dropout(model, dropout or 0.0), _renamed(model, state), name)

    build.__signature__ = _torchvision_signature(build, takes)  # type: ignore[attr-defined]
    build.__doc__ = f"torchvision's {name}."
    return build


def _crop_size(name: str) -> int:
    return get_model_weights(name).DEFAULT.transforms.keywords["crop_size"]


def _torchvision_signature(
    build: Callable[..., nn.Module], takes: Mapping[str, inspect.Parameter]
) -> inspect.Signature:
    own = [p for p in inspect.signature(build).parameters.values() if p.kind is not p.VAR_KEYWORD]
    if not {"image_size", "input_size"} & set(takes):
        own = [p for p in own if p.name != "image_size"]
    more = [
        p.replace(kind=p.KEYWORD_ONLY)
        for p in takes.values()
        if p.name not in _NOT_ARGUMENTS and p.default is not p.empty and not callable(p.default)
    ]
    return inspect.Signature(own + more)


def _renamed(model: nn.Module, state: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
    """Bring published weights to the names and sizes of today's networks."""
    if state is None:
        return None
    if isinstance(model, torchvision.models.DenseNet):
        pattern = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")
        return OrderedDict((pattern.sub(r"\1\2.", key), value) for key, value in state.items())
    if isinstance(model, torchvision.models.VisionTransformer):
        return torchvision.models.vision_transformer.interpolate_embeddings(
            model.image_size, model.patch_size, OrderedDict(state)
        )
    return state


_register_torchvision()


# ----------------------------------------------------------------------------------------- timm


def _timm_names() -> Iterable[str]:
    """List timm's architectures, then those with the tag of one of their weights."""
    import timm

    return [f"timm:{name}" for name in [*timm.list_models(), *timm.list_models(pretrained=True)]]


@MODELS.family("timm:", _timm_names)
def _timm_model(name: str) -> Entry:
    import timm

    short = name.removeprefix("timm:")
    cfg = timm.get_pretrained_cfg(short)
    info: Json = {}
    if cfg is not None:
        info = {
            "input_size": max(cfg.input_size[1:]),
            "mean": tuple(cfg.mean),
            "std": tuple(cfg.std),
            "weights": cfg.url or cfg.hf_hub_id,
            "fixed": cfg.fixed_input_size,
            "classes": cfg.num_classes,
        }
    return Entry(name, _timm_builder(short, info), info)


def _timm_builder(short: str, info: Values) -> Callable[..., nn.Module]:
    def build(
        num_classes: int,
        pretrained: bool,
        *,
        image_size: int | None = None,
        dropout: float | None = None,
        **args: Any,
    ) -> nn.Module:
        import timm

        if dropout is not None:
            args["drop_rate"] = _share("dropout", dropout)
        if image_size and info.get("fixed") and image_size != info["input_size"]:
            args["img_size"] = image_size
        packaged = packaged_file(short) if pretrained else None
        if packaged is not None:
            pretrained = False
        elif pretrained and (file := _timm_file(short)):
            args["pretrained_cfg_overlay"] = {"file": str(file)}
        try:
            model = timm.create_model(short, pretrained=pretrained, num_classes=num_classes, **args)
        except (TypeError, ValueError, AssertionError) as error:
            raise UserError(
                f"model_args: model 'timm:{short}' refuses them; {_line(error)}"
            ) from error
        except (OSError, RuntimeError) as error:
            if not pretrained:
                raise
            raise WeightsUnavailable(f"{info['weights']} cannot be had ({_line(error)})") from error
        if packaged is None:
            return model
        state = read_weights(check_file(short, packaged))
        return _loaded(model, lite_names(state, model), short)

    return build


def _short_builder(full: str) -> Callable[..., nn.Module]:
    def build(
        num_classes: int, pretrained: bool, *, dropout: float | None = None, **args: object
    ) -> nn.Module:
        rate = {} if dropout is None else {"dropout": dropout}
        return MODELS.create(full, num_classes, pretrained, args={**rate, **args})

    build.__doc__ = f"The same as {full}, whose weights install as a package."
    return build


for _number, (_name, _full) in enumerate(SHORT_NAMES.items()):
    MODELS.register(
        _name,
        input_size=(224, 240, 260)[_number],
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        weights=f"{_full} (package)",
    )(_short_builder(_full))


def _timm_file(short: str) -> Path | str | None:
    """Return the file of weights for timm to load; None leaves it to timm and the hub.

    `TORCH_HOME` and the hub's own cache come before the network.
    """
    import huggingface_hub
    import timm

    cfg: Any = timm.get_pretrained_cfg(short)
    url = cfg.url if str(cfg.url).startswith("http") else None
    if url and (file := cached_weights(url)):
        return file
    if cfg.hf_hub_id and not cfg.custom_load:
        held = huggingface_hub.try_to_load_from_cache(cfg.hf_hub_id, "model.safetensors")
        if isinstance(held, str):
            return held
    if url:
        return fetch_weights(url)
    check_reachable(huggingface_hub.constants.ENDPOINT)  # its own retries take a minute
    return None


# --------------------------------------------------------------------- a backbone and a head


class BackboneHead(nn.Module):
    """Features `[N, F]` by one network, logits `[N, C]` by another."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images).flatten(1))


@MODELS.register("backbone_head", like="backbone")
def backbone_head(
    num_classes: int,
    pretrained: bool,
    *,
    image_size: int | None = None,
    backbone: str = "resnet50",
    backbone_args: Values | None = None,
    head: str = "linear",
    head_args: Values | None = None,
) -> nn.Module:
    """Any architecture by name, its classifier replaced by a `head` by name (linear, mlp, cosine).

    Pretrained weights are the backbone's.
    """
    HEADS.check_args(head, head_args or {}, skip=2)  # before the weights are looked up
    body = _build(
        backbone, 1000, pretrained=pretrained, args=backbone_args or {}, image_size=image_size
    )
    features = _strip_classifier(body)
    return BackboneHead(body, HEADS.create(head, features, num_classes, args=head_args))


@HEADS.register("linear")
def linear_head(features: int, num_classes: int, *, dropout: float = 0.0) -> nn.Module:
    """One linear layer."""
    return nn.Sequential(nn.Dropout(_share("dropout", dropout)), nn.Linear(features, num_classes))


@HEADS.register("mlp")
def mlp_head(
    features: int, num_classes: int, *, hidden: int = 512, dropout: float = 0.0
) -> nn.Module:
    """Two linear layers with a batch norm between."""
    return nn.Sequential(
        nn.Linear(features, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(_share("dropout", dropout)),
        nn.Linear(hidden, num_classes),
    )


@HEADS.register("cosine")
def cosine_head(features: int, num_classes: int, *, scale: float = 16.0) -> nn.Module:
    """Cosine of the angle to each class, times a `scale` that is learnt (Gidaris, 2018)."""
    return CosineHead(features, num_classes, scale)


class CosineHead(nn.Module):
    """See `cosine_head`."""

    def __init__(self, features: int, num_classes: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, features) * features**-0.5)
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(features), F.normalize(self.weight))


# --------------------------------------------------------------------- classes of a person's own

# What constructors call the numbers that the data say.
CLASS_COUNTS = ("num_classes", "num_class", "n_classes", "nclasses", "num_labels", "classes")
IN_CHANNELS = ("in_channels", "in_channel", "in_chans", "input_dim", "input_channels")


def adopt_classes(module: ModuleType) -> None:
    """Make every network class of a plugin known by its name, with its constructor's arguments.

    A builder that the plugin registers under that name is the one that counts.
    """
    for name, cls in vars(module).items():
        own = inspect.isclass(cls) and issubclass(cls, nn.Module)
        if not own or cls.__module__ != module.__name__ or inspect.isabstract(cls):
            continue
        registered = MODELS.entry(name).build if name in MODELS.names(families=False) else None
        if getattr(registered, "__module__", None) != module.__name__:
            MODELS.offer(Entry(name, _class_builder(cls)))


def _class_builder(cls: type[nn.Module]) -> Callable[..., nn.Module]:
    takes = inspect.signature(cls).parameters
    counted = next((name for name in CLASS_COUNTS if name in takes), None)
    given = {
        name: 3
        for name in IN_CHANNELS
        if name in takes and takes[name].default is takes[name].empty
    }

    def build(num_classes: int, pretrained: bool, **args: Any) -> nn.Module:  # noqa: ARG001
        known = {**given, **({counted: num_classes} if counted else {}), **args}
        try:
            model = cls(**known)
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise UserError(
                f"model_args: {cls.__name__} cannot be made with {known} ({_line(error)})"
            ) from error
        return _in_its_channels(model)

    own = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY) if p.kind is not p.VAR_KEYWORD else p
        for p in takes.values()
        if p.kind is not p.VAR_POSITIONAL and p.name not in (*given, counted)
    ]
    first = list(inspect.signature(build).parameters.values())[:2]
    build.__signature__ = inspect.Signature([*first, *own])  # type: ignore[attr-defined]
    build.__doc__ = f"`{cls.__name__}` of a plugin."
    return build


def _in_its_channels(model: nn.Module) -> nn.Module:
    """Show a network of grey images the mean of the three channels that all images have."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is not None and first.in_channels == 1:
        model.register_forward_pre_hook(_grey)
    return model


def _grey(_model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].mean(dim=1, keepdim=True), *inputs[1:])


# --------------------------------------------------------------------------- parts of the above


class LinearWithDropout(nn.Linear):
    """A linear layer behind a dropout, under the names of the bare one."""

    def __init__(self, in_features: int, out_features: int, dropout: float) -> None:
        super().__init__(in_features, out_features)
        self.dropout = dropout

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.dropout(input, self.dropout, self.training))


def _with_dropout(model: nn.Module, dropout: float) -> nn.Module:
    """Put a dropout before the classifier of a network that has no such argument."""
    if _share("dropout", dropout):
        name, layer = _classifier(model)
        if not isinstance(layer, nn.Linear):
            raise UserError("model_args: the classifier of this model takes no dropout")
        _replace(model, name, LinearWithDropout(layer.in_features, layer.out_features, dropout))
    return model


def _strip_classifier(model: nn.Module) -> int:
    """Take the classifier off and return the number of features that it was given."""
    name, layer = _classifier(model)
    _replace(model, name, nn.Identity())
    return int(getattr(layer, "in_features", 0) or getattr(layer, "in_channels", 0))


def _classifier(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the last linear or convolutional layer (timm's own answer where it has one)."""
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    head = {name.rpartition(".")[0] for name in head_names(model)}
    return [pair for pair in layers if pair[0] in head][-1]


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def _loaded(model: nn.Module, state: Mapping[str, Tensor] | None, name: str) -> nn.Module:
    if state is not None:
        anew = load_weights(model, state, f"pretrained weights of {name}", head_names(model))
        log.info("pretrained weights of %s; new: %s", name, ", ".join(anew) or "nothing")
    return model


@torch.no_grad()
def _width(name: str, features: nn.Module, size: int) -> int:
    """Return how many numbers `features` leave of an image; nothing left is a `UserError`."""
    try:
        return features(torch.zeros(1, 3, size, size)).shape[1]
    except RuntimeError as error:
        raise UserError(
            f"image_size: {size} is too small for model {name!r}, nothing is left of the image"
        ) from error


def _share(name: str, value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1:
        return value
    raise UserError(f"model_args: {name} is {value!r}; it takes a number from 0 to below 1")


def _whole(name: str, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise UserError(f"model_args: {name} is {value!r}; it takes a whole number above 0")


def _one_of(name: str, value: str, choices: Iterable[str]) -> str:
    if value not in choices:
        raise UserError(f"model_args: {name} is {value!r}; choose {' or '.join(choices)}")
    return value


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# --------------------------------------------------------------------------------------- tables


@script_main
def main(argv: list[str] | None = None) -> int:
    """Print the names, or the table of one."""
    parser = Parser(prog="model.py", description="List the architectures.")
    parser.add_argument(
        "name",
        nargs="?",
        default="*",
        help="name of one architecture to describe, or a pattern such as '*b3*'",
    )
    pattern = parser.parse_args(argv).name
    if set("*?[") & set(pattern):
        if pattern == "*":
            print(first_choices() + "\n")
        print(listing(pattern))
    else:
        print(describe(pattern))
    return 0


# What to try first, the fastest first, and what each is good for.
FIRST_CHOICES = {
    "simple_cnn": "small grey images such as digits, trained from scratch",
    "efficientnet_lite0": "photos on a CPU: the default; its weights install with pip",
    "efficientnet_lite2": "photos on a CPU, with more time: larger and slower",
    "timm:mobilenetv4_conv_small": "photos on a CPU, where weights can be downloaded",
    "resnet50": "photos on a GPU: the usual baseline",
    "convnext_tiny": "photos on a GPU: more accurate than resnet50, slower",
    "Efficientnet_b4": "photos on a GPU at 380 pixels",
}


def first_choices() -> str:
    """Return a few architectures to begin with, and whether their weights are on this machine."""
    wide = max(map(len, FIRST_CHOICES))
    lines = ["good first choices, for --model ('here': pretrained weights are on this machine)"]
    for name, use in FIRST_CHOICES.items():
        here = "here" if weights_here(name) else ""
        lines.append(f"  {name:<{wide}}  {here:4}  {use}")
    return "\n".join(lines)


def listing(pattern: str) -> str:
    """Return a line for every architecture whose name matches `pattern`.

    timm's names with the tag of their weights are left out unless the pattern has a dot.
    """
    known = _published()
    names = [n for n in MODELS.names() if "." in pattern or "." not in n]
    names = [n for n in dict.fromkeys(names) if fnmatch.fnmatchcase(n.lower(), pattern.lower())]
    if not names:
        raise UserError(f"model.py: no name matches {pattern!r}; python model.py lists them all")
    lines = [f"{'name':<56}{'parameters':>14}{'input':>7}{'top-1 %':>9}{'weights':>9}"]
    here = 0
    for name in names:
        bare = name.partition(".")[0]
        facts = {**known.get(bare, {}), **({} if bare in known else _facts(name, {}))}
        params = facts.get("params") or (0 if ":" in name else _parameters(name))
        top1 = float(facts.get("top1") or 0) if name == bare else 0
        there = weights_here(name) is not None
        here += there
        lines.append(
            f"{name:<56}{f'{int(params):,}' if params else '-':>14}"
            f"{facts.get('input_size') or '-':>7}{f'{top1:.1f}' if top1 else '-':>9}"
            f"{'here' if there else '-':>9}"
        )
    lines.append(
        f"{len(names)} architectures, pretrained weights of {here} on this machine; "
        "parameters at 1000 classes,"
    )
    lines.append("top-1 on ImageNet with the published weights; python model.py NAME shows one")
    return "\n".join(lines)


def describe(name: str) -> str:
    """Return the table of one architecture at its native size and 1000 classes."""
    facts, spec = _facts(name, {}), model_spec(name)
    top1 = facts.get("top1") or _published().get(name, {}).get("top1")
    model = _on_meta(name)
    count = len(blocks(model))
    rows = {
        "parameters": f"{sum(p.numel() for p in model.parameters()):,} at 1000 classes",
        "multiply-adds": _multiply_adds(model, spec.input_size),
        "input size": f"{spec.input_size} x {spec.input_size}",
        "mean": ", ".join(f"{value:g}" for value in spec.mean),
        "std": ", ".join(f"{value:g}" for value in spec.std),
        "top-1": f"{float(top1):.1f} % on ImageNet" if top1 else "not known",
        "weights": str(facts.get("weights") or "none are published").rpartition("/")[2],
        "on disk": str(weights_here(name) or "not on this machine"),
        "blocks": f"{count}: --freeze 1 ... {count - 1} or backbone",
        "model_args": _arguments(name),
    }
    return "\n".join([name, *(f"  {key:<15}{value}" for key, value in rows.items())])


def weights_here(name: str) -> Path | None:
    """Return the file of pretrained weights of `name` on this machine, looked up offline."""
    if file := packaged_file(name):
        return file
    source = str(_facts(name, {}).get("weights") or "")
    if source == "efficientnet-pytorch":
        from efficientnet_pytorch.utils import url_map

        source = url_map[name.lower().replace("_", "-")]
    if source.startswith("http"):
        path = Path(torch.hub.get_dir()) / "checkpoints" / source.rpartition("/")[2]
        if path.is_file():
            return path
    if not name.startswith("timm:"):
        return None
    import huggingface_hub
    import timm

    hub_id = getattr(timm.get_pretrained_cfg(name.removeprefix("timm:")), "hf_hub_id", None)
    held = hub_id and huggingface_hub.try_to_load_from_cache(hub_id, "model.safetensors")
    return Path(held) if isinstance(held, str) else None


def _on_meta(name: str, num_classes: int = 1000, args: Values | None = None) -> nn.Module:
    """Build a network without memory for its weights, from which shapes can be had."""
    build = functools.partial(
        _build, name, num_classes, pretrained=False, args=args or {}, image_size=None
    )
    try:
        with torch.device("meta"):
            return build()
    except NotImplementedError:  # a builder that computes with tensors: torchvision's regnets
        with EmptyOnMeta():
            return build().to("meta")


class EmptyOnMeta(TorchFunctionMode):
    """Puts on the meta device what is made without values only: the weights."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones):
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _parameters(name: str) -> int:
    return sum(p.numel() for p in _on_meta(name).parameters())


def _multiply_adds(model: nn.Module, size: int) -> str:
    """Count what matrix products and convolutions multiply for one image."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            model.eval()(torch.empty(1, 3, size, size, device="meta"))
    except (RuntimeError, NotImplementedError, TypeError):
        return "not known"
    return f"{counter.get_total_flops() / 2:,.0f} for one image"


def _arguments(name: str) -> str:
    """Return the arguments of a builder with their defaults, folded below one another."""
    parameters = list(inspect.signature(MODELS.entry(name).build).parameters.values())[2:]
    words = [
        f"{p.name}={p.default!r}" if p.kind is not p.VAR_KEYWORD else "and the architecture's own"
        for p in parameters
        if p.name != "image_size"
    ]
    return textwrap.fill(", ".join(words) or "none", 80, subsequent_indent=" " * 17)


@functools.cache
def _published() -> dict[str, dict[str, str]]:
    """Read what is known of timm's architectures without building them (bench/list_timm.py)."""
    if not TIMM_MODELS.is_file():
        return {}
    with TIMM_MODELS.open(newline="", encoding="utf-8") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


if __name__ == "__main__":
    sys.exit(main())
