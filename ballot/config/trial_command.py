"""The command of a trial, taken apart as the shell will, and the options it gives to train.py."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from ballot.config.command_line import build_parser, parse_command_line
from ballot.config.files import read_config_files
from ballot.config.layers import Layer, merge
from ballot.config.schema import Config
from ballot.errors import UserError
from ballot.problems import Problem, as_problem

SCRIPT = "train.py"
PRELOAD = "ballot.preload"


@dataclass(frozen=True)
class TrialCommand:
    """Words of a command; `script` is the place of train.py among them, -1 where it is not run.

    Words before it may fork it from a process that has imported everything (ballot.preload).
    """

    text: str
    environment: dict[str, str] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    script: int = -1

    @property
    def options(self) -> list[str]:
        """What train.py is given."""
        return self.words[self.script + 1 :] if self.script >= 0 else []

    def probe(self, file: Path) -> list[str]:
        """Return the words that try the configurations in `file` in the trial's interpreter."""
        return [*self.words, "--probe", str(file)]


def parse_command(text: str, code: Path) -> TrialCommand:
    """Split a command, expand its variables and find our train.py, run by a Python, in it."""
    words = [os.path.expandvars(word) for word in shlex.split(text)]
    words = [str(Path(word).expanduser()) if word.startswith("~") else word for word in words]
    environment = {}
    while words and (words[0] in ("exec", "env") or re.match(r"[A-Za-z_]\w*=", words[0])):
        name, equals, value = words.pop(0).partition("=")
        if equals:
            environment[name] = value
    script = next((place for place, word in enumerate(words) if Path(word).name == SCRIPT), -1)
    before = words[:script] if script > 0 else []
    programs = [word for word in before if re.fullmatch(r"python[\d.]*", Path(word).name)]
    ours = script > 0 and Path(code, words[script]).with_name("ballot").is_dir()
    modules = [after for word, after in pairwise(before) if word == "-m"]
    if not (ours and programs and modules in ([], [PRELOAD])):
        script = -1
    if words and words[0] in ("python", "python3"):
        words[0] = sys.executable
    return TrialCommand(text, environment, words, script)


def command_problems(text: str, where: str) -> list[Problem]:
    """Refuse a command that NNI cannot end: its kill reaches only the direct process."""
    if not text:
        return []
    try:
        lexer = shlex.shlex(text.strip(), posix=True, punctuation_chars=";|&()<>")
        lexer.whitespace_split, lexer.commenters = True, ""
        tokens = list(lexer)
    except ValueError as error:  # a quotation mark without its partner
        return [Problem(where, f"trialCommand {text!r} cannot be split ({error})")]
    several = "\n" in text.strip() or "$(" in text or "`" in text
    if several or any(re.fullmatch(r"[;|&()]+", token) for token in tokens):
        what = f"trialCommand {text!r} is several commands, of which NNI would end only the shell"
        return [Problem(where, what, "give one, as in python3 train.py")]
    return []


@dataclass(frozen=True)
class Options:
    """What a trial of train.py starts with; `config` is None where that is wrong or not ours."""

    layers: list[Layer] = field(default_factory=list)
    config: Config | None = None
    command: TrialCommand | None = None  # without the flags that train.py does not have


def read_options(command: TrialCommand, code: Path, where: str) -> tuple[Options, list[Problem]]:
    """Read the options of the files and the command line of a trial, and all that is wrong."""
    problems: list[Problem] = []
    options = _without_unknown(command.options, problems)
    parser = build_parser(SCRIPT, "")
    try:
        on_line, said = parse_command_line(parser, options)
    except UserError as error:
        return Options(), _located([*problems, as_problem(error)], where)
    known = replace(command, words=[*command.words[: command.script + 1], *options])
    layers, unknown_only = [], len(problems)
    try:
        layers += read_config_files(Path(code, file) for file in said.config)
    except UserError as error:
        problems.append(as_problem(error))
    layers.append(on_line)
    for layer in layers:
        for key, value in layer.values.items():
            try:
                merge([Layer(layer.name, {key: value})])
            except UserError as error:
                problems.append(as_problem(error))
    config = merge(layers)[0] if len(problems) == unknown_only else None
    return Options(layers, config, known), _located(problems, where)


