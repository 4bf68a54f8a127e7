"""Files of tensors: saved whole, loaded without running code."""

from __future__ import annotations

from pathlib import Path
from typing import IO, cast

import torch

from ballot.errors import UserError
from ballot.runs.files import replacing
from ballot.training.weights import refuse_bomb
from ballot.values import Json


def save_tensors(path: Path, value: Json) -> None:
    """Write a checkpoint that `torch.load(weights_only=True)` reads: it can run no code."""
    with replacing(path, "wb") as file:
        target = _Witness(file)
        try:
            torch.save(value, cast(IO[bytes], target))
        except RuntimeError:  # what PyTorch's writer makes of a full disk
            if target.error is None:
                raise
            raise target.error from None


class _Witness:
    """A file to write to that remembers why it could not be written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def load_tensors(path: Path, device: torch.device | str = "cpu") -> Json:
    """Read a checkpoint; a damaged or foreign one is a `UserError`."""
    try:
        refuse_bomb(path)
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except Exception as error:  # torch raises whatever its unpickler and zip reader raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"{path}: is no checkpoint that can be read ({reason})") from None
