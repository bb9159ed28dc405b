"""SRD, DIST+ and WKD-F: their formulas, the numbers of torchdistill, and finite values for equal features."""

import math

import numpy as np
import pytest
import torch

from kdkit import RecipeError
from kdkit.losses import SRD, WKDF, DISTPlus
from tests.helpers.loss_reference import assert_equals_reference
from tests.helpers.losses import build_loss

SHAPES = [(4, 3), (4, 3, 5), (4, 3, 2, 3)]


def pair(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def standardised(channel):
    """Return all values of one channel, standardised as a batch norm in training does."""
    values = channel.flatten()
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    return [(value - mean) / (variance + 1e-5) ** 0.5 for value in values]


def srd_reference(exponent):
    def loss(student, target):
        total = 0
        for channel in range(student.shape[1]):
            sides = zip(standardised(student[:, channel]), standardised(target[:, channel]), strict=True)
            total = total + sum((ours - theirs).abs() ** exponent for ours, theirs in sides)
        return (total + 1e-8).log()

    return loss


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("exponent", [1.0, 2.5, 4.0])
def test_srd_is_the_logarithm_of_the_sum_of_powers(shape, exponent):
    student, target = pair(shape)
    assert_equals_reference(SRD(exponent=exponent, projector="never"), srd_reference(exponent), student, target)


def test_srd_has_the_value_of_torchdistill_without_its_weight_and_its_divergence():
    student = torch.tensor([[1.0, 2.0, -1.0], [0.5, -1.0, 2.0], [3.0, 0.0, 1.0], [-2.0, 1.0, 0.0]]).double()
    target = torch.tensor([[2.0, 1.0, 0.0], [0.0, -2.0, 1.0], [1.0, 1.0, 2.0], [-1.0, 2.0, 0.5]]).double()
    # SRDLoss of torchdistill 1.1.5 on features after BatchNorm1d(3, affine=False): 2 log Σ + KL of the logits
    expected = (4.26261307449921 - 0.36915724427209495) / 2
    assert SRD(projector="never")(student, target).item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("count", [1, 4])
def test_srd_of_equal_features_is_its_least_value_with_a_finite_gradient(count):
    student = pair((count, 3, 5))[0].requires_grad_()
    value = SRD(projector="never")(student, student.detach())
    value.backward()
    assert value.item() == pytest.approx(math.log(1e-8))  # -inf in torchdistill
    assert not student.grad.any()


def test_srd_has_a_projector_also_for_equal_shapes():
    student, target = pair((4, 3))
    assert [*build_loss(SRD(), student, target).parameters()]


@pytest.mark.parametrize("exponent", [0.5, 0.0, math.inf, "4"])
def test_an_exponent_below_one_is_refused(exponent):
    with pytest.raises(RecipeError, match="exponent is a finite number of at least 1"):
        SRD(exponent=exponent)
    with pytest.raises(RecipeError, match="eps"):
        SRD(eps=0.0)


def correlation(first, second):
    first, second = first - first.mean(), second - second.mean()
    return (first @ second) / (first.norm() * second.norm() + 1e-8)


def dist_plus_reference(channel, spatial):
    def loss(student, target):
        student, target = (side.reshape(*side.shape[:2], -1) for side in (student, target))
        positions = range(student.shape[2])
        over_channels = [
            correlation(student[sample, :, position], target[sample, :, position])
            for sample in range(len(student))
            for position in positions
        ]
        over_samples = [
            correlation(student[:, :, position].sum(1), target[:, :, position].sum(1)) for position in positions
        ]
        means = [sum(values) / len(values) for values in (over_channels, over_samples)]
        return channel * (1 - means[0]) + spatial * (1 - means[1])

    return loss


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 0.0), (0.0, 0.5)])
def test_dist_plus_is_one_minus_the_mean_correlations(shape, weights):
    student, target = pair(shape)
    loss = DISTPlus(channel=weights[0], spatial=weights[1])
    assert_equals_reference(loss, dist_plus_reference(*weights), student, target)


