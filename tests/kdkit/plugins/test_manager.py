"""Tests of the plugin manager: plugins are found, refused, and registered."""

import re
import time
import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from kdkit import hookimpl
from kdkit.errors import PluginError, PluginWarning, RecipeError
from kdkit.plugins import manager
from kdkit.plugins.manager import Plugins, installed, registry
from kdkit.plugins.registry import REGISTRIES


def my_loss(student, target):
    return (student - target).square().mean()


class Losses:
    @hookimpl
    def register_losses(self, register):
        register("my_loss", my_loss)


def test_a_plugin_registers_a_loss():
    plugins = Plugins()
    plugins.add(Losses(), "mine")
    assert plugins.registry("losses")["my_loss"] is my_loss
    assert plugins.registry("losses").plugin("my_loss") == "mine"


def test_a_hook_may_take_no_arguments():
    class NoArguments:
        @hookimpl
        def register_losses(self):
            NoArguments.called = True

    plugins = Plugins()
    plugins.add(NoArguments(), "mine")
    assert len(plugins.registry("losses")) == 0
    assert NoArguments.called


def test_registries_are_built_again_after_a_plugin_is_added_or_removed():
    plugins, plugin = Plugins(), Losses()
    assert "my_loss" not in plugins.registry("losses")
    plugins.add(plugin, "mine")
    assert "my_loss" in plugins.registry("losses")
    plugins.remove(plugin)
    assert "my_loss" not in plugins.registry("losses")
    plugins.remove(plugin)  # a second time: no error


def test_a_plugin_that_is_added_twice_is_there_once():
    plugins, plugin = Plugins(), Losses()
    plugins.add(plugin, "mine")
    plugins.add(plugin, "again")
    assert plugins.registry("losses").plugin("my_loss") == "mine"


def test_two_plugins_of_one_name_are_refused():
    plugins = Plugins()
    plugins.add(Losses(), "mine")
    with pytest.raises(PluginError, match="a plugin named 'mine' is already loaded"):
        plugins.add(Losses(), "mine")


def test_a_misspelt_hook_is_refused_by_name_and_its_plugin_is_not_added():
    class Misspelt:
        @hookimpl
        def register_loses(self, register):
            """Never called."""

    plugins = Plugins()
    with pytest.raises(PluginError, match=r"implements 'register_loses', .*did you mean 'register_losses'"):
        plugins.add(Misspelt(), "mine")
    plugins.add(Losses(), "valid")
    assert list(plugins.registry("losses")) == ["my_loss"]


def test_a_hook_with_an_unknown_argument_is_refused():
    class UnknownArgument:
        @hookimpl
        def epoch_ended(self, event, model):
            """Never called."""

    plugins = Plugins()
    with pytest.raises(
        PluginError, match=r"'epoch_ended' with an argument 'model', which kdkit does not pass; there are: event"
    ):
        plugins.add(UnknownArgument(), "mine")
    assert plugins.manager.get_plugins() == set()


def test_a_hook_that_raises_is_named_with_its_plugin():
    class Broken:
        @hookimpl
        def register_losses(self, register):
            raise ImportError("no module named 'nowhere'")

    plugins = Plugins()
    plugins.add(Broken(), "mine")
    with pytest.raises(PluginError, match=r"plugin 'mine'.*no module named 'nowhere'"):
        plugins.registry("losses")


def test_two_plugins_that_register_the_same_name_are_refused():
    class SameName:
        @hookimpl
        def register_losses(self, register):
            register("my_loss", max)

    plugins = Plugins()
    plugins.add(Losses(), "first")
    plugins.add(SameName(), "second")
    with pytest.raises(PluginError, match=r"plugin 'second'.*plugin 'first' already has"):
        plugins.registry("losses")


def test_the_error_for_an_unknown_registry_suggests_the_nearest():
    with pytest.raises(PluginError, match="'loss' is not a registry; did you mean 'losses'"):
        registry("loss")


def test_the_built_in_plugin_registers_entries_of_every_kind():
    for kind in ("losses", "taps", "schedules", "ramps", "models", "datasets", "metrics", "loggers"):
        assert any(registry(kind).plugin(name) == "kdkit" for name in registry(kind)), kind
    assert set(REGISTRIES) == {
        "losses",
        "taps",
        "schedules",
        "ramps",
        "models",
        "datasets",
        "metrics",
        "loggers",
        "exporters",
    }


class Recorder:
    """A callback that records the events of one hook in a shared list."""

    def __init__(self, events):
        self.events = events

    @hookimpl
    def run_started(self, event):
        self.events.append(event)


def test_callbacks_of_one_run_are_not_called_in_the_next():
    events = []
    extended = installed().extended([Recorder(events)])
    extended.hook.run_started(event=1)
    installed().hook.run_started(event=2)
    assert events == [1]


def test_extended_plugins_include_those_that_were_there_before():
    assert set(installed().extended([Losses()]).registry("losses")) == {*registry("losses"), "my_loss"}


def test_two_callbacks_of_one_class_are_both_called():
    events = []
    installed().extended([Recorder(events), Recorder(events)]).hook.run_started(event=1)
    assert events == [1, 1]


@dataclass
class EqualRecorder(Recorder):
    events: list


def test_two_callbacks_that_are_equal_are_refused_and_one_that_is_passed_twice_is_called_once():
    first = EqualRecorder([])
    with pytest.raises(PluginError, match=r"plugins .EqualRecorder-\d+. and .* are equal .*@dataclass\(eq=False\)"):
        installed().extended([first, EqualRecorder([])])
    installed().extended([first, first]).hook.run_started(event=1)
    assert first.events == [1]


