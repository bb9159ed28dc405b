"""Plugins: found, refused, and put on shelves."""

from types import SimpleNamespace

import pytest

from kdkit import hookimpl
from kdkit.errors import PluginError
from kdkit.plugins import manager
from kdkit.plugins.manager import Plugins, installed, registry
from kdkit.plugins.registry import REGISTRIES


def my_loss(student, target):
    return (student - target).square().mean()


class Losses:
    @hookimpl
    def register_losses(self, register):
        register("my_loss", my_loss)


def test_a_plugin_puts_a_loss_on_the_shelf():
    mine = Plugins()
    mine.add(Losses(), "mine")
    assert mine.registry("losses")["my_loss"] is my_loss
    assert mine.registry("losses").plugin("my_loss") == "mine"


def test_a_hook_may_take_no_arguments():
    class Silent:
        @hookimpl
        def register_losses(self):
            Silent.called = True

    mine = Plugins()
    mine.add(Silent(), "mine")
    assert len(mine.registry("losses")) == 0
    assert Silent.called


def test_shelves_are_filled_again_when_a_plugin_comes_or_goes():
    mine, plugin = Plugins(), Losses()
    assert "my_loss" not in mine.registry("losses")
    mine.add(plugin, "mine")
    assert "my_loss" in mine.registry("losses")
    mine.remove(plugin)
    assert "my_loss" not in mine.registry("losses")
    mine.remove(plugin)


def test_adding_a_plugin_twice_is_adding_it_once():
    mine, plugin = Plugins(), Losses()
    mine.add(plugin, "mine")
    mine.add(plugin, "again")
    assert mine.registry("losses").plugin("my_loss") == "mine"


def test_a_misspelt_hook_is_refused_by_name_and_not_kept():
    class Misspelt:
        @hookimpl
        def register_loses(self, register):
            """Never called."""

    mine = Plugins()
    with pytest.raises(PluginError, match=r"has a hook 'register_loses'.*did you mean 'register_losses'"):
        mine.add(Misspelt(), "mine")
    mine.add(Losses(), "sound")
    assert list(mine.registry("losses")) == ["my_loss"]


def test_a_hook_with_an_argument_that_is_not_given_is_refused():
    class Greedy:
        @hookimpl
        def epoch_ended(self, event, model):
            """Never called."""

    mine = Plugins()
    with pytest.raises(PluginError, match=r"plugin 'mine' does not fit: (.|\n)*model"):
        mine.add(Greedy(), "mine")
    assert mine.manager.get_plugins() == set()


def test_a_hook_that_raises_is_named_with_its_plugin():
    class Broken:
        @hookimpl
        def register_losses(self, register):
            raise ImportError("no module named 'nowhere'")

    mine = Plugins()
    mine.add(Broken(), "mine")
    with pytest.raises(PluginError, match=r"plugin 'mine'.*no module named 'nowhere'"):
        mine.registry("losses")


def test_two_plugins_with_one_name_on_a_shelf_are_refused():
    class Other:
        @hookimpl
        def register_losses(self, register):
            register("my_loss", max)

    mine = Plugins()
    mine.add(Losses(), "first")
    mine.add(Other(), "second")
    with pytest.raises(PluginError, match=r"plugin 'second'.*plugin 'first' already has"):
        mine.registry("losses")


def test_a_shelf_that_is_not_there_is_answered_with_the_nearest():
    with pytest.raises(PluginError, match="'loss' is not a shelf; did you mean 'losses'"):
        registry("loss")


def test_what_kdkit_ships_comes_through_the_same_door():
    for kind in ("losses", "taps", "schedules", "ramps", "models", "datasets", "metrics"):
        assert any(registry(kind).plugin(name) == "kdkit" for name in registry(kind)), kind
    assert set(REGISTRIES) == {"losses", "taps", "schedules", "ramps", "models", "datasets", "metrics"}


def test_watchers_of_a_run_are_not_watchers_of_the_next():
    told = []

    class Watcher:
        @hookimpl
        def run_started(self, event):
            told.append(event)

    with_watcher = installed().extended([Watcher()])
    with_watcher.hook.run_started(event=1)
    installed().hook.run_started(event=2)
    assert told == [1]


def test_extending_keeps_what_was_there():
    assert set(installed().extended([Losses()]).registry("losses")) == {*registry("losses"), "my_loss"}


def test_one_class_may_watch_twice():
    told = []

    class Watcher:
        @hookimpl
        def run_started(self, event):
            told.append(event)

    installed().extended([Watcher(), Watcher()]).hook.run_started(event=1)
    assert told == [1, 1]


def point(name, load):
    return SimpleNamespace(name=name, value="somewhere", dist=SimpleNamespace(name="a-package"), load=load)


def found(monkeypatch, *points):
    monkeypatch.setattr(manager, "entry_points", lambda group: list(points) if group == "kdkit" else [])
    return installed.__wrapped__()


def test_installed_plugins_are_found_by_their_entry_points(monkeypatch):
    assert "my_loss" in found(monkeypatch, point("mine", Losses)).registry("losses")


def broken():
    raise ImportError("no module named 'nowhere'\nand a second line")


def test_a_plugin_that_cannot_be_imported_is_one_warning(monkeypatch):
    with pytest.warns(RuntimeWarning, match="plugin 'broken' of a-package is left out.*'nowhere'") as caught:
        kept = found(monkeypatch, point("broken", broken), point("mine", Losses))
    assert len(caught) == 1
    assert "second line" not in str(caught[0].message)
    assert "my_loss" in kept.registry("losses")
    assert "soft_targets" in kept.registry("losses")


def test_an_installed_plugin_that_does_not_fit_is_one_warning(monkeypatch):
    class Misspelt:
        @hookimpl
        def run_start(self, event):
            """Never called."""

    with pytest.warns(RuntimeWarning, match="did you mean 'run_started'"):
        found(monkeypatch, point("misspelt", Misspelt))
