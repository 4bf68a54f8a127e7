"""What can be said of the Dockerfile without building it."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KNOWN = {
    "FROM",
    "ARG",
    "RUN",
    "WORKDIR",
    "COPY",
    "USER",
    "VOLUME",
    "EXPOSE",
    "ENTRYPOINT",
    "CMD",
    "ENV",
}


def instructions() -> list[tuple[str, str]]:
    """Read the Dockerfile: comments out, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def ignored(name: str) -> bool:
    lines = (ROOT / ".dockerignore").read_text().split()
    return any(fnmatch.fnmatch(name, line.removeprefix("**/")) for line in lines)


def test_every_instruction_is_one_and_the_image_comes_first():
    found = [word for word, _ in instructions()]
    assert set(found) <= KNOWN and found[0] == "FROM"


def test_what_is_copied_is_there_and_not_ignored():
    copied = [rest.split()[:-1] for word, rest in instructions() if word == "COPY"]
    for name in [name for names in copied for name in names if name != "."]:
        assert (ROOT / name).exists() and not ignored(name), name
    needed = [*ROOT.glob("*.py"), ROOT / "ballot", ROOT / "configs", ROOT / "search_space.json"]
    assert not [path.name for path in needed if ignored(path.name)]
    for name in ("outputs", ".venv", ".git", "data"):
        assert ignored(name), name


def test_it_runs_as_a_user_with_the_ids_of_the_host():
    found = instructions()
    users = [rest for word, rest in found if word == "USER"]
    assert users and users[-1] not in ("root", "0")
    after = found[[word for word, _ in found].index("USER") :]
    assert "RUN" not in [word for word, _ in after]
    arguments = {rest.partition("=")[0] for word, rest in found if word == "ARG"}
    assert arguments == {"DEVICE", "UID", "GID"}
    shell = " ".join(rest for word, rest in found if word == "RUN")
    for name in arguments:
        assert f"${name}" in shell, f"{name} is declared and not used"


def test_the_page_names_every_argument_and_folder_that_is_mounted():
    page = (ROOT / "docs" / "docker.md").read_text()
    for word in ("UID=", "GID=", "DEVICE=cpu", "/data", "/ballot/outputs", "docker exec"):
        assert word in page
    (volumes,) = [rest for word, rest in instructions() if word == "VOLUME"]
    assert volumes == '["/data", "/ballot/outputs"]'