def entry_point(name, load):
    return SimpleNamespace(name=name, value="somewhere", dist=SimpleNamespace(name="a-package"), load=load)


def load_plugins(monkeypatch, *points):
    """Return the installed plugins of an environment with exactly these entry points."""
    monkeypatch.setattr(manager, "entry_points", lambda group: list(points) if group == "kdkit" else [])
    return installed.__wrapped__()  # without its cache


def test_installed_plugins_are_found_by_their_entry_points(monkeypatch):
    assert "my_loss" in load_plugins(monkeypatch, entry_point("mine", Losses)).registry("losses")


def raise_import_error():
    raise ImportError("no module named 'nowhere'\nand a second line")


def test_a_plugin_that_cannot_be_imported_is_skipped_with_one_warning(monkeypatch):
    points = entry_point("broken", raise_import_error), entry_point("mine", Losses)
    with pytest.warns(RuntimeWarning, match="plugin 'broken' of a-package is skipped.*'nowhere'") as caught:
        plugins = load_plugins(monkeypatch, *points)
    assert len(caught) == 1
    assert "second line" not in str(caught[0].message)
    assert "my_loss" in plugins.registry("losses")
    assert "soft_targets" in plugins.registry("losses")


def test_an_installed_plugin_with_a_misspelt_hook_is_skipped_with_one_warning(monkeypatch):
    class Misspelt:
        @hookimpl
        def run_start(self, event):
            """Never called."""

    with pytest.warns(RuntimeWarning, match="did you mean 'run_started'"):
        load_plugins(monkeypatch, entry_point("misspelt", Misspelt))


def test_a_hook_of_an_installed_plugin_that_raises_costs_a_warning(monkeypatch):
    class Broken:
        @hookimpl
        def register_losses(self, register):
            raise ImportError("no module named 'nowhere'\nand a second line")

    plugins = load_plugins(monkeypatch, entry_point("broken", Broken), entry_point("mine", Losses))
    with pytest.warns(PluginWarning, match="plugin 'broken' cannot register its losses: ImportError.*'nowhere'$"):
        assert "my_loss" in plugins.registry("losses")
    assert "soft_targets" in plugins.registry("losses")


class Taken:
    @hookimpl
    def register_losses(self, register):
        register("soft_targets", max)
        register(3, max)
        register("after", max)


class Refuses:
    @hookimpl
    def register_losses(self, register):
        raise RecipeError("the license has expired")


class Exits:
    @hookimpl
    def register_losses(self, register):
        raise SystemExit(3)


def exit_at_import():
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("load", "messages"),
    [
        (exit_at_import, ["plugin 'bad' of a-package is skipped, .* could not be loaded: SystemExit: 3"]),
        (lambda: Losses, [r"a module or an object with hooks; got the class Losses; did you forget its \(\)\?"]),
        (object, [r"has no hooks, so it adds nothing; decorate its functions, such as register_losses\(register\),"]),
        (lambda: Undecorated(), ["has functions that are never called; decorate its epoch_ended with @kdkit.hookimpl"]),
        (Taken, ["'soft_targets' among the losses, but plugin 'kdkit' already has; .*; this entry is", "under 3;"]),
        (Refuses, ["^plugin 'bad' cannot register its losses: the license has expired$"]),
        (Exits, ["^plugin 'bad' cannot register its losses: SystemExit: 3$"]),
    ],
)
def test_an_installed_plugin_that_is_wrong_costs_warnings_and_only_its_own_entries(monkeypatch, load, messages):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        losses = load_plugins(monkeypatch, entry_point("bad", load), entry_point("mine", Losses)).registry("losses")
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == len(messages)
    assert all(map(re.search, messages, texts)), texts
    assert {warning.category for warning in caught} == {PluginWarning}
    assert losses.plugin("soft_targets") == "kdkit"
    assert "my_loss" in losses
    assert ("after" in losses) is (load is Taken)


def test_what_an_installed_plugin_prints_does_not_go_to_stdout(monkeypatch, capsys):
    class Prints:
        def __init__(self):
            print("loading")

        @hookimpl
        def register_losses(self, register):
            print("registering")

    load_plugins(monkeypatch, entry_point("prints", Prints)).registry("losses")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "loading\nregistering\n"


def test_the_time_to_load_each_installed_plugin_is_recorded(monkeypatch):
    def load_slowly():
        time.sleep(0.02)
        return Losses()

    points = entry_point("slow", load_slowly), entry_point("quick", lambda: Recorder([]))
    seconds = load_plugins(monkeypatch, *points).load_seconds
    assert [*seconds] == ["quick", "slow"]
    assert seconds["slow"] >= 0.02


class Undecorated:
    def epoch_ended(self, event):
        """Never called, without the decorator."""


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (Undecorated(), "the callback Undecorated has no hooks, .* decorate its epoch_ended with @kdkit.hookimpl"),
        (object(), r"the callback object has no hooks, .* decorate a method, such as epoch_ended\(self, event\), with"),
        ("csv", "a callback must be an object with hooks; got 'csv'"),
        (Losses, r"a callback must be an object with hooks; got the class Losses; did you forget its \(\)\?"),
    ],
)
def test_a_callback_without_hooks_is_refused(callback, message):
    with pytest.raises(PluginError, match=message):
        Plugins().extended([callback])
