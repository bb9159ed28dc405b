"""Every example runs, through the command line, as small as its own options let it be."""

import ast
import json

import pytest

from tests.helpers.command_line import ROOT

EXAMPLES = ROOT / "examples"

TINY = {
    "fitnet": ["--epochs", "1", "--records", "32"],
    "hinton": ["--epochs", "1"],
    "lrhnet_pmlkd": ["--epochs", "1", "--width", "4", "--records", "64"],
    "lrhnet_smlkd": ["--epochs", "1", "--width", "4", "--records", "64"],
    "custom_loss": ["--epochs", "1"],
    "timm_digits": ["--epochs", "1"],
    "all_losses": ["--epochs", "1", "--data", "ecg", "--samples", "16"],
}
SLOW = {"timm_digits"}


def test_every_example_has_tiny_settings_and_every_setting_an_example():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(TINY)


@pytest.mark.parametrize("name", [pytest.param(each, marks=[pytest.mark.slow] * (each in SLOW)) for each in TINY])
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_an_example_runs(name, kdkit_here, tmp_path):
    said = kdkit_here("run", EXAMPLES / f"{name}.py", *TINY[name], "--device", "cpu", "--out", "run")
    assert said.code == 0, said.err
    table = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert len(table["metrics"]) >= 2
    assert all(metrics for metrics in table["metrics"].values())
    assert "Metrics on" in said.out


@pytest.mark.parametrize("name", TINY)
def test_an_example_says_how_it_is_run_and_what_its_options_are(name, kdkit_here):
    said = kdkit_here("run", EXAMPLES / f"{name}.py", "--help")
    assert said.code == 0
    assert f"kdkit run examples/{name}.py" in said.out
    assert TINY[name][0] in said.out


def test_a_loss_of_ones_own_is_a_plugin_of_at_most_fifteen_lines():
    text = (EXAMPLES / "custom_loss.py").read_text()
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name != "recipe"]
    assert any(node.decorator_list for node in functions)
    spans = [
        (min([node.lineno, *(each.lineno for each in node.decorator_list)]), node.end_lineno) for node in functions
    ]
    assert sum(last - first + 1 for first, last in spans if last is not None) <= 15
