"""Draw what a terminal showed as an SVG: `python bench/draw_terminal.py < text > docs/search.svg`.

The pictures of the README are made by it from what the commands really printed.
"""

from __future__ import annotations

import sys
from html import escape

WIDTH, HEIGHT, MARGIN = 8.0, 18, 16  # pixels of a character cell, and around the text


def draw(lines: list[str]) -> str:
    """Return an SVG of `lines`; a line that begins with `$ ` is a command and stands out."""
    columns = max(map(len, lines), default=1)
    width, height = columns * WIDTH + 2 * MARGIN, len(lines) * HEIGHT + 2 * MARGIN
    rows = []
    for number, line in enumerate(lines):
        colour = "#7ee787" if line.startswith("$ ") else "#e6edf3"
        rows.append(
            f'<text x="{MARGIN}" y="{MARGIN + (number + 0.75) * HEIGHT:g}" fill="{colour}" '
            f'textLength="{len(line) * WIDTH:g}" xml:space="preserve">{escape(line)}</text>'
        )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
            f'viewBox="0 0 {width:g} {height:g}" font-family="monospace" font-size="13">',
            '<rect width="100%" height="100%" rx="8" fill="#0d1117"/>',
            *rows,
            "</svg>",
        ]
    )


if __name__ == "__main__":
    print(draw([line.rstrip("\n") for line in sys.stdin]))
