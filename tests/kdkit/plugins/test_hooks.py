"""Tests that each hook is documented with its exact arguments, and is called with them."""

import inspect
import re
from pathlib import Path

import pytest

from kdkit.plugins import events, hooks
from kdkit.plugins.manager import Plugins
from kdkit.plugins.registry import REGISTRIES

PAGE = Path(__file__).parents[3] / "docs" / "plugins.md"
HOOKS = {name: value for name, value in vars(hooks).items() if hasattr(value, "kdkit_spec")}


def test_there_is_a_hook_for_each_registry_and_event_and_for_commands_templates_and_reports():
    names = [
        name for name, value in vars(events).items() if inspect.isclass(value) and name.endswith(("Started", "Ended"))
    ]
    # RunStarted -> run_started
    callbacks = {"".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)[1:] for name in names}
    others = {"register_commands", "register_templates", "report_sections"}
    assert set(HOOKS) == {f"register_{kind}" for kind in REGISTRIES} | others | callbacks


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_is_documented_with_its_exact_arguments(name):
    arguments = ", ".join(inspect.signature(HOOKS[name]).parameters)
    assert f"`{name}({arguments})`" in PAGE.read_text()


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_has_a_docstring(name):
    assert inspect.getdoc(HOOKS[name]).endswith(".")


@pytest.mark.parametrize("event", ["RunStarted", "StageStarted", "StepEnded", "EpochEnded", "RunEnded"])
def test_every_field_of_an_event_is_documented(event):
    text = inspect.getdoc(getattr(events, event))
    for field in inspect.signature(getattr(events, event)).parameters:
        assert re.search(rf"\b{field}(, \w+)*:|`{field}`", text), f"{event}.{field}"


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_passes_every_argument_that_it_documents(name):
    arguments = tuple(inspect.signature(HOOKS[name]).parameters)
    received = {}
    # Write an implementation with exactly these arguments, which records them.
    updates = ", ".join(f"{argument}={argument}" for argument in arguments)
    code = f"def {name}(self, {', '.join(arguments)}):\n    received.update({updates})"
    namespace = {"received": received}
    exec(code, namespace)
    plugin = type("Plugin", (), {name: hooks.hookimpl(namespace[name])})()
    plugins = Plugins()
    plugins.add(plugin, "mine")
    getattr(plugins.hook, name)(**{argument: argument for argument in arguments})
    assert received == {argument: argument for argument in arguments}
