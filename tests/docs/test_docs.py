"""Run the Python blocks of the README and of the docs, and check the calls in their sentences."""

import ast
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import kdkit
import kdkit_ecg
from kdkit.cli.main import cli

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_of_a_page_run_in_order(page, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)  # blocks write their run folders to the current one
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    namespace: dict[str, object] = {"__name__": page.stem}
    for block in blocks:  # with one namespace, since later blocks use the names of earlier ones
        exec(compile(block, str(page), "exec"), namespace)
        output = capsys.readouterr().out
        for printed in re.findall(r"^print\(.*\)\n# (.*)$", block, flags=re.MULTILINE):
            assert printed in output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_calls_in_sentences_of_a_page_have_arguments_that_exist(page):
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`([^`]+)`", text):
        try:
            tree = ast.parse(code.replace("\\|", "|"), mode="eval")
        except SyntaxError:  # no Python
            continue
        for call in [node for node in ast.walk(tree) if isinstance(node, ast.Call)]:
            function = _public(ast.unparse(call.func))
            if function is None or (isinstance(function, type) and issubclass(function, Exception)):
                continue
            parameters = inspect.signature(function).parameters
            if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                continue
            assert {keyword.arg for keyword in call.keywords} <= set(parameters), code


def _public(name):
    """Return what a name such as "SoftTargets", "kdkit.losses.SoftTargets" or "nn.Linear" stands for, or None."""
    modules = (kdkit, kdkit.losses, kdkit.metrics, kdkit.loggers, kdkit.testing, kdkit_ecg)
    first, _dot, rest = name.partition(".")
    if not re.fullmatch(r"[\w.]+", name):  # a call of what another call returns
        return None
    if first in ("kdkit", "kdkit_ecg"):
        return pkgutil.resolve_name(name)
    if first == "nn":
        return pkgutil.resolve_name(f"torch.nn.{rest}")
    owner = next((module for module in modules if first in module.__all__), None)
    return None if owner is None else pkgutil.resolve_name(f"{owner.__name__}.{name}")


def test_the_pages_of_metrics_and_loggers_name_all_of_them():
    metrics, loggers = ((ROOT / "docs" / f"{name}.md").read_text() for name in ("metrics", "loggers"))
    registered = kdkit.registry("metrics")
    for name in registered:
        if registered.plugin(name) == "kdkit":
            assert f"`{registered[name].__name__}(" in metrics, name
    for name in kdkit.registry("loggers"):
        assert f"\n| `{name}` |" in loggers, name


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
