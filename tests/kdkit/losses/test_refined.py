"""Transformed, corrected and multi-level soft targets, compared to their formulas written with loops or in numpy."""

import math

import numpy as np
import pytest
import torch
from torch.func import vmap
from torch.nn import functional as F

from kdkit import RecipeError
from kdkit.losses import (
    DKD,
    MLLD,
    NKD,
    RLD,
    TTM,
    WSLD,
    WTTM,
    PerLabelMLLD,
    PerLabelRLD,
    PerLabelSoftTargets,
    SoftTargets,
)
from kdkit.losses.multi_level import gram_distances
from tests.helpers.loss_reference import assert_equals_reference, kl, softmax

LABELS = torch.tensor([0, 3, 1, 4])
PRESENT = torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 0, 1, 1], [0, 1, 1, 0, 0]], dtype=torch.float64)
TAKES_LABELS = {RLD: LABELS, WSLD: LABELS, PerLabelRLD: PRESENT}
ALL = [TTM, WTTM, MLLD, RLD, WSLD, PerLabelMLLD, PerLabelRLD]


def logits(dtype=torch.float64, classes=5):
    random = torch.Generator().manual_seed(3)
    return tuple((torch.randn(4, classes, generator=random, dtype=torch.float64) * 2).to(dtype) for _ in range(2))


def call(loss, student, target):
    labels = TAKES_LABELS.get(type(loss))
    return loss(student, target) if labels is None else loss(student, target, labels=labels)


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def bernoulli_kl(p, q):
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def transformed(student, target, power, *, weighted):
    total = 0.0
    for mine, theirs in zip(student.tolist(), target.tolist(), strict=True):
        powers = [p**power for p in softmax(theirs)]
        divergence = kl([number / sum(powers) for number in powers], softmax(mine))
        total += divergence * (sum(powers) if weighted else 1)
    return total / len(student)


def refined(student, target, alpha=1.0, beta=8.0, temperature=4.0, confidence_temperature=1.0):
    total = 0.0
    for mine, theirs, label in zip(student.tolist(), target.tolist(), LABELS.tolist(), strict=True):
        correct = softmax([number / confidence_temperature for number in mine])[label]
        top = max(softmax([number / confidence_temperature for number in theirs]))
        total += alpha * confidence_temperature**2 * kl([top, 1 - top], [correct, 1 - correct])
        rest = [index for index, number in enumerate(theirs) if number < theirs[label]]
        if rest:
            sides = [softmax([side[index] / temperature for index in rest]) for side in (theirs, mine)]
            total += beta * temperature**2 * kl(*sides)
    return total / len(student)


def multi_level(student, target, temperatures=(2, 3, 4, 5, 6)):
    student, target = student.numpy(), target.numpy()
    count, classes = student.shape
    total = 0.0
    for temperature in temperatures:
        q, p = (np.array([softmax(row / temperature) for row in side]) for side in (student, target))
        total += temperature**2 * (p * np.log(p / q)).sum() / count
        total += ((p @ p.T - q @ q.T) ** 2).sum() / count + ((p.T @ p - q.T @ q) ** 2).sum() / classes
    return total


def multi_level_per_label(student, target, temperatures=(2, 3, 4, 5, 6)):
    student, target = student.numpy(), target.numpy()
    count, labels = student.shape
    total = 0.0
    for temperature in temperatures:
        q, p = sigmoid(student / temperature), sigmoid(target / temperature)
        total += temperature**2 * bernoulli_kl(p, q).mean()
        total += (((p @ p.T - q @ q.T) / labels) ** 2).mean() + (((p.T @ p - q.T @ q) / count) ** 2).mean()
    return total


def refined_per_label(student, target, temperature=1.0):
    student, target, total = student.numpy(), target.numpy(), 0.0
    for row, column in np.ndindex(student.shape):
        if (target[row, column] > 0) == (PRESENT[row, column].item() > 0.5):
            total += bernoulli_kl(*(sigmoid(side[row, column] / temperature) for side in (target, student)))
    return temperature**2 * total / student.size


