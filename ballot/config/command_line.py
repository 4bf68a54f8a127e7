"""The command line of a script: a flag for each field of `Config`."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import sys
import textwrap
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from ballot.config.parsing import parse_json, parse_literal
from ballot.config.schema import DICT_FIELDS, FIELDS, SHORT, SYNONYMS, TYPES, Config, _kind
from ballot.errors import UserError, suggest
from ballot.scripts import script_main
from ballot.values import Json, Layer
from ballot.version import ShowVersion

# What projects of the config.json template call a flag; taken beside -c or -r alone.
TEMPLATE_FLAGS = {"--learning_rate": "lr"}

# Shown first by --help: all that a first run needs.
FIRST = (
    "data_dir",
    "model",
    "epochs",
    "image_size",
    "batch_size",
    "lr",
    "optimizer",
    "criterion",
    "augmentation",
    "device",
)


class WholeWords(argparse.HelpFormatter):
    """Help whose lines end between words: argparse itself also breaks them at hyphens."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        words = " ".join(text.split())
        return textwrap.wrap(words, width, break_long_words=False, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are `UserError`s and which takes `--batch-size` as `--batch_size`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": WholeWords, **options})
        self.add_argument("--version", action=ShowVersion, help="print the version and stop")

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"command line: {message}; {self.prog} --help lists all options")

    def parse_args(  # type: ignore[override]
        self, argv: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse `argv`; an unknown flag is a `UserError` with the nearest valid one."""
        known, unknown = self.parse_known_args(argv, namespace)
        if unknown:
            self.refuse(unknown[0])
        return known

    def refuse(self, word: str) -> typing.NoReturn:
        """Raise the `UserError` for a word that no flag takes."""
        if not word.startswith("-"):
            raise UserError(f"command line: {word!r} belongs to no flag; see {self.prog} --help")
        flags = [f for action in self._actions for f in action.option_strings]
        name = word.split("=")[0].lstrip("-").replace("-", "_")
        if name in SYNONYMS and f"--{SYNONYMS[name]}" in flags:
            hint = f"; did you mean '--{SYNONYMS[name]}'?"
        else:
            hint = suggest(f"--{name}", flags)
        raise UserError(f"command line: unknown flag {word!r}{hint}")

    def is_meant_by(self, word: str, others: Iterable[str]) -> bool:
        """Tell whether an unknown flag is nearer to one of this parser than to `others`."""
        own = {f for action in self._actions for f in action.option_strings}
        near = difflib.get_close_matches(word.split("=")[0], [*own, *others], n=1)
        return bool(near) and near[0] in own

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Spell flags with underscores before argparse sees them; values stay as they are."""
        words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args([_snake(word) for word in words], namespace)


def _snake(word: str) -> str:
    if not word.startswith("--") or word == "--":
        return word
    flag, equals, value = word.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def build_parser(prog: str, description: str) -> Parser:
    """Derive the command line from `Config`: a flag a field, the ten that matter first."""
    parser = Parser(
        prog=prog, usage=f"{prog} [options]", description=description, allow_abbrev=False
    )
    first = parser.add_argument_group("most used")
    parser._action_groups.sort(key=lambda group: group is not first)  # before argparse's own
    for name in FIRST:
        _add_flag(first, name, FIELDS[name])
    parser.add_argument(
        "--config",
        "-c",
        action="append",
        default=[],
        metavar="FILE",
        help="JSON or YAML file with any of the options below; may be repeated",
    )
    parser.add_argument(
        "--print_config",
        action="store_true",
        help="print every value and where it comes from, and stop",
    )
    parser.add_argument(
        "--probe", metavar="FILE", help=argparse.SUPPRESS
    )  # for ballot.preflight.examine
    groups: Json = {}
    for name, f in FIELDS.items():
        if name in FIRST:
            continue
        group = groups.setdefault(f.metadata["group"], None)
        if group is None:
            group = groups[f.metadata["group"]] = parser.add_argument_group(f.metadata["group"])
        _add_flag(group, name, f)
    return parser


def help_first(prog: str, description: str | None) -> None:
    """Answer --help and --version, and end the program, before it imports anything large."""
    if {"-h", "--help", "--version"} & set(sys.argv[1:]):
        sys.exit(script_main(_show_help)([prog, description or "", *sys.argv[1:]]))


def _show_help(argv: list[str] | None) -> int:
    prog, description, *words = argv or []
    build_parser(prog, description).parse_known_args(words)
    return 0


def _add_flag(group: Any, name: str, f: dataclasses.Field) -> None:
    kind, _ = _kind(TYPES[name])
    shown = getattr(Config(), name)
    if isinstance(shown, tuple):
        shown = " ".join(map(str, shown)) or "none"
    text = f.metadata["help"]
    if kind is not bool and "default: " not in text:  # some texts say what none means
        text += f" (default: {'none' if shown in (None, {}) else shown})"
    text = text.replace("%", "%%")
    quiet = {"default": argparse.SUPPRESS, "help": text, "dest": name}
    if kind is bool:
        yes, no = dict(quiet), {**quiet, "help": f"do not {text}"}
        (yes if getattr(Config(), name) else no)["help"] = argparse.SUPPRESS
        group.add_argument(f"--{name}", action="store_true", **yes)
        group.add_argument(f"--no_{name}", action="store_false", **no)
        return
    many = kind is Any or typing.get_origin(kind) is tuple
    item = typing.get_args(kind)[0] if typing.get_args(kind) else kind
    metavar = {int: "N", float: "X", dict: "JSON"}.get(item, "TEXT")
    if "choices" in f.metadata and not many:
        metavar = "|".join(f.metadata["choices"])
    flags = (f"--{name}", *SHORT.get(name, ()))
    group.add_argument(*flags, metavar=metavar, **quiet, **({"nargs": "+"} if many else {}))


def parse_command_line(parser: Parser, argv: list[str] | None) -> tuple[Layer, argparse.Namespace]:
    """Return the layer of the command line and its other flags: `config`, `print_config`, `probe`.

    `--optimizer_args.momentum 0.9` and `--optimizer.momentum 0.9` set one argument.
    """
    known, rest = parser.parse_known_args(argv)
    values = {k: _parse(k, v) for k, v in vars(known).items() if k in FIELDS}
    words = iter(rest)
    for word in words:
        flag, equals, value = word.partition("=")
        head = flag[2:].partition(".")[0]
        theirs = TEMPLATE_FLAGS.get(flag) if known.config or "resume" in values else None
        dotted = "." in flag and {head, f"{head}_args"} & set(DICT_FIELDS)
        if not flag.startswith("--") or not (theirs or dotted):
            parser.refuse(word)
        if not equals:
            following = next(words, None)
            if following is None:
                raise UserError(f"command line: {flag} needs a value")
            value = following
        values[theirs or flag[2:]] = parse_literal(value)
    return Layer("command line", values), known


def _parse(key: str, text: Any) -> Any:
    """Read the words of a flag as its field's type; what cannot be read is left to `convert`."""
    kind, optional = _kind(TYPES[key])
    if isinstance(text, str) and optional and text.lower() in ("none", "null"):
        return None
    if kind is dict:
        try:
            return parse_json(text, f"command line: --{key}")
        except UserError as error:
            raise UserError(f"{error}; as in --{key} '{{\"name\": 0.2}}'") from None
    if kind in (int, float):
        return _number(text)
    if typing.get_origin(kind) is tuple and typing.get_args(kind)[0] is float:
        return [_number(word) for word in text]
    return text


def _number(text: str) -> Any:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text
