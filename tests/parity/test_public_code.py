"""What public code computes differently from kdkit: its formula, written independently, and the difference.

docs/losses.md lists these tests in the table "Differences from public code".
"""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdkit.losses import (
    DIST,
    DKD,
    LED,
    MLLD,
    NKD,
    OFA,
    RKD,
    RLD,
    SDD,
    SKD,
    SRD,
    AdaptiveKL,
    AlphaBetaDivergence,
    DISTPlus,
    LogitStandardisation,
    PairwiseAffinity,
    PerLabelSoftTargets,
    SkewKL,
    SoftTargets,
)
from tests.helpers.losses import build_loss


def logits(dtype=torch.float64):
    random = torch.Generator().manual_seed(3)
    return tuple((torch.randn(4, 5, generator=random, dtype=torch.float64) * 2).to(dtype) for _ in range(2))


def gradient_of(loss, student, target, **kwargs):
    """Return the value of a loss, and its gradient at the student."""
    student = student.clone().requires_grad_()
    value = loss(student, target, **kwargs)
    return value.detach(), torch.autograd.grad(value, student)[0]


def assert_finite_with_gradient(loss, student, target, **kwargs):
    value, gradient = gradient_of(loss, student, target, **kwargs)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert gradient.any()


# Soft targets


def test_the_default_reduction_of_torch_divides_by_the_number_of_classes_too():
    student, target = logits()
    with pytest.warns(UserWarning, match="reduction: 'mean' divides"):
        value = nn.KLDivLoss()(F.log_softmax(student, 1), target.softmax(1))
    torch.testing.assert_close(SoftTargets(temperature=1.0)(student, target), 5 * value)
    torch.testing.assert_close(SoftTargets.deit()(student, target), value)


def test_without_the_squared_temperature_the_gradient_vanishes_at_high_temperatures():
    def without_factor(temperature):
        def loss(student, target):
            sides = F.log_softmax(student / temperature, 1), F.softmax(target / temperature, 1)
            return F.kl_div(*sides, reduction="batchmean")

        return loss

    student, target = logits()
    plain, squared = (
        [gradient_of(make(temperature), student, target)[1].norm() for temperature in (20.0, 200.0)]
        for make in (without_factor, lambda temperature: SoftTargets(temperature=temperature))
    )
    assert plain[1] / plain[0] == pytest.approx(1 / 100, rel=0.1)
    assert squared[1] / squared[0] == pytest.approx(1, rel=0.1)


def test_the_divergence_of_torch_is_nan_if_both_sides_mask_a_class():
    student, target = logits()
    student[:, 2] = target[:, 2] = -math.inf
    value = F.kl_div(student.log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True)
    assert value.isnan()
    value, gradient = gradient_of(SoftTargets(temperature=1.0), student, target)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_standardised_equal_logits_get_a_gradient_of_one_over_eps_from_the_authors_form():
    student = torch.full((1, 5), 3.0)
    target = logits(torch.float32)[1][:1]

    def standardise(rows):
        return (rows - rows.mean(1, keepdim=True)) / (1e-7 + rows.std(1, keepdim=True))

    def reference(student, target):
        return SoftTargets(temperature=2.0)(standardise(student), standardise(target))

    assert gradient_of(reference, student, target)[1].abs().max() > 1e5
    assert not gradient_of(LogitStandardisation(), student, target)[1].any()


# Logarithms of a softmax that underflows


def confident_sides():
    """Return a student that is sure of class 0, a teacher that is sure of class 1, which is right, and the label."""
    return torch.tensor([[200.0, 0.0, 0.0]]), torch.tensor([[0.0, 20.0, 0.0]]), torch.tensor([1])


def binary_divergence(student, target, student_class, target_class):
    """Return KL of (class, others), with the logarithm of probabilities."""
    q, p = student.softmax(1), target.softmax(1)
    q, p = (
        torch.stack([side[0, index], side.sum() - side[0, index]])
        for side, index in ((q, student_class), (p, target_class))
    )
    return F.kl_div(q.log(), p, reduction="sum")


def test_the_terms_of_the_correct_class_are_infinite_for_probabilities_that_underflow():
    student, target, label = confident_sides()
    # DKD compares the correct class of both sides, RLD that of the student with the top class of the teacher
    assert binary_divergence(student, target, 1, 1) == math.inf
    assert binary_divergence(student, target, 1, target.argmax()) == math.inf
    assert_finite_with_gradient(DKD(temperature=1.0), student, target, labels=label)
    assert_finite_with_gradient(RLD(temperature=1.0), student, target, labels=label)


