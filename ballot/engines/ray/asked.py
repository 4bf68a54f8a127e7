"""What a cluster says of itself before anything starts: asked in a process of its own.

    python -m ballot.engines.ray.asked ADDRESS

Ray writes to the terminal, and ends the process where it is not let in; this one may be ended.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Protocol

from ballot.errors import UserError
from ballot.values import Json

OLDEST = (2, 52)  # CVE-2025-62593 is mended there
ANSWER_S = 60.0
CONNECT_S = 5.0
MARK = "ballot: "  # before the line that is the answer
CURRENT = Path("/tmp/ray/ray_current_cluster")  # where Ray notes a cluster that was started here
NOT_THERE = "ray start --head starts one (docs/clusters.md)"


@dataclass(frozen=True)
class Facts:
    """A cluster as it is found; `open` where it lets in who has no token."""

    address: str
    open: bool = False
    ray: str = ""
    python: str = ""
    nodes: list[Json] = field(default_factory=list)  # what each has: CPU, GPU, memory
    shared: list[str] = field(default_factory=list)  # folders that several nodes of a host have


def installed() -> tuple[int, ...] | None:
    """Return the version of Ray here, None where it is not installed."""
    try:
        return tuple(int(part) for part in metadata.version("ray").split(".")[:2])
    except (metadata.PackageNotFoundError, ValueError):
        return None


def found_address(address: str) -> str:
    """Return host and port of a cluster's head; nothing is asked of it yet."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or _current()
    if not address:
        raise UserError(f"ray: no cluster runs here, and RAY_ADDRESS is not set; {NOT_THERE}")
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise UserError(f"ray: address {address!r} is not HOST:PORT, auto or local; correct it")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"ray: no cluster at {address} ({reason}); {NOT_THERE}") from None
    return address


def _current() -> str:
    temporary = os.environ.get("RAY_TMPDIR")
    file = Path(temporary, "ray", CURRENT.name) if temporary else CURRENT
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def ask_cluster(address: str) -> Facts:
    """Ask a cluster what it is and has; what is wrong is a `UserError` in one line."""
    address = found_address(address)
    without = _ask(address, {"RAY_AUTH_MODE": "disabled"})
    is_open = "error" not in without
    said = without if is_open else _ask(address, {"RAY_AUTH_MODE": "token"})
    if "error" in said:
        raise UserError(_refusal(address, str(said["error"])))
    shared = said.get("shared", [])
    facts = Facts(address, is_open, said["ray"], said["python"], said["nodes"], shared)
    here = metadata.version("ray"), platform.python_version()
    if facts.ray != here[0]:
        remedy = "install the same version here and on all nodes"
        raise UserError(f"ray: the cluster has Ray {facts.ray}, and here is {here[0]}; {remedy}")
    if facts.python.split(".")[:2] != here[1].split(".")[:2]:
        remedy = "use the same Python here and on all nodes"
        raise UserError(
            f"ray: the cluster has Python {facts.python}, and here is {here[1]}; {remedy}"
        )
    return facts


def _refusal(address: str, said: str) -> str:
    if "token" in said.lower():
        remedy = "copy ~/.ray/auth_token of its head here, or set RAY_AUTH_TOKEN_PATH to it"
        return f"ray: the cluster at {address} does not take this user's token; {remedy}"
    return f"ray: the cluster at {address} cannot be asked ({said}); look at its head"


def _ask(address: str, extra: dict[str, str]) -> Json:
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **extra}
    command = [sys.executable, "-m", __name__, address]
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ANSWER_S,
            cwd=Path(__file__).resolve().parents[3],
        )
    except subprocess.TimeoutExpired:
        return {"error": f"it did not answer for {ANSWER_S:.0f} s"}
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    return {"error": (done.stderr.strip().splitlines() or ["it ended without a word"])[-1][:300]}


class Node(Protocol):
    """What Ray's core says of a node."""

    node_manager_hostname: str
    session_dir: str


def shared_folders(nodes: Sequence[Node]) -> list[str]:
    """Return the folders, as HOST:PATH, that Ray unpacks code into for several nodes of a host."""
    used = Counter(f"{node.node_manager_hostname}:{node.session_dir}" for node in nodes)
    return [folder for folder, number in used.items() if number > 1]


def main() -> None:
    """Ask the head of a cluster, and print what it says."""
    core = importlib.import_module("ray._raylet")
    try:
        client = core.GcsClient(address=sys.argv[1])
        known = json.loads(client.internal_kv_get(b"CLUSTER_METADATA", namespace=b"cluster"))
        alive = [node for node in client.get_all_node_info().values() if node.state == 0]
        answer: Json = {
            "ray": known["ray_version"],
            "python": known["python_version"],
            "nodes": [dict(node.resources_total) for node in alive],
            "shared": shared_folders(alive),
        }
    except Exception as error:  # whatever its core raises
        answer = {"error": " ".join(str(error).split())[:300] or type(error).__name__}
    print(f"{MARK}{json.dumps(answer)}", flush=True)


if __name__ == "__main__":
    main()
