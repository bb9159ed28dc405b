"""Tests of the weighted sum of terms, and of the defaults of the base classes."""

import pytest
import torch

from kdkit.recipe.balancing import Balancer, Balancing, CAGrad, GradNorm, PCGrad, UncertaintyWeighting, WeightedSum
from kdkit.recipe.balancing.base import unscaled


def terms_of(weight):
    return {"truth": (weight * 2).sum(), "teacher": (weight**2).sum()}


def test_gradients_are_those_of_the_weighted_sum():
    weight = torch.tensor([1.0, 3.0], requires_grad=True)
    WeightedSum()(terms_of(weight), {"truth": 0.3, "teacher": 0.7}, lambda total: total)
    torch.testing.assert_close(weight.grad, 0.3 * 2 + 0.7 * 2 * weight.detach())


def test_a_single_term_of_weight_one_is_not_changed():
    weight = torch.tensor([1.0, 3.0], requires_grad=True)
    scaled = []
    term = (weight**2).sum()
    WeightedSum()({"truth": term}, {"truth": 1.0}, lambda total: scaled.append(total) or total)
    assert scaled == [term]
    torch.testing.assert_close(weight.grad, 2 * weight.detach())


def test_the_sum_is_scaled_before_it_is_differentiated():
    weight = torch.tensor([1.0, 3.0], requires_grad=True)
    WeightedSum()({"truth": weight.sum()}, {"truth": 2.0}, lambda total: total * 8)
    torch.testing.assert_close(weight.grad, torch.full((2,), 16.0))


def test_gradients_of_several_micro_batches_add_up():
    weight = torch.tensor([1.0], requires_grad=True)
    for _ in range(3):
        WeightedSum()({"truth": weight.sum()}, {"truth": 1.0}, lambda total: total / 3)
    assert weight.grad.item() == pytest.approx(1)


def test_a_term_of_weight_zero_contributes_no_gradient():
    weight = torch.tensor([1.0], requires_grad=True)
    WeightedSum()(terms_of(weight), {"truth": 1.0, "teacher": 0.0}, lambda total: total)
    assert weight.grad.item() == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("as_tensors", [False, True])
def test_gradients_of_an_unscaled_step_are_those_of_the_sum_to_the_bit(dtype, as_tensors):
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(50, generator=generator)
    weights = {"truth": 0.3, "teacher": 0.7, "off": 0.0, "constant": 1.0}
    if as_tensors:
        weights = {label: torch.tensor(weight) for label, weight in weights.items()}

    def gradient(scale):
        weight = value.to(dtype, copy=True).requires_grad_()
        outputs = weight.exp()
        terms = {
            "truth": outputs.tanh().sum(),
            "teacher": (outputs.float() ** 2).mean(),
            "off": outputs.sum(),
            "constant": torch.tensor(1.0),
        }
        WeightedSum()(terms, weights, scale)
        return weight.grad

    assert torch.equal(gradient(unscaled), gradient(lambda total: total))


def test_terms_without_a_graph_have_no_gradient():
    with pytest.raises(RuntimeError, match="does not require grad"):
        WeightedSum()({"truth": torch.tensor(1.0)}, {"truth": 1.0}, unscaled)


def test_the_sum_has_no_state():
    assert WeightedSum().state_dict() == {}
    WeightedSum().load_state_dict({})


def test_optional_members_have_defaults():
    class Method(Balancing):
        def build(self, trained):
            return Custom()

    class Custom(Balancer):
        def __call__(self, terms, weights, scale):
            pass

    assert Method().needs_separate_gradients is False
    assert Method().build(None).averages_across_ranks is False
    assert isinstance(Method(), Balancing)
    assert isinstance(Custom(), Balancer)


@pytest.mark.parametrize(
    ("method", "separate"),
    [(WeightedSum(), False), (UncertaintyWeighting(), False), (GradNorm(), True), (PCGrad(), True), (CAGrad(), True)],
)
def test_methods_declare_whether_they_need_separate_gradients(method, separate):
    assert isinstance(method, Balancing)
    assert method.needs_separate_gradients is separate