def test_ofa_from_the_logarithm_of_a_softmax_is_infinite_for_a_confident_student():
    student, target, label = confident_sides()
    is_correct = F.one_hot(label, 3)
    weights = (target.softmax(1) + is_correct) ** 1.5 - is_correct
    assert -(weights * student.softmax(1).log()).sum() == math.inf
    assert_finite_with_gradient(OFA(gamma=1.5), student, target, labels=label)


def test_a_loss_that_is_reset_to_zero_if_it_is_infinite_teaches_confident_students_nothing():
    student, target, label = confident_sides()
    maps = [side[:, :, None].expand(-1, -1, 4).contiguous() for side in (student, target)]
    total = binary_divergence(student, target, 1, 1)  # the same in every region
    reset = torch.zeros(()) if total.isinf() or total.isnan() else total
    assert reset == 0
    assert_finite_with_gradient(SDD(loss=DKD(temperature=1.0)), *maps, labels=label)


def test_nkd_of_regions_that_keeps_the_correct_class_among_the_others_is_another_loss():
    def reference(student, target, labels):
        correct = (target.softmax(1) * F.log_softmax(student, 1)).gather(1, labels[:, None]).mean()
        return -correct + 1.5 * F.cross_entropy(student, target.softmax(1))

    student, target = logits()
    labels = torch.arange(4)
    value = reference(student, target, labels)
    weights = 1.5 + F.one_hot(labels, 5)  # both terms have the correct class
    torch.testing.assert_close(value, -(weights * target.softmax(1) * F.log_softmax(student, 1)).sum(1).mean())
    maps = (side[:, :, None] for side in (student, target))  # a single region
    actual = SDD(loss=NKD(), scales=(1,))(*maps, labels=labels)
    torch.testing.assert_close(actual, NKD()(student, target, labels=labels))
    assert not torch.isclose(actual, value, rtol=0.01)


def test_probabilities_of_labels_that_are_clamped_give_infinity_or_no_gradient():
    def reference(student, target):
        q, p = (side.sigmoid().clamp(1e-8, 1 - 1e-8) for side in (student, target))
        divergence = F.kl_div(q.log(), p, reduction="none") + F.kl_div((1 - q).log(), 1 - p, reduction="none")
        return divergence.mean()

    target = torch.tensor([[0.0]])
    sure, unsure = torch.tensor([[30.0]]), torch.tensor([[-30.0]])
    assert reference(sure, target) == math.inf  # 1 - 1e-8 is 1 in float32
    assert not gradient_of(reference, unsure, target)[1].any()
    for student in (sure, unsure):
        assert_finite_with_gradient(PerLabelSoftTargets(), student, target)


# Divergences of language models


def test_the_limits_of_the_alpha_beta_divergence_are_divided_by_the_exponent_once():
    student, target = logits()
    powers, student_powers = target.softmax(1) ** 0.5, student.softmax(1) ** 0.5
    total = (powers * (powers / student_powers).log() - powers + student_powers).sum(1).mean()
    value = AlphaBetaDivergence(alpha=0.5, beta=0.0)(student, target)
    torch.testing.assert_close(value, total / 0.5**2)
    # the code divides by 0.5 once, so its value jumps at beta = 0
    near = AlphaBetaDivergence(alpha=0.5, beta=1e-7)(student, target)
    torch.testing.assert_close(near, value, rtol=1e-5, atol=0)
    assert not torch.isclose(near, total / 0.5, rtol=0.1)


def test_the_limits_of_the_alpha_beta_divergence_are_nan_if_both_sides_mask_a_class():
    student, target = logits()
    student[:, 2] = target[:, 2] = -math.inf
    p, q = target.softmax(1), student.softmax(1)
    ratio = (p / q).nan_to_num(0.0)  # 0 / 0, whose logarithm is -inf
    assert (p * ratio.log() - p + q).sum().isnan()
    assert AlphaBetaDivergence(alpha=1.0, beta=0.0)(student, target).isfinite()


