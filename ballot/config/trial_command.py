"""The command of a trial, taken apart as the shell will."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from ballot.config.schema import SHORT
from ballot.problems import Problem
from ballot.values import Values

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
        return [Problem(where, f"the trial command {text!r} cannot be split ({error})")]
    several = "\n" in text.strip() or "$(" in text or "`" in text
    if several or any(re.fullmatch(r"[;|&()]+", token) for token in tokens):
        what = f"the trial command {text!r} is several commands: only the shell would be ended"
        return [Problem(where, what, "give one, as in python3 train.py")]
    return []


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


def typed_command(command: str, values: Values) -> str:
    """Return a command that trains by hand what a trial of `command` trained with `values`."""
    fields = ["resume", "out_dir", "run_name", "time_limit", "device", *values]
    dropped = {flag for name in fields for flag in (f"--{name}", *SHORT.get(name, ()))}
    words = shlex.split(command)
    scripts = [place for place, word in enumerate(words) if word.endswith(".py")]
    kept, dropping = ["python"], False
    for word in words[scripts[0] if scripts else 1 :]:
        option = re.match(r"(--?)([a-zA-Z][^=]*)", word)  # a negative number is a value
        if option is not None:
            dropping = option[1] + option[2].replace("-", "_") in dropped
        if not dropping:
            kept.append(word)
    for key, value in values.items():
        kept += flag(key, value)
    return shlex.join(kept)


def flag(key: str, value: object) -> list[str]:
    if isinstance(value, bool) and "." not in key:
        return [f"--{key}" if value else f"--no_{key}"]
    if isinstance(value, list) and "." not in key:
        return [f"--{key}", *map(str, value)]
    return [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
