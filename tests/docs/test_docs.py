"""Run the Python blocks of the README and of the docs."""

import pkgutil
import re
from pathlib import Path

import pytest
import torch

from kdkit.cli.main import cli

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_of_a_page_run_in_order(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # blocks write their run folders to the current one
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    namespace: dict[str, object] = {"__name__": page.stem}
    for block in blocks:  # with one namespace, since later blocks use the names of earlier ones
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_names_of_kdkit_in_a_page_exist(page):
    for name in re.findall(r"(?<![\w./-])kdkit(?:_ecg)?(?:\.[A-Za-z]\w*)+", page.read_text()):
        if not name.endswith(".json"):  # a file
            pkgutil.resolve_name(name)


def test_readme_opens_with_its_two_commands():
    readme = (ROOT / "README.md").read_text().splitlines()[:10]
    assert "pip install -e . && kdkit run examples/lrhnet_smlkd.py" in readme
    assert "pip install -e '.[test]' && pytest" in readme


def test_the_page_of_the_command_line_has_every_command():
    text = (ROOT / "docs" / "command-line.md").read_text()
    for name in cli.commands:
        assert f"| `kdkit {name}" in text, name


def test_the_first_sample_of_the_readme_distills_something():
    block = re.search(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert block is not None
    accuracies = []
    for text in (block[1], block[1].replace("training=training)", "training=training, label_weight=1)")):
        namespace: dict[str, object] = {"__name__": "readme"}
        torch.manual_seed(0)
        exec(compile(text, "README.md", "exec"), namespace)
        accuracies.append(namespace["result"].metrics["student"]["accuracy"].value)
    distilled, alone = accuracies
    assert distilled > 0.9
    assert distilled > alone + 0.05