def test_dist_plus_has_the_correlations_of_torchdistill():
    # DISTPlusLoss of torchdistill 1.1.5 adds the correlation over channels, and one minus that over samples
    student, target = (torch.arange(48.0).double() * factor for factor in (1.7, 2.3))
    student, target = student.sin().reshape(2, 3, 2, 4), target.cos().reshape(2, 3, 2, 4)
    assert 1 - DISTPlus(spatial=0.0)(student, target).item() == pytest.approx(0.20029911181466992, rel=1e-6)
    assert DISTPlus(channel=0.0)(student, target).item() == pytest.approx(1.5, rel=1e-6)


def test_dist_plus_needs_a_weight():
    with pytest.raises(RecipeError, match="channel and spatial are all 0"):
        DISTPlus(channel=0.0, spatial=0.0)


def wkdf_reference(mean, grid):
    """Return the distance with numpy's cells, from moments of every cell."""

    def loss(student, target):
        axes = [
            [(math.floor(size * cell / grid), math.ceil(size * (cell + 1) / grid)) for cell in range(grid)]
            for size in student.shape[2:]
        ]
        total = 0
        for cell in np.ndindex(*[grid] * len(axes)):
            moments = []
            for side in (student, target):
                for axis, index in enumerate(cell):
                    begin, end = axes[axis][index]
                    side = side.narrow(axis + 2, begin, end - begin)
                values = side.reshape(*side.shape[:2], -1)
                count = values.shape[2]
                average = values.sum(2) / count
                squares = ((values - average[:, :, None]) ** 2).sum(2) / max(count - 1, 1)
                moments.append((average, (squares + 1e-5) ** 0.5))
            (ours, our_deviation), (theirs, their_deviation) = moments
            total = total + mean * ((ours - theirs) ** 2).sum() + ((our_deviation - their_deviation) ** 2).sum()
        return total / (len(student) * grid ** len(axes))

    return loss


@pytest.mark.parametrize("shape", [(4, 3, 7), (4, 3, 4, 6), (2, 3, 2, 4, 2)])
@pytest.mark.parametrize(("mean", "grid"), [(4.0, 1), (2.0, 2), (0.0, 1), (1.0, 3)])
def test_wkdf_is_the_distance_of_gaussians(shape, mean, grid):
    student, target = pair(shape)
    assert_equals_reference(WKDF(mean=mean, grid=grid), wkdf_reference(mean, grid), student, target)


def test_wkdf_ignores_the_order_of_positions_in_a_cell():
    student, target = pair((4, 3, 8))
    torch.testing.assert_close(WKDF()(student.flip(2), target), WKDF()(student, target))
    assert not torch.isclose(WKDF(grid=2)(student.flip(2), target), WKDF(grid=2)(student, target))


def test_wkdf_by_hand():
    student, target = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[2.0, 6.0]]])
    # means 2 and 4; unbiased variances 2 and 8
    expected = 4 * (2 - 4) ** 2 + (math.sqrt(2 + 1e-5) - math.sqrt(8 + 1e-5)) ** 2
    assert WKDF()(student, target).item() == pytest.approx(expected)


@pytest.mark.parametrize("options", [{"mean": -1.0}, {"grid": 0}, {"grid": 1.5}, {"eps": 0.0}])
def test_options_of_wkdf_out_of_range_are_refused(options):
    with pytest.raises(RecipeError):
        WKDF(**options)


def test_wkdf_needs_positions():
    with pytest.raises(RecipeError, match="tap a layer before it is pooled"):
        WKDF()(torch.zeros(2, 3), torch.zeros(2, 3))


@pytest.mark.parametrize("make", [lambda: SRD(projector="never"), DISTPlus, WKDF, lambda: WKDF(grid=2)])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-8, 1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_value_and_gradient_are_finite_for_any_scale(make, scale, dtype):
    student, target = pair((3, 4, 5))
    student = (student * scale).to(dtype).requires_grad_()
    value = make()(student, (target * scale).to(dtype))
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
