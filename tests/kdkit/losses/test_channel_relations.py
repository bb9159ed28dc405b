"""FSP and ICKD: their formulas with loops over channels, several layers, and numbers of any size."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdkit import RecipeError
from kdkit.losses import FSP, ICKD
from tests.helpers.loss_reference import assert_equals_reference
from tests.helpers.losses import build_loss

POOLS = {1: F.max_pool1d, 2: F.max_pool2d}


def layers(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def flow_reference(first, second):
    """Return the products of all pairs of channels of two maps of the same positions, with loops."""
    positions = [side.flatten(2) for side in (first, second)]
    rows = [
        torch.stack([(positions[0][:, i] * positions[1][:, j]).mean(1) for j in range(second.shape[1])], 1)
        for i in range(first.shape[1])
    ]
    return torch.stack(rows, 1)


def fsp_reference(student, target, factor):
    """Return the error of two taps, the first with `factor` times the positions of the second in each dimension."""

    def flow(first, second):
        return flow_reference(POOLS[first.ndim - 2](first, factor) if factor > 1 else first, second)

    difference = flow(*student) - flow(*target)
    return sum(matrix.square().sum() for matrix in difference) / len(difference)


@pytest.mark.parametrize(("positions", "factor"), [((6,), 1), ((6,), 2), ((2, 3), 1), ((2, 3), 2)])
def test_fsp_is_the_squared_error_of_the_products_of_channels(positions, factor):
    shapes = (4, 3, *(factor * size for size in positions)), (4, 5, *positions)
    student, target = layers(*shapes), layers(*shapes, seed=1)
    loss = build_loss(FSP(), student, target)
    for index in range(2):  # the gradient of each tap

        def with_tap(compute, index=index):
            def call(tap, _target):
                taps = [side.to(tap.dtype) for side in student]
                taps[index] = tap
                return compute(tuple(taps), tuple(side.to(tap.dtype) for side in target))

            return call

        reference = with_tap(lambda ours, theirs: fsp_reference(ours, theirs, factor))
        assert_equals_reference(with_tap(loss), reference, student[index], target[index])


def test_fsp_maps_channels_that_differ_from_both_sides_of_the_matrix():
    student, target = layers((4, 3, 6), (4, 2, 5)), layers((4, 4, 3), (4, 5, 3), seed=1)
    loss = build_loss(FSP(), student, target).double()
    before, after = (projector.weight for projector in loss.projectors)
    # a map of channels after the pooling of the first layer from 6 to 5 positions would be another one
    pooled = F.adaptive_max_pool1d(loss.projectors[0](student[0]), 5)
    difference = flow_reference(pooled, loss.projectors[1](student[1])) - flow_reference(*target)
    torch.testing.assert_close(loss(student, target), difference.square().sum() / 4)
    equal = layers((4, 3, 6), (4, 2, 6))
    mapped = before @ flow_reference(*equal) @ after.T
    torch.testing.assert_close(loss.flow(*(p(side) for p, side in zip(loss.projectors, equal, strict=True))), mapped)


def test_fsp_sums_over_successive_layers_and_as_a_mean_divides_by_the_entries():
    shapes = ((2, 3, 8), (2, 4, 4), (2, 5, 4))
    student, target = layers(*shapes), layers(*shapes, seed=1)
    pairs = [build_loss(FSP(), student[i : i + 2], target[i : i + 2]) for i in range(2)]
    parts = [loss(student[i : i + 2], target[i : i + 2]) for i, loss in enumerate(pairs)]
    torch.testing.assert_close(build_loss(FSP(), student, target)(student, target), sum(parts))
    mean = build_loss(FSP(reduction="mean"), student, target)(student, target)
    torch.testing.assert_close(mean, parts[0] / 12 + parts[1] / 20)


def test_fsp_of_torchdistill_sums_the_lengths_of_columns_instead_of_their_squares():
    student, target = layers((2, 3, 4), (2, 4, 4)), layers((2, 3, 4), (2, 4, 4), seed=1)
    difference = flow_reference(*student) - flow_reference(*target)
    lengths = difference.norm(dim=1)
    loss = build_loss(FSP(), student, target)
    torch.testing.assert_close(loss(student, target), lengths.square().sum() / 2)
    # in units of a product, so twice as far from the teacher is twice the loss, not four times
    doubled = (student[0], 2 * student[1]), (target[0], 2 * target[1])
    torch.testing.assert_close(loss(*doubled), 4 * loss(student, target))


@pytest.mark.parametrize(
    ("student", "target", "message"),
    [
        (((2, 3, 4),), ((2, 3, 4),), "FSP compares successive taps, two or more on each side; got one"),
        (((2, 3, 4),) * 2, ((2, 3, 4),) * 3, "compares taps in pairs"),
        (((2, 3, 4), (2, 3)), ((2, 3, 4), (2, 3)), "tap a layer before it is pooled"),
        (((2, 3, 4), (2, 3, 2, 2)), ((2, 3, 4), (2, 3, 4)), "tap both as maps, or both as tokens"),
    ],
)
def test_fsp_refuses_taps_without_a_flow(student, target, message):
    with pytest.raises(RecipeError, match=message):
        build_loss(FSP(), layers(*student), layers(*target))(layers(*student), layers(*target))


def test_fsp_without_a_projector_refuses_other_channels():
    with pytest.raises(RecipeError, match=r"use FSP\(projector='auto'\)"):
        build_loss(FSP(projector="never"), layers((2, 3, 4), (2, 3, 4)), layers((2, 3, 4), (2, 5, 4)))


@pytest.mark.parametrize("mode", ["auto", "always"])
def test_fsp_has_a_projector_for_each_tap_that_needs_one(mode):
    loss = build_loss(FSP(projector=mode), layers((2, 3, 4), (2, 3, 4)), layers((2, 3, 4), (2, 5, 4)))
    identities = [isinstance(projector, nn.Identity) for projector in loss.projectors]
    assert identities == [mode == "auto", False]


def ickd_reference(student, target):
    """Return the distance of the authors' CIFAR code, with loops over samples and channels."""

    def row(sample, channel):
        products = torch.stack([(sample[channel] * other).sum() for other in sample])
        return products / products.square().sum().sqrt()

    total = 0.0
    for ours, theirs in zip(student.flatten(2), target.flatten(2), strict=True):
        for channel in range(len(ours)):
            total = total + (row(ours, channel) - row(theirs, channel)).square().sum()
    return total / (student.shape[0] * student.shape[1])


