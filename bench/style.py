"""Measure how the code is laid out and written: python bench/style.py, or with folders of others.

Files a folder, lengths of functions, `Any` and `fmt:` comments, and how high imports are stacked:
a module that imports none of ours is on floor 0, another one is a floor above the highest that it
imports. Imports for type checkers count, and those inside functions.
"""

from __future__ import annotations

import ast
import graphlib
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONG = 40  # lines of a function
Graph = dict[str, set[str]]


def sources(root: Path) -> list[Path]:
    """Return the program's own files: the scripts and catalogues, and all of the package."""
    return [*sorted(root.glob("*.py")), *sorted((root / "ballot").rglob("*.py"))]


def module_of(path: Path, root: Path) -> str:
    """Return the name by which a file is imported."""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Return all that a file imports: modules, and names in modules by their dotted place."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def graph_of(paths: Sequence[Path], root: Path) -> Graph:
    """Return the modules among `paths` that each of them imports."""
    modules = {module_of(path, root): path for path in paths}
    graph: Graph = {}
    for module, path in modules.items():
        graph[module] = set()
        for name in imports(path):
            while name and name not in modules:  # a name in a module stands for its module
                name = name.rpartition(".")[0]
            if name and name != module:
                graph[module].add(name)
    return graph


def circle_in(graph: Mapping[str, set[str]]) -> list[str]:
    """Return modules that import each other in a circle, or nothing."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def floors_of(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """Return the floor of each module of a graph without a circle."""
    floors: dict[str, int] = {}
    for module in graphlib.TopologicalSorter(graph).static_order():
        floors[module] = max((floors[below] + 1 for below in graph[module]), default=0)
    return floors


def functions_in(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the name of each function and its lines, from `def` to the last one."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def count_any(path: Path) -> int:
    """Count the uses of the type `Any`; importing it is none."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(tree))


def formatter_comments(path: Path) -> Counter[str]:
    """Count `fmt: skip` and `fmt: off`."""
    return Counter(re.findall(r"# (fmt: (?:skip|off))\b", path.read_text(encoding="utf-8")))


def report(paths: Sequence[Path], root: Path) -> list[str]:
    """Return the lines to print about files below `root`."""
    folders = Counter(str(path.parent.relative_to(root)) for path in paths)
    lengths = [length for path in paths for _, length in functions_in(path)]
    lines = sum(path.read_text(encoding="utf-8").count("\n") for path in paths)
    comments = sum((formatter_comments(path) for path in paths), Counter())
    long = sum(length > LONG for length in lengths)
    most, fullest = max((count, folder) for folder, count in folders.items())
    graph = graph_of(paths, root)
    circle = circle_in(graph)
    floors = 0 if circle else max(floors_of(graph).values()) + 1
    return [
        f"files          {len(paths)} in {len(folders)} folders, {lines:,} lines",
        f"files a folder median {statistics.median(folders.values()):g}, most {most} ({fullest})",
        f"functions      {len(lengths):,}, median {statistics.median(lengths):g} lines, "
        f"{100 * long / len(lengths):.1f} % above {LONG}, longest {max(lengths)}",
        f"Any            {1000 * sum(map(count_any, paths)) / lines:.1f} per 1,000 lines",
        f"formatter      {comments['fmt: skip']} fmt: skip, {comments['fmt: off']} fmt: off",
        f"imports        {floors} floors; circle: {' > '.join(circle) or 'none'}",
    ]


def main(folders: Sequence[str]) -> int:
    """Print the measurements of this program, or of folders with other people's sources."""
    for folder in folders or [""]:
        root = Path(folder).resolve() if folder else ROOT
        paths = sorted(root.rglob("*.py")) if folder else sources(root)
        if folder:
            print(f"{folder}:")
        print("\n".join(report(paths, root)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
