"""Properties that several losses share, and the names and keyword arguments of losses. Golden numbers: tests/parity."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from kdkit import BuildContext, RecipeError
from kdkit.losses import (
    MLLD,
    Chunked,
    Cosine,
    Hint,
    IgnoreUnknown,
    Masked,
    PerLabelMLLD,
    PerLabelSoftTargets,
    PerPosition,
    PerTeacher,
    PerToken,
    SampleWeighted,
    SecondHead,
    SoftTargets,
    extra_kwargs_of,
    loss_name,
    requirements_of,
)
from kdkit.losses.base import describe_loss, is_sum
from kdkit.losses.projectors import Projector

CONTEXT = BuildContext(classes=("a", "b"), task="multiclass", samples=4, ids=True)
SOFT = [SoftTargets, PerLabelSoftTargets]


def logits(classes=5):
    return torch.randn(4, classes), torch.randn(4, classes)


def build_loss(loss, student, target):
    loss.build((student.shape,), (target.shape,), CONTEXT, None)
    return loss


@pytest.mark.parametrize("make", SOFT)
@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf])
def test_a_temperature_is_a_finite_number_above_zero(make, temperature):
    with pytest.raises(RecipeError, match="a temperature must be"):
        make(temperature=temperature)


@pytest.mark.parametrize("make", SOFT)
def test_an_unknown_reduction_is_refused(make):
    with pytest.raises(RecipeError, match="batchmean"):
        make(reduction="batch_mean")


@pytest.mark.parametrize("make", SOFT)
def test_the_mean_is_the_batchmean_over_the_number_of_classes(make):
    student, target = logits()
    batchmean, mean = (make(reduction=reduction)(student, target) for reduction in ("batchmean", "mean"))
    torch.testing.assert_close(mean * 5, batchmean)


@pytest.mark.parametrize("make", SOFT)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_t_squared_is_a_factor_of_the_temperature_squared(make, temperature):
    student, target = logits()
    without = make(temperature=temperature, t_squared=False)(student, target)
    torch.testing.assert_close(make(temperature=temperature)(student, target), without * temperature**2)


@pytest.mark.parametrize("make", SOFT)
def test_the_gradient_keeps_its_size_when_the_temperature_rises(make):
    student, target = logits()
    sizes = []
    for temperature in (20.0, 40.0):
        leaf = student.clone().requires_grad_()
        make(temperature=temperature)(leaf, target).backward()
        sizes.append(leaf.grad.norm().item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)


@pytest.mark.parametrize("make", SOFT)
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.floats(0.5, 20), st.integers(0, 2**31))
def test_a_divergence_is_never_negative_and_zero_for_equal_logits(make, batch, classes, temperature, seed):
    random = torch.Generator().manual_seed(seed)
    student, target = (torch.randn(batch, classes, generator=random, dtype=torch.float64) for _ in range(2))
    loss = make(temperature=temperature)
    assert loss(student, target) >= -1e-9
    assert abs(loss(target, target)) < 1e-9


def test_soft_targets_ignore_a_constant_added_to_the_logits():
    student, target = logits()
    torch.testing.assert_close(SoftTargets()(student + 3, target - 2), SoftTargets()(student, target))


def test_per_label_soft_targets_change_with_a_constant_added_to_the_logits():
    _, target = logits()
    assert PerLabelSoftTargets()(target + 3, target) > 0.1


def test_per_label_soft_targets_are_a_mean_over_separate_labels():
    student, target = logits()
    alone = [PerLabelSoftTargets()(student[:, [column]], target[:, [column]]) for column in range(5)]
    torch.testing.assert_close(PerLabelSoftTargets()(student, target), torch.stack(alone).mean())


def test_the_entropy_adds_a_constant_and_no_gradient():
    student, target = logits()
    gradients, values = [], []
    for entropy in (False, True):
        leaf = student.clone().requires_grad_()
        value = PerLabelSoftTargets(temperature=2, entropy=entropy)(leaf, target)
        value.backward()
        gradients.append(leaf.grad)
        values.append(value.item())
    torch.testing.assert_close(*gradients)
    soft = (target / 2).sigmoid()
    assert values[1] - values[0] == pytest.approx(4 * F.binary_cross_entropy(soft, soft).item(), rel=1e-4)


@pytest.mark.parametrize("make", [Hint, Cosine])
def test_features_of_one_shape_need_no_projector(make):
    features = torch.randn(2, 3, 4)
    loss = build_loss(make(), features, features)
    assert list(loss.parameters()) == []
    assert loss(features, features).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("make", [Hint, Cosine])
@pytest.mark.parametrize(
    ("student_shape", "target_shape"), [((2, 3), (2, 5)), ((2, 3, 8), (2, 5, 4)), ((2, 3, 4, 4), (2, 5, 2, 2))]
)
def test_features_of_different_shapes_get_a_trained_projector(make, student_shape, target_shape):
    student, target = torch.randn(student_shape), torch.randn(target_shape)
    loss = build_loss(make(), student, target)
    loss(student, target).backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())
    assert isinstance(loss.projector, Projector)


@pytest.mark.parametrize("make", [Hint, Cosine])
def test_a_different_batch_size_needs_no_projector(make):
    assert list(build_loss(make(projector="never"), torch.randn(2, 3), torch.randn(7, 3)).parameters()) == []


@pytest.mark.parametrize("make", [Hint, Cosine])
def test_never_refuses_shapes_that_differ(make):
    with pytest.raises(RecipeError, match=r"features of \(3,\) cannot be compared to \(5,\)"):
        build_loss(make(projector="never"), torch.randn(2, 3), torch.randn(2, 5))


@pytest.mark.parametrize("make", [Hint, Cosine])
def test_a_misspelt_projector_is_refused(make):
    with pytest.raises(RecipeError, match="got 'alway'"):
        make(projector="alway")


def test_always_creates_a_projector_for_equal_shapes_too():
    assert len(list(build_loss(Hint(projector="always"), torch.randn(2, 3), torch.randn(2, 3)).parameters())) == 2


def test_a_second_build_creates_a_projector_for_the_new_shapes():
    loss = build_loss(Hint(), torch.randn(2, 3), torch.randn(2, 5))
    build_loss(loss, torch.randn(2, 4), torch.randn(2, 6))
    assert loss(torch.randn(2, 4), torch.randn(2, 6)).ndim == 0
    assert list(build_loss(loss, torch.randn(2, 3), torch.randn(2, 3)).parameters()) == []


def test_cosine_ignores_the_length_and_is_two_for_opposites():
    features = torch.randn(3, 4, 5)
    assert Cosine()(features * 7, features).item() == pytest.approx(0, abs=1e-6)
    assert Cosine()(-features, features).item() == pytest.approx(2)


def hinted(student, target):
    return (student - target).abs().mean()


class KLDLoss(nn.Module):
    requires = ("hard_labels",)

    def forward(self, student, target, *, labels, ids=None):
        return student.sum()


class CallableObject:
    requires = ("ids",)

    def __call__(self, student, target, *, progress):
        return student.sum()


@pytest.mark.parametrize(
    ("loss", "name"),
    [(hinted, "hinted"), (SoftTargets(), "soft_targets"), (nn.MSELoss(), "mse_loss"), (KLDLoss(), "kld_loss")],
)
def test_a_loss_has_its_name_in_snake_case(loss, name):
    assert loss_name(loss) == name


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (Masked(hinted), "Masked(hinted)"),
        (PerPosition(hinted), "PerPosition(loss=hinted, ignore_index=-100)"),
        (CallableObject(), "CallableObject"),
    ],
)
def test_a_loss_is_described_by_names_and_not_by_memory_addresses(loss, text):
    assert describe_loss(loss) == text


@pytest.mark.parametrize(
    ("loss", "extra_kwargs", "requirements"),
    [
        (hinted, set(), set()),
        (nn.MSELoss(), set(), set()),
        (KLDLoss(), {"labels", "ids"}, {"labels", "hard_labels"}),
        (CallableObject(), {"progress"}, {"progress", "ids"}),
        (lambda student, target, labels=None: student, {"labels"}, set()),
        (max, set(), set()),
    ],
)
def test_keyword_arguments_and_requirements_are_read_from_the_signature_and_the_attributes(
    loss, extra_kwargs, requirements
):
    assert extra_kwargs_of(loss) == extra_kwargs
    assert requirements_of(loss) == requirements


@pytest.mark.parametrize(
    "wrapper", [Chunked, IgnoreUnknown, Masked, PerPosition, PerTeacher, PerToken, SampleWeighted, SecondHead]
)
def test_a_wrapper_of_a_sum_is_a_sum(wrapper):
    assert is_sum(wrapper(nn.CrossEntropyLoss(reduction="sum")))
    assert not is_sum(wrapper(nn.CrossEntropyLoss()))


@pytest.mark.parametrize("wrapper", [Masked, PerPosition, PerTeacher, PerToken, SecondHead])
def test_a_wrapper_of_a_function_of_torch_is_a_sum_if_the_function_is(wrapper):
    assert is_sum(wrapper(partial(F.mse_loss, reduction="sum")))
    assert not is_sum(wrapper(F.mse_loss))


def test_the_confidence_of_teachers_weights_a_mean_over_samples():
    assert not is_sum(PerTeacher(nn.MSELoss(reduction="sum"), weights="confidence"))


@pytest.mark.parametrize("make", [MLLD, PerLabelMLLD])
def test_a_list_of_temperatures_is_the_tuple_of_them(make):
    assert make(temperatures=[2, 4]) == make(temperatures=(2, 4))
    assert hash(make(temperatures=[2, 4])) == hash(make(temperatures=(2, 4)))
