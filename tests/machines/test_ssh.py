"""Links to other machines: the configuration's words, ssh's words, and two real sshd."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ballot.engines.nni.machine_list import NO_KEY, machines_of
from ballot.errors import UserError
from ballot.machines.machine import Machine
from ballot.machines.ssh import Agent, Link, open_links, shell_word
from ballot.machines.ssh_errors import PassphraseNeeded, Unreachable, diagnose

ROOT = Path(__file__).resolve().parents[2]
SHA = "SHA256:abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG"


def v2(*entries):
    return {"trainingService": {"platform": "remote", "machineList": list(entries)}}


# ---------------------------------------------------------------- the configuration


def test_both_versions_of_a_configuration_name_the_same_machines(tmp_path):
    (tmp_path / "key").touch()
    new = v2({"host": "a", "port": 2222, "user": "u", "sshKeyFile": "key", "pythonPath": "/v/bin"})
    old = {
        "trainingServicePlatform": "remote",
        "machineList": [
            {"ip": "a", "port": 2222, "username": "u", "sshKeyPath": "key", "pythonPath": "/v/bin"}
        ],
    }
    expected = [Machine("a", 2222, "u", str(tmp_path / "key"), "/v/bin", "a")]
    assert machines_of(new, tmp_path) == machines_of(old, tmp_path) == expected


def test_what_a_configuration_leaves_out_is_left_to_ssh():
    assert machines_of(v2({"host": "far"})) == [Machine("far", None, None, None, None, "far")]


@pytest.mark.parametrize("key", [NO_KEY, "~/.ssh/id_rsa"])
def test_a_key_that_stands_for_none_is_none(key, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert machines_of(v2({"host": "a", "sshKeyFile": key}))[0].key_file is None


def test_names_are_unique():
    names = [
        m.name for m in machines_of(v2({"host": "a"}, {"host": "a", "port": 23}, {"host": "b"}))
    ]
    assert names == ["a:22", "a:23", "b"]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([], "names no machine"),
        ([{"user": "u"}], "machine 1: names no host"),
        ([{"host": "-oProxyCommand=x"}], "host '-oProxyCommand=x' is none"),
        ([{"host": "a", "user": "-x"}], "user '-x' is none"),
        ([{"host": "a", "port": 70000}], "port 70000 is none"),
        ([{"host": "a"}, {"host": "b", "password": "x"}], "machine 2: has a password in the file"),
        ([{"host": "a", "sshPassphrase": "x"}], "has a sshpassphrase in the file"),
        ([{"host": "a"}, {"host": "a", "user": "x"}], "a:22 is there twice"),
    ],
)
def test_entries_that_cannot_be_used_are_refused(entries, said):
    with pytest.raises(UserError, match=r"^machineList: ") as error:
        machines_of(v2(*entries))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("python", "interpreter"),
    [
        (None, "python3"),
        ("$HOME/.ballot/venv/bin", "$HOME/.ballot/venv/bin/python3"),
        ("/usr/bin/", "/usr/bin/python3"),
        ("/usr/bin/python3.12", "/usr/bin/python3.12"),
    ],
)
def test_a_python_path_is_a_folder_or_an_interpreter(python, interpreter):
    assert Machine("a", python=python).interpreter == interpreter


@pytest.mark.parametrize("path", ["~/a b", "$HOME/a b", "${HOME}/a b"])
def test_a_home_in_a_path_is_the_machines(path):
    said = subprocess.run(
        ["sh", "-c", f"printf %s {shell_word(path)}"],
        env={"HOME": "/h x"},
        capture_output=True,
        text=True,
    ).stdout
    assert said == "/h x/a b"


@pytest.mark.parametrize("path", ["/a $(touch x)`y`", "-x", "a'b", "/$HOME/a"])
def test_anything_else_in_a_path_is_taken_as_it_is(path):
    said = subprocess.run(
        ["sh", "-c", f"printf %s {shell_word(path)}"], capture_output=True, text=True
    ).stdout
    assert said == path


def test_the_callers_ssh_options_come_first_since_the_first_one_counts():
    words = Link(Machine("a", 2222, "u", "/k")).ssh_words(["-o", "ServerAliveInterval=99"])
    assert words.index("ServerAliveInterval=99") < words.index("ServerAliveInterval=15")
    assert " ".join(words).endswith("-p 2222 -l u -i /k -o IdentitiesOnly=yes -xaT a")
    assert "StrictHostKeyChecking=yes" in words


# ---------------------------------------------------------------- ssh's words


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("ssh: Could not resolve hostname h: Name or service not known", "no such host name"),
        (
            "ssh: connect to host h port 2222: Connection refused",
            "refuses connections on port 2222",
        ),
        ("ssh: connect to host h port 2222: Connection timed out", "cannot be reached"),
        ("ssh: connect to host h port 2222: No route to host", "cannot be reached"),
        (f"debug1: Server host key: ssh-ed25519 {SHA}\nHost key verification failed.", SHA),
        (
            "WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!\n"
            "Offending ED25519 key in /k/hosts:7\n"
            "Host key verification failed.",
            "ssh-keygen -R '[h]:2222' -f /k/hosts",
        ),
        ("Host key verification failed.\nConnection closed by UNKNOWN port 65535", "its jump host"),
        (
            f"debug1: Offering public key: /k/id ED25519 {SHA} explicit\n"
            "ann@h: Permission denied (publickey).",
            "login failed for ann with /k/id;",
        ),
        ("ann@h: Permission denied (publickey).", "with no key at all"),
        (
            "Permissions 0644 for '/k/id' are too open.\nann@h: Permission denied (publickey).",
            "chmod 600 /k/id",
        ),
        (
            'Load key "/k/id": invalid format\nann@h: Permission denied (publickey).',
            "ssh cannot read the key /k/id",
        ),
        ("Received disconnect from h port 22:2: Too many authentication failures", "too many keys"),
        (
            "kex_exchange_identification: Connection closed by remote host",
            "closes the connection before login",
        ),
        (
            'Authenticated to h ([h]:22) using "publickey".\n'
            "This account is currently not available.",
            "commands do not run (This account is currently not available.)",
        ),
        ("debug1: nothing\nsomething new", "something new"),
        ("", "does not answer"),
    ],
)
def test_ssh_is_understood(said, what):
    error = diagnose(Machine("h", 2222, name="box"), said, lambda: None)
    assert str(error).startswith("box: ") and what in str(error) and "\n" not in str(error)


def test_a_locked_key_is_the_reason_where_there_is_one():
    said = "ann@h: Permission denied (publickey)."
    error = diagnose(Machine("h"), said, lambda: "/k/id")
    assert isinstance(error, PassphraseNeeded) and error.key == "/k/id"
    assert "ssh-add /k/id" in str(error)


# ---------------------------------------------------------------- real machines


@pytest.fixture
def link(lab):
    """A link to the first machine."""
    links = []

    def make(number=0, *, options=(), agent=None, **changes):
        machine = lab.boxes[number].machine(**changes)
        links.append(Link(machine, ssh_options=[*lab.ssh_options, *options], agent=agent))
        return links[-1]

    yield make
    for each in links:
        each.close()
    lab.know_all()
    lab.configure()


@pytest.mark.slow
def test_commands_and_programs_run_there_over_one_connection(link, lab):
    one = link()
    one.open()
    done = one.run("cat; echo $HOME >&2; exit 3", input=bytes(range(256)))
    assert (done.status, done.stdout, done.stderr) == (3, bytes(range(256)), b"/home/ann\n")
    args = [{"ä": "'\"\\ \n"}, None, "x" * 300_000]
    source = "import socket\nprint(json.dumps([socket.gethostname(), args]))"
    assert one.python(source, *args) == ["box1", args]
    log = (lab.boxes[0].folder / "sshd.log").read_text()
    assert len(re.findall("Accepted publickey", log)) == 1


@pytest.mark.slow
def test_what_a_shell_prints_at_login_is_no_answer(link, lab):
    (lab.boxes[0].home / ".bashrc").write_text("echo welcome\n")
    one = link()
    one.open()
    assert one.python("print(json.dumps(len(args)))", 1, 2) == 2
    (lab.boxes[0].home / ".bashrc").unlink()


@pytest.mark.slow
def test_failures_there_are_one_line(link):
    one = link()
    one.open()
    for source, how, said in (
        ("raise OSError('too late')", {}, "failed: OSError: too late"),
        ("", {"interpreter": "/no/python"}, "no interpreter /no/python"),
        ("import time; time.sleep(9)", {"timeout": 0.5}, "did not answer within 0 s"),
    ):
        with pytest.raises(UserError, match=said):
            one.python(source, **how)


@pytest.mark.slow
def test_an_unknown_host_key_is_shown_and_taken_only_where_that_is_said(link, lab):
    lab.known_hosts.write_text("")
    box = lab.boxes[0]
    shown = subprocess.run(
        ["ssh-keygen", "-lf", box.folder / "host_key.pub"], text=True, capture_output=True
    ).stdout.split()[1]
    with pytest.raises(Unreachable, match="accept_new_host_keys") as error:
        link().open()
    assert shown in str(error.value) and lab.known_hosts.read_text() == ""
    trusting = Link(box.machine(), accept_new_host_keys=True, ssh_options=lab.ssh_options)
    trusting.open()
    trusting.close()
    assert trusting.news == [f"its host key is now known: ssh-ed25519 {shown}"]
    link().open()  # it is written down


@pytest.mark.slow
def test_a_changed_host_key_is_refused_whatever_is_said(lab):
    one, other = lab.boxes
    lab.known_hosts.write_text(f"{one.address} {(other.folder / 'host_key.pub').read_text()}")
    for trusting in (False, True):
        with pytest.raises(Unreachable, match=r"HAS CHANGED.*ssh-keygen -R"):
            Link(one.machine(), trusting, lab.ssh_options).open()
    lab.know_all()


@pytest.mark.slow
def test_keys_of_both_kinds_open_and_others_are_named(link, lab):
    link(key_file=str(lab.rsa_key)).open()
    for key, said in (
        (lab.wrong_key, f"login failed for ann with {lab.wrong_key}"),
        (lab.folder / "none", "its key file .*none is not there"),
    ):
        with pytest.raises(Unreachable, match=said):
            link(key_file=str(key)).open()


@pytest.mark.slow
def test_an_agent_holds_a_locked_key(link, lab, monkeypatch):
    key = str(lab.locked_key)
    with pytest.raises(PassphraseNeeded, match=f"ssh-add {key}"):
        link(key_file=key).open()
    answer = lab.folder / "askpass"
    answer.write_text("#!/bin/sh\necho open sesame\n")
    answer.chmod(0o700)
    monkeypatch.setenv("SSH_ASKPASS", str(answer))
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    agent = Agent()
    agent.add(key)
    link(key_file=key, agent=agent).open()
    monkeypatch.setenv("SSH_AUTH_SOCK", agent.socket)  # as a person's own
    link(key_file=key).open()
    link(key_file=None).open()  # nothing in the file: what the agent has
    agent.close()


ASKING = """
import sys
sys.path.insert(0, {root!r})
from ballot.machines.machine import Machine
from ballot.machines.ssh import Link, open_links
links = [Link(Machine(host, None, "ann", {key!r}), ssh_options={options!r}) for host in {hosts!r}]
print("opened", open_links(links, interactive=True), flush=True)
"""


def typing(program, answers, patience=60.0):
    """Run a program on a terminal of its own, and answer each question as it comes."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", program])
    said, deadline = "", time.monotonic() + patience
    while time.monotonic() < deadline and select.select([terminal], [], [], patience)[0]:
        try:
            said += os.read(terminal, 4096).decode()
        except OSError:  # it has ended
            break
        if answers and answers[0][0] in said.rsplit("\n", 1)[-1]:
            os.write(terminal, answers.pop(0)[1].encode() + b"\n")
    os.close(terminal)
    os.kill(pid, signal.SIGKILL) if time.monotonic() > deadline else None
    os.waitpid(pid, 0)
    return said


