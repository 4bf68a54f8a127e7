"""What is read of a project of another template, and what can be said when all has been read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ballot.config.templates import vocabulary
from ballot.errors import UserError
from ballot.values import Json, Values


@dataclass
class Reading:
    """One project as it is read: values in our words, what became of what, what was lost."""

    source: str
    kind: str
    values: Json = field(default_factory=dict)
    told: list[tuple[str, str]] = field(default_factory=list)  # old key and value, new words
    lost: dict[str, str] = field(default_factory=dict)  # old key -> why
    said: dict[str, str] = field(default_factory=dict)  # new key -> the old one that said it
    # What is settled when all has been read: what -> old key, value.
    held: dict[str, tuple[str, Any]] = field(default_factory=dict)
    args: dict[str, dict[str, tuple[str, Any]]] = field(default_factory=dict)  # of each component

    def put(self, new: str, ours: object, old: str, value: object) -> None:
        """Set `new` as `old` says; two that disagree are a `UserError`."""
        if new in self.values and self.values[new] != ours:
            raise UserError(
                f"{self.source}: {self.said[new]} and {old} disagree about {new} "
                f"({self.values[new]!r}, {ours!r}); leave one out"
            )
        self.values[new], self.said[new] = ours, old
        self.told.append((f"{old} = {value!r}", f"{new} = {ours!r}"))

    def hold(self, what: str, old: str, value: object) -> None:
        """Keep what is settled later."""
        if what in self.held and self.held[what][1] != value:
            raise UserError(
                f"{self.source}: {self.held[what][0]} and {old} disagree; leave one out"
            )
        self.held[what] = (old, value)

    def lose(self, old: str, why: str = "") -> None:
        """Name a key that has no counterpart."""
        self.lost[old] = why

    def same(self, old: str, value: object, phrase: str = "the same without it") -> None:
        """Tell of a key that asks for what is done anyway."""
        self.told.append((f"{old} = {value!r}", phrase))

    def name(self, what: str) -> object:
        """Return what is held, or None."""
        return self.held.get(what, ("", None))[1]


def settle(reading: Reading) -> None:
    """Turn what was held into values: components with their arguments, folders, pipelines."""
    _settle_data(reading)
    _settle_model(reading)
    _settle_training(reading)
    _settle_pipelines(reading)
    if "name" in reading.held or "out_dir" in reading.held:
        parts = [reading.held[what] for what in ("out_dir", "name") if what in reading.held]
        folder = "/".join(str(value).rstrip("/") for _, value in parts)
        if "out_dir" not in reading.held:
            folder = f"outputs/{folder}"
        reading.put("out_dir", folder, " and ".join(old for old, _ in parts), folder)


def _take(reading: Reading, what: str, table: Mapping[str, str | None]) -> Json:
    """Return a component's arguments in our words; what `table` has no word for is lost."""
    done = {}
    for key, (old, value) in reading.args.get(what, {}).items():
        ours = table.get(key, key)
        if ours is None:
            reading.lose(old)
        else:
            done[ours] = value
    return done


def _settle_data(reading: Reading) -> None:
    old, name = reading.held.get("dataset", ("", None))
    if "dummy" in reading.held:
        if name:
            reading.same(old, name, "nothing, dummy takes its place")
        old, name = reading.held["dummy"]
        reading.put("dataset", "dummy", old, name)
        if "data_dir" in reading.values:
            reading.same(
                reading.said["data_dir"],
                reading.values.pop("data_dir"),
                "nothing, dummy needs no folder",
            )
    elif name is not None:
        ours = vocabulary.known(
            vocabulary.DATASETS, name, "dataloader", "datamodule", "dataset", "loader"
        )
        reading.put("dataset", ours, old, name)
    if "classes" in reading.held:
        old, count = reading.held["classes"]
        if reading.values.get("dataset") == "dummy":
            reading.put("dataset_args", {"num_classes": count}, old, count)
        else:
            reading.lose(old, "the data say how many classes there are")


