"""OFA: its formula, the plain cross-entropy at gamma = 1, confident sides, and exits at the stages of a student."""

import math

import pytest
import torch
from torch import nn

from kdkit import BuildContext, RecipeError
from kdkit.losses import DKD, OFA, SecondHead, SoftTargets, extra_kwargs_of, requirements_of
from tests.helpers.loss_reference import assert_equals_reference

STUDENT = torch.tensor([[1.0, 2.0, -1.0], [0.5, -1.0, 2.0], [3.0, 0.0, 1.0]])
TARGET = torch.tensor([[2.0, 1.0, 0.0], [0.0, -2.0, 1.0], [1.0, 1.0, 2.0]])
LABELS = torch.tensor([0, 2, 1])
CONTEXT = BuildContext(classes=("a", "b", "c"), task="multiclass", samples=12, ids=True)


def reference(gamma, temperature=1.0):
    """Return the loss of the authors' code, ((p + 1_y)^gamma - 1_y) against log q, class by class."""

    def loss(student, target, labels):
        total = 0
        for row, (logits, teacher) in enumerate(zip(student / temperature, target / temperature, strict=True)):
            p = [math.exp(value) / sum(map(math.exp, teacher.tolist())) for value in teacher.tolist()]
            normaliser = logits.exp().sum().log()
            for column, probability in enumerate(p):
                one = float(labels[row] == column)
                total = total - ((probability + one) ** gamma - one) * (logits[column] - normaliser)
        return total / len(student)

    return loss


@pytest.mark.parametrize(("gamma", "temperature"), [(1.0, 1.0), (1.5, 1.0), (1.2, 3.0), (0.5, 2.0)])
def test_ofa_is_the_formula_of_its_authors(gamma, temperature):
    loss = OFA(gamma=gamma, temperature=temperature)
    assert_equals_reference(loss, reference(gamma, temperature), STUDENT, TARGET, labels=LABELS)


def test_at_gamma_one_ofa_is_the_cross_entropy_with_the_teacher():
    expected = nn.functional.cross_entropy(STUDENT, TARGET.softmax(1))
    torch.testing.assert_close(OFA()(STUDENT, TARGET, labels=LABELS), expected)


def test_a_larger_gamma_raises_the_weight_of_the_correct_class():
    student = STUDENT.clone().requires_grad_()
    gradients = [
        torch.autograd.grad(OFA(gamma=gamma)(student, TARGET, labels=LABELS), student)[0].gather(1, LABELS[:, None])
        for gamma in (1.0, 1.5)
    ]
    assert (gradients[1] < gradients[0]).all()


def test_t_squared_multiplies_by_the_squared_temperature():
    plain, squared = (
        OFA(temperature=3.0, t_squared=t_squared)(STUDENT, TARGET, labels=LABELS) for t_squared in (False, True)
    )
    torch.testing.assert_close(squared, 9 * plain)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 1.5])
def test_confident_and_masked_sides_give_a_finite_value_and_gradient(gamma):
    # log(softmax(x)) of the authors' code is -inf at the second and third class
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    target = torch.tensor([[-1e4, 1e4, -math.inf]], requires_grad=True)
    value = OFA(gamma=gamma)(student, target, labels=torch.tensor([2]))
    assert value.item() == pytest.approx(2e4)
    value.backward()
    assert student.grad.isfinite().all()
    assert target.grad.isfinite().all()


@pytest.mark.parametrize("gamma", [0.0, -1.0, math.nan, "1"])
def test_a_gamma_that_is_not_above_zero_is_refused(gamma):
    with pytest.raises(RecipeError, match="gamma"):
        OFA(gamma=gamma)


def exit_head(shape=(4, 6, 8), **options):
    loss = SecondHead(OFA(gamma=1.5), **options)
    torch.manual_seed(0)
    loss.build((torch.Size(shape),), (torch.Size((4, 3)),), CONTEXT, None)
    return loss


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 8), (4, 6, 8, 5), (4, 6, 4, 4, 4)])
def test_an_exit_compares_the_outputs_of_its_head_with_the_teacher_and_the_labels(shape):
    features, labels = torch.randn(shape), torch.tensor([0, 2, 1, 1])
    loss = exit_head(shape)
    assert extra_kwargs_of(loss) == {"labels"}
    assert requirements_of(loss) == {"labels", "hard_labels"}
    logits = loss.head(features if len(shape) == 2 else features.flatten(2).mean(2))
    target = torch.randn(4, 3)
    torch.testing.assert_close(
        loss(features, target, labels=labels), OFA(gamma=1.5)(logits, target, labels=labels), rtol=0, atol=0
    )


@pytest.mark.parametrize(("shape", "positions"), [((4, 6, 9), (3,)), ((4, 6, 8, 5), (2, 2)), ((4, 6, 1), (1,))])
def test_blocks_halve_the_positions_double_the_channels_and_are_trained(shape, positions):
    loss = exit_head(shape, blocks=2)
    features = torch.randn(shape, requires_grad=True)
    assert loss.trunk(features).shape == (4, 24, *positions)
    loss(features, torch.randn(4, 3), labels=torch.tensor([0, 2, 1, 1])).backward()
    assert all(parameter.grad.isfinite().all() for parameter in loss.parameters())
    assert features.grad.any()


def test_a_head_for_a_loss_without_labels_takes_none():
    assert not extra_kwargs_of(SecondHead(SoftTargets()))
    assert not requirements_of(SecondHead())


@pytest.mark.parametrize("blocks", [-1, 1.0, True, None])
def test_a_number_of_blocks_that_is_none_is_refused(blocks):
    with pytest.raises(RecipeError, match="blocks before the head, must be an integer of at least 0; got"):
        SecondHead(DKD(), blocks=blocks)


def test_blocks_on_pooled_features_are_refused():
    with pytest.raises(RecipeError, match="tap a layer before it is pooled"):
        exit_head((4, 6), blocks=1)
