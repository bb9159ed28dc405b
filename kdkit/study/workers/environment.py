"""What must be alike wherever the cells of a study are run, and in what two places differ."""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

import kdkit

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "timm", "safetensors")  # that figures or files pass through
SHARED = "study folder"

Conditions = Mapping[str, str]


def conditions(files: Sequence[Path], token: Path) -> Conditions:
    """Return versions, digests of kdkit's own code and of recipe files, and what `token` in the study's folder says."""
    plugins = {point.dist.name for point in entry_points(group="kdkit") if point.dist is not None}
    found = {"python": platform.python_version(), SHARED: _read(token).decode(errors="replace")}
    found.update({name: _version(name) for name in sorted({*PACKAGES, *plugins} - {"kdkit"})})
    found["kdkit"] = f"{kdkit.__version__} ({_digest(sorted(Path(kdkit.__file__).parent.rglob('*.py')))})"
    found.update({str(file): _digest([file]) for file in files})
    return found


def difference(here: Conditions, there: Conditions) -> str | None:
    """Return what is the matter with another place, in words; None where it is like this one."""
    for what, value in here.items():
        other = there.get(what, "none")
        if other == value:
            continue
        if what == SHARED:
            return (
                "does not see the study's folder as it is here; cells are run in one folder that all machines share, "
                "at the same path"
            )
        action = "copy or share this file" if Path(what).is_absolute() else "install the same version"
        return f"has {what} {other}, and here it is {value}; {action}"
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
    except OSError:
        return b"none"
