"""Invalid options are refused at creation, for every option of every registered loss and projector."""

import inspect
import math
import typing
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from kdkit import RecipeError, registry
from kdkit.losses import (
    CRD,
    MLLD,
    OFD,
    SRRL,
    AlphaBetaDivergence,
    HardTargets,
    MiniLM,
    PerLabelAlphaBetaDivergence,
    PerLabelMLLD,
    PerToken,
    SecondHead,
    SoftTargets,
)
from kdkit.losses.projectors import MLP, PROJECTORS, Bottleneck, Fusion, make_projector

NOT_A_NUMBER = (math.nan, math.inf, -math.inf, "1", True, [1], torch.ones(2))
# Invalid values for each type of option; None is invalid too, unless the type includes it.
WRONG = {
    float: (-1.0, *NOT_A_NUMBER),
    int: (-1, 0, 2.5, *NOT_A_NUMBER),
    bool: ("no", 1, 0.0),
    typing.Literal: ("nothing", 1, True, ["auto"]),
    tuple: (4, [4, 2], (0,), (2.0,), ("4",), (True,), (math.nan,), (1, 2), (2, 2)),
    Sequence: (4, "12", (), (0,), (2.0,), ("4",), (True,), (math.nan,)),
    nn.Module: ("fc", 1, nn.Linear),
    typing.Callable: ("kl", HardTargets),
}
# Other invalid values, for options that may be 0, or below 0 only.
OTHERS = {(OFD, "margin"): (1.0, *NOT_A_NUMBER), (SecondHead, "blocks"): (-1, 2.5, *NOT_A_NUMBER)}
OTHERS |= {(MiniLM, "mask"): (1, True, ["mask"])}
# Exponents may be negative, and one temperature is enough.
for loss in (AlphaBetaDivergence, PerLabelAlphaBetaDivergence):
    OTHERS |= {(loss, "alpha"): NOT_A_NUMBER, (loss, "beta"): NOT_A_NUMBER}
for loss in (MLLD, PerLabelMLLD):
    OTHERS |= {(loss, "temperatures"): (4, "12", (), (0,), ("4",), (True,), (math.nan,))}


def wrong_options():
    """Yield each registered loss of kdkit with each of its options and the invalid values of it."""
    for name, make in registry("losses").items():
        if not inspect.unwrap(make).__module__.startswith("kdkit.losses"):
            continue
        hints = typing.get_type_hints(make.__init__ if isinstance(make, type) else make)
        for option in inspect.signature(make).parameters:
            kinds = set(typing.get_args(hints[option])) if type(None) in typing.get_args(hints[option]) else set()
            hint = next(iter(kinds - {type(None)}), hints[option])
            kind = typing.get_origin(hint) or hint
            kind = typing.Callable if callable(hint) and "Callable" in str(kind) else kind
            values = OTHERS[make, option] if (make, option) in OTHERS else WRONG[kind]
            yield pytest.param(make, option, (*values, *(() if kinds else (None,))), id=f"{name}-{option}")


@pytest.mark.parametrize(("make", "option", "values"), list(wrong_options()))
def test_an_invalid_option_is_refused_at_creation(make, option, values):
    for value in values:
        try:
            make(**{option: value})
        except RecipeError:
            continue
        pytest.fail(f"{option}={value!r} is accepted")


def test_the_options_of_every_loss_are_covered():
    covered = {str(parameters.id).split("-")[0] for parameters in wrong_options()}
    without = {name for name, make in registry("losses").items() if not inspect.signature(make).parameters}
    assert covered | without >= set(registry("losses"))
    assert len(covered) >= 30


@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf, "1", True, 1.0])
def test_the_width_of_a_projector_is_an_integer(wrong):
    shapes = torch.Size((2, 3, 4)), torch.Size((2, 5, 4))
    for make in (MLP, Bottleneck, Fusion):
        with pytest.raises(RecipeError, match="the width of a projector must be an integer of at least 1"):
            make(*shapes, width=wrong)


@pytest.mark.parametrize("wrong", ["lineal", None, 1, ["linear"]])
def test_an_unknown_kind_of_projector_is_refused(wrong):
    with pytest.raises(RecipeError, match="is not a kind of projector"):
        make_projector(wrong, torch.Size((2, 3)), torch.Size((2, 5)))


@pytest.mark.parametrize("kind", PROJECTORS)
@pytest.mark.parametrize(
    "shapes", [((2, 3, 4), (2, 5, 2, 3)), ((2,), (2, 5)), ((2, 3), (2, 5, 4)), ((2, 3, *[1] * 4),) * 2]
)
def test_unsupported_shapes_of_a_projector_are_refused(kind, shapes):
    with pytest.raises(RecipeError, match="a projector maps"):
        make_projector(kind, *map(torch.Size, shapes))


@pytest.mark.parametrize("wrong", [1.0, True, None, "pad"])
def test_the_label_of_ignored_tokens_is_an_integer(wrong):
    with pytest.raises(RecipeError, match="ignore_index is the integer label"):
        PerToken(SoftTargets(), ignore_index=wrong)


@pytest.mark.parametrize("make", [PerToken, SecondHead])
@pytest.mark.parametrize("wrong", ["kl", SoftTargets, CRD(), 1])
def test_a_wrapped_loss_is_one_on_outputs(make, wrong):
    with pytest.raises(RecipeError, match="takes a loss on outputs"):
        make(wrong)


def test_a_classifier_is_a_layer_not_its_name():
    with pytest.raises(RecipeError, match=r"classifier is a layer, such as teacher\.module\.fc; got a str"):
        SRRL("fc")
