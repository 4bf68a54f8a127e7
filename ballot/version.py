"""The version of this project, and what `--version` prints."""

from __future__ import annotations

import argparse
import contextlib
import platform
from importlib import metadata

VERSION = "0.1.0"  # pyproject.toml has it too; a test compares them
SHOWN = ("torch", "nni")


class ShowVersion(argparse.Action):
    """Print the version, with what a report of an error needs beside it, and stop."""

    def __init__(self, option_strings: list[str], **given: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=given["help"])

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print and end the program."""
        print(version_line())
        parser.exit()


def version_line() -> str:
    """Return the version with those of Python, torch and NNI."""
    found = [f"Python {platform.python_version()}"]
    for package in SHOWN:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{package} {metadata.version(package)}")
    return f"ballot {VERSION} ({', '.join(found)})"
