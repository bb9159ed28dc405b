"""Goals: the arithmetic of terms and weights."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdkit import LinearRamp, Match, Net, Objective, RecipeError, Tap, Truth
from kdkit.losses import SoftTargets
from kdkit.recipe.objective import as_objective, taps_of

TEACHER = Net("teacher", nn.Linear(2, 2), trained=True)
ASSISTANT = Net("assistant", nn.Linear(2, 2), trained=True)
TRUTH = Truth(nn.CrossEntropyLoss())
SOFT = Match(TEACHER, SoftTargets())
OTHER = Match(ASSISTANT, SoftTargets())


def test_a_goal_reads_as_the_formula_of_the_paper():
    objective = 0.3 * TRUTH + 0.7 * (0.6 * SOFT + 0.4 * OTHER)
    assert objective.weights(0) == pytest.approx(
        {"truth": 0.3, "teacher/soft_targets": 0.42, "assistant/soft_targets": 0.28}
    )


def test_factors_may_stand_on_either_side_and_nest():
    objective = ((TRUTH * 2) * 3 + SOFT) * 5
    assert objective.weights(0) == {"truth": 30, "teacher/soft_targets": 5}


def test_a_term_alone_weighs_one():
    assert as_objective(TRUTH).weights(0) == {"truth": 1}


def test_a_list_of_terms_can_be_summed():
    objective = sum(0.5 * term for term in (TRUTH, SOFT, OTHER))
    assert isinstance(objective, Objective)
    assert list(objective.weights(0).values()) == [0.5, 0.5, 0.5]


def test_terms_keep_the_order_they_are_written_in():
    assert [each.term for each in SOFT + TRUTH + OTHER] == [SOFT, TRUTH, OTHER]
    assert [each.term for each in SOFT + (TRUTH + OTHER)] == [SOFT, TRUTH, OTHER]


def test_arithmetic_leaves_its_parts_as_they_were():
    part = 0.5 * TRUTH
    _ = 2 * part + SOFT
    assert part.weights(0) == {"truth": 0.5}


@given(st.lists(st.floats(0, 10), max_size=4), st.floats(0, 1))
def test_the_weight_of_a_term_is_the_product_of_its_factors(factors, progress):
    objective = as_objective(TRUTH)
    for factor in factors:
        objective = factor * objective
    assert objective.weights(progress)["truth"] == pytest.approx(math.prod(factors))


def test_a_ramp_is_a_factor_that_changes_with_progress():
    objective = LinearRamp(end=4) * (0.5 * TRUTH) + SOFT
    assert objective.weights(0)["truth"] == 0
    assert objective.weights(0.5)["truth"] == 1
    assert objective.weights(1)["truth"] == 2


def test_a_plain_function_of_progress_is_a_ramp():
    assert (TRUTH * (lambda progress: 1 - progress)).weights(0.25) == {"truth": 0.75}


def test_numpys_own_floats_are_numbers():
    assert (np.float64(0.5) * TRUTH).weights(0) == {"truth": 0.5}


@pytest.mark.parametrize(
    "factor", [-0.1, float("nan"), float("inf"), True, False, "0.5", None, torch.tensor(0.5), TRUTH]
)
def test_a_weight_that_is_no_number_of_at_least_zero_is_refused(factor):
    with pytest.raises(RecipeError, match=r"weight of a term|a ramp"):
        TRUTH * factor


@pytest.mark.parametrize(
    "ramp",
    [
        lambda progress: -progress,
        lambda progress: -1.0 if 0.2 < progress < 0.3 else 1.0,
        lambda progress: float("nan"),
        lambda progress: None,
        LinearRamp,
    ],
)
def test_a_ramp_that_gives_no_factor_is_refused(ramp):
    with pytest.raises(RecipeError, match="a ramp"):
        TRUTH * ramp


@pytest.mark.parametrize("other", [1, "x", nn.MSELoss(), None, TEACHER])
def test_only_terms_can_be_added(other):
    with pytest.raises(RecipeError, match="a goal is a sum of"):
        TRUTH + other
    with pytest.raises(RecipeError, match="a goal is a sum of"):
        as_objective(other)


@pytest.mark.parametrize("make", [Truth, lambda loss: Match(TEACHER, loss)])
@pytest.mark.parametrize(
    ("loss", "said"), [(nn.MSELoss, "did you forget its ()?"), ("kl", "got 'kl'"), (None, "got None")]
)
def test_what_is_no_loss_is_refused(make, loss, said):
    with pytest.raises(RecipeError) as caught:
        make(loss)
    assert said in str(caught.value)


@pytest.mark.parametrize("source", [nn.Linear(1, 1), "teacher", None, SoftTargets()])
def test_what_has_no_name_cannot_be_matched(source):
    with pytest.raises(RecipeError, match="Match takes first what to match"):
        Match(source, SoftTargets())


@pytest.mark.parametrize("side", ["student", "target"])
@pytest.mark.parametrize("tap", ["layer3", nn.Linear(1, 1), (Tap(nn.Identity()), "x")])
def test_what_is_no_tap_is_refused_with_its_side(side, tap):
    with pytest.raises(RecipeError, match=f"the {side} side of a Match is a tap"):
        Match(TEACHER, nn.MSELoss(), **{side: tap})


def test_a_label_of_ones_own_replaces_source_and_loss():
    assert SOFT.label == "teacher/soft_targets"
    assert Match(TEACHER, SoftTargets(), label="kd_loss").label == "kd_loss"


def test_a_side_has_no_tap_one_or_several():
    tap = Tap(nn.Identity())
    assert taps_of(None) == ()
    assert taps_of(tap) == (tap,)
    assert taps_of((tap, tap)) == (tap, tap)
