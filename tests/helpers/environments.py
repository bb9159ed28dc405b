"""Copies of the sources, and fresh environments to install them in, without a network."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.helpers.command_line import ROOT

# Also what a build leaves, since setuptools would pack it again.
_NOT_SOURCES = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "runs", "*.egg-info")


def copy_sources(folder: Path) -> Path:
    """Copy this checkout without what is generated, since a build writes into its folder. Returns the copy."""
    return Path(shutil.copytree(ROOT, folder / "sources", ignore=_NOT_SOURCES))


def fresh_environment(folder: Path) -> Path:
    """Make an environment that has the packages of this one, but not kdkit. Returns its Python."""
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=120)
    site = next(environment.glob("[Ll]ib/**/site-packages"))
    # The .pth files of that folder are not read in turn, so an editable kdkit in it is not found.
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return next(
        path for path in (environment / "bin" / "python", environment / "Scripts" / "python.exe") if path.exists()
    )


def install(python: Path, *args: object) -> Path:
    """Install a package into the environment of a Python, without dependencies. Returns its site-packages."""
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, *args], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return next(python.parents[1].glob("[Ll]ib/**/site-packages"))
