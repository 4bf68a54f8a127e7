"""A catalogue of named builders: `@REGISTRY.register("name")` is all that adding one takes."""

from __future__ import annotations

import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ballot.errors import UserError, suggest
from ballot.values import Values


@dataclass(frozen=True)
class Entry:
    """One registered builder with the facts that stand beside it."""

    name: str
    build: Callable[..., Any]
    info: Values = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """Many names made by one builder, listed only when somebody asks (`timm:<name>`)."""

    prefix: str
    names: Callable[[], Iterable[str]]
    entry: Callable[[str], Entry]


# What annotations say, in words, and whether a value is that; true and false are no numbers.
NUMBERS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number", lambda value: type(value) is int),
    "float": ("a number", lambda value: type(value) in (int, float) and math.isfinite(value)),
    "bool": ("true or false", lambda value: type(value) is bool),
    "str": ("a text", lambda value: type(value) is str),
    "None": ("null", lambda value: value is None),
}


def _other_type(annotation: object, value: object) -> str:
    """Return what an argument takes if `value` is none of it; other annotations take anything."""
    said = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    kinds = [NUMBERS.get(part.strip()) for part in said.split("|")]
    if None in kinds or any(kind and kind[1](value) for kind in kinds):
        return ""
    return " or ".join(kind[0] for kind in kinds if kind)


class Registry:
    """Named builders of one kind ("model", "criterion", ...)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}
        self._families: list[Family] = []
        self._offered: dict[str, Entry] = {}

    def offer(self, entry: Entry) -> None:
        """Let `entry` be found by its name, before a registered one, without listing it."""
        self._offered[entry.name] = entry

    def register(self, name: str, **info: object) -> Callable[[Callable], Callable]:
        """Add the decorated builder under `name`; a name that is taken is an error."""

        def add(build: Callable) -> Callable:
            if name in self._entries:
                raise UserError(f"{self.kind} {name!r}: registered twice; choose another name")
            self._entries[name] = Entry(name, build, info)
            return build

        return add

    def family(self, prefix: str, names: Callable[[], Iterable[str]]) -> Callable:
        """Add every name that starts with `prefix`; the decorated function makes its `Entry`.

        `names` lists the full names (prefix included) and is called only for listings, for
        suggestions and to look one up, so it may import a heavy library.
        """

        def add(entry: Callable[[str], Entry]) -> Callable[[str], Entry]:
            self._families.append(Family(prefix, names, entry))
            return entry

        return add

    def names(self, *, families: bool = True) -> list[str]:
        """All names in the order of registration, those of families last."""
        listed = list(self._entries)
        for family in self._families if families else ():
            listed += [name for name in family.names() if name not in self._entries]
        return listed

    def __contains__(self, name: object) -> bool:
        if name in self._entries or name in self._offered:
            return True
        return isinstance(name, str) and self._from_family(name) is not None

    def entry(self, name: str) -> Entry:
        """Look `name` up; an unknown one is a `UserError` with the nearest valid name."""
        if name in self._offered:
            return self._offered[name]
        if name in self._entries:
            return self._entries[name]
        found = self._from_family(name)
        if found is None:
            raise UserError(
                f"unknown {self.kind} {name!r}{suggest(name, [*self._offered, *self.names()])}"
            )
        return found

    def create(self, name: str, *given: Any, args: Values | None = None, **named: Any) -> Any:
        """Build `name` from what the caller gives and the user's `args`.

        The arguments are bound to the builder's signature before it runs, so that a misspelt one
        is a `UserError` with the nearest valid name and never a `TypeError` from inside.
        """
        entry = self.entry(name)
        args = dict(args or {})
        self.check_args(name, args, taken=named, skip=len(given))
        return entry.build(*given, **named, **args)

    def check_args(
        self, name: str, args: Values, *, taken: Iterable[str] = (), skip: int = 0
    ) -> None:
        """Refuse `args` that the builder of `name` does not take, or that are `taken` already."""
        parameters = inspect.signature(self.entry(name).build).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        usable = [p.name for p in parameters.values() if p.kind is not p.VAR_KEYWORD][skip:]
        usable = [p for p in usable if p not in set(taken)]
        for key in args:
            if key in taken or (key not in usable and not open_ended):
                hint = suggest(key, usable) or "; it takes no arguments" * (not usable)
                raise UserError(
                    f"{self.kind}_args: {self.kind} {name!r} takes no argument {key!r}{hint}"
                )
        for key in args:
            if key in parameters and (wanted := _other_type(parameters[key].annotation, args[key])):
                raise UserError(f"{self.kind}_args: {key} is {args[key]!r}; it takes {wanted}")
        required = [p for p in usable if parameters[p].default is inspect.Parameter.empty]
        required = [
            p for p in required if parameters[p].kind is not inspect.Parameter.VAR_POSITIONAL
        ]
        missing = [p for p in required if p not in args]
        if missing:
            raise UserError(
                f"{self.kind}_args: {self.kind} {name!r} needs {', '.join(map(repr, missing))}"
            )

    def _from_family(self, name: str) -> Entry | None:
        for family in self._families:
            if name.startswith(family.prefix) and name in set(family.names()):
                return family.entry(name)
        return None


def load_plugins(paths: Iterable[str], adopt: Callable[[ModuleType], None] | None = None) -> None:
    """Run each file once; one that is missing or fails is a `UserError` that names it.

    `adopt` is handed each file's module. What a file imports may lie beside it or one folder up,
    as in a project whose models stand in a folder of their own.
    """
    for path in map(Path, paths):
        name = _module_name(path)
        if name in sys.modules:
            continue
        if not path.is_file():
            raise UserError(f"plugins: {path} is no file; name a Python file")
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise UserError(f"plugins: {path} is no Python file; its name ends in .py")
        for folder in (path.resolve().parent, path.resolve().parent.parent):
            if str(folder) not in sys.path:
                sys.path.append(str(folder))  # last: our own modules come first
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except UserError:
            raise
        except Exception as error:  # whatever the reader's own code raises
            del sys.modules[name]
            raise UserError(f"plugins: {path} failed ({type(error).__name__}: {error})") from None
        if adopt is not None:
            adopt(module)


def _module_name(path: Path) -> str:
    """Return the name of a plugin's module; of two files of one name the second has a number."""
    name, number = f"plugin_{path.stem}", 2
    while name in sys.modules and not _is_file_of(sys.modules[name], path):
        name, number = f"plugin_{path.stem}_{number}", number + 1
    return name


def _is_file_of(module: ModuleType, path: Path) -> bool:
    return Path(module.__file__ or "").resolve() == path.resolve()
