"""The options that a trial of train.py starts with: its files, its command line, its recipe."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from ballot.config.command_line import build_parser, parse_command_line
from ballot.config.files import read_config_files
from ballot.config.layers import merge
from ballot.config.schema import Config
from ballot.config.trial_command import SCRIPT, TrialCommand
from ballot.errors import UserError
from ballot.problems import Problem, as_problem
from ballot.training.recipes import with_recipe
from ballot.values import Layer

# Options that name a folder or a file that trials read.
FOLDERS = ("data_dir", "train_dir", "val_dir", "test_dir")
LISTS = ("exclude", "soft_labels")
PLACES = (*FOLDERS, *LISTS, "init_from")


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
    config = None
    if len(problems) == unknown_only:
        config = merge(with_recipe(layers, base=code)[0])[0]
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
            f"{where}: trial command" if p.where == "command line" else p.where,
            p.what,
            p.remedy.replace(f"; {SCRIPT} --help lists all options", ""),
            p.fatal,
        )
        for p in problems
    ]


def own_problems(config: Config, where: str) -> list[Problem]:
    """Return options that do not go with a search."""
    found = []
    if config.run_name is not None:
        what = "the trial command gives all trials one --run_name"
        found.append(Problem(where, what, "leave it out: a trial's run is named after it"))
    if config.processes > 1:
        what = f"a trial of a search has one process, and {config.processes} are wanted"
        found.append(Problem(where, what, "add --processes 1 to the trial command"))
    if config.resume is None:
        what = "a trial that was interrupted would begin again at its first epoch"
        found.append(Problem(where, what, "add --resume auto to the trial command", fatal=False))
    return found
