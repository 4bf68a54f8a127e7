"""Prediction CSVs: read them, check them, line them up by id and class, write them.

A ballot is `id,<class>,<class>,...`: one row of probabilities an image. Inside the vote classes
stand in one canonical order, so that neither the order of columns nor of rows can change a bit.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ballot.errors import UserError, suggest
from ballot.runs.files import replacing
from ballot.runs.folder import is_validation, read_result, run_of
from ballot.wording import few, natural, short

EXPECTED = "expected id,<class>,<class>,... with one row of probabilities an image"
ANSWERS = ("ans", "answer", "pred", "prediction", "target")
ID_WORDS = ("id", "imageid", "image_id", "image", "filename", "file", "name", "path", "index")

OF_SEARCH = re.compile(r"(\w+)-\d{3,}-\w+$")  # a run of a search: its number, the trial's id

EXACT = 1e-5  # float32 rounding of a row's sum: nothing to do, nothing to say
CHUNK = 2**18  # numbers parsed at once
ROUNDED = 1e-2  # float16 or three printed decimals: normalised again, and said


@dataclass(frozen=True)
class Ballot:
    """One file's predictions; `probs` is `[N, C]` float64 with its columns as in `classes`."""

    path: Path
    ids: list[str]
    classes: list[str]  # canonical order
    columns: list[str]  # the same names in the file's order
    probs: np.ndarray
    labels: list[str] | None = None
    rounded: float = 0.0  # how far the worst row's sum was from 1, where that had to be mended


@dataclass(frozen=True)
class Layout:
    """Which column of a file is what."""

    header: list[str]
    id: int
    classes: list[int]
    label: int | None = None
    soft: int | None = None


def read_ballot(
    path: str | Path, *, labelled: bool = False, like: Sequence[str] | None = None
) -> Ballot:
    """Read and check one CSV; `labelled` ones (`val.csv`) have a label column too.

    Ids that are those of `like`, in its order, need no second check and no second copy.
    Raises `UserError` naming the file, the row and what would be right.
    """
    path = Path(path)
    layout = _layout_of_run(path, labelled) or find_layout(read_header(path), path, labelled)
    ids, labels, probs = _read_columns(path, layout)
    if not ids:
        raise UserError(f"{path}: holds a header and no rows; {EXPECTED}")
    if ids == like:
        ids = like
    else:
        _check_ids(path, ids)
    columns = [layout.header[i] for i in layout.classes]
    if layout.soft is not None:
        columns = [str(i) for i in range(probs.shape[1])]
    order = sorted(range(len(columns)), key=lambda i: natural(columns[i]))
    if order != list(range(len(columns))):
        probs = np.ascontiguousarray(probs[:, order])
    classes = [columns[i] for i in order]
    probs, rounded = _check_probs(path, ids, probs)
    if labels is not None:
        _check_labels(path, ids, labels, classes)
    return Ballot(path, ids, classes, columns, probs, labels, rounded)


def read_member(file: Path) -> Ballot:
    """Read a member's file."""
    return read_ballot(file, labelled=is_validation(file))


