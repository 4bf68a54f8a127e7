"""What a run says of itself: `run.log` in its folder, lines within an epoch, a logging set-up."""

from __future__ import annotations

import contextlib
import logging
import logging.config
import logging.handlers
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from ballot.config.parsing import parse_json
from ballot.errors import UserError, suggest
from ballot.values import Json, Values

log = logging.getLogger(__name__)

EARLY = 10_000  # lines that are kept until there is a run folder
# dictConfig calls whatever a file names. These write text and do nothing else.
HANDLERS = (
    "logging.StreamHandler",
    "logging.FileHandler",
    "logging.NullHandler",
    "logging.handlers.RotatingFileHandler",
    "logging.handlers.TimedRotatingFileHandler",
    "logging.handlers.WatchedFileHandler",
)
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")


def keep_early() -> None:
    """Keep what is logged before there is a run folder."""
    logging.getLogger().addHandler(logging.handlers.MemoryHandler(EARLY, flushLevel=100))


def log_to(folder: Path, setup: Values | None = None) -> None:
    """Log into `run.log` of a run's folder from now on, and as `setup` says, if it says anything.

    What `keep_early` has kept comes first; a resumed run goes on in the same file.
    """
    root = logging.getLogger()
    early = [h for h in root.handlers if isinstance(h, logging.handlers.MemoryHandler)]
    if setup is not None:
        try:
            logging.config.dictConfig(_inside(setup, folder))
        except (ValueError, TypeError, OSError) as error:
            raise UserError(f"log_config: {error.__cause__ or error}") from None
    file = RunLog(folder / "run.log", encoding="utf-8", delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for handler in early:
        root.removeHandler(handler)
        handler.setTarget(file)
        handler.close()  # writes what it holds
    root.addHandler(file)


class RunLog(logging.FileHandler):
    """A log that is given up where it cannot be written: a full disk is no trial's fault."""

    broken = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, unless one before it could not be written."""
        if not self.broken:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002
        """Say once that there will be no more lines."""
        self.broken = True
        log.warning("%s: %s; the log ends here", self.baseFilename, sys.exc_info()[1])

    def close(self) -> None:
        """Close the file; what it still held may not fit."""
        with contextlib.suppress(OSError):
            super().close()


def read_log_config(path: str | None) -> Json | None:
    """Read a file for `logging.config.dictConfig`; whatever would run code in it is refused."""
    if path is None:
        return None
    try:
        setup = parse_json(Path(path).read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"log_config: {path} cannot be read ({error})") from None
    if not isinstance(setup, dict):
        raise UserError(f"log_config: {path} holds no object")
    for key, value in _leaves(setup, ""):
        name = key.rpartition(".")[2]
        if name == "class" and key.startswith("handlers."):
            if value not in HANDLERS:
                raise UserError(f"log_config: {key} is {value!r}{suggest(str(value), HANDLERS)}")
        elif name in ("()", "class", ""):
            raise UserError(f"log_config: {key} would call {value!r}; leave it out")
        elif isinstance(value, str) and "://" in value and value not in STREAMS:
            raise UserError(
                f"log_config: {key} is {value!r}; only {' and '.join(STREAMS)} are taken"
            )
    return {"version": 1, **setup, "disable_existing_loggers": False}


def _leaves(node: object, path: str) -> Iterator[tuple[str, object]]:
    """Return every key of nested objects and lists with its value."""
    if isinstance(node, Mapping):
        pairs = [(str(key), value) for key, value in node.items()]
    elif isinstance(node, list):
        pairs = [(str(place), value) for place, value in enumerate(node)]
    else:
        return
    for key, value in pairs:
        here = f"{path}.{key}" if path else key
        yield here, value
        yield from _leaves(value, here)


def _inside(setup: Values, folder: Path) -> Json:
    """Put the files of handlers into the run's folder."""
    handlers = {}
    for name, handler in setup.get("handlers", {}).items():
        handlers[name] = dict(handler)
        if isinstance(handler.get("filename"), str):
            handlers[name]["filename"] = str(folder / handler["filename"])
    return {**setup, "handlers": handlers}


class StepLines:
    """Stands in a progress bar's place and logs a line every few steps.

    As of a bar, the loss is read only where it is shown: reading it waits for the device.
    """

    mininterval = 0.0

    def __init__(self, every: int, epoch: int, total: int) -> None:
        self.every, self.epoch, self.total = every, epoch, total
        self.n = self.steps = 0
        self.last_print_t, self._text = math.inf, ""

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:  # noqa: ARG002
        """Take what the next line says."""
        self._text = text

    def update(self, images: int) -> None:
        """Count a step, and log it if its turn has come."""
        self.n, self.steps = self.n + images, self.steps + 1
        if self.steps % self.every == 0:
            log.info(
                "epoch %d, step %d, %d of %d images: %s",
                self.epoch,
                self.steps,
                self.n,
                self.total,
                self._text,
            )
        due = (self.steps + 1) % self.every == 0
        self.last_print_t = -math.inf if due else math.inf

    def __enter__(self) -> StepLines:
        return self

    def __exit__(self, *_: object) -> None:
        return None
