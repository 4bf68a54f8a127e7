"""All folders below a folder, also through links, and never around in a circle.

Sent to other machines as it is, before `facts`: the standard library alone, any Python 3.
"""

import os
from collections.abc import Iterator


def walk(folder: "str | os.PathLike[str]") -> "Iterator[tuple[str, list[str], list[str]]]":
    """Yield what `os.walk` does, through links too, but enter no folder that leads here.

    A link to a folder above, or to one that the walk is in, would show the same files under another
    name. Folders that are taken out of the second list are not entered.
    """
    top = os.fspath(folder)
    above, own = folders_above(top), identity(top)
    if own is None or own in above:
        return
    entered: dict = {top: (above, own)}  # of a folder to come: those that lead to it, and itself
    for where, folders, files in os.walk(top, followlinks=True):
        before, own = entered.pop(where)
        path = before | {own}
        inner = {name: identity(os.path.join(where, name)) for name in folders}
        folders[:] = [name for name in folders if inner[name] not in path]
        for name in folders:
            entered[os.path.join(where, name)] = (path, inner[name])
        yield where, folders, files


def identity(folder: str) -> "tuple[int, int] | None":
    """Return what is the same for a folder under all of its names; None where it is gone."""
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def folders_above(folder: str) -> set:
    """Return the identities of all folders above one, as it is named and as it lies on the disk."""
    above = set()
    for place in (os.path.abspath(folder), os.path.realpath(folder)):
        while place != os.path.dirname(place):
            place = os.path.dirname(place)
            above.add(identity(place))
    return above