def read_ballots(paths: Sequence[Path], like: Sequence[str]) -> Iterator[Ballot]:
    """Read files in their order, the next one while this one is counted.

    Parsing leaves Python free to do so; two files at most are in memory beside the caller's.
    """
    with ThreadPoolExecutor(max_workers=2) as pool:
        ahead: deque[Future[Ballot]] = deque()
        for path in paths:
            ahead.append(pool.submit(read_ballot, path, like=like))
            if len(ahead) == 2:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def check_path(path: Path) -> None:
    """Refuse what is no readable, non-empty file."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give its files, as in {path / '*.csv'}")
    if not path.exists():
        raise UserError(f"{path}: does not exist; give the CSVs of runs, as in outputs/*.csv")
    if not path.is_file():
        raise UserError(f"{path}: is no regular file; a vote reads its CSVs more than once")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: is empty; {EXPECTED}")


def read_header(path: Path) -> list[str]:
    """Return the first record of a CSV."""
    return [name.strip() for name in _first_record(path)]


def _first_record(path: Path) -> list[str]:
    check_path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return next(csv.reader(file), [])
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no text in UTF-8; {EXPECTED}") from None
    except csv.Error as error:
        raise UserError(f"{path}: is no CSV ({error}); {EXPECTED}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _layout_of_run(path: Path, labelled: bool) -> Layout | None:
    """Tell the columns apart by the classes of the run beside the file; None without such a run.

    A class may be called as another column is, or end in a space: no name is guessed at here.
    """
    inside = path.name == "val.csv" and not path.with_suffix("").is_dir()
    classes = read_result(path.parent if inside else path.with_suffix("")).get("classes")
    if not isinstance(classes, list):
        return None
    header = _first_record(path)
    before = ["id", "label"] if labelled else ["id"]
    if not set(before) <= set(header) or Counter(header) != Counter([*before, *classes]):
        return None
    places = [header.index(name) for name in before]
    rest = [place for place in range(len(header)) if place not in places]
    return Layout(header, places[0], rest, places[1] if labelled else None)


def find_layout(header: list[str], path: Path, labelled: bool) -> Layout:
    """Tell the id, the label and the classes apart by their names, or say what is expected."""
    if len(header) < 2:
        hint = "separate columns with commas; " if header and ";" in header[0] else ""
        raise UserError(f"{path}: its first line is no header of a CSV; {hint}{EXPECTED}")
    lowered = [name.lower() for name in header]
    key = lowered.index("id") if "id" in lowered else 0
    dropped = {key}
    if header[0] == "" and key == 0 and lowered[1] in ID_WORDS:
        key = 1  # an index that pandas wrote in front of the ids
    dropped |= {i for i, name in enumerate(header) if name == "" and i == 0} | {key}
    label = lowered.index("label") if "label" in lowered else None
    if labelled and label is None:
        raise UserError(f"{path}: has no column 'label'; expected id,label,<class>,...")
    if "soft" in lowered:
        return Layout(header, key, [], label if labelled else None, lowered.index("soft"))
    if label is not None:
        dropped.add(label)
        if not labelled and len(header) - len(dropped) > 1:
            raise UserError(
                f"{path}: has the labels of validation rows; the vote takes the predictions of "
                "test rows, outputs/<run>.csv, or outputs/<run>/val.csv of all members"
            )
    classes = [i for i in range(len(header)) if i not in dropped]
    classes = _without_answer(header, classes)
    if _is_row(header[key], [header[i] for i in classes]):
        raise UserError(f"{path}: its first line is a row and no header; {EXPECTED}")
    _check_classes(path, [header[i] for i in classes])
    return Layout(header, key, classes, label if labelled else None)


def _is_row(name: str, words: list[str]) -> bool:
    """Tell whether a first line is the probabilities of an image, and not the names of classes.

    Numbers may name classes, but their sum is 1 only where these are 0 and 1.
    """
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return False
    if name.lower() in ID_WORDS or not numbers or min(numbers) < 0:
        return False
    named_by_number = set(words) == {"0", "1"} and len(words) == 2
    is_file = "." in name or name.isdecimal()
    return abs(sum(numbers) - 1) <= 2 * ROUNDED and (is_file or not named_by_number)


def _without_answer(header: list[str], classes: list[int]) -> list[int]:
    """Leave out a hard answer that stands beside the columns `0..C-1`."""
    rest = [i for i in classes if header[i].lower() not in ANSWERS]
    if {header[i] for i in rest} == {str(i) for i in range(len(rest))}:
        return rest
    return classes


def _check_classes(path: Path, names: list[str]) -> None:
    if len(names) < 2:
        raise UserError(f"{path}: holds one answer a row and no probabilities; {EXPECTED}")
    if "" in names:
        raise UserError(f"{path}: column {names.index('') + 2} has no name; {EXPECTED}")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise UserError(f"{path}: two columns are called {short(twice)}; each class has one")


def _read_columns(path: Path, layout: Layout) -> tuple[list[str], list[str] | None, np.ndarray]:
    """Read with pandas' C reader; where that fails, read again slowly to name the row."""
    classes = set(layout.classes)
    texts: dict[int, list[str]] = {i: [] for i in range(len(layout.header)) if i not in classes}
    blocks = []
    try:
        for block, words in _read_chunks(path, layout, list(texts)):
            blocks.append(block)
            for column, more in zip(texts, words, strict=True):
                texts[column] += more
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no text in UTF-8; {EXPECTED}") from None
    except (ValueError, OverflowError, OSError) as error:  # ParserError is a ValueError
        _name_bad_row(path, layout)
        raise UserError(f"{path}: cannot be read ({error}); {EXPECTED}") from None
    ids = texts[layout.id]
    labels = None if layout.label is None else texts[layout.label]
    if layout.soft is not None:
        return ids, labels, _parse_lists(path, ids, texts[layout.soft])
    probs = _joined(blocks, len(layout.classes))
    _check_last_line(path, ids, probs)
    return ids, labels, probs


