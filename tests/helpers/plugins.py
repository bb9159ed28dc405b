"""Install plugins, valid and invalid ones, as packages of one module."""

import shutil
from pathlib import Path

MODULES = Path(__file__).with_name("plugin_modules")


def install_plugin(name: str, site: Path) -> str:
    """Install a plugin as pip does, with an entry point, in a new folder for PYTHONPATH, and return the folder."""
    metadata = site / f"kdkit_{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kdkit-{name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[kdkit]\n{name} = kdkit_{name}\n")
    shutil.copy(MODULES / f"kdkit_{name}.py", site)
    return str(site)