@pytest.mark.slow
def test_a_passphrase_is_asked_for_once_for_all_machines_and_kept_nowhere(lab):
    program = ASKING.format(
        root=str(ROOT),
        key=str(lab.locked_key),
        options=lab.ssh_options,
        hosts=[box.address for box in lab.boxes],
    )
    said = typing(program, [("Enter passphrase", "open sesame")])
    assert said.count("Enter passphrase") == 1 and "opened [None, None]" in said
    assert "sesame" not in said
    wrong = typing(program, [("Enter", "x"), ("try again", ""), ("Enter", "")])  # "" gives up
    assert wrong.count("wrong passphrase; the key is still locked") == 2


@pytest.mark.slow
def test_an_alias_of_ssh_config_leads_through_a_jump_host(lab):
    one, two = lab.boxes
    lab.configure(
        f"Host hop\n HostName {one.address}\n User ann\n IdentityFile {lab.key}\n"
        f"Host far\n HostName {two.address}\n User ann\n IdentityFile {lab.key}\n"
        " ProxyJump hop\n"
    )
    far = Link(Machine("far", python=sys.executable), ssh_options=lab.ssh_options)
    far.open()
    assert far.run("hostname; echo $SSH_CONNECTION").stdout.split()[:2] == [
        b"box2",
        one.address.encode(),
    ]
    far.close()
    lab.known_hosts.write_text("")
    with pytest.raises(Unreachable, match="the host key of its jump host, ssh-ed25519 SHA256:"):
        far.open()
    lab.know_all()
    one.cut()
    with pytest.raises(Unreachable, match="far: cannot be reached"):
        far.open()
    one.restore()
    lab.configure()


