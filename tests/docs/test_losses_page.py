"""docs/losses.md is up to date, and the shapes in the docstrings of the losses are those that they accept."""

import functools
import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import kdkit
from kdkit import losses
from kdkit.errors import KdkitError
from kdkit.testing import loss_state, loss_values
from tests.helpers.modules import load_module

ROOT = Path(__file__).parents[2]
REGISTERED = kdkit.registry("losses")
BUILT_IN = [name for name in REGISTERED if REGISTERED.plugin(name) == "kdkit"]
DIMENSIONS = {"(N, C)": 2, "(N, C, L)": 3, "(N, C, H, W)": 4}
TOKENS = "(N, tokens, C)"


page_tool = load_module("tools/make_losses_page.py")
contract = load_module("tests/contract/test_registries.py")


def test_the_page_is_up_to_date():
    text = page_tool.PAGE.read_text(encoding="utf-8")
    assert page_tool.updated(text) == text, "docs/losses.md is stale: run python tools/make_losses_page.py"


def test_every_registered_loss_of_kdkit_is_in_a_group():
    *grouped, _wrappers = [set(makers) for _title, makers in page_tool.groups()]
    assert set.union(*grouped) == set(BUILT_IN)


def test_a_page_without_its_mark_is_refused():
    with pytest.raises(KdkitError, match="put it back"):
        page_tool.updated("# Losses\n")


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_registered_loss_has_its_fields_and_its_row(name):
    assert all(page_tool.fields(REGISTERED[name]).values())
    assert f"\n| `{name}`<br>" in page_tool.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in losses.__all__ if page_tool.is_loss(getattr(losses, name))])
def test_every_loss_class_cites_a_paper_or_public_code(name):
    source = page_tool.fields(getattr(losses, name))["Source"]
    # the proceedings of CVPR, for a paper that is on neither server
    assert re.search(r"arXiv:\d{4}\.\d{4,5}\b|OpenReview:\w+|, CVPR \d{4}$|^public code: ", source)
    assert f"`{name}`" in page_tool.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", BUILT_IN)
def test_losses_state_the_dimensions_of_their_contract_tests(name, monkeypatch):
    for module in (loss_state, loss_values):  # of the whole contract, one check is enough
        for check, _ in inspect.getmembers(module, inspect.isfunction):
            if check != "gradient_reaches_only_the_student" and not check.startswith("_"):
                monkeypatch.setattr(module, check, lambda case, **options: None)
    seen = set()
    loss = REGISTERED[name]()
    call = "forward" if isinstance(loss, nn.Module) else "__call__"
    original = getattr(type(loss), call)

    @functools.wraps(original)
    def recorded_call(self, student, target, **kwargs):
        seen.update(tap.ndim for tap in (student if isinstance(student, tuple) else (student,)))
        return original(self, student, target, **kwargs)

    monkeypatch.setattr(type(loss), call, recorded_call)
    kdkit.testing.check_loss(contract.maker(name), **contract.LOSSES[name])
    stated = page_tool.shapes(page_tool.fields(REGISTERED[name]))
    assert {DIMENSIONS[shape] for shape in stated if shape != TOKENS} == seen


@pytest.mark.parametrize(
    "name", [name for name in BUILT_IN if TOKENS in page_tool.shapes(page_tool.fields(REGISTERED[name]))]
)
def test_losses_that_state_tokens_keep_their_contract_on_tokens(name):
    kdkit.testing.check_loss(REGISTERED[name], shapes=[(6, 5)])
    student, target = torch.randn(2, 2, 3, 5)
    shifted = torch.randn(2, 3, 1)  # a softmax over the classes of each token is invariant to it
    torch.testing.assert_close(REGISTERED[name]()(student + shifted, target), REGISTERED[name]()(student, target))


def class_with_docstring(text):
    """Return a class with this docstring."""
    return type("Mine", (), {"__doc__": text})


def test_a_field_continues_on_indented_lines():
    loss_class = class_with_docstring(
        "Mine.\n\n    Formula: s -\n        t\n    Shapes: (N, C); labels (N,)\n    Source: ours\n    "
    )
    assert page_tool.fields(loss_class) == {"Formula": "s - t", "Shapes": "(N, C); labels (N,)", "Source": "ours"}
    assert page_tool.shapes(page_tool.fields(loss_class)) == ["(N, C)"]


@pytest.mark.parametrize("missing", page_tool.FIELDS)
def test_a_missing_field_is_reported_with_the_name_of_the_loss(missing):
    lines = "\n".join(f"    {name}: something" for name in page_tool.FIELDS if name != missing)
    with pytest.raises(KdkitError, match=f"Mine.*{missing} is missing"):
        page_tool.fields(class_with_docstring(f"Mine.\n\n{lines}\n    "))