@pytest.mark.parametrize("shape", [(4, 5, 6), (3, 2, 4, 3), (1, 3, 1)])
def test_ickd_is_the_distance_of_normalised_inner_products_of_channels(shape):
    (student,), (target,) = layers(shape), layers(shape, seed=1)
    if shape[-1] == 1:  # the correlations of one position depend on signs alone
        assert ICKD()(student, target).item() == pytest.approx(ickd_reference(student, target).item())
    else:
        assert_equals_reference(ICKD(), ickd_reference, student, target)


def test_ickd_of_torchdistill_divides_by_the_batch_size_twice():
    (student,), (target,) = layers((4, 3, 5)), layers((4, 3, 5), seed=1)
    rows = [F.normalize(side @ side.mT, dim=2) for side in (student, target)]
    theirs = (rows[0] - rows[1]).square().sum() / (3 * 4 * 4)
    torch.testing.assert_close(ICKD()(student, target), 4 * theirs)
    twice = [torch.cat([side, side]) for side in (student, target)]
    torch.testing.assert_close(ICKD()(*twice), ICKD()(student, target))


@pytest.mark.parametrize("power", [-30, -9, 0, 9])
def test_ickd_of_very_small_and_very_large_features_is_finite(power):
    (student,), (target,) = (tuple(side.float() for side in layers((4, 3, 5), seed=seed)) for seed in range(2))
    student = (student * 10.0**power).requires_grad_()
    value = ICKD()(student, target)
    value.backward()
    assert student.grad.isfinite().all()
    if power > -12:  # lengths up to 1e-12 count as 0
        torch.testing.assert_close(value, ICKD()(student.detach() / 10.0**power, target), rtol=1e-4, atol=1e-5)


def test_a_channel_of_zeros_has_no_correlations_and_a_finite_gradient():
    (student,), (target,) = layers((2, 3, 5)), layers((2, 3, 5), seed=1)
    student[:, 1] = 0
    student.requires_grad_()
    value = ICKD()(student, target)
    value.backward()
    assert math.isfinite(value.item())
    assert student.grad.isfinite().all()


def test_ickd_refuses_pooled_features():
    with pytest.raises(RecipeError, match="tap a layer before it is pooled"):
        ICKD()(torch.randn(2, 3), torch.randn(2, 3))
