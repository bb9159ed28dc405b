"""Shelves."""

import pytest

from kdkit import RecipeError
from kdkit.errors import PluginError
from kdkit.plugins.registry import Shelf


def make():
    return 1


@pytest.fixture
def shelf():
    shelf = Shelf("losses")
    shelf.register("soft_targets", make, plugin="kdkit")
    return shelf


def test_a_thing_is_found_by_its_name_with_the_plugin_it_came_from(shelf):
    assert shelf["soft_targets"] is make
    assert shelf.plugin("soft_targets") == "kdkit"
    assert "soft_targets" in shelf
    assert len(shelf) == 1


def test_names_come_in_order(shelf):
    shelf.register("cosine", make, plugin="kdkit")
    assert list(shelf) == ["cosine", "soft_targets"]


def test_a_wrong_name_is_answered_with_the_nearest(shelf):
    with pytest.raises(RecipeError) as caught:
        _ = shelf["soft_target"]
    assert str(caught.value) == "'soft_target' is not among the losses; did you mean 'soft_targets'?"


def test_a_name_is_taken_once_and_both_plugins_are_named(shelf):
    with pytest.raises(PluginError, match=r"plugin 'mine' registers 'soft_targets'.*plugin 'kdkit' already has"):
        shelf.register("soft_targets", lambda: 2, plugin="mine")
    assert shelf["soft_targets"] is make


def test_the_same_thing_may_be_registered_again(shelf):
    shelf.register("soft_targets", make, plugin="mine")
    assert shelf.plugin("soft_targets") == "kdkit"


@pytest.mark.parametrize(
    ("name", "thing", "said"), [("", make, "expected a name"), (3, make, "expected a name"), ("x", 3, "with a int")]
)
def test_what_cannot_stand_on_a_shelf_is_refused(shelf, name, thing, said):
    with pytest.raises(PluginError, match=said):
        shelf.register(name, thing, plugin="mine")


def test_a_wrong_name_may_be_asked_for_politely(shelf):
    assert shelf.get("soft_targets") is make
    assert "nothing" not in shelf
