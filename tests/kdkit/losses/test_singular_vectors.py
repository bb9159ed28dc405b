"""KDSVD: its definition through torch's decomposition, the alignment of vectors, and maps without distinct values."""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from kdkit import RecipeError
from kdkit.losses import KDSVD
from kdkit.losses.singular_vectors import singular_vectors
from tests.helpers.losses import build_loss

SHAPES = ((4, 6, 5, 5), (4, 7, 3, 3), (4, 12, 2, 2))  # the last has more channels than positions


def layers(seed, shapes=SHAPES):
    """Return features of distinct singular values, all of them above 0 as after a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def decompose(features, count):
    _, values, vectors = torch.linalg.svd(features.flatten(2).mT, full_matrices=False)
    return F.normalize(values[:, :count], dim=1), vectors.mT[..., :count]


def reference(student, target, vectors):
    """Return the loss by loops over samples, taps, vectors and channels."""
    total = 0.0
    for sample in range(len(student[0])):
        sides = []
        for ours, theirs in zip(student, target, strict=True):
            values, target_vectors = decompose(theirs[sample : sample + 1], vectors)
            _, candidates = decompose(ours[sample : sample + 1], vectors + 3)
            aligned = []
            for index in range(vectors):
                vector = target_vectors[0, :, index]
                vector = vector * (1 if vector.sum() >= 0 else -1)
                cosines = candidates[0].T @ vector
                best = cosines.abs().argmax()
                pair = (candidates[0][:, best] * cosines[best].sign(), vector)
                aligned.append([side * values[0, index] for side in pair])
            sides.append(aligned)
        for first, second in pairwise(sides):
            for index in range(vectors):
                kernels = [
                    (-((first[index][side][:, None] - second[index][side][None]) ** 2) / 8).exp() for side in (0, 1)
                ]
                total = total + (kernels[0] - kernels[1]).square().sum()
    return total / len(student[0])


@pytest.mark.parametrize("vectors", [1, 2])
def test_kdsvd_compares_the_kernels_of_aligned_vectors_of_successive_layers(vectors):
    student, target = layers(0), layers(1)
    for side in student:
        side.requires_grad_()
    loss = build_loss(KDSVD(vectors=vectors), student, target)
    value, expected = loss(student, target), reference(student, target, vectors)
    torch.testing.assert_close(value, expected)
    # The gradient differs by the damping of small gaps between singular values.
    for ours, theirs in zip(torch.autograd.grad(value, student), torch.autograd.grad(expected, student), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3 * theirs.abs().max().item())


def test_kdsvd_of_rep_distiller_depends_on_the_signs_of_the_decomposition():
    student, target = layers(0), layers(1)
    loss = build_loss(KDSVD(), student, target)
    signs = [-1, 1, 1]
    turned = tuple(sign * side for sign, side in zip(signs, target, strict=True))
    # the vectors of -X are those of X, up to a sign
    torch.testing.assert_close(loss(student, turned), loss(student, target))
    vectors = [decompose(side, 1)[1][..., 0] for side in target]
    kernels = [(-(sign * vectors[0][:, :, None] - vectors[1][:, None]).square() / 8).exp() for sign in (1, -1)]
    assert (kernels[0] - kernels[1]).abs().max() > 0.01  # without a sign of their own, so much would change


def test_kdsvd_maps_channels_that_differ():
    student, target = layers(0, ((4, 3, 6), (4, 5, 4))), layers(1, ((4, 4, 6), (4, 5, 4)))
    loss = build_loss(KDSVD(), student, target).double()
    assert [sum(weight.numel() for weight in projector.parameters()) for projector in loss.projectors] == [12, 0]
    mapped = (loss.projectors[0](student[0]), student[1])
    torch.testing.assert_close(loss(student, target), reference(mapped, target, 1))
    with pytest.raises(RecipeError, match=r"use KDSVD\(projector='auto'\)"):
        build_loss(KDSVD(projector="never"), student, target)


@pytest.mark.parametrize("map_of", [torch.zeros, torch.ones, lambda *shape: torch.eye(4).expand(2, 4, 4)])
def test_maps_without_distinct_singular_values_have_finite_gradients(map_of):
    student = map_of(2, 4, 4).clone().requires_grad_()
    target = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    loss = build_loss(KDSVD(), (student, target), (target, target))
    loss((student, target), (target, target)).backward()
    assert student.grad.isfinite().all()


def test_vectors_have_length_one_and_the_largest_value_first():
    (features,) = layers(0, ((4, 6, 5),))
    vectors, values = singular_vectors(features, 9)
    assert vectors.shape == (4, 6, 5)  # there are no more vectors than positions
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(5, dtype=torch.float64).expand(4, 5, 5))
    assert (values.diff() < 0).all()
    torch.testing.assert_close(values.square().sum(1), torch.ones(4, dtype=torch.float64))


def test_kdsvd_refuses_options_that_are_not_numbers_above_zero():
    for options in ({"vectors": 0}, {"width": 0.0}):
        with pytest.raises(RecipeError):
            KDSVD(**options)
