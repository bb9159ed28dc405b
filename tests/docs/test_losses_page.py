"""The page of losses says what the losses say of themselves, and that is what holds."""

import functools
import importlib.util
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import kdkit
from kdkit import losses
from kdkit.errors import KdkitError

ROOT = Path(__file__).parents[2]
SHELF = kdkit.registry("losses")
SHIPPED = [name for name in SHELF if SHELF.plugin(name) == "kdkit"]
DIMENSIONS = {"(N, C)": 2, "(N, C, L)": 3, "(N, C, H, W)": 4}
TOKENS = "(N, tokens, C)"


def loaded(path):
    """Return a file of the repository as a module, which no package holds."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


table = loaded(ROOT / "tools/make_losses_page.py")
contract = loaded(ROOT / "tests/contract/test_shelves.py")


def test_the_page_is_what_the_losses_say():
    page = table.PAGE.read_text(encoding="utf-8")
    assert table.renewed(page) == page, "docs/losses.md is stale: python tools/make_losses_page.py writes it anew"


def test_all_that_kdkit_ships_is_in_a_group():
    *grouped, _around = [set(makers) for _title, makers in table.groups()]
    assert set.union(*grouped) == set(SHIPPED)


def test_a_page_without_its_mark_is_refused():
    with pytest.raises(KdkitError, match="put it back"):
        table.renewed("# Losses\n")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_loss_on_the_shelf_has_its_fields_and_its_row(name):
    assert all(table.fields(SHELF[name]).values())
    assert f"\n| `{name}`<br>" in table.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [each for each in losses.__all__ if table.is_loss(getattr(losses, each))])
def test_every_class_of_losses_cites_what_can_be_looked_up(name):
    source = table.fields(getattr(losses, name))["Source"]
    assert re.search(r"arXiv:\d{4}\.\d{4,5}\b|OpenReview:\w+|^public code: ", source)
    assert f"`{name}`" in table.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SHIPPED)
def test_losses_state_the_dimensions_that_their_contract_tries(name, monkeypatch):
    seen = set()
    loss = SHELF[name]()
    call = "forward" if isinstance(loss, nn.Module) else "__call__"
    original = getattr(type(loss), call)

    @functools.wraps(original)
    def recorded(self, student, target, **beside):
        seen.update(tap.ndim for tap in (student if isinstance(student, tuple) else (student,)))
        return original(self, student, target, **beside)

    monkeypatch.setattr(type(loss), call, recorded)
    kdkit.testing.check_loss(contract.maker(name), **contract.LOSSES[name])
    stated = table.shapes(table.fields(SHELF[name]))
    assert {DIMENSIONS[shape] for shape in stated if shape != TOKENS} == seen


@pytest.mark.parametrize("name", [name for name in SHIPPED if TOKENS in table.shapes(table.fields(SHELF[name]))])
def test_losses_that_state_tokens_hold_on_tokens(name):
    kdkit.testing.check_loss(SHELF[name], shapes=[(6, 5)])
    student, target = torch.randn(2, 2, 3, 5)
    shifted = torch.randn(2, 3, 1)  # a softmax over the classes of each token does not see it
    torch.testing.assert_close(SHELF[name]()(student + shifted, target), SHELF[name]()(student, target))


def documented(text):
    return type("Mine", (), {"__doc__": text})


def test_a_field_goes_on_in_indented_lines():
    made = documented("Mine.\n\n    Formula: s -\n        t\n    Shapes: (N, C); labels (N,)\n    Source: ours\n    ")
    assert table.fields(made) == {"Formula": "s - t", "Shapes": "(N, C); labels (N,)", "Source": "ours"}
    assert table.shapes(table.fields(made)) == ["(N, C)"]


@pytest.mark.parametrize("missing", table.FIELDS)
def test_a_loss_without_a_field_is_refused_by_name(missing):
    kept = "\n".join(f"    {name}: something" for name in table.FIELDS if name != missing)
    with pytest.raises(KdkitError, match=f"Mine.*{missing} is missing"):
        table.fields(documented(f"Mine.\n\n{kept}\n    "))
