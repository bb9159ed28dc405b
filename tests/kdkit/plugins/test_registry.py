"""Shelves."""

import pytest

from kdkit import RecipeError
from kdkit.errors import PluginError
from kdkit.plugins.registry import Registry


def make():
    return 1


@pytest.fixture
def registry():
    registry = Registry("losses")
    registry.register("soft_targets", make, plugin="kdkit")
    return registry


def test_a_thing_is_found_by_its_name_with_the_plugin_it_came_from(registry):
    assert registry["soft_targets"] is make
    assert registry.plugin("soft_targets") == "kdkit"
    assert "soft_targets" in registry
    assert len(registry) == 1


def test_names_come_in_order(registry):
    registry.register("cosine", make, plugin="kdkit")
    assert list(registry) == ["cosine", "soft_targets"]


def test_a_wrong_name_is_answered_with_the_nearest(registry):
    with pytest.raises(RecipeError) as caught:
        _ = registry["soft_target"]
    assert str(caught.value) == "'soft_target' is not among the losses; did you mean 'soft_targets'?"


def test_a_name_is_taken_once_and_both_plugins_are_named(registry):
    with pytest.raises(PluginError, match=r"plugin 'mine' registers 'soft_targets'.*plugin 'kdkit' already has"):
        registry.register("soft_targets", lambda: 2, plugin="mine")
    assert registry["soft_targets"] is make


def test_the_same_thing_may_be_registered_again(registry):
    registry.register("soft_targets", make, plugin="mine")
    assert registry.plugin("soft_targets") == "kdkit"


@pytest.mark.parametrize(
    ("name", "thing", "said"), [("", make, "expected a name"), (3, make, "expected a name"), ("x", 3, "with a int")]
)
def test_what_cannot_stand_on_a_shelf_is_refused(registry, name, thing, said):
    with pytest.raises(PluginError, match=said):
        registry.register(name, thing, plugin="mine")


def test_a_wrong_name_may_be_asked_for_politely(registry):
    assert registry.get("soft_targets") is make
    assert "nothing" not in registry
