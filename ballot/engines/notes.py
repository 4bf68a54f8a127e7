"""What search.py writes down of a search, in the engine's folder of it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from ballot.errors import UserError
from ballot.runs.files import json_or_empty, write_json
from ballot.values import Json

NOTE = "search.json"


class Noted:
    """A search with a folder: what is noted of it, and the lock of whoever watches it."""

    id: str
    folder: Path

    def note(self) -> Json:
        """Return what search.py wrote down of it; nothing where something else started it."""
        return json_or_empty(self.folder / NOTE)

    def write_note(self, **facts: object) -> None:
        """Write down what `--resume` has to know."""
        write_json(self.folder / NOTE, facts)

    def amend_note(self, **facts: object) -> None:
        """Write down something more."""
        self.write_note(**{**self.note(), **facts})

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Hold the search against a second search.py that would watch and end it too."""
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise UserError(
                f"search {self.id}: another search.py watches it already; "
                f"--status {self.id} shows how it goes"
            ) from None
        finally:
            os.close(descriptor)
