"""Weights of terms that are learned, against cases by hand."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from kdkit import Optimizer, RecipeError
from kdkit.recipe.balancing import GradNorm, UncertaintyWeighting, WeightedSum
from tests.helpers.balancing import linear, numbers, ones, plain, trained, vectors

GRADIENTS = vectors([3.0, 0.0], [0.0, 1.0])


# Uncertainty


def uncertain(terms, parameter):
    return UncertaintyWeighting().build(trained(terms, [parameter]))


def test_uncertainty_weighs_by_inverse_variances_and_learns_their_logarithms():
    parameter = numbers(0.0, 0.0)
    terms, weights = linear(parameter, GRADIENTS, [4.0, 0.5]), {"term0": 0.5, "term1": 2.0}
    balancer = uncertain(terms, parameter)
    assert balancer.log_variances.dtype == torch.float64
    with torch.no_grad():
        balancer.log_variances.copy_(torch.tensor([0.3, -0.2]))
    balancer(terms, weights, plain)
    first, second = 0.5 * math.exp(-0.3), 2 * math.exp(0.2)
    torch.testing.assert_close(parameter.grad, torch.tensor([3 * first, second], dtype=torch.float64))
    expected = torch.tensor([0.5 - 4 * first, 0.5 - 0.5 * second], dtype=torch.float64)
    torch.testing.assert_close(balancer.log_variances.grad, expected)


def test_log_variances_settle_at_the_logarithm_of_twice_the_term():
    parameter = numbers(0.0, 0.0)
    terms, weights = linear(parameter, GRADIENTS, [4.0, 0.5]), {"term0": 0.5, "term1": 2.0}
    balancer = uncertain(terms, parameter)
    optimizer = SGD(balancer.parameters(), lr=0.9)
    for _ in range(60):
        balancer(linear(parameter, GRADIENTS, [4.0, 0.5]), weights, plain)
        optimizer.step()
        optimizer.zero_grad()
    expected = torch.tensor([2 * 0.5 * 4.0, 2 * 2.0 * 0.5], dtype=torch.float64).log()
    torch.testing.assert_close(balancer.log_variances.detach(), expected)


def test_uncertainty_begins_as_the_weighted_sum():
    one, other = numbers(0.0, 0.0), numbers(0.0, 0.0)
    weights = {"term0": 0.3, "term1": 0.7}
    terms = linear(one, GRADIENTS)
    uncertain(terms, one)(terms, weights, plain)
    WeightedSum()(linear(other, GRADIENTS), weights, plain)
    torch.testing.assert_close(one.grad, other.grad)


def test_a_log_variance_rests_while_its_term_has_no_say():
    parameter = numbers(0.0, 0.0)
    terms = linear(parameter, GRADIENTS)
    balancer = uncertain(terms, parameter)
    balancer(terms, {"term0": 1.0, "term1": 0.0}, plain)
    assert balancer.log_variances.grad[0] != 0
    assert balancer.log_variances.grad[1] == 0
    parameter.grad = balancer.log_variances.grad = None
    balancer(linear(parameter, GRADIENTS), {"term0": 0.0, "term1": 0.0}, plain)
    assert torch.equal(parameter.grad, torch.zeros(2))
    assert balancer.log_variances.grad is None


# GradNorm


def normed(terms, parameter, **options):
    options = {"alpha": 1.0, "optimizer": Optimizer(SGD, lr=0.1), **options}
    return GradNorm(**options).build(trained(terms, [parameter]))


def step(balancer, parameter, values, weights=None, scale=plain):
    parameter.grad = None
    terms = linear(parameter, GRADIENTS, values)
    balancer(terms, weights or ones(terms), scale)
    return balancer.factors.detach()


def test_two_steps_of_grad_norm_are_those_by_hand():
    parameter = numbers(0.0, 0.0)
    balancer = normed(linear(parameter, GRADIENTS), parameter)
    # Norms (3, 1), ratios 1: the target is their mean 2, slopes (3, -1), factors (0.7, 1.1) of sum 1.8 before they are
    # brought to 2.
    found = step(balancer, parameter, [2.0, 4.0])
    torch.testing.assert_close(parameter.grad, torch.tensor([3.0, 1.0], dtype=torch.float64))  # by the factors before
    first = torch.tensor([0.7, 1.1], dtype=torch.float64) * 2 / 1.8
    torch.testing.assert_close(found, first)
    # Now (7/3, 11/9) of mean 16/9; ratios (0.5, 1) of mean 0.75, so targets 16/9 * (2/3, 4/3) and slopes (3, -1).
    found = step(balancer, parameter, [1.0, 4.0])
    torch.testing.assert_close(parameter.grad, torch.tensor([7 / 3, 11 / 9], dtype=torch.float64))
    second = first - 0.1 * torch.tensor([3.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(found, second * 2 / second.sum())


def test_alpha_decides_which_way_a_slow_term_goes():
    # Norms (3, 3.2), the first term has not got better: with alpha 0 its factor grows only to even the norms.
    gradients = vectors([3.2, 0.0], [0.0, 3.0])
    found = {}
    for alpha in (0.0, 2.0):
        parameter = numbers(0.0, 0.0)
        balancer = normed(linear(parameter, gradients), parameter, alpha=alpha, optimizer=Optimizer(SGD, lr=1e-3))
        for values in ([1.0, 1.0], [1.0, 0.1]):
            before = balancer.factors.detach().clone()
            terms = linear(parameter, gradients, values)
            balancer(terms, ones(terms), plain)
        found[alpha] = (balancer.factors.detach() - before).sign().tolist()
    assert found == {0.0: [-1.0, 1.0], 2.0: [1.0, -1.0]}


def test_norms_become_equal_where_terms_learn_alike():
    parameter = numbers(0.0, 0.0)
    balancer = normed(linear(parameter, GRADIENTS), parameter, optimizer=Optimizer(Adam, lr=0.01))
    for _ in range(100):
        factors = step(balancer, parameter, [2.0, 4.0])
    torch.testing.assert_close(factors, torch.tensor([0.5, 1.5], dtype=torch.float64), rtol=0.02, atol=0)
    assert factors.sum().item() == pytest.approx(2)


def test_a_scale_changes_no_factor():
    factors = []
    for scale in (plain, lambda total: total * 1024 / 3):
        parameter = numbers(0.0, 0.0)
        balancer = normed(linear(parameter, GRADIENTS), parameter)
        step(balancer, parameter, [2.0, 4.0])
        factors.append(step(balancer, parameter, [1.0, 4.0], scale=scale).clone())
    torch.testing.assert_close(factors[1], factors[0])


def test_goal_weights_multiply_the_terms_before_norms_are_taken_and_change_no_ratio():
    parameter = numbers(0.0, 0.0)
    balancer = normed(linear(parameter, GRADIENTS), parameter)
    found = step(balancer, parameter, [2.0, 4.0], {"term0": 0.5, "term1": 4.0})  # norms (1.5, 4) of mean 2.75
    expected = torch.tensor([1 + 0.15, 1 - 0.4], dtype=torch.float64)
    torch.testing.assert_close(found, expected * 2 / expected.sum())
    assert balancer.first.tolist() == [2.0, 4.0]


def test_factors_stay_as_they_are_where_a_norm_overflowed_or_a_ratio_is_no_number():
    parameter = numbers(0.0, 0.0)
    balancer = normed(linear(parameter, GRADIENTS), parameter, optimizer=Optimizer(Adam, lr=0.1))
    before = step(balancer, parameter, [2.0, 4.0]).clone()
    for values, scale in (([2.0, -4.0], plain), ([2.0, math.inf], plain), ([2.0, 4.0], lambda total: total * math.inf)):
        balancer._alpha = 1.5
        assert torch.equal(step(balancer, parameter, values, scale=scale), before)
    assert balancer.first.tolist() == [2.0, 4.0]


def test_factors_stay_above_zero():
    parameter = numbers(0.0, 0.0)
    balancer = normed(linear(parameter, GRADIENTS), parameter, optimizer=Optimizer(SGD, lr=5.0))
    found = step(balancer, parameter, [2.0, 4.0])
    assert (found > 0).all()
    assert found.sum().item() == pytest.approx(2)


def test_a_term_that_comes_later_begins_with_a_factor_of_one_and_its_own_first_loss():
    parameter = numbers(0.0, 0.0)
    gradients, values = vectors([3.0, 0.0], [0.0, 1.0], [1.0, 1.0]), [2.0, 4.0, 8.0]
    balancer = normed(linear(parameter, gradients), parameter)
    terms = linear(parameter, gradients, values)
    balancer(terms, {**ones(terms), "term2": 0.0}, plain)
    torch.testing.assert_close(balancer.factors[:2].detach(), torch.tensor([0.7, 1.1], dtype=torch.float64) * 2 / 1.8)
    assert balancer.factors[2] == 1
    assert balancer.first[2].isnan()
    terms = linear(parameter, gradients, values)
    balancer(terms, ones(terms), plain)
    assert balancer.first.tolist() == values
    assert balancer.factors.sum().item() == pytest.approx(3)


def test_norms_are_taken_on_the_layer_alone():
    layer, rest = nn.Linear(2, 1, bias=False).double(), numbers(0.0)
    layer.weight.data = torch.zeros(1, 2, dtype=torch.float64)
    terms = {
        name: (layer.weight * gradient).sum() + 100 * rest.sum() - (100 * rest.sum()).detach() + value
        for name, gradient, value in (("term0", GRADIENTS[0], 2.0), ("term1", GRADIENTS[1], 4.0))
    }
    options = GradNorm(layer=layer, optimizer=Optimizer(SGD, lr=0.1))
    balancer = options.build(trained(terms, [layer.weight, rest]))
    balancer(terms, ones(terms), plain)
    expected = torch.tensor([0.7, 1.1], dtype=torch.float64) * 2 / 1.8
    torch.testing.assert_close(balancer.factors.detach(), expected)
    assert rest.grad.item() == 200


def test_grad_norm_goes_on_where_it_was_left():
    parameter = numbers(0.0, 0.0)
    terms = linear(parameter, GRADIENTS)
    whole, cut = (normed(terms, parameter, optimizer=Optimizer(Adam, lr=0.1)) for _ in range(2))
    step(whole, parameter, [2.0, 4.0])
    cut.load_state_dict(copy.deepcopy(whole.state_dict()))
    one, other = (step(each, parameter, [1.0, 4.0]) for each in (whole, cut))
    assert torch.equal(one, other)
    assert torch.equal(whole.first, cut.first)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"alpha": -0.1}, "alpha of GradNorm is a number of at least 0; got -0.1"),
        ({"alpha": math.nan}, "alpha of GradNorm"),
        ({"alpha": True}, "alpha of GradNorm"),
        ({"alpha": "1"}, "alpha of GradNorm is a number of at least 0; got '1'"),
        ({"layer": "body.3"}, "layer of GradNorm is a module of a net in training"),
        ({"optimizer": Adam}, "optimizer is Optimizer"),
    ],
)
def test_a_grad_norm_that_makes_no_sense_is_refused(wrong, said):
    with pytest.raises(RecipeError, match=said):
        GradNorm(**wrong)


def test_a_layer_of_which_nothing_is_trained_is_refused():
    parameter = numbers(0.0, 0.0)
    terms = linear(parameter, GRADIENTS)
    with pytest.raises(RecipeError, match="norms on a Linear of which this stage trains nothing"):
        normed(terms, parameter, layer=nn.Linear(2, 2))


def test_a_layer_that_a_term_does_not_reach_is_refused():
    one, other = numbers(0.0), numbers(0.0)
    terms = {"one": one.sum(), "other": other.sum()}
    layer = nn.ParameterList([one])
    balancer = GradNorm(layer=layer).build(trained(terms, [one, other]))
    with pytest.raises(RecipeError, match="term 'other' does not reach the layer"):
        balancer(terms, ones(terms), plain)
