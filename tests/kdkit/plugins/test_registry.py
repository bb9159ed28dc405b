"""Tests of a registry: names, duplicates, and errors that suggest the nearest name."""

import pytest

from kdkit import RecipeError
from kdkit.errors import PluginError
from kdkit.plugins.registry import Registry


def create():
    return 1


@pytest.fixture
def registry():
    registry = Registry("losses")
    registry.register("soft_targets", create, plugin="kdkit")
    return registry


def test_an_entry_is_found_by_its_name_with_its_plugin(registry):
    assert registry["soft_targets"] is create
    assert registry.plugin("soft_targets") == "kdkit"
    assert "soft_targets" in registry
    assert len(registry) == 1


def test_names_are_sorted(registry):
    registry.register("cosine", create, plugin="kdkit")
    assert list(registry) == ["cosine", "soft_targets"]


def test_the_error_for_an_unknown_name_suggests_the_nearest(registry):
    with pytest.raises(RecipeError) as caught:
        _ = registry["soft_target"]
    assert str(caught.value) == "'soft_target' is not among the losses; did you mean 'soft_targets'?"


def test_a_second_object_under_a_name_is_refused_and_both_plugins_are_named(registry):
    with pytest.raises(PluginError, match=r"plugin 'mine' registers 'soft_targets'.*plugin 'kdkit' already has"):
        registry.register("soft_targets", lambda: 2, plugin="mine")
    assert registry["soft_targets"] is create


def test_the_same_object_may_be_registered_again(registry):
    registry.register("soft_targets", create, plugin="mine")
    assert registry.plugin("soft_targets") == "kdkit"


@pytest.mark.parametrize(
    ("name", "factory", "message"),
    [("", create, "expected a name"), (3, create, "expected a name"), ("x", 3, "with a int; expected a callable")],
)
def test_an_entry_without_a_name_or_a_callable_is_refused(registry, name, factory, message):
    with pytest.raises(PluginError, match=message):
        registry.register(name, factory, plugin="mine")


def test_a_registry_has_the_methods_of_a_mapping(registry):
    assert registry.get("soft_targets") is create
    assert "nothing" not in registry