def test_a_class_that_the_teacher_masks_is_left_out_of_the_alpha_beta_divergence():
    student, target = logits()
    target[:, 2] = -math.inf
    p, q = target.softmax(1), student.softmax(1)
    terms = 2 * (p.sqrt() - q.sqrt()).square()  # alpha = beta = 0.5
    left_out = terms.masked_fill(target == -math.inf, 0).sum(1).mean()
    value = AlphaBetaDivergence()(student, target)
    torch.testing.assert_close(value - left_out, 2 * q[:, 2].mean())  # no reason to avoid the masked class


def test_the_head_of_adaptive_kl_depends_on_the_order_of_classes_if_its_mask_is_sorted_and_the_gaps_are_not():
    def reference(q, p):
        in_head = p.sort(dim=1).values.cumsum(1) >= 0.5  # from the least probable class to the most probable
        gaps = (p - q).abs()
        return (gaps * in_head).sum(1) / gaps.sum(1)

    p, q = torch.tensor([[0.2, 0.45, 0.35]]), torch.tensor([[0.5, 0.3, 0.2]])
    order = torch.tensor([2, 1, 0])
    assert reference(q, p) != reference(q[:, order], p[:, order])
    weights = [AdaptiveKL().forward_weight(*sides) for sides in ((q, p), (q[:, order], p[:, order]))]
    # the gaps are 0.3, 0.15 and 0.15; the head is the second and the third class
    torch.testing.assert_close(torch.cat(weights), torch.full((2,), 0.3 / 0.6))


def test_the_head_of_adaptive_kl_has_less_than_its_share_without_the_class_that_reaches_it():
    p, q = torch.tensor([[0.45, 0.35, 0.2]]), torch.tensor([[0.3, 0.2, 0.5]])
    in_head = p.cumsum(1) <= 0.5  # the first class alone, which has 0.45
    gaps = (p - q).abs()
    assert ((gaps * in_head).sum() / gaps.sum()).item() == pytest.approx(0.15 / 0.6)
    assert AdaptiveKL().forward_weight(q, p).item() == pytest.approx(0.3 / 0.6)


def test_skew_kl_without_the_entropy_of_the_teacher_has_the_same_gradient():
    def cross_entropy(student, target):
        p, q = target.softmax(1), student.softmax(1)
        return -(p * (0.1 * p + 0.9 * q).log()).sum(1).mean()

    student, target = logits()
    (value, gradient), (expected, expected_gradient) = (
        gradient_of(loss, student, target) for loss in (SkewKL(), cross_entropy)
    )
    torch.testing.assert_close(gradient, expected_gradient)
    entropy = torch.distributions.Categorical(logits=target).entropy().mean()
    torch.testing.assert_close(expected - value, entropy)


# Relations and correlations


def test_correlations_of_tiny_probabilities_vanish_if_eps_is_not_relative_to_them():
    student, target = logits()
    student, target = (torch.cat([side, side.roll(1, 1) - 25], 1) for side in (student, target))

    def column_correlations(eps):
        sides = [side.softmax(1) - side.softmax(1).mean(0) for side in (student, target)]
        return (sides[0] * sides[1]).sum(0) / (sides[0].norm(dim=0) * sides[1].norm(dim=0) + eps)

    correlations, exact = column_correlations(1e-8), column_correlations(0.0)
    assert correlations[5:].abs().max() < 1e-6  # classes of probabilities around 1e-11
    assert exact[5:].abs().max() > 0.1
    value = DIST(inter=0.0)(student, target)
    torch.testing.assert_close(value, 1 - exact.mean(), rtol=1e-3, atol=0)
    assert not torch.isclose(value, 1 - correlations.mean(), rtol=1e-2)


def distances_of_inner_products(samples):
    """Return the distances of all pairs as √(‖x‖² + ‖y‖² - 2 x·y), at least 1e-6 except of a sample to itself."""
    squares = samples.square().sum(1)
    distances = (squares[:, None] + squares - 2 * samples @ samples.T).clamp(min=1e-12).sqrt()
    return distances.fill_diagonal_(0)


def relative(distances):
    return distances / distances[distances > 0].mean()


def test_distances_of_inner_products_lose_their_digits_far_from_the_origin():
    samples = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
    far = samples + 3000
    exact = relative(torch.cdist(samples.double(), samples.double())).float()
    value = 25 * F.smooth_l1_loss(relative(distances_of_inner_products(far)), exact)
    # a shift of all samples changes no distance, so the loss is 0 but for the rounding of the shift
    assert value > 0.1
    assert RKD(angle=0.0)(far, samples) < 1e-4


