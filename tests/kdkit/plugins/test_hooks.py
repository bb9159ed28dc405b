"""Every place a plugin may join in: documented with its exact arguments, and called with them."""

import inspect
from pathlib import Path

import pytest

from kdkit.plugins import events, hooks
from kdkit.plugins.manager import Plugins
from kdkit.plugins.registry import REGISTRIES

PAGE = Path(__file__).parents[3] / "docs" / "plugins.md"
HOOKS = {name: each for name, each in vars(hooks).items() if hasattr(each, "kdkit_spec")}


def test_there_is_a_hook_for_each_shelf_for_commands_and_for_each_event():
    told = [
        name for name, each in vars(events).items() if inspect.isclass(each) and name.endswith(("Started", "Ended"))
    ]
    watching = {"".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)[1:] for name in told}
    assert set(HOOKS) == {f"register_{kind}" for kind in REGISTRIES} | {"register_commands"} | watching


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_is_documented_with_its_exact_arguments(name):
    arguments = ", ".join(inspect.signature(HOOKS[name]).parameters)
    assert f"`{name}({arguments})`" in PAGE.read_text()


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_says_what_it_is_for(name):
    assert inspect.getdoc(HOOKS[name]).endswith(".")


@pytest.mark.parametrize("event", ["RunStarted", "StageStarted", "StepEnded", "EpochEnded", "RunEnded"])
def test_every_field_of_an_event_is_documented(event):
    section = PAGE.read_text().split(f"### {event}")[1].split("\n#")[0]
    for field in inspect.signature(getattr(events, event)).parameters:
        assert f"`{field}`" in section, f"{event}.{field}"


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_gives_every_argument_that_it_documents(name):
    arguments = tuple(inspect.signature(HOOKS[name]).parameters)
    got = {}
    written = f"def {name}(self, {', '.join(arguments)}):\n    got.update({', '.join(f'{a}={a}' for a in arguments)})"
    space = {"got": got}
    exec(written, space)
    plugin = type("Plugin", (), {name: hooks.hookimpl(space[name])})()
    mine = Plugins()
    mine.add(plugin, "mine")
    getattr(mine.hook, name)(**{argument: argument for argument in arguments})
    assert got == {argument: argument for argument in arguments}