def _without_unknown(options: list[str], problems: list[Problem]) -> list[str]:
    """Take out flags that train.py does not have, one after the other, and note each."""
    parser = build_parser(SCRIPT, "")
    kept = list(options)
    while True:
        try:
            parse_command_line(parser, kept)
        except UserError as error:
            flag = re.match(r"command line: unknown flag '(--[^']+)'", str(error))
            place = next((i for i, word in enumerate(kept) if flag and _same(word, flag[1])), None)
            if place is None:
                return kept
            problems.append(as_problem(error))
            after = place + 1
            while after < len(kept) and "=" not in kept[place] and not kept[after].startswith("--"):
                after += 1
            del kept[place:after]
        else:
            return kept


def _same(word: str, flag: str) -> bool:
    return word.replace("-", "_") == flag.replace("-", "_")


def _located(problems: list[Problem], where: str) -> list[Problem]:
    """Say where the command line is that a problem speaks of."""
    return [
        Problem(
            f"{where}: trialCommand" if p.where == "command line" else p.where,
            p.what,
            p.remedy.replace(f"; {SCRIPT} --help lists what there is", ""),
            p.fatal,
        )
        for p in problems
    ]


def own_problems(config: Config, where: str) -> list[Problem]:
    """Return options that do not go with a search."""
    found = []
    if config.run_name is not None:
        what = "trialCommand gives all trials one --run_name"
        found.append(Problem(where, what, "leave it out: a trial's run is named after it"))
    if config.resume is None:
        what = "a trial that was interrupted would begin again at its first epoch"
        found.append(Problem(where, what, "add --resume auto to trialCommand", fatal=False))
    return found


def with_own_interpreter(command: str) -> str:
    """Let local trials run in this interpreter, whether its environment is active or not."""
    first, _, rest = command.strip().partition(" ")
    if first in ("python", "python3"):
        return f"{shlex.quote(sys.executable)} {rest}".strip()
    return command


def option_of(command: str, flag: str, default: str) -> str:
    """Return the value that the trial command gives to a flag; the last one counts."""
    words, found = shlex.split(command), default
    for word, after in zip(words, [*words[1:], default]):
        name, equals, value = word.partition("=")
        if name.replace("-", "_") == flag.replace("-", "_"):
            found = value if equals else after
    return found


def out_dir_of(command: str, code: Path) -> str:
    """Return the folder of the runs: the trial command's, its files' or the usual one."""
    said = option_of(command, "--out_dir", "")
    if said:
        return said
    config = read_options(parse_command(command, code), code, "")[0].config
    return config.out_dir if config is not None else Config().out_dir


def typed_command(command: str, values: Mapping[str, Any]) -> str:
    """Return a command that trains by hand what a trial of `command` trained with `values`."""
    dropped = {
        "--resume",
        "--out_dir",
        "--run_name",
        "--time_limit",
        "--device",
        *(f"--{key}" for key in values),
    }
    words = shlex.split(command)
    scripts = [place for place, word in enumerate(words) if word.endswith(".py")]
    kept, dropping = ["python"], False
    for word in words[scripts[0] if scripts else 1 :]:
        if word.startswith("--"):
            dropping = word.partition("=")[0].replace("-", "_").replace("__", "--", 1) in dropped
        if not dropping:
            kept.append(word)
    for key, value in values.items():
        kept += _flag(key, value)
    return shlex.join(kept)


def _flag(key: str, value: Any) -> list[str]:
    if isinstance(value, bool) and "." not in key:
        return [f"--{key}" if value else f"--no_{key}"]
    if isinstance(value, list) and "." not in key:
        return [f"--{key}", *map(str, value)]
    return [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
