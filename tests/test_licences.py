"""What requirements.txt brings along may be used by anybody, and by a company."""

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
FREE = re.compile(r"apache|bsd|mit|mpl|mozilla|psf|unlicense|zlib|cc0|isc|bsl", re.IGNORECASE)
# Enthought's text is BSD's; NVIDIA's libraries come with the CUDA build of torch and may be used
# and passed on, not changed.
OTHER = {"scipy": "BSD", "cuda-toolkit": "NVIDIA"}


def required(file: Path) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in file.read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def brought_along(wanted: list[Requirement]) -> dict[str, metadata.Distribution]:
    """The packages of an environment with nothing else in it, by name."""
    found, todo = {}, [(each, "") for each in wanted]
    while todo:
        each, extra = todo.pop()
        if each.marker and not each.marker.evaluate({"extra": extra}):
            continue
        name = re.sub(r"[-_.]+", "-", each.name).lower()
        if name not in found:
            found[name] = metadata.distribution(name)
            needs = [Requirement(text) for text in found[name].requires or ()]
            todo += [(need, extra) for need in needs for extra in ("", *each.extras)]
    return found


def licence(package: metadata.Distribution) -> str:
    """What a package says of itself: the expression, the classifiers, or the first line."""
    told = package.metadata
    kinds = [c.split(" :: ")[-1] for c in told.get_all("Classifier", []) if c[:7] == "License"]
    text = (told.get("License") or "").partition("\n")[0]
    return told.get("License-Expression") or ", ".join(kinds) or text


def test_every_package_that_comes_along_has_a_licence_that_is_known_to_be_free():
    doubtful = {}
    for name, package in brought_along(required(ROOT / "requirements.txt")).items():
        said = OTHER.get(name) or licence(package)
        if not FREE.search(said) and "nvidia" not in said.lower():
            doubtful[name] = said
    assert not doubtful


def test_the_list_of_licences_names_what_is_required_and_what_it_says_of_itself():
    table = (ROOT / "docs" / "licences.md").read_text()
    for need in required(ROOT / "requirements.txt"):
        row = re.search(rf"^\| {re.escape(need.name)} \| ([^|]+) \|", table, re.MULTILINE)
        assert row, f"docs/licences.md has no row for {need.name}"
        words = {word.lower() for word in re.findall(r"[A-Za-z]{3,}", row[1])}
        said = licence(metadata.distribution(need.name)).lower()
        assert any(word in said for word in words), f"{need.name}: {row[1]}, it says {said}"
