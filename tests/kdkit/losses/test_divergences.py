"""Alpha-beta, skewed and adaptive divergences and total variation, compared to their formulas written with loops."""

import math

import numpy as np
import pytest
import torch
from torch.func import vmap

from kdkit import RecipeError
from kdkit.losses import (
    AdaptiveKL,
    AlphaBetaDivergence,
    PerLabelAlphaBetaDivergence,
    PerLabelSoftTargets,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    SoftTargets,
    TotalVariation,
)
from tests.helpers.loss_reference import kl, softmax

EXPONENTS = [(0.5, 0.5), (0.2, 0.7), (1.0, 1.0), (2.0, 0.3), (1.0, 0.0), (0.0, 1.0), (0.6, 0.0), (0.0, 0.6)]
EXPONENTS += [(0.4, -0.4), (-0.4, 0.4), (0.0, 0.0), (1.5, -0.5), (-0.2, 0.7), (-0.3, -0.4)]
ALL = [AdaptiveKL, AlphaBetaDivergence, SkewKL, SkewReverseKL, TotalVariation]
FINITE_FOR_MASKED_TEACHERS = [AlphaBetaDivergence(), SkewKL(), SkewReverseKL(), TotalVariation()]


def logits(classes=6, dtype=torch.float64):
    random = torch.Generator().manual_seed(7)
    return tuple((torch.randn(4, classes, generator=random, dtype=torch.float64) * 2).to(dtype) for _ in range(2))


def mean_over_rows(term_of_row, student, target, temperature=1.0):
    """Return the mean over rows of a function of two lists of probabilities, (teacher, student)."""
    rows = zip(target.tolist(), student.tolist(), strict=True)
    softened = [[softmax([number / temperature for number in side]) for side in pair] for pair in rows]
    return sum(term_of_row(p, q) for p, q in softened) / len(student)


