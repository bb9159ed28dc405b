"""Objectives: the arithmetic of terms and weights."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdkit import LinearRamp, Match, Net, Objective, RecipeError, Tap, Truth, model_loss
from kdkit.losses import SoftTargets
from kdkit.recipe.objective import as_objective, taps_of

TEACHER = Net("teacher", nn.Linear(2, 2), trained=True)
ASSISTANT = Net("assistant", nn.Linear(2, 2), trained=True)
TRUTH = Truth(nn.CrossEntropyLoss())
MATCH = Match(TEACHER, SoftTargets())
SECOND_MATCH = Match(ASSISTANT, SoftTargets())


def test_an_objective_is_written_as_the_formula_of_the_paper():
    objective = 0.3 * TRUTH + 0.7 * (0.6 * MATCH + 0.4 * SECOND_MATCH)
    assert objective.weights(0) == pytest.approx(
        {"truth": 0.3, "teacher/soft_targets": 0.42, "assistant/soft_targets": 0.28}
    )


def test_factors_may_be_on_either_side_and_nested():
    objective = ((TRUTH * 2) * 3 + MATCH) * 5  # 2 * 3 * 5 and 5
    assert objective.weights(0) == {"truth": 30, "teacher/soft_targets": 5}


def test_a_single_term_has_weight_one():
    assert as_objective(TRUTH).weights(0) == {"truth": 1}


def test_terms_can_be_added_with_sum():
    objective = sum(0.5 * term for term in (TRUTH, MATCH, SECOND_MATCH))  # sum() starts with 0 + term
    assert isinstance(objective, Objective)
    assert list(objective.weights(0).values()) == [0.5, 0.5, 0.5]


def test_terms_keep_the_order_they_are_written_in():
    assert [weighted.term for weighted in MATCH + TRUTH + SECOND_MATCH] == [MATCH, TRUTH, SECOND_MATCH]
    assert [weighted.term for weighted in MATCH + (TRUTH + SECOND_MATCH)] == [MATCH, TRUTH, SECOND_MATCH]


def test_arithmetic_does_not_change_its_operands():
    operand = 0.5 * TRUTH
    _ = 2 * operand + MATCH
    assert operand.weights(0) == {"truth": 0.5}


@settings(deadline=None)
@given(st.lists(st.floats(0, 10), max_size=4), st.floats(0, 1))
def test_the_weight_of_a_term_is_the_product_of_its_factors(factors, progress):
    objective = as_objective(TRUTH)
    for factor in factors:
        objective = factor * objective
    assert objective.weights(progress)["truth"] == pytest.approx(math.prod(factors))


def test_a_ramp_is_a_factor_that_changes_with_progress():
    objective = LinearRamp(end=4) * (0.5 * TRUTH) + MATCH
    assert objective.weights(0)["truth"] == 0
    assert objective.weights(0.5)["truth"] == 1
    assert objective.weights(1)["truth"] == 2


def test_a_plain_function_of_progress_is_a_ramp():
    assert (TRUTH * (lambda progress: 1 - progress)).weights(0.25) == {"truth": 0.75}


@pytest.mark.parametrize(
    "objective",
    [
        LinearRamp(end=4) * 100.0 * TRUTH,
        100 * LinearRamp(end=4) * TRUTH,
        TRUTH * LinearRamp(end=4) * 100,
        LinearRamp(end=400) * LinearRamp(start=1, end=1) * TRUTH,
        (lambda _progress: 100) * (LinearRamp(end=4) * TRUTH),
        LinearRamp(end=800) * TRUTH / 2,
        LinearRamp(end=800) / 2 * TRUTH,
        np.float64(100) * LinearRamp(end=4) * TRUTH,
    ],
)
def test_ramps_and_numbers_are_multiplied_in_any_order(objective):
    assert [objective.weights(progress)["truth"] for progress in (0, 0.5, 1)] == [0, 200, 400]


def test_a_product_of_ramps_is_shown_as_it_is_written():
    assert repr(as_objective(2 * LinearRamp(end=4) * TRUTH)) == (
        "2 * LinearRamp(start=0.0, end=4, after=0.0, until=1.0) * Truth(CrossEntropyLoss)"
    )


@pytest.mark.parametrize("divided", [LinearRamp(), TRUTH, 2 * TRUTH])
@pytest.mark.parametrize("divisor", [0, -1, "2", LinearRamp()])
def test_terms_and_ramps_are_divided_by_numbers_above_zero(divided, divisor):
    with pytest.raises(RecipeError, match="terms and ramps are divided by a number above 0; got"):
        divided / divisor


def test_a_product_with_a_negative_number_is_refused():
    with pytest.raises(
        RecipeError, match=r"a ramp must return finite factors of at least 0; LinearRamp\(.*\) \* -1 re"
    ):
        LinearRamp() * -1 * TRUTH


def test_a_numpy_float_is_a_number():
    assert (np.float64(0.5) * TRUTH).weights(0) == {"truth": 0.5}


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (-0.1, "the weight of a term must be finite and at least 0; got -0.1"),
        (float("nan"), "the weight of a term must be finite and at least 0; got nan"),
        (float("inf"), "the weight of a term must be finite and at least 0; got inf"),
        (True, "the weight of a term must be a number or a ramp; got bool"),
        (False, "the weight of a term must be a number or a ramp; got bool"),
        ("0.5", "the weight of a term must be a number or a ramp; got str"),
        (None, "the weight of a term must be a number or a ramp; got NoneType"),
        (torch.tensor(0.5), "the weight of a term must be a number or a ramp; got Tensor"),
        (TRUTH, "the weight of a term must be a number or a ramp; got Truth"),
    ],
)
def test_an_invalid_weight_is_refused(factor, message):
    with pytest.raises(RecipeError) as caught:
        TRUTH * factor
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("ramp", "message"),
    [
        (lambda progress: -progress, "a ramp must return finite factors of at least 0; .* returns -0.01 at 0.01"),
        # Negative for a while only: the whole stage is tried.
        (lambda progress: -1.0 if 0.2 < progress < 0.3 else 1.0, "returns -1.0 at 0.21"),
        (lambda progress: float("nan"), "returns nan at 0.0"),
        (lambda progress: None, "returns None at 0.0"),
        (
            LinearRamp,
            r"the weight of a term must be a number or a ramp; got the class LinearRamp; did you forget its \(\)",
        ),
    ],
)
def test_an_invalid_ramp_is_refused(ramp, message):
    with pytest.raises(RecipeError, match=message):
        TRUTH * ramp


@pytest.mark.parametrize("operand", [1, "x", nn.MSELoss(), None, TEACHER])
def test_only_terms_can_be_added(operand):
    message = r"an objective is a sum of Truth\(\.\.\.\) and Match\(\.\.\.\) terms; got "
    with pytest.raises(RecipeError, match=message):
        TRUTH + operand
    with pytest.raises(RecipeError, match=message):
        as_objective(operand)


@pytest.mark.parametrize("term_of", [Truth, lambda loss: Match(TEACHER, loss)])
@pytest.mark.parametrize(
    ("loss", "message"),
    [(nn.MSELoss, "did you forget its ()?"), ("kl", "got 'kl'; kdkit.registry('losses')['kl']()"), (None, "got None")],
)
def test_an_object_that_is_not_a_loss_is_refused(term_of, loss, message):
    with pytest.raises(RecipeError) as caught:
        term_of(loss)
    assert message in str(caught.value)


@pytest.mark.parametrize("teacher", [nn.Linear(1, 1), "teacher", None, SoftTargets()])
def test_an_object_without_a_name_cannot_be_matched(teacher):
    with pytest.raises(RecipeError, match=f"a teacher first, such as Net.*; got {type(teacher).__name__}"):
        Match(teacher, SoftTargets())


@pytest.mark.parametrize("side", ["student", "target"])
@pytest.mark.parametrize("tap", ["layer3", nn.Linear(1, 1), (Tap(nn.Identity()), "x")])
def test_an_object_that_is_not_a_tap_is_refused_with_its_side(side, tap):
    with pytest.raises(RecipeError, match=f"the {side} side of a Match must be a tap"):
        Match(TEACHER, nn.MSELoss(), **{side: tap})


@pytest.mark.parametrize("tap", ["layer3", nn.Linear(1, 1), (Tap(nn.Identity()), "x")])
def test_an_object_that_is_not_a_tap_is_refused_in_a_term_on_the_labels(tap):
    with pytest.raises(RecipeError, match="the student side of a Truth must be a tap"):
        Truth(nn.MSELoss(), student=tap)


def test_the_loss_of_a_model_is_a_scalar_that_stays_as_it_is():
    value = torch.tensor(0.5)
    assert model_loss(value, torch.zeros(2)) is value
    with pytest.raises(RecipeError, match=r"a scalar, but the tap has a tensor \(2, 3\); tap the loss"):
        model_loss(torch.zeros(2, 3), torch.zeros(2))


def test_the_default_label_names_teacher_and_loss_and_can_be_replaced():
    assert MATCH.label == "teacher/soft_targets"
    assert Match(TEACHER, SoftTargets(), label="kd_loss").label == "kd_loss"


def test_a_side_has_no_tap_one_tap_or_several():
    tap = Tap(nn.Identity())
    assert taps_of(None) == ()
    assert taps_of(tap) == (tap,)
    assert taps_of((tap, tap)) == (tap, tap)


@pytest.mark.parametrize("kind", [Truth, lambda loss, label: Match(TEACHER, loss, label=label)])
def test_a_label_that_is_no_text_is_refused(kind):
    with pytest.raises(RecipeError, match="the label of a term must be a text; got 3"):
        kind(nn.MSELoss(), label=3)


def test_weights_of_numpy_and_lists_of_taps_are_taken():
    layers = [nn.Linear(2, 2), nn.Linear(2, 2)]
    taps = [Tap(layer) for layer in layers]
    term = Match(Net("teacher", layers[0], trained=True), nn.MSELoss(), student=taps, target=taps)
    assert term.student == term.target == tuple(taps)
    for objective in (term * np.float32(0.5), np.float32(0.5) * term, (lambda progress: np.float32(0.5)) * term):
        assert dict(objective.weights(0.0)) == {term.label: 0.5}
