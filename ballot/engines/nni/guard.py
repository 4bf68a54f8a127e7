"""The guard around NNI's manager: how to start with it, and the proof that it took hold.

``guard.js`` beside this file says what it changes and why; ``docs/nni.md`` says it for people.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path

MARKER = "X-Ballot-Guard"  # the header in which guard.js lists the parts that took hold

REMOTE_PARTS = {
    "ssh": "NNI connects to machines without checking who they are",
    "worker": "NNI's keepers on the machines answer the whole network",
    "machines": "a machine that fails once is dropped, with its trials",
    "pings": "a machine that does not answer is not noticed",
    "placement": "trials are placed on machines that have no room",
}

PARTS = {
    "loopback": "the portal answers the whole network",
    "requests": "web pages of others can drive the portal",
    "peers": "other users of this machine can drive the portal",
    "messages": "a message that is no command ends the manager",
    "netron": "the portal runs another site's scripts",
    "commands": "a shell reads the path of the interpreter",
    "space": "trials take options that are not searched",
    "files": "the portal opens every file of this machine",
    "parameters": "trials are recorded with other trials' parameters",
    "schedule": "a search whose GPUs are taken floods this machine with processes",
    "tensorboard": "the portal's TensorBoard answers the whole network",
}
LOCAL = ("loopback", "peers")  # a portal that is open to the network has neither


def environment(*, public: bool = False, hosts: Iterable[str] = ()) -> dict[str, str]:
    """Return what to add to the environment of a process that starts NNI's manager.

    ``public`` listens on every address instead of loopback. ``hosts`` are further names under
    which the portal may be asked for, such as the name of a proxy in front of it; unless given,
    those that BALLOT_HOSTS has.
    """
    return {
        "NODE_OPTIONS": _node_options(os.environ.get("NODE_OPTIONS", "")),
        "BALLOT_PUBLIC": "1" if public else "0",
        "BALLOT_HOSTS": ",".join(hosts) or os.environ.get("BALLOT_HOSTS", ""),
    }


def _node_options(present: str) -> str:
    option = required("guard.js")
    return present if option in present else f"{present} {option}".strip()


def required(name: str) -> str:
    """Return Node's option that loads a file of this folder, in Node's own quoting."""
    script = str(Path(__file__).with_name("node").joinpath(name).resolve())
    quoted = script.replace("\\", "\\\\").replace('"', '\\"')
    return f'--require="{quoted}"'


def self_test(
    port: int,
    prefix: str | None = None,
    *,
    public: bool = False,
    remote: bool = False,
    wait: float = 10.0,
) -> list[str]:
    """Ask the manager on ``port`` what the guard forbids, and return what is wrong.

    An empty list means that the guard is in hold. To be called once ``nnictl create`` or
    ``resume`` has returned: the last parts take hold while the experiment is set up, which is
    awaited for ``wait`` seconds. ``prefix`` is the portal's ``--url_prefix``.
    """
    root = f"/{prefix.strip('/')}" if prefix else ""
    parts = {**PARTS, **(REMOTE_PARTS if remote else {})}
    wanted = {part: why for part, why in parts.items() if not (public and part in LOCAL)}
    try:
        missing = _await_parts(port, root, wanted, wait)
        wrong = [f"guard: '{part}' is not in hold: {wanted[part]}" for part in missing]
        wrong += _refused_wrongly_or_not(port, root)
        if root and _ask(port, "/api/v1/nni/check-status")[0] == 200:
            wrong.append("guard: the portal answers without its secret prefix")
    except (OSError, http.client.HTTPException) as error:
        return [f"guard: the manager does not answer on port {port}: {error}"]
    open_at = [a for a in own_addresses() if not public and _answers(a, port)]
    return wrong + [f"guard: the portal answers at {address}, port {port}" for address in open_at]


def _await_parts(port: int, root: str, wanted: Iterable[str], wait: float) -> list[str]:
    """Return which of the wanted parts have not taken hold when ``wait`` seconds are over."""
    deadline = time.monotonic() + wait
    while True:
        _, marker = _ask(port, f"{root}/api/v1/nni/check-status")
        missing = [part for part in wanted if part not in marker.split()]
        # No marker at all will not come later: the requests are the first thing that is guarded.
        if not missing or not marker or time.monotonic() > deadline:
            return missing
        time.sleep(0.2)


def _refused_wrongly_or_not(port: int, root: str) -> list[str]:
    """Return the requests that should have been refused and were not."""
    status = f"{root}/api/v1/nni/check-status"
    passwd = "..%2f" * 12 + "etc%2fpasswd"
    other = f"http://localhost:{port % 65535 + 1}"
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "c2VsZi10ZXN0IG9mIEJhbA==",
    }
    foreign = {"Origin": "http://ballot.invalid"}
    forbidden = {
        "a path with '..'": (f"{root}/api/v1/nni/trial-file/x/{passwd}", {}),
        "a foreign Host": (status, {"Host": "ballot.invalid"}),
        "a foreign Origin": (status, foreign),
        "a page of another port": (status, {"Origin": other}),
        "a request that names no path": (f"http://x{status}", {}),
        # A path of its own: a websocket on /tuner would take the place of the tuner.
        "a websocket with a foreign Origin": (f"{root}/ballot-self-test", {**upgrade, **foreign}),
    }
    return [
        f"guard: {what} is not refused"
        for what, (path, headers) in forbidden.items()
        if _ask(port, path, headers)[0] != 403
    ]


def _ask(port: int, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """Return the status of a GET and the guard's marker, empty where there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.headers.get(MARKER, "")
    finally:
        connection.close()


def own_addresses() -> list[str]:
    """Return the addresses under which other machines may reach this one."""
    import psutil  # comes with NNI

    found = [entry.address for entries in psutil.net_if_addrs().values() for entry in entries]
    return [address for address in found if _is_reachable(address)]


def _is_reachable(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # a hardware address
        return False
    return not parsed.is_loopback and not parsed.is_link_local


def _answers(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=2):
            return True
    except OSError:
        return False
