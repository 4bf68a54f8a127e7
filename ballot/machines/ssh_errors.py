"""What is wrong with a connection, in one line, from what ssh itself says of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from ballot.errors import UserError

if TYPE_CHECKING:
    from ballot.machines.machine import Machine


class Unreachable(UserError):
    """A machine that cannot be reached, does not let us in, or does not answer any more."""


class PassphraseNeeded(Unreachable):
    """A key that only its passphrase opens; `key` is its file."""

    def __init__(self, text: str, key: str) -> None:
        super().__init__(text)
        self.key = key


def diagnose(machine: Machine, said: str, locked_key: Callable[[], str | None]) -> Unreachable:
    """Say what is wrong with a machine from the words of `ssh -v`.

    `locked_key` returns the file of a key that needs a passphrase, or None.
    """
    name = machine.name
    if "Host key verification failed" in said:
        return Unreachable(f"{name}: {_host_key_words(machine, said)}")
    if "Permission denied" in said or "Too many authentication failures" in said:
        return _denied(machine, said, locked_key())
    for pattern, what in _REASONS:
        if re.search(pattern, said):
            port = machine.port or 22
            return Unreachable(f"{name}: {what.format(host=machine.host, port=port)}")
    lines = without_debug(said)
    if "Authenticated to " in said:
        return Unreachable(
            f"{name}: login works, but commands do not run "
            f"({lines[-1] if lines else 'no output'}); "
            "check the account's shell there"
        )
    return Unreachable(f"{name}: {lines[-1] if lines else 'does not answer'}")


def _host_key_words(machine: Machine, said: str) -> str:
    """Say what is wrong with the key by which a machine shows who it is."""
    keys = host_keys(said)
    shown = f", {keys[-1]}" if keys else ""
    if "UNKNOWN port 65535" in said:  # the connection that failed is the one before
        return (
            f"the host key of its jump host{shown}, is not known; log "
            f"in once by hand: ssh {machine.host}"
        )
    if "IDENTIFICATION HAS CHANGED" in said:
        offending = re.search(r"Offending \S+ key in (.+?):(\d+)", said)
        file = f" -f {offending[1]}" if offending else ""
        has_port = machine.port not in (None, 22)
        known = f"[{machine.host}]:{machine.port}" if has_port else machine.host
        return (
            f"ITS HOST KEY HAS CHANGED{shown}: another machine may "
            "answer in its place; if you know why, forget the old one: "
            f"ssh-keygen -R '{known}'{file}"
        )
    return (
        f"its host key{shown}, is not known; compare it with what "
        "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub says there, and "
        "accept it with --accept_new_host_keys"
    )


_REASONS = (
    (
        "Could not resolve hostname",
        "no such host name ({host}); correct host, or name it in ~/.ssh/config",
    ),
    (
        "Connection refused",
        "refuses connections on port {port}; is sshd running there, and is it that port?",
    ),
    (
        "timed out|No route to host|Network is unreachable",
        "cannot be reached ({host}, port {port}); is it on, and is this the network?",
    ),
    (
        "kex_exchange_identification|Connection reset",
        "closes the connection before login; see the log of its sshd",
    ),
)


def _denied(machine: Machine, said: str, locked: str | None) -> Unreachable:
    name = machine.name
    user = re.findall(r"(\S+?)@\S+: Permission denied", said)
    whom = f" for {user[-1]}" if user else ""
    if loose := re.search(r"Permissions \d+ for '(.+?)' are too open", said):
        return Unreachable(
            f"{name}: ssh does not use {loose[1]}, which others can read; chmod 600 {loose[1]}"
        )
    if bad := re.search(r'Load key "(.+?)": (?!incorrect passphrase)(.+)', said):
        return Unreachable(f"{name}: ssh cannot read the key {bad[1]} ({bad[2].strip()})")
    if locked is not None:
        return PassphraseNeeded(
            f"{name}: the key {locked} needs its passphrase; unlock it first: ssh-add {locked}",
            locked,
        )
    if "Too many authentication failures" in said:
        return Unreachable(
            f"{name}: the agent offers too many keys; name the right one as sshKeyFile"
        )
    offered = re.findall(r"Offering public key: (.+?) (?:RSA|ED25519|ECDSA|DSA)\S* SHA256", said)
    tried = ", ".join(dict.fromkeys(offered)) or "no key at all"
    return Unreachable(
        f"{name}: login failed{whom} with {tried}; add the public key to "
        "~/.ssh/authorized_keys there, or name another as sshKeyFile"
    )


def host_keys(said: str) -> list[str]:
    """Return kind and fingerprint of each host key that was shown; the machine's is the last."""
    return re.findall(r"Server host key: (\S+ SHA256:\S+)", said)


def without_debug(said: str) -> list[str]:
    """Return what ssh would have said without -v."""
    lines = [line.strip() for line in said.splitlines()]
    dull = re.compile(r"debug\d: |Authenticated to |Transferred: |Bytes per second|OpenSSH_|$")
    return [line for line in lines if not dull.match(line)]