REFERENCES = [
    *((TTM(power=power), lambda s, t, power=power: transformed(s, t, power, weighted=False)) for power in (0.1, 1, 2)),
    *((WTTM(power=power), lambda s, t, power=power: transformed(s, t, power, weighted=True)) for power in (0.2, 1, 2)),
    (RLD(), refined),
    (
        RLD(alpha=0.5, beta=2.0, temperature=1.5, confidence_temperature=2.5),
        lambda s, t: refined(s, t, 0.5, 2, 1.5, 2.5),
    ),
    (MLLD(), multi_level),
    (MLLD(temperatures=[1.0]), lambda s, t: multi_level(s, t, [1.0])),
    (PerLabelMLLD(), multi_level_per_label),
    (PerLabelRLD(), refined_per_label),
    (PerLabelRLD(temperature=3.0), lambda s, t: refined_per_label(s, t, 3.0)),
]


# More classes than samples, and fewer; the labels are those of five classes.
CASES = [
    (*pair, classes) for pair in REFERENCES for classes in (5, 3) if classes == 5 or type(pair[0]) not in TAKES_LABELS
]


@pytest.mark.parametrize(("loss", "reference", "classes"), CASES)
def test_a_loss_and_its_gradient_equal_the_formula(loss, reference, classes):
    student, target = logits(classes=classes)
    expected = reference(student, target)
    assert call(loss, student, target).item() == pytest.approx(expected, rel=1e-10)
    leaf, single = student.clone().requires_grad_(), student.float().requires_grad_()
    value = call(loss, single, target.float())
    assert value.item() == pytest.approx(expected, rel=1e-5)
    (gradient,) = torch.autograd.grad(call(loss, leaf, target), leaf)
    (single_gradient,) = torch.autograd.grad(value, single)
    torch.testing.assert_close(single_gradient.double(), gradient, rtol=1e-4, atol=1e-5)
    for position in [(0, 0), (1, 1), (3, 2)]:
        values = []
        for sign in (1, -1):
            moved = student.clone()
            moved[position] += sign * 1e-5
            values.append(reference(moved, target))
        assert gradient[position].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6, abs=1e-8)


def weighted_terms(student, target, temperature):
    """Return the weights of WSLD and, as in its authors' code, the cross-entropies with the teacher, (batch,) each."""
    truth = F.one_hot(LABELS, 5)
    errors = [-(truth * F.log_softmax(side.detach(), 1)).sum(1) for side in (student, target)]
    cross = -((target / temperature).softmax(1) * F.log_softmax(student / temperature, 1)).sum(1)
    return 1 - (-errors[0] / (errors[1] + 1e-7)).exp(), cross


@pytest.mark.parametrize("temperature", [2.0, 0.7])
def test_weighted_soft_targets_have_the_gradient_of_the_authors_code_and_are_zero_for_equal_sides(temperature):
    student, target = logits()
    loss = WSLD(temperature=temperature)

    def authors(student, target):
        weights, cross = weighted_terms(student, target, temperature)
        return temperature**2 * (weights * cross).mean()

    def divergence(student, target):
        return authors(student, target) - authors_entropy(student, target)

    def authors_entropy(student, target):
        weights, _ = weighted_terms(student, target, temperature)
        return temperature**2 * (weights * weighted_terms(target, target, temperature)[1]).mean()

    assert_equals_reference(lambda s, t: call(loss, s, t), divergence, student, target)
    leaf = student.clone().requires_grad_()
    (expected,) = torch.autograd.grad(authors(leaf, target), leaf)
    (gradient,) = torch.autograd.grad(call(loss, leaf, target), leaf)
    torch.testing.assert_close(gradient, expected)
    assert call(loss, target, target).item() == pytest.approx(0, abs=1e-12)
    assert authors(target, target) > 0.1


def test_the_weight_of_a_sample_depends_on_how_much_worse_than_the_teacher_the_student_is():
    target = torch.tensor([[2.0, 0.0]]).repeat(4, 1)
    student = torch.tensor([[20.0, 0.0], [2.0, 0.0], [0.0, 0.0], [-9.0, 0.0]])
    labels = torch.zeros(4, dtype=torch.int64)
    weights = WSLD().weights(student, target, labels)
    assert weights[0] < 1e-6
    assert weights[1].item() == pytest.approx(1 - math.exp(-1), rel=1e-5)
    assert weights[2].item() == pytest.approx(1 - math.exp(-math.log(2) / math.log1p(math.exp(-2))), rel=1e-5)
    assert weights[3].item() == pytest.approx(1)


