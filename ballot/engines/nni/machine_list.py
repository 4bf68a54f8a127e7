"""The machines that an NNI configuration names."""

from __future__ import annotations

import copy
import getpass
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ballot.engines.nni.spelling import plain
from ballot.errors import UserError
from ballot.machines.machine import Machine
from ballot.values import Json, Values

NNI_KEY = "~/.ssh/id_rsa"  # what NNI writes where a machine names no key
NO_KEY = str(Path(__file__).resolve())  # a file, on which NNI insists, that stands for no key


def machines_of(config: Any, folder: Path | None = None) -> list[Machine]:
    """Return the machines of a configuration: NNI's object, or its content in version 1 or 2.

    Paths of keys are relative to `folder`, as NNI takes them. Raises `UserError` for an entry that
    cannot be used.
    """
    content = config if isinstance(config, Mapping) else config.json()
    given = {plain(key): value for key, value in content.items()}
    service = given.get("trainingservice")
    if isinstance(service, Mapping):
        given = {plain(key): value for key, value in service.items()}
    entries = given.get("machinelist")
    if not isinstance(entries, list) or not entries:
        raise UserError("machineList: names no machine; see config_remote.yml")
    found = [
        _machine(entry, f"machineList: machine {number}", folder or Path())
        for number, entry in enumerate(entries, 1)
    ]
    hosts = Counter(machine.host for machine in found)
    named = [
        replace(m, name=f"{m.host}:{m.port or 22}" if hosts[m.host] > 1 else m.host) for m in found
    ]
    twice = [name for name, times in Counter(m.name for m in named).items() if times > 1]
    if twice:
        raise UserError(
            f"machineList: {twice[0]} is there twice; name each machine once, and "
            "raise trialConcurrency for more trials on it"
        )
    return named


def _machine(entry: object, where: str, folder: Path) -> Machine:
    given = {plain(k): v for k, v in entry.items()} if isinstance(entry, Mapping) else {}
    for secret in ("password", "passwd", "sshpassphrase", "passphrase"):
        if given.get(secret) is not None:
            raise UserError(
                f"{where}: has a {secret} in the file, which NNI shows to everyone; "
                "use a key, and an agent for its passphrase"
            )
    host, user = given.get("host", given.get("ip")), given.get("user", given.get("username"))
    port, python = given.get("port"), given.get("pythonpath")
    key = given.get("sshkeyfile", given.get("sshkeypath"))
    if not host:
        raise UserError(f"{where}: names no host; as in host: gpu1.example.org")
    for key_name, value in (("host", host), ("user", user)):
        if value is not None and not re.fullmatch(r"[\w.:%@+][\w.:%@+-]*", str(value)):
            raise UserError(f"{where}: {key_name} {value!r} is none")
    if port is not None and not (isinstance(port, int) and 0 < port < 65536):
        raise UserError(f"{where}: port {port!r} is none; it is 22 on most machines")
    if key is not None:
        path = Path(folder, Path(str(key)).expanduser())
        is_nnis = Path(NNI_KEY).expanduser() == path and not path.exists()
        is_none = path.parts[-2:] == Path(NO_KEY).parts[-2:]
        key = None if is_nnis or is_none else str(path.absolute())
    return Machine(
        str(host),
        port,
        None if user is None else str(user),
        key,
        None if python is None else str(python),
    )


def filled_in(content: Values, folder: Path) -> Json:
    """Name a key file and a user for each machine: NNI wants them, ssh may do without."""
    filled = copy.deepcopy(dict(content))
    service = next((v for k, v in filled.items() if plain(k) == "trainingservice"), filled)
    entries: object = next((v for k, v in service.items() if plain(k) == "machinelist"), None)
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict):
            key = next((k for k in entry if plain(k) in ("sshkeyfile", "sshkeypath")), None)
            if key is None or not Path(folder, Path(str(entry[key])).expanduser()).is_file():
                entry[key or ("sshKeyPath" if service is filled else "sshKeyFile")] = NO_KEY
            if not any(plain(k) in ("user", "username") for k in entry):
                entry["username" if service is filled else "user"] = getpass.getuser()
    return filled
