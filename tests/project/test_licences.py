"""The list of licences is complete; `make audit` prints what the installed packages say."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


def required(file: Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in file.read_text().splitlines())
    return [Requirement(line).name for line in lines if line]


@pytest.mark.parametrize("name", required(ROOT / "requirements.txt"))
def test_every_required_package_is_in_the_list_of_licences(name):
    table = (ROOT / "docs" / "licences.md").read_text()
    row = re.search(rf"^\| {re.escape(name)} \| ([^|]+) \|", table, re.MULTILINE)
    assert row, f"docs/licences.md has no row for {name}"
    assert row[1].strip()
