"""Images to be predicted: folders, CSV files and single files become ids and paths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ballot.data.layouts import PATHS, column, read_csv
from ballot.data.source import is_image
from ballot.data.tables import list_images
from ballot.errors import UserError
from ballot.names import check_names
from ballot.wording import few


@dataclass(frozen=True)
class Images:
    """Rows to be answered: an id and a file each."""

    ids: list[str]
    paths: list[Path]

    def __len__(self) -> int:
        return len(self.ids)


def find_images(inputs: Sequence[str | Path], root: Path | None = None) -> Images:
    """List the images of `inputs`: folders with all below them, CSVs with a path a row, files.

    An id is the path below the folder, what the CSV calls the row, or the file's name; where two
    would be alike, the path as it was given. Paths in a CSV start at it, or at `root`.
    """
    rows = [row for given in inputs for row in _rows(Path(given), root)]
    if not rows:
        raise UserError(f"{inputs[0]}: there are no images")
    short, long, paths = (list(part) for part in zip(*rows))
    check_names(inputs[0], long)
    ids = short if len(set(short)) == len(short) else long
    if len(set(ids)) < len(ids):
        twice = [name for name, times in Counter(ids).items() if times > 1]
        raise UserError(f"{inputs[0]}: stands there twice: {few(twice)}; each image has one row")
    return Images(ids, paths)


def _rows(given: Path, root: Path | None) -> Iterator[tuple[str, str, Path]]:
    """Yield short id, long id and path of each image."""
    if given.is_dir():
        for name in list_images(given):
            yield name, (given / name).as_posix(), given / name
    elif not given.exists():
        raise UserError(f"{given}: is not there; give images, a folder of them or a CSV")
    elif given.suffix.lower() == ".csv":
        yield from _listed(given, given.parent if root is None else root)
    elif is_image(given.name):
        yield given.name, given.as_posix(), given
    else:
        raise UserError(f"{given}: is no image by its name; give images, a folder or a CSV")


def _listed(table: Path, root: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield the rows of a CSV; `id` names them where it stands beside a path, or is the path."""
    columns, rows = read_csv(table)
    lowered = {name.lower(): name for name in columns}
    image = column(table, columns, "path", None, PATHS) or lowered.get("id")
    if image is None:
        raise UserError(f"{table}: has no column of paths; expected id,path or one of {PATHS}")
    name = lowered.get("id", image)
    for row in rows:
        yield row[name], row[name], root / row[image]
