"""Options that make no loss are refused when it is made: every option of every loss and projector on its shelf."""

import inspect
import math
import typing

import pytest
import torch
from torch import nn

from kdkit import RecipeError, registry
from kdkit.losses import CRD, OFD, SRRL, HardTargets, PerToken, SecondHead, SoftTargets
from kdkit.losses.projectors import KINDS, MLP, Bottleneck, Fusion, make_projector

NO_NUMBER = (math.nan, math.inf, -math.inf, "1", True, [1], torch.ones(2))
# What is wrong for an option of each type; None is too, unless the type has it.
WRONG = {
    float: (-1.0, *NO_NUMBER),
    int: (-1, 0, 2.5, *NO_NUMBER),
    bool: ("no", 1, 0.0),
    typing.Literal: ("nothing", 1, True, ["auto"]),
    tuple: (4, [4, 2], (0,), (2.0,), ("4",), (True,), (math.nan,), (1, 2), (2, 2)),
    nn.Module: ("fc", 1, nn.Linear),
    typing.Callable: ("kl", HardTargets),
}
AT_MOST_ZERO = {(OFD, "margin")}


def wrong_options():
    """Yield what makes each loss on the shelf of kdkit, an option and a value that it must not take."""
    for name, make in registry("losses").items():
        if not inspect.unwrap(make).__module__.startswith("kdkit.losses"):
            continue
        hints = typing.get_type_hints(make.__init__ if isinstance(make, type) else make)
        for option in inspect.signature(make).parameters:
            kinds = set(typing.get_args(hints[option])) if type(None) in typing.get_args(hints[option]) else set()
            hint = next(iter(kinds - {type(None)}), hints[option])
            kind = typing.get_origin(hint) or hint
            kind = typing.Callable if callable(hint) and "Callable" in str(kind) else kind
            values = WRONG[kind] if (make, option) not in AT_MOST_ZERO else (1.0, *NO_NUMBER)
            for value in (*values, *(() if kinds else (None,))):
                yield pytest.param(make, option, value, id=f"{name}-{option}-{value}")


@pytest.mark.parametrize(("make", "option", "value"), list(wrong_options()))
def test_a_wrong_option_of_a_loss_is_refused_when_it_is_made(make, option, value):
    with pytest.raises(RecipeError):
        make(**{option: value})


def test_the_options_of_every_loss_are_tried():
    tried = {str(each.id).split("-")[0] for each in wrong_options()}
    without = {name for name, make in registry("losses").items() if not inspect.signature(make).parameters}
    assert tried | without >= set(registry("losses"))
    assert len(tried) >= 30


@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf, "1", True, 1.0])
def test_the_width_of_a_projector_is_a_whole_number(wrong):
    shapes = torch.Size((2, 3, 4)), torch.Size((2, 5, 4))
    for make in (MLP, Bottleneck, Fusion):
        with pytest.raises(RecipeError, match="width is a whole number of at least 1"):
            make(*shapes, width=wrong)


@pytest.mark.parametrize("wrong", ["lineal", None, 1, ["linear"]])
def test_a_kind_of_projector_that_is_not_there_is_refused(wrong):
    with pytest.raises(RecipeError, match="is no kind of projector"):
        make_projector(wrong, torch.Size((2, 3)), torch.Size((2, 5)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "shapes", [((2, 3, 4), (2, 5, 2, 3)), ((2,), (2, 5)), ((2, 3), (2, 5, 4)), ((2, 3, *[1] * 4),) * 2]
)
def test_a_projector_says_which_shapes_it_brings_together(kind, shapes):
    with pytest.raises(RecipeError, match="a projector maps"):
        make_projector(kind, *map(torch.Size, shapes))


@pytest.mark.parametrize("wrong", [1.0, True, None, "pad"])
def test_the_label_of_tokens_left_out_is_a_whole_number(wrong):
    with pytest.raises(RecipeError, match="ignore is the whole number"):
        PerToken(SoftTargets(), ignore=wrong)


@pytest.mark.parametrize("make", [PerToken, SecondHead])
@pytest.mark.parametrize("wrong", ["kl", SoftTargets, CRD(), 1])
def test_a_loss_within_a_loss_is_one_on_outputs(make, wrong):
    with pytest.raises(RecipeError, match="takes a loss on outputs"):
        make(wrong)


def test_a_classifier_is_a_layer_not_its_name():
    with pytest.raises(RecipeError, match=r"classifier is a layer, such as teacher\.module\.fc; got a str"):
        SRRL("fc")