def alpha_beta(p, q, alpha, beta):
    """Return the alpha-beta divergence of two lists, by the formula and the four limits of Cichocki et al. 2011."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        if alpha == beta == 0:
            total += (math.log(a) - math.log(b)) ** 2 / 2
        elif alpha == -beta:
            total += (math.log(b**alpha / a**alpha) + (b**alpha / a**alpha) ** -1 - 1) / alpha**2
        elif beta == 0:
            total += (a**alpha * math.log(a**alpha / b**alpha) - a**alpha + b**alpha) / alpha**2
        elif alpha == 0:
            total += (b**beta * math.log(b**beta / a**beta) - b**beta + a**beta) / beta**2
        else:
            both = alpha + beta
            total -= (a**alpha * b**beta - alpha / both * a**both - beta / both * b**both) / (alpha * beta)
    return total


def mix(p, q, share):
    return [share * a + (1 - share) * b for a, b in zip(p, q, strict=True)]


def adaptive(p, q, head):
    order = sorted(range(len(p)), key=lambda index: -p[index])
    chosen, mass = set(), 0.0
    for index in order:  # the fewest classes that reach the share
        if mass >= head:
            break
        chosen.add(index)
        mass += p[index]
    gaps = [abs(a - b) for a, b in zip(p, q, strict=True)]
    weight = sum(gaps[index] for index in chosen) / sum(gaps)
    return weight * kl(p, q) + (1 - weight) * kl(q, p)


REFERENCES = [
    *((AlphaBetaDivergence(alpha=a, beta=b), lambda p, q, a=a, b=b: alpha_beta(p, q, a, b)) for a, b in EXPONENTS),
    *((SkewKL(skew=share), lambda p, q, share=share: kl(p, mix(p, q, share))) for share in (0.0, 0.1, 0.6)),
    *((SkewReverseKL(skew=share), lambda p, q, share=share: kl(q, mix(q, p, share))) for share in (0.0, 0.1, 0.6)),
    *((AdaptiveKL(head=head), lambda p, q, head=head: adaptive(p, q, head)) for head in (0.3, 0.5, 0.9)),
    (TotalVariation(), lambda p, q: sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2),
]


@pytest.mark.parametrize(("loss", "reference"), [pytest.param(*pair, id=repr(pair[0])) for pair in REFERENCES])
def test_a_divergence_equals_its_formula(loss, reference):
    student, target = logits()
    expected = mean_over_rows(reference, student, target)
    assert loss(student, target).item() == pytest.approx(expected, rel=1e-10)
    single = loss(*logits(dtype=torch.float32))
    assert single.item() == pytest.approx(expected, rel=1e-5)


def is_without_constants(loss):
    """Whether the gradient is that of the formula: the weights of AdaptiveKL are constants."""
    return not isinstance(loss, AdaptiveKL)


@pytest.mark.parametrize(
    ("loss", "reference"),
    [pytest.param(*pair, id=repr(pair[0])) for pair in REFERENCES if is_without_constants(pair[0])],
)
def test_the_gradient_is_that_of_the_formula(loss, reference):
    student, target = logits()
    leaf = student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, target), leaf)
    step = 1e-5
    for position in [(0, 0), (1, 3), (3, 5)]:
        values = []
        for sign in (1, -1):
            moved = student.clone()
            moved[position] += sign * step
            values.append(mean_over_rows(reference, moved, target))
        assert gradient[position].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6, abs=1e-9)
    single, target32 = logits(dtype=torch.float32)
    single.requires_grad_()
    (gradient32,) = torch.autograd.grad(loss(single, target32), single)
    torch.testing.assert_close(gradient32.double(), gradient, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_the_adaptive_divergence_takes_the_weights_as_constants():
    student, target = logits()
    leaf = student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(AdaptiveKL()(leaf, target), leaf)
    p, q = target.softmax(1), student.softmax(1)
    weights = AdaptiveKL().forward_weight(q, p)
    leaf = student.clone().requires_grad_()
    forward = torch.stack([SoftTargets(temperature=1.0)(leaf[i : i + 1], target[i : i + 1]) for i in range(4)])
    backward = torch.stack([ReverseKL()(leaf[i : i + 1], target[i : i + 1]) for i in range(4)])
    (expected,) = torch.autograd.grad((weights * forward + (1 - weights) * backward).mean(), leaf)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_the_alpha_beta_divergence_has_its_special_cases():
    student, target = logits()
    p, q = target.softmax(1), student.softmax(1)
    forward, reverse = SoftTargets(temperature=1.0)(student, target), ReverseKL()(student, target)
    torch.testing.assert_close(AlphaBetaDivergence(alpha=1, beta=0)(student, target), forward)
    torch.testing.assert_close(AlphaBetaDivergence(alpha=0, beta=1)(student, target), reverse)
    hellinger = 2 * (p.sqrt() - q.sqrt()).square().sum(1).mean()
    torch.testing.assert_close(AlphaBetaDivergence()(student, target), hellinger)
    squares = (p - q).square().sum(1).mean() / 2
    torch.testing.assert_close(AlphaBetaDivergence(alpha=1, beta=1)(student, target), squares)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.0, 1.0), (0.6, 0.0), (0.0, 0.6), (0.4, -0.4), (0.0, 0.0)])
def test_the_limits_are_continuous_in_the_exponents(alpha, beta):
    # The authors' code divides by alpha (or beta) once in the limits, which breaks this for exponents other than 1.
    student, target = logits()
    limit = AlphaBetaDivergence(alpha=alpha, beta=beta)(student, target)
    near = AlphaBetaDivergence(alpha=alpha + 1e-7, beta=beta + 2e-7)(student, target)
    torch.testing.assert_close(near, limit, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("alpha", "beta"), EXPONENTS)
def test_exchanging_the_sides_exchanges_the_exponents(alpha, beta):
    student, target = logits()
    torch.testing.assert_close(
        AlphaBetaDivergence(alpha=alpha, beta=beta)(student, target),
        AlphaBetaDivergence(alpha=beta, beta=alpha)(target, student),
    )


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.5), (0.01, 0.9), (0.9, 0.01), (1.0, 0.0)])
def test_similar_sides_have_a_small_rounding_error_in_float32(alpha, beta):
    student, _ = logits()
    target = student + 1e-3 * torch.arange(6)
    loss = AlphaBetaDivergence(alpha=alpha, beta=beta)
    expected = loss(student, target).item()
    assert loss(student.float(), target.float()).item() == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.5), (0.2, 0.7), (1.0, 0.0), (0.0, 1.0), (0.4, -0.4)])
def test_the_form_per_label_is_that_of_two_classes(alpha, beta):
    student, target = logits()
    # softmax over (x, 0) is (sigmoid(x), 1 - sigmoid(x)); (batch, labels) -> (batch * labels, 2)
    pairs = [torch.stack([side.flatten(), torch.zeros(24)], 1) for side in (student, target)]
    options = {"alpha": alpha, "beta": beta, "temperature": 2.0, "t_squared": True}
    expected = AlphaBetaDivergence(**options)(*pairs)
    torch.testing.assert_close(PerLabelAlphaBetaDivergence(**options)(student, target), expected)
    total = PerLabelAlphaBetaDivergence(reduction="batchmean", **options)(student, target)
    torch.testing.assert_close(total, 6 * expected)


def test_the_form_per_label_has_forward_kl_as_a_special_case():
    student, target = logits()
    value = PerLabelAlphaBetaDivergence(alpha=1, beta=0)(student, target)
    torch.testing.assert_close(value, PerLabelSoftTargets()(student, target))


def test_the_weights_of_the_adaptive_divergence_do_not_depend_on_the_order_of_classes():
    # By hand: p = (0.2, 0.7, 0.1) and q = (0.5, 0.3, 0.2) have the gaps (0.3, 0.4, 0.1). The head is the second class,
    # so w = 0.4 / 0.8. TAID's code applies the sorted mask to unsorted gaps, which gives 0.1 / 0.8 here.
    p, q = torch.tensor([[0.2, 0.7, 0.1]]), torch.tensor([[0.5, 0.3, 0.2]])
    for order in ([0, 1, 2], [2, 0, 1], [1, 0, 2]):
        torch.testing.assert_close(AdaptiveKL().forward_weight(q[:, order], p[:, order]), torch.tensor([0.5]))


def test_equal_sides_have_a_zero_adaptive_divergence_and_gradient():
    student = torch.zeros(3, 4, requires_grad=True)
    value = AdaptiveKL()(student, torch.zeros(3, 4))
    value.backward()
    assert value == 0
    assert not student.grad.any()


def test_total_variation_is_at_most_one():
    student = torch.tensor([[1e4, 0.0], [0.0, 0.0]])
    target = torch.tensor([[0.0, 1e4], [0.0, 0.0]])
    assert TotalVariation()(student, target) == 0.5


@pytest.mark.parametrize("make", ALL)
def test_temperature_and_reduction_scale_as_in_soft_targets(make):
    student, target = logits()
    plain = make()(student / 3, target / 3)
    torch.testing.assert_close(make(temperature=3.0)(student, target), plain)
    torch.testing.assert_close(make(temperature=3.0, t_squared=True)(student, target), 9 * plain)
    torch.testing.assert_close(make(temperature=3.0, reduction="mean")(student, target), plain / 6)
    tokens = [side.reshape(2, 2, 6) for side in (student, target)]
    torch.testing.assert_close(make(temperature=3.0)(*tokens), 2 * plain)


@pytest.mark.parametrize("make", [*ALL, PerLabelAlphaBetaDivergence])
def test_the_loss_of_each_sample_can_be_mapped(make):
    student, target = logits()
    values = vmap(lambda mine, theirs: make()(mine[None], theirs[None]))(student, target)
    torch.testing.assert_close(values.mean(), make()(student, target))


@pytest.mark.parametrize("loss", [*(make() for make in ALL), PerLabelAlphaBetaDivergence()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-8, 1.0, 1e4])
def test_rows_of_any_scale_give_finite_values_and_gradients(loss, dtype, scale):
    student, target = (side.sign().to(dtype) for side in logits())
    for other, factor in [(target, scale), (target, 1e4), (-student, scale), (student, scale), (target, 0.0)]:
        leaf = (student * scale).to(dtype).requires_grad_()
        value = loss(leaf, (other * factor).to(dtype))
        value.backward()
        assert value.isfinite()
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("loss", FINITE_FOR_MASKED_TEACHERS, ids=repr)
def test_a_class_that_the_teacher_masks_gives_a_finite_loss_and_gradient(loss):
    student, target = logits()
    target[:, 2] = -math.inf
    student.requires_grad_()
    value = loss(student, target)
    assert torch.isfinite(value)
    assert torch.autograd.gradcheck(lambda side: loss(side, target), student)


@pytest.mark.parametrize(
    "loss",
    [*FINITE_FOR_MASKED_TEACHERS, AdaptiveKL(), *(AlphaBetaDivergence(alpha=a, beta=b) for a, b in EXPONENTS)],
    ids=repr,
)
def test_a_class_that_both_sides_mask_counts_as_absent(loss):
    student, target = logits()
    rest = [side[:, [0, 1, 3, 4, 5]].clone().requires_grad_() for side in (student, target)]
    expected = torch.autograd.grad(loss(*rest), rest[0])[0]
    student[:, 2] = target[:, 2] = -math.inf
    student.requires_grad_()
    value = loss(student, target)
    (gradient,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(value, loss(*rest))
    torch.testing.assert_close(gradient[:, [0, 1, 3, 4, 5]], expected)
    assert not gradient[:, 2].any()


def test_a_class_that_the_teacher_masks_counts_with_the_students_probability():
    student, target = logits()
    target[:, 2] = -math.inf
    p, q = target.softmax(1).numpy(), student.softmax(1).numpy()
    expected = 2 * np.square(np.sqrt(p) - np.sqrt(q)).sum() / 4
    assert AlphaBetaDivergence()(student, target).item() == pytest.approx(expected, rel=1e-10)
    assert AlphaBetaDivergence(alpha=1.0, beta=0.0)(target, student) == math.inf  # the reverse divergence


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (AlphaBetaDivergence, {"alpha": math.nan}, "alpha is an exponent, a finite number; got nan"),
        (PerLabelAlphaBetaDivergence, {"beta": "1"}, "beta is an exponent, a finite number; got '1'"),
        (SkewKL, {"skew": 1.0}, r"skew must be a number in \[0, 1\); got 1.0"),
        (SkewReverseKL, {"skew": -0.1}, r"skew must be a number in \[0, 1\); got -0.1"),
        (AdaptiveKL, {"head": 1.5}, r"head must be a number in \[0, 1\]; got 1.5"),
        (TotalVariation, {"reduction": "sum"}, "reduction must be 'batchmean' or 'mean'; got 'sum'"),
        (TotalVariation, {"temperature": 0.0}, "a temperature must be a finite number above 0"),
        (SkewKL, {"t_squared": "no"}, "t_squared"),
    ],
)
def test_invalid_options_are_refused(make, options, message):
    with pytest.raises(RecipeError, match=message):
        make(**options)


@pytest.mark.parametrize("make", [*ALL, PerLabelAlphaBetaDivergence])
def test_outputs_of_different_shapes_are_refused_with_a_remedy(make):
    with pytest.raises(RecipeError, match=r"got \(4, 6\) and \(4, 5\); SecondHead\(\)"):
        make()(torch.zeros(4, 6), torch.zeros(4, 5))
