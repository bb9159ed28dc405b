"""Losses on relations between samples: invariances, small batches and options. Golden numbers are in tests/parity."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from kdkit import Match, Net, Recipe, RecipeError, Stage, Tap, TorchData, Training, check
from kdkit.losses import CC, CKA, PKT, RKD, SP, AdjacentCC, Cosine

OF_ANY_SHAPES = [RKD(), RKD(normalise=True), SP(), PKT(), CC(), CKA(), CKA(unbiased=True)]
SHAPES = [(6, 7), (6, 3, 5), (6, 3, 4, 2)]


def features(shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("loss", OF_ANY_SHAPES, ids=repr)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("target_shape", [(6, 9), (6, 2, 4), (6, 2, 3, 3)])
def test_features_of_any_two_shapes_are_flattened_and_compared(loss, shape, target_shape):
    student, target = features(shape).requires_grad_(), features(target_shape, 1)
    value = loss(student, target)
    value.backward()
    assert student.grad.isfinite().all()
    assert student.grad.any()
    torch.testing.assert_close(value, loss(student.flatten(1), target.flatten(1)))


@pytest.mark.parametrize("loss", OF_ANY_SHAPES, ids=repr)
def test_relations_do_not_depend_on_the_order_of_the_batch(loss):
    student, target = features((6, 7)), features((6, 9), 1)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(loss(student[order], target[order]), loss(student, target))


@pytest.mark.parametrize("loss", [RKD(), CKA(), CKA(unbiased=True)], ids=repr)
def test_relations_ignore_rotation_shift_and_scale(loss):
    student, target = features((6, 7)), features((6, 9), 1)
    rotation = torch.linalg.qr(features((7, 7), 2)).Q
    torch.testing.assert_close(loss(3 * student @ rotation + 5, target), loss(student, target))


@pytest.mark.parametrize("loss", [*OF_ANY_SHAPES, AdjacentCC(), Cosine(), Cosine(axis="channels")], ids=repr)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_smallest_batches_give_finite_values_and_gradients(loss, count):
    student = features((count, 3, 5), dtype=torch.float32).requires_grad_()
    value = loss(student, features((count, 3, 5), 1, dtype=torch.float32))
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("loss", OF_ANY_SHAPES, ids=repr)
def test_a_single_sample_has_a_zero_gradient(loss):
    student = features((1, 7)).requires_grad_()
    loss(student, features((1, 9), 1)).backward()
    assert student.grad.abs().max() < 1e-12


@pytest.mark.parametrize("loss", OF_ANY_SHAPES, ids=repr)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_samples_give_finite_gradients(loss, value):
    student = torch.full((5, 7), value, requires_grad=True)
    result = loss(student, features((5, 9), dtype=torch.float32))
    result.backward()
    assert result.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("loss", OF_ANY_SHAPES, ids=repr)
def test_autocast_does_not_reduce_the_precision_of_relations(loss):
    student, target = features((6, 7), dtype=torch.float32), features((6, 9), 1, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(student, target), loss(student, target).float())
        within = loss(student, target)
    assert torch.equal(within, loss(student, target))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 6),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(0, 2**31),
)
@example(batch=2, student_shape=[1], target_shape=[1], seed=2144)
def test_the_value_is_minimal_for_equal_sides_of_any_shape(batch, student_shape, target_shape, seed):
    student, target = features((batch, *student_shape), seed), features((batch, *target_shape), seed + 1)
    # The default eps of PKT, 1e-7, is added to both sides, so values may be some 1e-8 below that of equal sides.
    for loss in (RKD(), SP(), PKT(eps=1e-12), CC(), CKA()):
        assert loss(student, target).isfinite()
        assert loss(target, target) <= loss(student, target) + 1e-9


def test_opposite_samples_give_finite_neighbour_probabilities():
    # Their cosine, in float32, is often a little below -1.
    for seed in range(20):
        samples = features((3, 64), seed).float()
        assert PKT(eps=1e-8)(torch.cat([samples, -samples]), features((6, 5), seed).float()).isfinite(), seed


def test_angles_and_distances_equal_their_formulas_in_numpy():
    sides = [features((5, 4)).numpy(), features((5, 6), 1).numpy()]
    distances, angles = zip(*(_relations(side) for side in sides), strict=True)
    expected = 25 * _smooth(distances[0] - distances[1]) + 50 * _smooth(angles[0] - angles[1])
    assert RKD()(*map(torch.tensor, sides)).item() == pytest.approx(expected, rel=1e-9)


def _relations(samples):
    count = len(samples)
    distances = np.array([[np.linalg.norm(first - second) for second in samples] for first in samples])
    angles = np.zeros((count, count, count))
    for i in range(count):
        for j in range(count):
            for k in range(count):
                if i not in (j, k):
                    product = (samples[j] - samples[i]) @ (samples[k] - samples[i])
                    angles[i, j, k] = product / distances[i, j] / distances[i, k]
    return distances / distances[distances > 0].mean(), angles


def _smooth(errors):
    errors = np.abs(errors)
    return np.where(errors < 1, errors**2 / 2, errors - 0.5).mean()


def test_distances_are_precise_far_from_the_origin():
    # in float32, differences of squares around 1000 lose all digits of distances around 1
    student, target = features((6, 7)), features((6, 9), 1)
    expected = RKD(angle=0.0)(student, target).item()
    assert RKD(angle=0.0)((student + 1000).float(), target.float()).item() == pytest.approx(expected, rel=1e-2)


def test_similarity_losses_of_several_taps_are_summed():
    student = tuple(features(shape, seed) for seed, shape in enumerate(SHAPES))
    target = tuple(features(shape, seed + 5) for seed, shape in enumerate(reversed(SHAPES)))
    expected = sum(SP()(*pair) for pair in zip(student, target, strict=True))
    torch.testing.assert_close(SP()(student, target), expected)
    with pytest.raises(RecipeError, match="3 of the student and 2"):
        SP()(student, target[:2])


def test_the_series_of_cc_converges_to_the_gaussian_kernel():
    student, target = features((6, 7)), features((6, 9), 1)
    kernels = [torch.exp(-0.4 * torch.cdist(side, side) ** 2) for side in map(_unit, (student, target))]
    expected = ((kernels[0] - kernels[1]) ** 2).mean()
    torch.testing.assert_close(CC(order=20)(student, target), expected, rtol=1e-6, atol=0)


def _unit(samples):
    return samples / samples.norm(dim=1, keepdim=True)


def test_adjacent_cc_depends_on_the_order_of_the_batch():
    student, target = features((6, 7)), features((6, 7), 1)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert AdjacentCC()(student[order], target[order]) != AdjacentCC()(student, target)


def test_the_axis_of_cosine_selects_the_vectors():
    student, target = features((2, 3, 5)), features((2, 3, 5), 1)
    by_hand = {
        "all": [(student[n].flatten(), target[n].flatten()) for n in range(2)],
        "channels": [(student[n, :, at], target[n, :, at]) for n in range(2) for at in range(5)],
        "last": [(student[n, at], target[n, at]) for n in range(2) for at in range(3)],
    }
    for axis, pairs in by_hand.items():
        expected = np.mean([1 - float(first @ second / first.norm() / second.norm()) for first, second in pairs])
        assert Cosine(axis=axis)(student, target).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (RKD, {"distance": -1.0}, "distance is a weight"),
        (RKD, {"distance": 0.0, "angle": 0.0}, "distance and angle are all 0"),
        (RKD, {"angle": math.nan}, "angle is a weight"),
        (PKT, {"eps": 0.0}, "eps must be a finite number above 0"),
        (CC, {"gamma": 0.0}, "gamma must be a finite number above 0"),
        (CC, {"order": 0}, "order must be an integer of at least 1"),
        (Cosine, {"axis": "tokens"}, "axis must be 'all' or 'channels' or 'last'; got 'tokens'"),
    ],
)
def test_invalid_options_are_refused(make, options, message):
    with pytest.raises(RecipeError, match=message):
        make(**options)


@pytest.mark.parametrize("loss", OF_ANY_SHAPES, ids=repr)
def test_a_recipe_with_a_relation_passes_its_check(loss):
    assert check(recipe(loss, samples=8)).problems == ()


def recipe(loss, *, samples):
    torch.manual_seed(0)
    teacher = Net("teacher", nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), trained=True)
    student = Net("student", nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    match = Match(teacher, loss, student=Tap(student.module[1]), target=Tap(teacher.module[1]))
    rows = torch.utils.data.TensorDataset(torch.randn(samples, 4), 2 - torch.arange(samples) % 3)
    data = TorchData(rows, rows, rows)
    return Recipe(data=data, metrics=(), schedule=[Stage({student: match}, Training(epochs=1))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_unbiased_cka_without_similarity_is_one_in_any_precision(dtype):
    # the estimate of each side with itself is exactly 0, which rounding makes positive in float32
    student = torch.eye(4, 5, dtype=dtype).requires_grad_()
    value = CKA(unbiased=True)(student, torch.eye(4, 5, dtype=dtype).roll(1, 0))
    value.backward()
    assert value.item() == 1
    assert not student.grad.any()


@pytest.mark.parametrize("unbiased", [False, True])
def test_cka_agrees_in_both_precisions(unbiased):
    student, target = features((32, 300)), features((32, 200), 1)  # nearly orthogonal samples
    values = [
        CKA(unbiased=unbiased)(student.to(dtype), target.to(dtype)).item() for dtype in (torch.float32, torch.float64)
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-5)


def test_samples_that_are_closer_than_the_precision_have_no_angle():
    student = torch.tensor([[1e-12, 0.0], [0.0, 1e-12], [0.0, 0.0], [1e4, 0.0]]).requires_grad_()
    value = RKD(distance=0.0)(student, torch.zeros(4, 2))
    value.backward()
    # at each of the three near ones, the far one is defined and the angles to each other are not
    assert value.item() == pytest.approx(_expected_of_coinciding_samples(), rel=1e-5)
    assert student.grad.isfinite().all()


def _expected_of_coinciding_samples():
    """Return the loss if the first three samples are the same point: 3 angles (i, far, far) and 9 (far, j, k) of 1."""
    return 50 * (3 + 9) * 0.5 / 4**3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_angles_of_near_samples_stay_precise(dtype):
    samples = features((5, 8))
    samples[1] = samples[0] + 1e-2 * features((8,), 2)
    value = RKD(distance=0.0)(samples.to(dtype), features((5, 8), 1).to(dtype)).item()
    angles = [_relations(side)[1] for side in (samples, features((5, 8), 1))]
    assert value == pytest.approx(50 * _smooth(angles[0] - angles[1]), rel=1e-3 if dtype == torch.float32 else 1e-9)
