"""Import files that are in no package: examples, benchmarks and tools."""

import importlib.util
from pathlib import Path
from types import ModuleType

from tests.helpers.command_line import ROOT


def load_module(path: str | Path) -> ModuleType:
    """Import a file of the repository; path: from its root."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
