"""Compare the software and files of two machines, which must be equal for trials to give equal results."""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

import kdkit

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "timm", "safetensors")  # packages that affect results or files
STUDY_FOLDER = "study folder"

Environment = Mapping[str, str]  # versions and digests by package or file


def environment_of(files: Sequence[Path], token: Path) -> Environment:
    """Return the versions and digests of this machine.

    files: recipe files. token: a file in the study folder with random content. Another machine has the same content
    only if it shares the folder.
    """
    plugins = {point.dist.name for point in entry_points(group="kdkit") if point.dist is not None}
    environment = {"python": platform.python_version(), STUDY_FOLDER: _read(token).decode(errors="replace")}
    environment.update({name: _version(name) for name in sorted({*PACKAGES, *plugins} - {"kdkit"})})
    # Two states of a checkout may have the same version of kdkit.
    environment["kdkit"] = f"{kdkit.__version__} ({_digest(sorted(Path(kdkit.__file__).parent.rglob('*.py')))})"
    environment.update({str(file): _digest([file]) for file in files})
    return environment


def difference(local: Environment, remote: Environment) -> str | None:
    """Return the first difference of a remote machine, as the end of a message; None if there is none."""
    for name, value in local.items():
        remote_value = remote.get(name, "none")
        if remote_value == value:
            continue
        if name == STUDY_FOLDER:
            return "does not have the folder of this study; all machines must share one folder at the same path"
        action = "copy or share this file" if Path(name).is_absolute() else "install the same version"
        return f"has {name} {remote_value}, but this machine has {value}; {action}"
    return None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(_read(file))
    return digest.hexdigest()[:12]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # a missing file is a difference, not an error
        return b"none"