def _settle_model(reading: Reading) -> None:
    """One network by name, or a backbone with a head: AlexNet's are one network here."""
    args = _take(reading, "model", vocabulary.MODEL_ARGS)
    old, name = reading.held.get("backbone", reading.held.get("model", ("", None)))
    if "backbone" in reading.held and "model" in reading.held:
        reading.same(*reading.held["model"], "what backbone and head make")
    head_old, head = reading.held.get("head", ("", None))
    if name is None:
        return _put_args(reading, "model", args)
    model = vocabulary.known(vocabulary.MODELS, name, "backbone", "model")
    head_args = _take(reading, "head", vocabulary.MODEL_ARGS)
    own = _take(reading, "backbone", vocabulary.MODEL_ARGS)
    kind = (
        vocabulary.known(vocabulary.HEADS, head, "head", "clshead", "classifier") if head else None
    )
    if kind is None or squeezed_pair(kind, model):
        reading.put("model", model, old, name)
        if head:
            reading.same(head_old, head, f"the classifier of {model}")
        args = {**args, **own, **head_args}
    else:
        reading.put("model", "backbone_head", old, name)
        args = {"backbone": model, "head": kind, **args}
        args |= {
            f"{part}_args": given
            for part, given in (("backbone", own), ("head", head_args))
            if given
        }
    _put_args(reading, "model", args)


def squeezed_pair(head: str, model: str) -> bool:
    """Tell whether a head is the network's own: AlexNet with AlexNet_Head."""
    return vocabulary.squeezed(head) == vocabulary.squeezed(model)


def _put_args(reading: Reading, what: str, args: Values) -> None:
    if args:
        olds = [
            old
            for part in (what, "backbone", "head")
            for old, _ in reading.args.get(part, {}).values()
            if part == what or what == "model"
        ]
        reading.values[f"{what}_args"] = dict(args)
        reading.told.append((", ".join(olds) or what, f"{what}_args = {dict(args)!r}"))


def _settle_training(reading: Reading) -> None:
    old, name = reading.held.get("optimizer", ("", None))
    if name is not None:
        optimizer = vocabulary.known(vocabulary.OPTIMIZERS, name)
        reading.put("optimizer", optimizer, old, name)
        if "weight_decay" not in reading.values:
            decay = 0.01 if optimizer == "AdamW" else 0.0
            reading.put("weight_decay", decay, f"{old} without weight_decay", name)
        if "scheduler" not in reading.held:
            reading.put("scheduler", "constant", f"{old} without a scheduler", name)
    _put_args(reading, "optimizer", _take(reading, "optimizer", {}))
    old, name = reading.held.get("scheduler", ("", None))
    if name is not None:
        given = {key: value for key, (_, value) in reading.args.get("scheduler", {}).items()}
        epochs, lr = (reading.values.get(key) for key in ("epochs", "lr"))
        ours, args, lost = vocabulary.schedule(name, given, epochs, lr)
        reading.put("scheduler", ours, old, name)
        _put_args(reading, "scheduler", args)
        reading.lost |= {
            f"{old.rpartition('.')[0]}.{key}".lstrip("."): why for key, why in lost.items()
        }
    old, name = reading.held.get("criterion", ("", None))
    args = _take(reading, "criterion", vocabulary.CRITERION_ARGS)
    if name is not None:
        ours = vocabulary.known(vocabulary.CRITERIA, name)
        reading.put("criterion", ours, old, name)
    if args.get("class_weights", 0) in (None, "balanced"):
        balanced = args.pop("class_weights")
        reading.put("class_weights", balanced or "none", "loss weight", balanced)
    _put_args(reading, "criterion", args)


def _settle_pipelines(reading: Reading) -> None:
    stages = {
        s: reading.held[f"pipeline {s}"]
        for s in ("train", "val", "test")
        if f"pipeline {s}" in reading.held
    }
    if not stages:
        return
    size = reading.values.get("image_size")
    made = {
        s: vocabulary.sized(steps, f"{reading.source}: {old}", size)
        for s, (old, steps) in stages.items()
    }
    if "val" not in made and "train" in made:
        made["val"] = vocabulary.without_chance(made["train"])
    olds = ", ".join(old for old, _ in stages.values())
    reading.values["pipeline"] = made
    reading.told.append((olds, f"pipeline = {made!r}"))
