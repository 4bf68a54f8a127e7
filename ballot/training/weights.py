"""Weights from a file into a network: found, checked by hash, read without code, fitted."""

from __future__ import annotations

import hashlib
import http.client
import logging
import pickle
import re
import socket
import urllib.error
import urllib.request
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ballot.errors import UserError
from ballot.values import Values

log = logging.getLogger(__name__)

HASH = re.compile(r"-([a-f0-9]{8,})\.")  # the beginning of the file's SHA-256
TIMEOUT = 30  # seconds without an answer: a machine behind a silent firewall must not hang


class WeightsUnavailable(UserError):
    """Published weights that cannot be had: no network, no room, a damaged file."""


def cached_weights(url: str) -> Path | None:
    """Return the file of `url` in `TORCH_HOME` if it is there and has the hash in its name."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        return None
    wanted = HASH.search(path.name)
    if wanted:
        found = _sha256(path)
        if not found.startswith(wanted[1]):
            raise WeightsUnavailable(
                f"{path}: is damaged, its hash begins with {found[:8]} and not {wanted[1]}; "
                "delete it to have it fetched again"
            )
    return path


def published_weights(url: str) -> Mapping[str, Tensor]:
    """Read the state dict of `url` from `TORCH_HOME`, where it is put first if it is not there."""
    return read_weights(cached_weights(url) or fetch_weights(url))


def fetch_weights(url: str) -> Path:
    """Download `url` into `TORCH_HOME`, checked by the hash in its name, and return the file."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    wanted = HASH.search(path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _timeout(TIMEOUT):  # into a temporary file, checked, then renamed
            torch.hub.download_url_to_file(
                url, str(path), hash_prefix=wanted[1] if wanted else None, progress=False
            )
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise WeightsUnavailable(
            f"{url} cannot be had ({error}); put the file into {path.parent}"
        ) from error
    return path


def check_reachable(url: str) -> None:
    """Raise `WeightsUnavailable` if the host of `url` does not answer at once."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return  # an answer all the same
    except (OSError, http.client.HTTPException) as error:
        raise WeightsUnavailable(f"{url} cannot be reached ({error})") from error


def refuse_bomb(path: Path) -> None:
    """Raise `ValueError` where a small file would take a lot of memory to read.

    A checkpoint is a zip file whose parts are stored as they are; weights hardly shrink anyway.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as file:
        if sum(part.file_size for part in file.infolist()) > 4 * path.stat().st_size:
            raise ValueError("its parts unpack to many times the file's size")


def read_weights(path: str | Path) -> Mapping[str, Tensor]:
    """Read the weights in a state dict's file, a checkpoint, or the `best.pt` of a run folder.

    Nothing in the file is executed. What holds no weights is a `UserError` that names it.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "best.pt"
    try:
        refuse_bomb(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); name a run folder or a file of weights"
        ) from None
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
    ):
        raise UserError(f"{path}: is no file of weights that is safe to load") from None
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not any(isinstance(v, Tensor) for v in loaded.values()):
        raise UserError(f"{path}: holds no state dict; save one with torch.save")
    check_tensors(path, loaded)
    return loaded


def check_tensors(path: Path, state: Mapping[Any, object]) -> None:
    """Refuse weights without a name, and those that are no plain arrays of numbers."""
    for name, value in state.items():
        if not isinstance(name, str):
            raise UserError(f"{path}: has weights called {name!r}; their names are texts")
        if isinstance(value, Tensor) and not _is_plain(value):
            raise UserError(f"{path}: {name!r} is sparse, quantised, complex or empty; save others")


def _is_plain(value: Tensor) -> bool:
    odd = value.is_quantized or value.is_meta or value.is_complex()
    return value.layout == torch.strided and not odd


def load_weights(model: nn.Module, state: Values, source: str, head: Iterable[str]) -> list[str]:
    """Load `state` into `model`, whose classifier has the parameters `head`.

    Only the classifier may differ or be missing: those names start anew and are returned. Names
    that are all different are another project's: then the order counts. Any other difference is a
    `UserError` with the first name that does not fit.
    """
    own, head = model.state_dict(), set(head)
    given = {_bare(name): value for name, value in state.items() if isinstance(value, Tensor)}
    given = _by_our_names(given, own, head, source)
    anew = [n for n in own if n not in given and not n.endswith("num_batches_tracked")]
    anew += [n for n in own if n in given and given[n].shape != own[n].shape]
    misfits = [name for name in anew if name not in head]
    if misfits:
        name = misfits[0]
        there = f"{list(given[name].shape)} there" if name in given else "not there"
        raise UserError(
            f"{source}: does not fit this model; {name!r} is {list(own[name].shape)} here and "
            f"{there} ({len(misfits)} of {len(own)} differ)"
        )
    fitting: Any = type(own)((n, v) for n, v in given.items() if n in own and n not in anew)
    # Some networks (torchvision's mnasnet) read the version of their layout from here.
    fitting._metadata = getattr(state, "_metadata", None) or getattr(own, "_metadata", None)
    model.load_state_dict(fitting, strict=False)
    return anew


# How the layers of a block are called in efficientnet-lite's files, and in timm: one without an
# expansion (a stage of depthwise-separable convolutions), one with it.
SEPARABLE = ("conv_dw", "bn1", "conv_pw", "bn2")
SEPARABLE_THERE = ("_depthwise_conv", "_bn1", "_project_conv", "_bn2")
INVERTED = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
INVERTED_THERE = ("_expand_conv", "_bn0", *SEPARABLE_THERE)
OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}


def lite_names(state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """Rename the weights of an efficientnet-lite package to those of timm's `model`."""
    places = [name for name, _ in model.named_modules() if re.fullmatch(r"blocks\.\d+\.\d+", name)]
    renamed = OrderedDict()
    for name, value in state.items():
        part, _, rest = name.partition(".")
        if part != "_blocks":
            renamed[f"{OUTER[part]}.{rest}"] = value
            continue
        number, layer, kind = rest.split(".")
        expands = f"_blocks.{number}._expand_conv.weight" in state
        there, here = (INVERTED_THERE, INVERTED) if expands else (SEPARABLE_THERE, SEPARABLE)
        renamed[f"{places[int(number)]}.{here[there.index(layer)]}.{kind}"] = value
    return renamed


def _by_our_names(
    given: dict[str, Tensor], own: Mapping[str, Tensor], head: set[str], source: str
) -> dict[str, Tensor]:
    """Name weights as `own` does where every name differs, but no shape outside of the `head`."""
    if set(given) & set(own) or len(given) != len(own):
        return given
    pairs = dict(zip(own, given.values()))
    if any(value.shape != own[name].shape for name, value in pairs.items() if name not in head):
        return given
    log.info("%s: has names of its own, and the same shapes in the same order", source)
    return pairs


def _bare(name: str) -> str:
    """Strip what wrapping for compilation or several processes puts before a name."""
    return re.sub(r"^(module\.|_orig_mod\.)+", "", name)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
