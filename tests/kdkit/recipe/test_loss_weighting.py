"""Tests of learned weights of terms against cases computed by hand."""

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


# UncertaintyWeighting


def log_variances(terms, parameter):
    return UncertaintyWeighting().build(trained(terms, [parameter]))


def test_uncertainty_weights_by_inverse_variances_and_learns_log_variances():
    parameter = numbers(0.0, 0.0)
    terms, weights = linear(parameter, GRADIENTS, [4.0, 0.5]), {"term0": 0.5, "term1": 2.0}
    balancer = log_variances(terms, parameter)
    assert balancer.log_variances.dtype == torch.float64
    with torch.no_grad():
        balancer.log_variances.copy_(torch.tensor([0.3, -0.2]))
    balancer(terms, weights, plain)
    first, second = 0.5 * math.exp(-0.3), 2 * math.exp(0.2)
    torch.testing.assert_close(parameter.grad, torch.tensor([3 * first, second], dtype=torch.float64))
    expected = torch.tensor([0.5 - 4 * first, 0.5 - 0.5 * second], dtype=torch.float64)
    torch.testing.assert_close(balancer.log_variances.grad, expected)


def test_log_variances_converge_to_the_logarithm_of_twice_the_term():
    parameter = numbers(0.0, 0.0)
    terms, weights = linear(parameter, GRADIENTS, [4.0, 0.5]), {"term0": 0.5, "term1": 2.0}
    balancer = log_variances(terms, parameter)
    optimizer = SGD(balancer.parameters(), lr=0.9)
    for _ in range(60):
        balancer(linear(parameter, GRADIENTS, [4.0, 0.5]), weights, plain)
        optimizer.step()
        optimizer.zero_grad()
    expected = torch.tensor([2 * 0.5 * 4.0, 2 * 2.0 * 0.5], dtype=torch.float64).log()
    torch.testing.assert_close(balancer.log_variances.detach(), expected)


def test_uncertainty_starts_as_the_weighted_sum():
    parameter, summed = numbers(0.0, 0.0), numbers(0.0, 0.0)
    weights = {"term0": 0.3, "term1": 0.7}
    terms = linear(parameter, GRADIENTS)
    log_variances(terms, parameter)(terms, weights, plain)
    WeightedSum()(linear(summed, GRADIENTS), weights, plain)
    torch.testing.assert_close(parameter.grad, summed.grad)


def test_a_log_variance_is_unchanged_while_its_term_has_weight_zero():
    parameter = numbers(0.0, 0.0)
    terms = linear(parameter, GRADIENTS)
    balancer = log_variances(terms, parameter)
    balancer(terms, {"term0": 1.0, "term1": 0.0}, plain)
    assert balancer.log_variances.grad[0] != 0
    assert balancer.log_variances.grad[1] == 0
    parameter.grad = balancer.log_variances.grad = None
    balancer(linear(parameter, GRADIENTS), {"term0": 0.0, "term1": 0.0}, plain)
    assert torch.equal(parameter.grad, torch.zeros(2))
    assert balancer.log_variances.grad is None


# GradNorm


def grad_norm(terms, parameter, **options):
    options = {"alpha": 1.0, "optimizer": Optimizer(SGD, lr=0.1), **options}
    return GradNorm(**options).build(trained(terms, [parameter]))


def step(balancer, parameter, values, weights=None, scale=plain):
    parameter.grad = None
    terms = linear(parameter, GRADIENTS, values)
    balancer(terms, weights or ones(terms), scale)
    return balancer.factors.detach()