@pytest.mark.parametrize("both", [False, True])
def test_a_label_that_the_teacher_masks_gives_a_sample_no_weight(both):
    student, target = logits()
    target[0, LABELS[0]] = -math.inf
    if both:
        student[0, LABELS[0]] = -math.inf
    student.requires_grad_()
    value = call(WSLD(), student, target)
    others = WSLD()(student[1:], target[1:], labels=LABELS[1:])
    torch.testing.assert_close(value, others * 3 / 4)
    (gradient,) = torch.autograd.grad(value, student)
    assert gradient.isfinite().all()


def test_a_power_softens_the_teacher_as_a_temperature_does():
    student, target = logits()
    soft = target / 4
    torch.testing.assert_close(TTM(power=0.25)(student, target), SoftTargets(temperature=1.0)(student, soft))
    torch.testing.assert_close(TTM(power=1.0)(student, target), SoftTargets(temperature=1.0)(student, target))
    torch.testing.assert_close(WTTM(power=1.0)(student, target), SoftTargets(temperature=1.0)(student, target))


def test_samples_weigh_more_if_the_teacher_is_less_sure():
    # By hand: the powers of (1/2, 1/2) sum to 2^(1/2); those of a certain teacher to 1.
    student = torch.zeros(1, 2, dtype=torch.float64)
    unsure, sure = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[1e3, 0.0]], dtype=torch.float64)
    assert WTTM(power=0.5)(student, sure).item() == pytest.approx(math.log(2))
    shifted = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    ratio = WTTM(power=0.5)(shifted, unsure) / TTM(power=0.5)(shifted, unsure)
    assert ratio.item() == pytest.approx(math.sqrt(2))


def test_the_refined_loss_takes_confidence_but_not_a_wrong_order_from_the_teacher():
    # By hand, with T = 1: the teacher gives 0.5 to class 2, but the label is 0. Only class 1 ranks below the label, and
    # one class has no distribution, so the confidence is left: KL((0.5, 0.5) ‖ (0.25, 0.75)).
    teacher, student = torch.tensor([[0.3, 0.2, 0.5]]).log(), torch.tensor([[0.25, 0.25, 0.5]]).log()
    value = RLD(temperature=1.0)(student, teacher, labels=torch.tensor([0]))
    assert value.item() == pytest.approx(0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75), rel=1e-5)
    # A label that the teacher ranks last leaves no class at all.
    value = RLD(alpha=0.0)(student, teacher, labels=torch.tensor([1]))
    assert value == 0


def test_the_refined_loss_has_no_term_of_order_if_the_teacher_masks_all_lower_classes():
    student, _ = logits()
    student.requires_grad_()
    target = torch.tensor([[1.0, 2.0, -math.inf, 3.0, -math.inf]], dtype=torch.float64).expand(4, -1)
    value = RLD(alpha=0.0)(student, target, labels=torch.zeros(4, dtype=torch.int64))
    assert value == 0
    assert not torch.autograd.grad(value, student)[0].any()


def test_the_refined_loss_of_a_correct_teacher_is_decoupled_distillation():
    # A correct teacher ranks all other classes below the label, so both terms are those of DKD at one temperature.
    student, target = logits()
    target = target.scatter(1, LABELS[:, None], 20.0)
    decoupled = DKD(temperature=4.0)(student, target, labels=LABELS)
    value = RLD(temperature=4.0, confidence_temperature=4.0)(student, target, labels=LABELS)
    torch.testing.assert_close(value, decoupled)


def test_labels_on_which_the_teacher_is_right_are_compared():
    student, target = logits()
    right = torch.where(target > 0, 1.0, 0.0)
    torch.testing.assert_close(PerLabelRLD()(student, target, labels=right), PerLabelSoftTargets()(student, target))
    leaf = student.clone().requires_grad_()
    PerLabelRLD()(leaf, target, labels=PRESENT).backward()
    wrong = (target > 0) != (PRESENT > 0.5)
    assert wrong.any()
    assert torch.equal(leaf.grad == 0, wrong)


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (4, 4), (1, 5), (5, 1)])
def test_gram_distances_are_those_of_the_gram_matrices(shape):
    random = torch.Generator().manual_seed(1)
    first, second = (torch.rand(shape, generator=random, dtype=torch.float64) for _ in range(2))
    rows, columns = gram_distances(first, second)
    torch.testing.assert_close(rows, (first @ first.T - second @ second.T).square().sum())
    torch.testing.assert_close(columns, (first.T @ first - second.T @ second).square().sum())


