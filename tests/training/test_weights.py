"""Weights: fetched from a server, checked by hash, read safely, fitted to a network."""

import functools
import hashlib
import http.server
import socket
import threading

import pytest
import torch
from torch import nn

from ballot.errors import UserError
from ballot.training.weights import (
    WeightsUnavailable,
    cached_weights,
    check_reachable,
    load_weights,
    published_weights,
)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder that is served on loopback, and an empty `TORCH_HOME`."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def publish(folder, state, digest=None):
    """Save a state dict under a name that holds its hash (or another); return the name."""
    path = folder / "weights.pth"
    torch.save(state, path)
    digest = digest or hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    path.rename(folder / f"net-{digest}.pth")
    return f"net-{digest}.pth"


def test_weights_are_fetched_once_and_then_found(server):
    folder, url = server
    name = publish(folder, {"weight": torch.ones(2)})
    assert cached_weights(f"{url}/{name}") is None
    assert torch.equal(published_weights(f"{url}/{name}")["weight"], torch.ones(2))
    (folder / name).unlink()
    assert cached_weights(f"{url}/{name}").name == name
    assert torch.equal(published_weights(f"{url}/{name}")["weight"], torch.ones(2))


def test_a_download_with_another_hash_is_refused_and_not_kept(server):
    folder, url = server
    name = publish(folder, {"weight": torch.ones(2)}, digest="01234567")
    with pytest.raises(WeightsUnavailable, match=r"net-01234567\.pth cannot be had.*hash"):
        published_weights(f"{url}/{name}")
    assert cached_weights(f"{url}/{name}") is None


def test_a_file_that_is_not_there_names_the_folder_to_put_it_into(server):
    with pytest.raises(WeightsUnavailable, match=r"cannot be had.*put the file into .*checkpoints"):
        published_weights(f"{server[1]}/net-01234567.pth")


def test_a_host_is_reachable_even_if_it_only_refuses(server):
    check_reachable(f"{server[1]}/nothing")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(WeightsUnavailable, match="cannot be reached"):
        check_reachable(f"http://127.0.0.1:{port}")
    assert socket.getdefaulttimeout() is None


def test_only_the_head_may_differ():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    state = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5)).state_dict()
    head = ["1.weight", "1.bias"]
    assert load_weights(model, state, "a.pt", head) == head
    assert torch.equal(model[0].weight, state["0.weight"])
    with pytest.raises(UserError, match=r"a.pt: does not fit.*'1.weight' is \[4, 3\] here and \[5"):
        load_weights(model, state, "a.pt", [])
    del state["0.bias"]
    with pytest.raises(UserError, match=r"'0.bias' is \[3\] here and not there \(3 of 4 differ\)"):
        load_weights(model, state, "a.pt", [])
