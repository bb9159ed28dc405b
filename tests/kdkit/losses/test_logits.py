"""Losses on outputs: invalid inputs, invariances and special cases. Golden numbers are in tests/parity."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from kdkit import BuildContext, RecipeError
from kdkit.losses import (
    DIST,
    DKD,
    NKD,
    OFA,
    PSKD,
    GeneralisedJSD,
    HardTargets,
    Hint,
    LogitMSE,
    LogitStandardisation,
    MarginMSE,
    PerTeacher,
    PerToken,
    ReverseKL,
    SecondHead,
    SoftTargets,
    requirements_of,
)
from kdkit.losses.base import extra_kwargs_of

LABELS = torch.tensor([0, 3, 1, 4])
SOFTENED = [DKD, NKD, DIST, GeneralisedJSD, LogitMSE, LogitStandardisation, ReverseKL]
NEED_LABELS = [DKD(), NKD(), PSKD(), MarginMSE()]


def logits(classes=5, dtype=torch.float64):
    random = torch.Generator().manual_seed(3)
    return tuple(torch.randn(4, classes, generator=random, dtype=dtype) * 2 for _ in range(2))


def call(loss, student, target, labels=LABELS):
    progress = {"progress": torch.tensor(0.5)} if "progress" in requirements_of(loss) else {}
    return loss(student, target, labels=labels, **progress)


@pytest.mark.parametrize("make", SOFTENED)
@pytest.mark.parametrize("temperature", [0, -2.0, math.nan, math.inf])
def test_a_temperature_is_a_finite_number_above_zero(make, temperature):
    with pytest.raises(RecipeError, match="a temperature must be a finite number above 0"):
        make(temperature=temperature)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (DKD, {"alpha": -1.0}, "alpha is a weight"),
        (DKD, {"beta": math.nan}, "beta is a weight"),
        (DKD, {"alpha": 0.0, "beta": 0.0}, "alpha and beta are all 0"),
        (NKD, {"gamma": math.inf}, "gamma is a weight"),
        (DIST, {"inter": -0.1}, "inter is a weight"),
        (DIST, {"eps": 0.0}, "eps must be a finite number above 0"),
        (LogitStandardisation, {"eps": -1e-7}, "eps must be"),
        (GeneralisedJSD, {"beta": 1.5}, r"beta must be a number in \[0, 1\]; got 1.5"),
        (GeneralisedJSD, {"beta": math.nan}, "beta must be a number in"),
        (PSKD, {"alpha": -0.5}, "alpha must be a number in"),
        (PSKD, {"epochs": 0}, "epochs must be an integer of at least 1 or None"),
        (PSKD, {"past": "probability"}, "past must be 'logits' or 'probabilities'"),
        (ReverseKL, {"reduction": "sum"}, "reduction must be 'batchmean' or 'mean'; got 'sum'"),
    ],
)
def test_invalid_options_are_refused(make, options, message):
    with pytest.raises(RecipeError, match=message):
        make(**options)


@pytest.mark.parametrize("loss", NEED_LABELS, ids=repr)
def test_mixed_labels_are_refused_by_the_requirements_and_by_the_call(loss):
    student, target = logits()
    assert "hard_labels" in requirements_of(loss)
    for labels in (F.one_hot(LABELS, 5).double(), LABELS.double(), LABELS[:2]):
        with pytest.raises(RecipeError, match=f"{type(loss).__name__} needs one class per sample"):
            call(loss, student, target, labels)


@pytest.mark.parametrize("loss", [DKD(), NKD(), DIST(), LogitStandardisation(), MarginMSE()], ids=repr)
def test_a_single_class_is_refused(loss):
    kwargs = {"labels": torch.zeros(4, dtype=torch.int64)} if "labels" in requirements_of(loss) else {}
    with pytest.raises(RecipeError, match="needs two"):
        loss(torch.randn(4, 1), torch.randn(4, 1), **kwargs)


@pytest.mark.parametrize("make", [SoftTargets.deit, SoftTargets.modelopt])
def test_the_presets_of_deit_and_modelopt_are_hintons_loss_over_the_number_of_classes(make):
    student, target = logits()
    torch.testing.assert_close(
        make(temperature=3.0)(student, target) * 5, SoftTargets(temperature=3.0)(student, target)
    )


def test_logit_mse_sums_over_classes_for_batchmean():
    student, target = logits()
    expected = ((student - target) ** 2).sum(1).mean()
    torch.testing.assert_close(LogitMSE(reduction="batchmean")(student, target), expected)
    torch.testing.assert_close(
        LogitMSE(temperature=3.0, t_squared=True, reduction="batchmean")(student, target), expected
    )


def test_margin_mse_is_the_squared_error_between_differences_of_pairs_of_scores():
    student, target = logits()
    pairs = [(row, label, other) for row, label in enumerate(LABELS.tolist()) for other in range(5) if other != label]
    margins = [[side[row, label] - side[row, other] for row, label, other in pairs] for side in (student, target)]
    expected = F.mse_loss(*map(torch.stack, margins))
    torch.testing.assert_close(MarginMSE()(student, target, labels=LABELS), expected)


def test_margin_mse_of_padded_lists_is_the_mean_over_queries_of_their_own_passages():
    student, target = logits()
    counts = (2, 5, 3, 5)
    padding = torch.arange(5) >= torch.tensor(counts)[:, None]
    labels = torch.tensor([1, 3, 0, 4])
    lists = zip(student[:, None], target[:, None], counts, labels[:, None], strict=True)
    expected = [MarginMSE()(first[:, :count], second[:, :count], labels=label) for first, second, count, label in lists]
    student, target = (side.masked_fill(padding, -math.inf) for side in (student, target))
    torch.testing.assert_close(MarginMSE()(student, target, labels=labels), torch.stack(expected).mean())


def test_logit_standardisation_ignores_scale_and_offset():
    student, target = logits()
    loss = LogitStandardisation()
    torch.testing.assert_close(loss(7 * student + 2, 0.1 * target - 5), loss(student, target), rtol=1e-5, atol=0)


def test_dkd_weighted_by_the_teachers_confidence_equals_soft_targets():
    # Zhao et al. 2022, eq. 5: KD = TCKD + (1 - p) NCKD, here with the same p in every row
    student, target = logits()
    target = target.roll(1, 0)[:1].expand(4, -1)
    labels = torch.zeros(4, dtype=torch.int64)
    missing = 1 - (target[0] / 2).softmax(0)[0].item()
    decoupled = DKD(alpha=1.0, beta=missing, temperature=2.0)(student, target, labels=labels)
    torch.testing.assert_close(decoupled, SoftTargets(temperature=2.0)(student, target))


def test_nkd_equals_its_formula_in_numpy():
    student, target = (side.numpy() for side in logits())
    expected = 0.0
    for mine, theirs, right in zip(student, target, LABELS.tolist(), strict=True):
        others = [index for index in range(5) if index != right]
        log_mine, log_theirs = (row - np.log(np.exp(row).sum()) for row in (mine, theirs))
        student_rest, target_rest = (np.exp(row[others] / 2) / np.exp(row[others] / 2).sum() for row in (mine, theirs))
        expected -= np.exp(log_theirs[right]) * log_mine[right] + 1.5 * 4 * (target_rest * np.log(student_rest)).sum()
    value = NKD(temperature=2.0)(torch.tensor(student), torch.tensor(target), labels=LABELS)
    assert value.item() == pytest.approx(expected / 4, rel=1e-12)


def test_a_decoupled_loss_without_t_squared_has_no_temperature_factor():
    student, target = logits()
    plain, squared = (DKD(temperature=3.0, t_squared=flag)(student, target, labels=LABELS) for flag in (False, True))
    torch.testing.assert_close(squared, 9 * plain)
    # in NKD the factor applies to the other classes only, so gamma can undo it
    undone = NKD(gamma=1.0 / 9, temperature=3.0)(student, target, labels=LABELS)
    plain = NKD(gamma=1.0, temperature=3.0, t_squared=False)(student, target, labels=LABELS)
    torch.testing.assert_close(undone, plain)


@pytest.mark.parametrize("loss", [DKD(), NKD(), PSKD()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_saturated_logits_give_finite_values_and_gradients_for_any_label(loss, dtype):
    signs = torch.tensor([[1.0, -1, -1], [-1, 1, 1], [-1, -1, -1], [1, 1, 1]], dtype=dtype) * 1e4
    for label in range(3):
        for target in (signs, -signs, signs.roll(1, 1)):
            student = signs.clone().requires_grad_()
            value = call(loss, student, target, torch.full((4,), label))
            value.backward()
            assert value.isfinite()
            assert student.grad.isfinite().all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(2, 6), st.floats(0.0, 1.0), st.integers(0, 2**31))
def test_a_generalised_divergence_is_never_negative_and_zero_for_equal_logits(batch, classes, beta, seed):
    random = torch.Generator().manual_seed(seed)
    student, target = (torch.randn(batch, classes, generator=random, dtype=torch.float64) for _ in range(2))
    for loss in (GeneralisedJSD(beta=beta), ReverseKL()):
        assert loss(student, target) >= -1e-12
        assert abs(loss(target, target)) < 1e-12


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(2, 6), st.floats(0.5, 20), st.integers(0, 2**31))
def test_decoupled_and_correlated_losses_take_any_batch_and_classes(batch, classes, temperature, seed):
    random = torch.Generator().manual_seed(seed)
    student, target = (torch.randn(batch, classes, generator=random, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(classes, (batch,), generator=random)
    dkd, nkd = DKD(temperature=temperature), NKD(temperature=temperature)
    dist = DIST(temperature=temperature, eps=1e-30)  # its eps matters if all probabilities are nearly equal
    assert dkd(student, target, labels=labels) >= -1e-9
    assert abs(dkd(target, target, labels=labels)) < 1e-9
    assert nkd(student, target, labels=labels) > 0
    assert dist(student, target) >= dist(target, target) - 1e-6


def test_the_generalised_divergence_is_forward_kl_at_zero_and_reverse_kl_at_one():
    student, target = logits()
    forward = SoftTargets(temperature=1.0)(student, target)
    torch.testing.assert_close(GeneralisedJSD(beta=0.0)(student, target), forward)
    torch.testing.assert_close(GeneralisedJSD(beta=1.0)(student, target), ReverseKL()(student, target))
    torch.testing.assert_close(ReverseKL()(target, student), forward)


def test_only_tokens_with_a_label_are_compared():
    student, target = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    labels = torch.tensor([[1, -100, 2], [-100, -100, 0]])
    rows = [(0, 0), (0, 2), (1, 2)]
    kept, theirs = (torch.stack([side[row] for row in rows]) for side in (student, target))
    torch.testing.assert_close(PerToken(ReverseKL())(student, target, labels=labels), ReverseKL()(kept, theirs))
    expected = DKD()(kept, theirs, labels=torch.tensor([1, 2, 0]))
    torch.testing.assert_close(PerToken(DKD())(student, target, labels=labels), expected)


def test_a_batch_without_labelled_tokens_gives_zero_and_a_zero_gradient():
    student = torch.randn(2, 3, 5, requires_grad=True)
    value = PerToken(ReverseKL())(student, torch.randn(2, 3, 5), labels=torch.full((2, 3), -100))
    value.backward()
    assert value == 0
    assert not student.grad.any()


def test_per_token_refuses_labels_of_another_shape_and_losses_with_weights():
    with pytest.raises(RecipeError, match=r"a label for every token, of shape \(2, 3\); got \(2,\)"):
        PerToken(ReverseKL())(torch.randn(2, 3, 5), torch.randn(2, 3, 5), labels=torch.zeros(2))
    for loss in (Hint(), PSKD(), "kl"):
        with pytest.raises(RecipeError, match="PerToken takes a loss on outputs"):
            PerToken(loss)


def test_hard_targets_depend_on_the_teachers_decision_not_on_its_confidence():
    student, target = logits()
    torch.testing.assert_close(HardTargets()(student, target * 100), HardTargets()(student, target))
    torch.testing.assert_close(HardTargets()(student, target), F.cross_entropy(student, target.argmax(1)))


def test_hard_targets_with_a_threshold_count_samples_of_which_the_teacher_is_unsure_as_zero():
    student, target = torch.randn(4, 3), torch.tensor([[9.0, 0, 0], [0, 1, 0], [0, 0, 1.2], [0, 9, 0]])
    sure = torch.tensor([0, 3])
    expected = F.cross_entropy(student[sure], torch.tensor([0, 1])) / 2
    torch.testing.assert_close(HardTargets(threshold=0.9)(student, target), expected)
    assert HardTargets(threshold=0.9)(student, target[1:3].repeat(2, 1)) == 0
    with pytest.raises(RecipeError, match="threshold must be a number in"):
        HardTargets(threshold=95)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 7), (4, 6, 3, 2)])
def test_a_second_head_is_built_for_the_features_and_trained(shape):
    context = BuildContext(classes=tuple("abcde"), task="multiclass", samples=4, ids=True)
    loss, features, target = SecondHead(SoftTargets()), torch.randn(shape), torch.randn(4, 5)
    loss.build((features.shape,), (target.shape,), context, None)
    loss(features, target).backward()
    assert loss.head.weight.shape == (5, 6)
    assert all(parameter.grad.any() for parameter in loss.parameters())
    pooled = features.reshape(4, 6, -1).mean(2)
    torch.testing.assert_close(loss(features, target), SoftTargets()(loss.head(pooled), target))


def test_a_second_head_refuses_other_inputs_and_losses():
    context = BuildContext(classes=("a", "b"), task="multiclass", samples=4, ids=True)
    shape = torch.Size((4, 6))
    with pytest.raises(RecipeError, match="one tap of the student and the teacher's outputs"):
        SecondHead().build((shape, shape), (shape,), context, None)
    with pytest.raises(RecipeError, match="the teacher's outputs"):
        SecondHead().build((shape,), (torch.Size((4, 6, 7)),), context, None)
    for loss in (Hint(), PSKD()):
        with pytest.raises(RecipeError, match="SecondHead takes a loss on outputs"):
            SecondHead(loss)
    assert list(SecondHead(nn.MSELoss()).parameters()) == []


def test_dist_equals_its_formula_in_numpy():
    student, target = logits()
    value = DIST(temperature=2.0)(student, target).item()
    mine, theirs = ((side / 2).softmax(1).numpy() for side in (student, target))
    rows = np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(mine, theirs, strict=True)])
    columns = np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(mine.T, theirs.T, strict=True)])
    assert value == pytest.approx(4 * (2 - rows - columns), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_constant_row_counts_as_uncorrelated_with_a_finite_gradient(dtype):
    student = torch.zeros(4, 5, requires_grad=True, dtype=dtype)
    value = DIST()(student, torch.zeros(4, 5, dtype=dtype))
    value.backward()
    assert value.item() == pytest.approx(2)
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_the_weight_of_the_past_grows_linearly_with_progress(progress):
    student, past = logits()
    mix = (1 - 0.8 * progress) * F.one_hot(LABELS, 5) + 0.8 * progress * past.softmax(1)
    expected = -(mix * student.log_softmax(1)).sum(1).mean()
    value = PSKD()(student, past, labels=LABELS, progress=torch.tensor(progress, dtype=torch.float64))
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("epochs", [3, 10, 90, 300])
def test_the_weight_of_the_past_grows_in_steps_of_an_epoch(epochs):
    student, past = logits()
    loss = PSKD(epochs=epochs, alpha=1.0, past="probabilities")
    for epoch in range(epochs):
        for within in (0.0, 0.5, 0.99):
            progress = torch.tensor((epoch + within) / epochs)  # float32, as in a run
            share = (epoch + 1) / epochs
            mix = (1 - share) * F.one_hot(LABELS, 5) + share * past
            expected = -(mix * student.log_softmax(1)).sum(1).mean()
            value = loss(student, past, labels=LABELS, progress=progress)
            assert value.item() == pytest.approx(expected.item(), rel=1e-5), (epoch, within)
    last = loss(student, past, labels=LABELS, progress=torch.tensor(1.0))
    assert last.item() == pytest.approx(expected.item(), rel=1e-5)


MASKED = [SoftTargets(), SoftTargets(temperature=1.0), DKD(), NKD(), GeneralisedJSD(), GeneralisedJSD(beta=0.0)]


def masked_logits():
    """Return logits whose target has a probability of 0 for class 2, which is no label, and all sides without it."""
    student, target = logits()
    target[:, 2] = -math.inf
    columns = [0, 1, 3, 4]
    labels = torch.tensor([0, 2, 1, 3])  # LABELS without class 2
    return student, target, student[:, columns], target[:, columns], labels


def call_masked(loss, student, target, labels=LABELS):
    return call(loss, student, target, labels) if "labels" in extra_kwargs_of(loss) else loss(student, target)


@pytest.mark.parametrize("loss", MASKED, ids=repr)
def test_a_class_that_the_teacher_masks_gives_a_finite_loss_and_gradient(loss):
    student, target, *_ = masked_logits()
    student.requires_grad_()
    value = call_masked(loss, student, target)
    (gradient,) = torch.autograd.grad(value, student)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    assert torch.autograd.gradcheck(lambda side: call_masked(loss, side, target), student)


def test_a_masked_class_adds_nothing_to_the_divergence_from_the_teacher():
    student, target, *_ = masked_logits()
    p, log_q = target.softmax(1).numpy(), F.log_softmax(student, 1).numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.where(p > 0, p * (np.log(p) - log_q), 0.0).sum() / len(p)
    assert SoftTargets(temperature=1.0)(student, target).item() == pytest.approx(expected, rel=1e-12)
    m = 0.5 * p + 0.5 * np.exp(log_q)
    with np.errstate(divide="ignore", invalid="ignore"):
        forward = np.where(p > 0, p * (np.log(p) - np.log(m)), 0.0).sum()
    reverse = (np.exp(log_q) * (log_q - np.log(m))).sum()
    assert GeneralisedJSD()(student, target).item() == pytest.approx((forward + reverse) / 2 / len(p), rel=1e-12)


MASKED_ON_BOTH_SIDES = [*MASKED, GeneralisedJSD(beta=0.2), GeneralisedJSD(beta=1.0), ReverseKL(), PSKD(), MarginMSE()]
STANDARDISED = [LogitStandardisation(), LogitStandardisation(masked=True)]
MASKED_ON_BOTH_SIDES += [*STANDARDISED[1:], OFA(), OFA(gamma=1.4)]


@pytest.mark.parametrize("loss", MASKED_ON_BOTH_SIDES, ids=repr)
def test_a_class_that_both_sides_mask_counts_as_absent(loss):
    student, target, rest_student, rest_target, labels = masked_logits()
    student[:, 2] = -math.inf
    student.requires_grad_()
    rest_student.requires_grad_()
    value, expected = call_masked(loss, student, target), call_masked(loss, rest_student, rest_target, labels)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    (gradient,), (rest,) = torch.autograd.grad(value, student), torch.autograd.grad(expected, rest_student)
    torch.testing.assert_close(gradient[:, [0, 1, 3, 4]], rest)
    assert (gradient[:, 2] == 0).all()


def test_masked_classes_are_left_out_of_the_standardisation():
    student, target, _, rest_target, _ = masked_logits()
    loss = LogitStandardisation(masked=True)
    standardised, rest = loss.standardise(target), loss.standardise(rest_target)
    assert (standardised[:, 2] == -math.inf).all()
    torch.testing.assert_close(standardised[:, [0, 1, 3, 4]], rest)
    student.requires_grad_()
    value = loss(student, target)
    assert torch.isfinite(value)
    assert torch.autograd.gradcheck(lambda side: loss(side, target), student)


def test_standardisation_that_expects_masks_gives_the_same_without_a_mask():
    for side in (*logits(), torch.ones(2, 5, dtype=torch.float64)):
        rows = [side.clone().requires_grad_() for _ in range(2)]
        values = [
            LogitStandardisation(masked=flag).standardise(row) for flag, row in zip((True, False), rows, strict=True)
        ]
        torch.testing.assert_close(*values)
        weights = torch.arange(5.0)
        gradients = [
            torch.autograd.grad((value * weights).sum(), row)[0] for value, row in zip(values, rows, strict=True)
        ]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("loss", [SoftTargets(), GeneralisedJSD(beta=1.0), *STANDARDISED], ids=repr)
def test_a_compiled_loss_has_the_value_and_the_gradient_of_the_plain_one(loss):
    student, target, *_ = masked_logits()
    student[:, 2] = -math.inf
    if loss == LogitStandardisation():
        student, target = logits()
    student.requires_grad_()
    torch.compiler.reset()
    values = loss(student, target), torch.compile(loss, backend="aot_eager", fullgraph=True)(student, target)
    gradients = [torch.autograd.grad(value, student)[0] for value in values]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("make", [SoftTargets, ReverseKL, DKD, NKD, LogitStandardisation])
def test_logits_that_are_not_a_number_still_give_a_loss_that_is_not_a_number(make):
    for index in range(2):
        sides = [side.clone() for side in logits()]
        sides[index][1, 2] = math.nan
        assert call_masked(make(), *sides).isnan()


def test_a_class_that_only_the_student_masks_gives_an_infinite_divergence():
    student, target = logits()
    student[:, 2] = -math.inf
    assert SoftTargets()(student, target) == math.inf
    # also if the mask is next to one of both sides
    target[:, 1] = student[:, 1] = -math.inf
    assert SoftTargets()(student, target) == math.inf


def test_the_reverse_divergence_from_a_masked_class_is_infinite():
    student, target, *_ = masked_logits()
    assert ReverseKL()(student, target) == math.inf


@pytest.mark.parametrize("weights", ["equal", "confidence"])
def test_several_teachers_may_mask_classes(weights):
    student, target, *_ = masked_logits()
    _, other = logits()
    loss = PerTeacher(SoftTargets(), weights=weights)
    sides = (student.shape,), (target.shape, other.shape)
    loss.build(*sides, BuildContext(task="multiclass", classes=tuple("abcde"), samples=4, ids=True), (None, None))
    student.requires_grad_()
    value = loss((student,), (target, other), labels=LABELS, teacher_outputs=(target, other))
    (gradient,) = torch.autograd.grad(value, student)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_equal_logits_standardise_to_zero_without_a_gradient(dtype):
    # the student of a zero-initialised head, whose probabilities stay uniform
    student = torch.full((4, 5), 2.0, dtype=dtype, requires_grad=True)
    teacher = logits()[1].to(dtype)
    value = LogitStandardisation(temperature=2.0)(student, teacher)
    value.backward()
    rows = teacher.double().numpy()
    standardised = (rows - rows.mean(1, keepdims=True)) / rows.std(1, ddof=1, keepdims=True) / 2
    probabilities = np.exp(standardised) / np.exp(standardised).sum(1, keepdims=True)
    assert value.item() == pytest.approx(4 * (probabilities * np.log(5 * probabilities)).sum(1).mean(), rel=1e-5)
    assert not student.grad.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_constant_outputs_get_no_gradient_from_dist(dtype):
    student = torch.full((4, 5), 0.7, dtype=dtype, requires_grad=True)
    value = DIST()(student, logits()[1].to(dtype))
    value.backward()
    assert value.item() == pytest.approx(2)
    assert not student.grad.any()


@pytest.mark.parametrize("dim", [0, 1])
def test_dist_does_not_hide_a_student_that_is_not_a_number_behind_a_constant_teacher(dim):
    student, target = logits()
    student[1] = math.nan
    target.select(1 - dim, 1).fill_(0.7)
    target = target if dim else torch.full_like(target, 0.7)
    assert DIST()(student, target).isnan()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_tiny_probabilities_correlate_as_others_do(dtype):
    student, target = logits()
    # the last class is never likely: its column has norms of about 1e-7, and their product is below eps
    student, target = (side - torch.tensor([0.0, 0, 0, 0, 16]) for side in (student, target))
    mine, theirs = (side.softmax(1).numpy() for side in (student, target))
    expected = 1 - np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(mine.T, theirs.T, strict=True)])
    value = DIST(inter=0.0)(student.to(dtype), target.to(dtype)).item()
    assert value == pytest.approx(expected, abs=1e-4)
    plain_eps = 1 - np.mean(
        [
            np.cov(*pair)[0, 1] * 3 / (np.prod([3**0.5 * side.std(ddof=1) for side in pair]) + 1e-8)
            for pair in zip(mine.T, theirs.T, strict=True)
        ]
    )
    assert abs(plain_eps - expected) > 0.01  # which the authors' code gives