@pytest.mark.parametrize("shape", [(6, 200), (200, 6)])
def test_gram_distances_of_similar_sides_are_exact_in_float32(shape):
    random = torch.Generator().manual_seed(1)
    first = torch.rand(shape, generator=random)
    second = first + 1e-3 * torch.rand(shape, generator=random)
    expected = gram_distances(first.double(), second.double())
    for value, reference in zip(gram_distances(first, second), expected, strict=True):
        assert value.item() == pytest.approx(reference.item(), rel=1e-5)


def test_the_weights_of_the_levels_select_terms():
    student, target = logits()
    only = {"instance_weight": 0.0, "batch_weight": 0.0, "class_weight": 0.0}
    for make in (MLLD, PerLabelMLLD):
        parts = [make(**only | {name: 1.0})(student, target) for name in only]
        torch.testing.assert_close(torch.stack(parts).sum(), make()(student, target))
    divergence = MLLD(temperatures=(4.0,), batch_weight=0, class_weight=0)(student, target)
    torch.testing.assert_close(divergence, SoftTargets(temperature=4.0)(student, target))
    plain = MLLD(temperatures=(4.0,), batch_weight=0, class_weight=0, t_squared=False)(student, target)
    torch.testing.assert_close(16 * plain, divergence)


def test_the_multi_level_loss_per_label_does_not_depend_on_the_batch_size():
    student, target = logits()
    doubled = [torch.cat([side, side]) for side in (student, target)]
    torch.testing.assert_close(PerLabelMLLD()(*doubled), PerLabelMLLD()(student, target))


def test_autocast_does_not_round_the_relations():
    student, target = logits(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        value = MLLD()(student, target)
    torch.testing.assert_close(value, MLLD()(student, target), rtol=1e-6, atol=0)


@pytest.mark.parametrize("make", [TTM, WTTM, RLD, PerLabelRLD])
def test_the_loss_of_each_sample_can_be_mapped(make):
    student, target = logits()
    labels = TAKES_LABELS.get(make)
    if labels is None:
        values = vmap(lambda mine, theirs: make()(mine[None], theirs[None]))(student, target)
    else:
        values = vmap(lambda mine, theirs, own: make()(mine[None], theirs[None], labels=own[None]))(
            student, target, labels
        )
    torch.testing.assert_close(values.mean(), call(make(), student, target))


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-8, 1.0, 1e4])
def test_rows_of_any_scale_give_finite_values_and_gradients(make, dtype, scale):
    student, target = (side.sign().to(dtype) for side in logits())
    for teacher, factor in [(target, scale), (target, 1e4), (-student, scale), (student, scale), (target, 0.0)]:
        leaf = (student * scale).to(dtype).requires_grad_()
        value = call(make(), leaf, (teacher * factor).to(dtype))
        value.backward()
        assert value.isfinite()
        assert leaf.grad.isfinite().all()


# The value of a sample whose teacher gives all classes but the label a probability of 0, from the student's logits
# (1, classes), and whether the loss is infinite if the student alone does: KL((p, 1 - p) ‖ (1, 0)) is, with p < 1.
ALONE = [
    (DKD(), lambda student, label: -16 * F.log_softmax(student / 4, 1)[0, label], True),
    (NKD(), lambda student, label: -F.log_softmax(student, 1)[0, label], False),
    (RLD(), lambda student, label: -F.log_softmax(student, 1)[0, label], True),
]


