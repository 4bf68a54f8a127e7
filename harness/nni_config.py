"""The configuration of a search: NNI's own file, version 1 or 2, and what it names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from harness.config import parse_json, parse_yaml
from harness.errors import UserError


def load_experiment(path: Path) -> Any:
    """Read an NNI configuration, version 1 or 2, into NNI's own `ExperimentConfig`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from None
    content = parse_yaml(text, path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no configuration of a search; see config_local.yml")
    from nni.experiment.config import ExperimentConfig, convert, utils

    utils.set_base_path(path.parent.resolve())
    try:
        if "trainingServicePlatform" in content:
            content = convert.to_v2(content)
        config = ExperimentConfig(**content)
    except Exception as error:  # NNI raises whatever its checks of the fields raise
        raise UserError(f"{path}: NNI does not take it ({error or type(error).__name__})") from None
    finally:
        utils.unset_base_path()
    return config


def read_search_space(config: Any, path: Path) -> dict[str, Any]:
    """Return the search space that the configuration holds or names."""
    if config.search_space is not None:
        return config.search_space
    if config.search_space_file is None:
        raise UserError(f"{path}: names no search space; set searchSpaceFile: search_space.json")
    file = Path(path.parent, config.search_space_file)
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    space = parse_yaml(text, file) if file.suffix in (".yml", ".yaml") else parse_json(text, file)
    if not isinstance(space, dict) or not space:
        raise UserError(f"{file}: holds no search space; it is an object with a key an option")
    return space


def check_trial_command(command: str, source: str) -> None:
    """Refuse a command that NNI cannot end: its kill reaches only the direct process."""
    if re.search(r"&&|\|\||[;|&]", command):
        raise UserError(f"{source}: trialCommand {command!r} is several commands, of which NNI "
                        "would end only the shell; give one, as in python3 train.py")  # fmt: skip