def test_angles_of_equal_samples_get_a_gradient_of_one_over_eps_from_normalised_differences():
    def reference(student, target):
        sides = [F.normalize(side[None] - side[:, None], dim=2) for side in (student, target)]
        return 50 * F.smooth_l1_loss(*(directions @ directions.mT for directions in sides))

    student, target = logits()
    student[1] = student[0]
    assert gradient_of(reference, student, target)[1].abs().max() > 1e9
    assert gradient_of(RKD(distance=0.0), student, target)[1].abs().max() < 100


def test_the_gradient_of_cosines_by_detached_lengths_changes_lengths():
    def reference(student, target):
        student, target = (side.flatten(2) for side in (student, target))
        sides = [side / side.norm(dim=1, keepdim=True).detach() for side in (student, target)]
        return F.mse_loss(*(vectors.mT @ vectors for vectors in sides))

    random = torch.Generator().manual_seed(0)
    student, target = (torch.randn(2, 3, 2, 2, generator=random) for _ in range(2))
    value, gradient = gradient_of(PairwiseAffinity(patch=None), student, target)
    expected, expected_gradient = gradient_of(reference, student, target)
    torch.testing.assert_close(value, expected)
    # a step along the gradient changes the length of a vector by their inner product
    torch.testing.assert_close((gradient * student).sum(1), torch.zeros(2, 2, 2))
    assert (expected_gradient * student).sum(1).abs().max() > 0.1


def test_equal_embeddings_have_a_relative_distance_of_one_instead_of_zero():
    # all distances are 1e-6, which the division by their mean makes as large as those of any other samples
    torch.testing.assert_close(relative(distances_of_inner_products(torch.ones(3, 4))), 1 - torch.eye(3))
    student = torch.ones(3, 4, 1)  # (batch, channels, labels)
    target = torch.randn(3, 4, 1, generator=torch.Generator().manual_seed(0))
    expected = relative(torch.cdist(target[:, :, 0], target[:, :, 0]))
    loss = build_loss(LED(embeddings=True, class_aware=1.0, instance_aware=0.0), student, target)
    value = F.smooth_l1_loss(torch.zeros(3, 3), expected, reduction="sum") / 3
    torch.testing.assert_close(loss(student, target, labels=torch.ones(3, 1)), value)


def test_the_square_root_of_a_distance_of_zero_has_no_finite_gradient():
    def reference(student, target):
        cosines = [F.normalize(side, dim=1) @ F.normalize(side, dim=1).T for side in (student, target)]
        difference = cosines[0] - cosines[1]
        inverse = torch.linalg.inv(torch.cov(difference.T) + 0.1 * torch.eye(4, dtype=student.dtype))
        return ((difference @ inverse) * difference).sum(1).sqrt().mean()

    student, _ = logits()
    _, gradient = gradient_of(reference, student, student)
    assert not gradient.isfinite().all()
    value, gradient = gradient_of(SKD(instance=0.0), student, student)
    assert value == 0
    assert gradient.isfinite().all()


# Other losses


def test_a_mask_after_the_mean_over_samples_selects_none_of_them():
    student, target = logits()
    confidence = target.softmax(1).amax(1)
    selected = confidence <= confidence.median()  # the samples of which the teacher is less sure

    def reference(student, target):
        return (SoftTargets(temperature=4.0)(student, target) * selected).mean()

    value, gradient = gradient_of(reference, student, target)
    assert gradient[~selected].any()
    # the mask is a constant factor, the share of the samples that it selects
    loss = MLLD(temperatures=(4.0,), batch_weight=0.0, class_weight=0.0)
    torch.testing.assert_close(value, loss(student, target) * selected.double().mean())


def test_the_logarithm_of_a_sum_of_zero_is_minus_infinity():
    features = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert (features - features).abs().pow(4).sum().log() == -math.inf
    assert SRD(projector="never")(features, features).item() == pytest.approx(math.log(1e-8))


def test_a_correlation_that_is_added_to_a_loss_is_minimal_for_opposite_features():
    features = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))

    def correlation(student, target):
        student, target = (side - side.mean(1, keepdim=True) for side in (student, target))
        return F.cosine_similarity(student, target, dim=1).mean()

    assert correlation(-features, features) < correlation(features, features)
    loss = DISTPlus(spatial=0.0)
    assert loss(features, features) < loss(-features, features)