def test_two_steps_of_grad_norm_match_a_computation_by_hand():
    parameter = numbers(0.0, 0.0)
    balancer = grad_norm(linear(parameter, GRADIENTS), parameter)
    # Norms (3, 1) and ratios 1: the target is the mean 2, the gradients are (3, -1), and the factors (0.7, 1.1), whose
    # sum 1.8 is then renormalised to 2.
    factors = step(balancer, parameter, [2.0, 4.0])
    torch.testing.assert_close(
        parameter.grad, torch.tensor([3.0, 1.0], dtype=torch.float64)
    )  # with the factors before the step
    first = torch.tensor([0.7, 1.1], dtype=torch.float64) * 2 / 1.8
    torch.testing.assert_close(factors, first)
    # Norms (7/3, 11/9) of mean 16/9 and ratios (0.5, 1) of mean 0.75: targets 16/9 * (2/3, 4/3), gradients (3, -1).
    factors = step(balancer, parameter, [1.0, 4.0])
    torch.testing.assert_close(parameter.grad, torch.tensor([7 / 3, 11 / 9], dtype=torch.float64))
    second = first - 0.1 * torch.tensor([3.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(factors, second * 2 / second.sum())


def test_alpha_decides_the_direction_of_a_slow_term():
    # Norms (3.2, 3); the first loss has not decreased. With alpha 0 only the norms are equalised.
    gradients = vectors([3.2, 0.0], [0.0, 3.0])
    directions = {}
    for alpha in (0.0, 2.0):
        parameter = numbers(0.0, 0.0)
        balancer = grad_norm(linear(parameter, gradients), parameter, alpha=alpha, optimizer=Optimizer(SGD, lr=1e-3))
        for values in ([1.0, 1.0], [1.0, 0.1]):
            before = balancer.factors.detach().clone()
            terms = linear(parameter, gradients, values)
            balancer(terms, ones(terms), plain)
        directions[alpha] = (balancer.factors.detach() - before).sign().tolist()
    assert directions == {0.0: [-1.0, 1.0], 2.0: [1.0, -1.0]}


def test_norms_become_equal_if_terms_learn_at_the_same_rate():
    parameter = numbers(0.0, 0.0)
    balancer = grad_norm(linear(parameter, GRADIENTS), parameter, optimizer=Optimizer(Adam, lr=0.01))
    for _ in range(100):
        factors = step(balancer, parameter, [2.0, 4.0])
    torch.testing.assert_close(factors, torch.tensor([0.5, 1.5], dtype=torch.float64), rtol=0.02, atol=0)
    assert factors.sum().item() == pytest.approx(2)


def test_a_scale_does_not_change_the_factors():
    factors = []
    for scale in (plain, lambda total: total * 1024 / 3):
        parameter = numbers(0.0, 0.0)
        balancer = grad_norm(linear(parameter, GRADIENTS), parameter)
        step(balancer, parameter, [2.0, 4.0])
        factors.append(step(balancer, parameter, [1.0, 4.0], scale=scale).clone())
    torch.testing.assert_close(factors[1], factors[0])


def test_weights_of_the_objective_change_norms_and_not_ratios():
    parameter = numbers(0.0, 0.0)
    balancer = grad_norm(linear(parameter, GRADIENTS), parameter)
    factors = step(balancer, parameter, [2.0, 4.0], {"term0": 0.5, "term1": 4.0})  # norms (1.5, 4) of mean 2.75
    expected = torch.tensor([1 + 0.15, 1 - 0.4], dtype=torch.float64)
    torch.testing.assert_close(factors, expected * 2 / expected.sum())
    assert balancer.first_losses.tolist() == [2.0, 4.0]


def test_factors_stay_unchanged_if_a_norm_or_a_ratio_is_not_finite():
    parameter = numbers(0.0, 0.0)
    balancer = grad_norm(linear(parameter, GRADIENTS), parameter, optimizer=Optimizer(Adam, lr=0.1))
    before = step(balancer, parameter, [2.0, 4.0]).clone()
    for values, scale in (([2.0, -4.0], plain), ([2.0, math.inf], plain), ([2.0, 4.0], lambda total: total * math.inf)):
        balancer._alpha = 1.5
        assert torch.equal(step(balancer, parameter, values, scale=scale), before)
    assert balancer.first_losses.tolist() == [2.0, 4.0]


def test_factors_stay_above_zero():
    parameter = numbers(0.0, 0.0)
    balancer = grad_norm(linear(parameter, GRADIENTS), parameter, optimizer=Optimizer(SGD, lr=5.0))
    factors = step(balancer, parameter, [2.0, 4.0])
    assert (factors > 0).all()
    assert factors.sum().item() == pytest.approx(2)


def test_a_term_that_starts_later_has_a_factor_of_one_and_its_first_loss_then():
    parameter = numbers(0.0, 0.0)
    gradients, values = vectors([3.0, 0.0], [0.0, 1.0], [1.0, 1.0]), [2.0, 4.0, 8.0]
    balancer = grad_norm(linear(parameter, gradients), parameter)
    terms = linear(parameter, gradients, values)
    balancer(terms, {**ones(terms), "term2": 0.0}, plain)
    torch.testing.assert_close(balancer.factors[:2].detach(), torch.tensor([0.7, 1.1], dtype=torch.float64) * 2 / 1.8)
    assert balancer.factors[2] == 1
    assert balancer.first_losses[2].isnan()
    terms = linear(parameter, gradients, values)
    balancer(terms, ones(terms), plain)
    assert balancer.first_losses.tolist() == values
    assert balancer.factors.sum().item() == pytest.approx(3)


def test_norms_are_computed_on_the_layer_alone():
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


def test_grad_norm_resumes_from_its_state():
    parameter = numbers(0.0, 0.0)
    terms = linear(parameter, GRADIENTS)
    whole, resumed = (grad_norm(terms, parameter, optimizer=Optimizer(Adam, lr=0.1)) for _ in range(2))
    step(whole, parameter, [2.0, 4.0])
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    expected, factors = (step(balancer, parameter, [1.0, 4.0]) for balancer in (whole, resumed))
    assert torch.equal(factors, expected)
    assert torch.equal(whole.first_losses, resumed.first_losses)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -0.1}, "alpha of GradNorm must be a finite number of at least 0; got -0.1"),
        ({"alpha": math.nan}, "alpha of GradNorm"),
        ({"alpha": True}, "alpha of GradNorm"),
        ({"alpha": "1"}, "alpha of GradNorm must be a finite number of at least 0; got '1'"),
        ({"layer": "body.3"}, "layer of GradNorm must be a module of a net in training"),
        ({"optimizer": Adam}, "optimizer of GradNorm must be a kdkit.Optimizer"),
    ],
)
def test_invalid_options_of_grad_norm_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        GradNorm(**options)


def test_a_layer_without_trained_parameters_is_refused():
    parameter = numbers(0.0, 0.0)
    terms = linear(parameter, GRADIENTS)
    with pytest.raises(RecipeError, match="norms for a Linear, but this stage trains no parameter of it"):
        grad_norm(terms, parameter, layer=nn.Linear(2, 2))


def test_a_layer_that_a_term_does_not_reach_is_refused():
    in_layer, outside = numbers(0.0), numbers(0.0)
    terms = {"first": in_layer.sum(), "second": outside.sum()}
    layer = nn.ParameterList([in_layer])
    balancer = GradNorm(layer=layer).build(trained(terms, [in_layer, outside]))
    with pytest.raises(RecipeError, match="term 'second' does not reach the layer"):
        balancer(terms, ones(terms), plain)
