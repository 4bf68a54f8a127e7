"""Images inside a page: as addresses that hold the image itself."""

from __future__ import annotations

import base64
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


SHEET_WIDTH = 1000  # pixels
QUALITY = 80  # of JPEG


def as_address(image: np.ndarray, side: int) -> str:
    """Return an image uint8 `[H, W, 3]` as a data address, `side` pixels long at most."""
    from PIL import Image

    return _encode(Image.fromarray(image), side)


def warmed(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay `heat` `[H, W]` in 0..1 over an image uint8 `[H, W, 3]`: from black by red to white.

    The brighter, the more, so that it can be read without colours too.
    """
    import numpy as np

    grey = image.mean(axis=2, keepdims=True)
    ramp = np.clip(3 * heat[..., None] - np.arange(3), 0, 1) * 255
    return (0.5 * grey + 0.5 * ramp).astype(np.uint8)


def sheet_address(found: Any, config: Any) -> str:
    """Draw the sheet of augmented samples of `ballot.data.preview`, as a data address."""
    from PIL import Image

    from ballot.data.preview import draw_sheet

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sheet.png"
        draw_sheet(found, path, config)
        with Image.open(path) as sheet:
            return _encode(sheet.convert("RGB"), max(SHEET_WIDTH, sheet.height))


def _encode(image: Any, side: int) -> str:
    image.thumbnail((min(side, SHEET_WIDTH), side))
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
