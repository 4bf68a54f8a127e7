"""Files of a reader's own that register models, losses and augmentations (`--plugins`)."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from harness.errors import UserError


def load_plugins(paths: Iterable[str]) -> None:
    """Run each file once; one that is missing or fails is a `UserError` that names it."""
    for path in map(Path, paths):
        name = f"plugin_{path.stem}"
        if name in sys.modules:
            continue
        if not path.is_file():
            raise UserError(f"plugins: {path} is no file; name a Python file")
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise UserError(f"plugins: {path} is no Python file; its name ends in .py")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except UserError:
            raise
        except Exception as error:  # whatever the reader's own code raises
            del sys.modules[name]
            raise UserError(f"plugins: {path} failed ({type(error).__name__}: {error})") from None
