"""The folder of the runs, as the command of the trials names it."""

from __future__ import annotations

from pathlib import Path

from ballot.config.command_line import build_parser, parse_command_line
from ballot.config.files import read_config_files
from ballot.config.layers import merge
from ballot.config.schema import Config
from ballot.config.trial_command import SCRIPT, option_of, parse_command
from ballot.errors import UserError


def outputs_of(command: str, code: str | Path, *, elsewhere: bool = False) -> Path:
    """Return the folder here that the runs of a command's trials come into.

    What trials `elsewhere` name as theirs, with $HOME or another absolute path, has its last part.
    """
    wanted = Path(out_dir_of(command, Path(code)))
    if elsewhere and (wanted.is_absolute() or str(wanted).startswith(("~", "$"))):
        wanted = Path(wanted.name)
    return Path(code, wanted).absolute()


def out_dir_of(command: str, code: Path) -> str:
    """Return the folder of the runs: the trial command's, its files' or the usual one."""
    if on_line := option_of(command, "--out_dir", ""):
        return on_line
    try:
        _, others = parse_command_line(
            build_parser(SCRIPT, ""), parse_command(command, code).options
        )
        return merge(read_config_files(Path(code, file) for file in others.config))[0].out_dir
    except UserError:  # said where the options are checked
        return Config().out_dir