@pytest.mark.slow
def test_a_machine_that_goes_is_noticed_and_comes_back(link, lab):
    box, one = lab.boxes[0], link()
    one.open()
    box.kill_all()
    deadline = time.monotonic() + 10
    while one.alive() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not one.alive() and "closed by remote host" in one.why()
    with pytest.raises(Unreachable, match="refuses connections"):
        one.run("true")
    box.start_sshd()
    one.open()
    assert one.run("echo again").stdout == b"again\n"


@pytest.mark.slow
def test_nothing_stays_where_the_program_is_killed(lab):
    program = ASKING.format(
        root=str(ROOT), key=str(lab.key), options=lab.ssh_options, hosts=[lab.boxes[0].address]
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program + "import time; time.sleep(99)"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "opened [None]\n"
    assert any("cat" in line for line in lab.boxes[0].processes())
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while len(lab.boxes[0].processes()) > 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(lab.boxes[0].processes()) == 1, "its sshd alone"


@pytest.mark.slow
def test_several_are_opened_at_once_and_each_says_what_is_wrong(lab):
    good, bad = lab.boxes[0].machine(), lab.boxes[1].machine(key_file=str(lab.wrong_key))
    links = [Link(machine, ssh_options=lab.ssh_options) for machine in (good, bad)]
    fine, wrong = open_links(links)
    assert fine is None and "login failed" in str(wrong)
    assert json.dumps([link.alive() for link in links]) == "[true, false]"
    links[0].close()