@pytest.mark.parametrize(("loss", "expected", "infinite"), ALONE, ids=["dkd", "nkd", "rld"])
@pytest.mark.parametrize("sides", [(0,), (1,), (0, 1)], ids=["student", "teacher", "both"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_sample_without_another_class_than_its_label_adds_nothing_on_the_others(
    loss, expected, infinite, sides, dtype
):
    student, target = (side.to(dtype) for side in logits())
    only = torch.arange(student.shape[1]) != LABELS[0]
    for index in sides:
        (student, target)[index][0, only] = -math.inf
    student.requires_grad_()
    value = loss(student, target, labels=LABELS)
    (gradient,) = torch.autograd.grad(value, student)
    others = 3 * loss(student[1:], target[1:], labels=LABELS[1:])
    first = expected(student[:1].to(value.dtype), LABELS[0]) if 1 in sides else torch.zeros((), dtype=value.dtype)
    if sides == (0,) and infinite:
        assert value == math.inf
        assert gradient.isfinite().all()
    else:
        torch.testing.assert_close(value, (others + first) / 4)
        (reference,) = torch.autograd.grad((others + first) / 4, student)
        torch.testing.assert_close(gradient, reference)
    assert gradient.isfinite().all()
    if sides == (0, 1):
        assert not gradient[0].any()


@pytest.mark.parametrize("make", [DKD, NKD, RLD])
def test_a_teacher_that_is_trained_gets_a_finite_gradient_without_other_classes(make):
    for sides in ((0,), (1,), (0, 1)):
        student, target = logits()
        for index in sides:
            (student, target)[index][0, torch.arange(5) != LABELS[0]] = -math.inf
        (gradient,) = torch.autograd.grad(make()(student, target.requires_grad_(), labels=LABELS), target)
        assert gradient.isfinite().all() or sides == (0,)


def test_the_refined_loss_has_no_gradient_on_the_order_without_a_class_below_the_label():
    # the label of each sample has the least logit of the teacher, or that of all its classes
    for target in (logits()[1].scatter(1, LABELS[:, None], -20.0), torch.zeros(4, 5, dtype=torch.float64)):
        student = logits()[0].requires_grad_()
        value = RLD(alpha=0.0)(student, target, labels=LABELS)
        assert value == 0
        assert not torch.autograd.grad(value, student)[0].any()


def test_the_refined_loss_does_not_compare_the_order_if_the_student_masks_all_lower_classes():
    student, target = logits()
    student[0] = torch.where(target[0] < target[0, LABELS[0]], -math.inf, student[0])
    student.requires_grad_()
    value = RLD(alpha=0.0)(student, target, labels=LABELS)
    others = RLD(alpha=0.0)(student[1:], target[1:], labels=LABELS[1:])
    torch.testing.assert_close(value, others * 3 / 4)
    assert not torch.autograd.grad(value, student)[0][0].any()


@pytest.mark.parametrize("make", [TTM, WTTM, MLLD, RLD, WSLD])
@pytest.mark.parametrize("both", [False, True])
def test_a_masked_class_gives_a_finite_loss_and_gradient(make, both):
    student, target = logits()
    target[:, 2] = -math.inf
    if both:
        student[:, 2] = -math.inf
    student.requires_grad_()
    value = call(make(), student, target)
    (gradient,) = torch.autograd.grad(value, student)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    if both:
        assert not gradient[:, 2].any()


def test_mixed_labels_are_refused_by_the_loss_for_one_class():
    student, target = logits()
    with pytest.raises(RecipeError, match="RLD needs one class per sample"):
        RLD()(student, target, labels=F.one_hot(LABELS, 5).double())
    with pytest.raises(RecipeError, match=r"of the outputs' shape \(4, 5\); got \(4,\)"):
        PerLabelRLD()(student, target, labels=LABELS)
    with pytest.raises(RecipeError, match="needs two; got one"):
        RLD()(student[:, :1], target[:, :1], labels=torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (TTM, {"power": 0.0}, r"power is an exponent of probabilities above 0, .*; got 0.0"),
        (WTTM, {"power": math.nan}, "power is an exponent of probabilities above 0, .*; got nan"),
        (WSLD, {"temperature": 0.0}, "a temperature must be a finite number above 0"),
        (WSLD, {"eps": 0.0}, "eps must be"),
        (RLD, {"alpha": 0.0, "beta": 0.0}, "alpha and beta are all 0"),
        (RLD, {"beta": -1.0}, "beta is a weight"),
        (RLD, {"confidence_temperature": 0.0}, "a temperature must be a finite number above 0"),
        (PerLabelRLD, {"temperature": -1.0}, "a temperature must be a finite number above 0"),
        (MLLD, {"temperatures": ()}, r"temperatures are one number above 0 or more, such as \(2, 4\); got \(\)"),
        (MLLD, {"temperatures": 4.0}, r"temperatures are one number above 0 or more, such as \(2, 4\); got 4.0"),
        (MLLD, {"temperatures": (2.0, 0.0)}, "a temperature must be a finite number above 0; got 0.0"),
        (PerLabelMLLD, {"class_weight": -1.0}, "class_weight is a weight"),
        (
            PerLabelMLLD,
            {"instance_weight": 0.0, "batch_weight": 0.0, "class_weight": 0.0},
            "instance_weight and batch_weight and class_weight are all 0",
        ),
    ],
)
def test_invalid_options_are_refused(make, options, message):
    with pytest.raises(RecipeError, match=message):
        make(**options)