def _read_chunks(
    path: Path, layout: Layout, texts: Sequence[int]
) -> Iterator[tuple[np.ndarray, list[list[str]]]]:
    """Yield the probabilities of some rows, and the columns `texts` of them.

    In chunks: a whole frame and its copy as one array would be two files in memory.
    """
    import pandas as pd

    # Made once: pandas looks a type's name up anew for each of 10,000 columns.
    number, word = np.dtype(np.float64), np.dtype(object)
    texts_of = set(texts)
    kinds = {i: word if i in texts_of else number for i in range(len(layout.header))}
    with pd.read_csv(
        path,
        header=0,
        names=list(kinds),
        dtype=kinds,
        na_filter=False,
        chunksize=max(1, CHUNK // len(kinds)),
    ) as chunks:
        for frame in chunks:
            if not isinstance(frame.index, pd.RangeIndex):
                raise ValueError("rows are longer than the header")
            # Row after row: some functions round otherwise where numbers lie apart.
            block = np.ascontiguousarray(frame[layout.classes].to_numpy())
            yield block, [frame[column].tolist() for column in texts]


def _joined(blocks: list[np.ndarray], width: int) -> np.ndarray:
    """Return the blocks `[n, width]` as one, and empty their list: each is let go when copied."""
    stop = sum(map(len, blocks))
    joined = np.empty((stop, width))
    while blocks:
        block = blocks.pop()
        joined[stop - len(block) : stop] = block
        stop -= len(block)
    return joined


def _name_bad_row(path: Path, layout: Layout) -> None:
    """Raise the `UserError` for the first row that is no row of this layout."""
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        next(rows)
        try:
            for number, row in enumerate((r for r in rows if r), start=1):
                _check_row(path, layout, number, row)
        except csv.Error as error:
            raise UserError(f"{path}: is no CSV ({error}); {EXPECTED}") from None


def _check_row(path: Path, layout: Layout, number: int, row: list[str]) -> None:
    if len(row) != len(layout.header):
        raise UserError(
            f"{path}: row {number} (id {short(row[0])}) has {len(row)} fields and the header "
            f"{len(layout.header)}; the file may have been cut while it was written"
        )
    for column in layout.classes:
        try:
            good = float(row[column]) == float(row[column]) and "_" not in row[column]
        except ValueError:
            good = False
        if not good:
            raise UserError(
                f"{path}: row {number} (id {short(row[layout.id])}), column "
                f"{short(layout.header[column])}: {short(row[column])} is no number; "
                "every class needs a probability in 0..1"
            )


def _check_last_line(path: Path, ids: list[str], probs: np.ndarray) -> None:
    """Refuse a file that ends inside a number: its last line has no end and does not sum to 1."""
    if not ids:
        return
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        whole = file.read(1) in b"\r\n"
    if not whole and abs(float(probs[-1].sum()) - 1) > EXACT:
        raise UserError(
            f"{path}: its last line (id {short(ids[-1])}) is cut; "
            "the file was not written to its end, write it again"
        )


def _parse_lists(path: Path, ids: list[str], texts: list[str]) -> np.ndarray:
    """Parse a `soft` column: one list of probabilities a row, with commas or spaces."""
    rows = []
    for number, text in enumerate(texts, start=1):
        try:
            rows.append([float(w) for w in text.strip("[]() \n").replace(",", " ").split()])
        except ValueError:
            raise UserError(
                f"{path}: row {number} (id {short(ids[number - 1])}), column 'soft': "
                f"{short(text)} is no list of numbers; as in [0.1, 0.9]"
            ) from None
        if len(rows[-1]) != len(rows[0]) or len(rows[0]) < 2:
            raise UserError(
                f"{path}: row {number} (id {short(ids[number - 1])}), column 'soft': lists "
                f"{len(rows[-1])} probabilities, the first row {len(rows[0])}; one a class"
            )
    return np.array(rows, dtype=np.float64)


def _check_ids(path: Path, ids: list[str]) -> None:
    if len(set(ids)) < len(ids):
        twice = next(i for i, count in Counter(ids).items() if count > 1)
        raise UserError(f"{path}: id {short(twice)} stands in two rows; each image has one")
    if "" in ids:
        raise UserError(f"{path}: row {ids.index('') + 1} has no id; {EXPECTED}")


def _check_labels(path: Path, ids: list[str], labels: list[str], classes: list[str]) -> None:
    unknown = set(labels) - set(classes)
    if unknown:
        row = next(i for i, label in enumerate(labels) if label in unknown)
        raise UserError(
            f"{path}: id {short(ids[row])} has the label {short(labels[row])}, which is no "
            f"class of its columns{suggest(labels[row], classes)}"
        )


def _check_probs(path: Path, ids: list[str], probs: np.ndarray) -> tuple[np.ndarray, float]:
    """Return probabilities whose rows sum to 1, and how far the worst was from it."""
    # Column after column, in canonical order: a shuffled file must give the same bits.
    sums = probs[:, 0].copy()
    for column in range(1, probs.shape[1]):
        sums += probs[:, column]
    low, high = float(probs.min()), float(probs.max())
    if not (low >= 0 and high <= 1):  # also where one is NaN
        _refuse_values(path, ids, probs, sums)
    off = np.abs(sums - 1)
    worst = int(off.argmax())
    if off[worst] <= EXACT:
        return probs, 0.0
    if off[worst] > ROUNDED:
        raise UserError(
            f"{path}: row {worst + 1} (id {short(ids[worst])}) sums to {sums[worst]:.4g}; "
            "probabilities of one row sum to 1"
        )
    return probs / sums[:, None], float(off[worst])


def _refuse_values(path: Path, ids: list[str], probs: np.ndarray, sums: np.ndarray) -> None:
    bad = ~((probs >= 0) & (probs <= 1))
    row = int(bad.any(axis=1).argmax())
    value = float(probs[row, bad[row]][0])
    where = f"{path}: row {row + 1} (id {short(ids[row])})"
    if not np.isfinite(value):
        raise UserError(f"{where} holds {value}; every class needs a probability in 0..1")
    if abs(sums[row] - 1) > ROUNDED:
        raise UserError(
            f"{where} holds {value:.6g} and sums to {sums[row]:.4g}; these look like logits: "
            "write probabilities, as in torch.softmax(logits, dim=1)"
        )
    raise UserError(f"{where} holds {value:.6g}; a probability lies in 0..1")


def check_same_classes(ballot: Ballot, other: Ballot) -> None:
    """Refuse two files whose classes differ, naming what is missing and what is new."""
    if ballot.classes == other.classes:
        return
    missing = [c for c in other.classes if c not in set(ballot.classes)]
    extra = [c for c in ballot.classes if c not in set(other.classes)]
    words = [f"lacks {few(missing)}"] * bool(missing) + [f"adds {few(extra)}"] * bool(extra)
    raise UserError(
        f"{ballot.path}: its classes are not those of {other.path}: it {' and '.join(words)}; "
        "members of one vote have the same classes, name by name"
        f"{which_search(ballot.path, other.path)}"
    )


def which_search(one: Path, other: Path) -> str:
    """Return the pattern that names one search alone, where two files are of different ones."""
    searches = [OF_SEARCH.match(run_of(path).name) for path in (one, other)]
    names = [found[1] for found in searches if found]
    if len(set(names)) < 2:
        return ""
    return f"; these are of two searches: vote over one, as in {other.parent}/{names[1]}-*.csv"


def rows_like(ballot: Ballot, ids: Sequence[str], other: Path) -> np.ndarray | None:
    """Return the rows of `ballot` in the order of `ids` (None: they are), or refuse."""
    if ballot.ids == ids:
        return None
    index = {name: row for row, name in enumerate(ballot.ids)}
    missing = [name for name in ids if name not in index]
    extra = set(ballot.ids) - set(ids)
    if missing or extra:
        words = [f"lacks id {few(missing)}"] * bool(missing)
        words += [f"adds id {few(sorted(extra))}"] * bool(extra)
        raise UserError(
            f"{ballot.path}: its {len(ballot.ids)} rows are not the {len(ids)} of {other}: it "
            f"{' and '.join(words)}; members of one vote predict the same images"
            f"{which_search(ballot.path, other)}"
        )
    return np.fromiter((index[name] for name in ids), dtype=np.intp, count=len(ids))


def write_ballot(
    path: Path,
    ids: Sequence[str],
    classes: Sequence[str],
    probs: np.ndarray,
    labels: Sequence[str] | None = None,
) -> None:
    """Write `id,<class>,...`, with the true labels behind the ids if they are given.

    Nine digits give back every float32 of `probs` `[N, C]` exactly.
    """
    row = ",%.9g" * len(classes) + "\n"
    with replacing(path) as file:
        truth = [] if labels is None else ["label"]
        file.write(",".join(map(quote, ["id", *truth, *classes])) + "\n")
        for start in range(0, len(ids), 4096):
            part = slice(start, start + 4096)
            values = np.asarray(probs[part], dtype=np.float32).tolist()
            names = [quote(name) for name in ids[part]]
            if labels is not None:
                names = [f"{n},{quote(t)}" for n, t in zip(names, labels[part], strict=True)]
            file.writelines(n + row % tuple(v) for n, v in zip(names, values, strict=True))


def write_answers(path: Path, columns: Sequence[str], rows: Iterable[tuple[str, str]]) -> None:
    """Write a submission: the two `columns`, an id and an answer a row."""
    with replacing(path) as file:
        file.write(",".join(map(quote, columns)) + "\n")
        file.writelines(f"{quote(name)},{quote(answer)}\n" for name, answer in rows)


def quote(text: str) -> str:
    """Quote a field as RFC 4180 does, only where it must be."""
    if any(mark in text for mark in ',"\r\n') or text != text.strip():
        return '"' + text.replace('"', '""') + '"'
    return text


def looks_like_formula(name: str) -> bool:
    """Say whether a spreadsheet would run this text instead of showing it."""
    return name[:1] in ("=", "+", "@", "\t") or (name[:1] == "-" and not name[1:2].isdigit())
