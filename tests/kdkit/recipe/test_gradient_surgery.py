"""Tests of gradient surgery against cases computed by hand and against brute force."""

import math

import pytest
import torch
from torch import nn

from kdkit import RecipeError
from kdkit.recipe.balancing import CAGrad, GradNorm, PCGrad, TrainedParameters, UncertaintyWeighting, WeightedSum
from kdkit.recipe.balancing.surgery import solve_dual
from tests.helpers.balancing import linear, numbers, ones, plain, trained, vectors

BOTH = [PCGrad(), CAGrad()]


def balanced(balancing, gradients, weights=None, scale=plain):
    """Return the combined gradient of terms with these gradients on one parameter."""
    parameter = numbers(*[0.0] * gradients.shape[1])
    terms = linear(parameter, gradients)
    balancing.build(trained(terms, [parameter]))(terms, weights or ones(terms), scale)
    return parameter.grad


# PCGrad


def test_two_conflicting_gradients_are_projected_onto_normal_planes():
    # <g, h> = -1: g - (-1 / 2) h = (0.5, 0.5), h - (-1 / 1) g = (0, 1)
    gradient = balanced(PCGrad(), vectors([1.0, 0.0], [-1.0, 1.0]))
    torch.testing.assert_close(gradient, torch.tensor([0.5, 1.5], dtype=torch.float64))


def test_gradients_that_agree_are_added_up():
    gradient = balanced(PCGrad(), vectors([1.0, 0.0], [2.0, 1.0]))
    torch.testing.assert_close(gradient, torch.tensor([3.0, 1.0], dtype=torch.float64))


def test_opposite_gradients_cancel():
    gradient = balanced(PCGrad(), vectors([1.0, 2.0], [-3.0, -6.0]))
    torch.testing.assert_close(gradient, torch.zeros(2, dtype=torch.float64))


def test_a_gradient_of_zero_does_not_conflict():
    gradient = balanced(PCGrad(), vectors([1.0, 2.0], [0.0, 0.0]))
    torch.testing.assert_close(gradient, torch.tensor([1.0, 2.0], dtype=torch.float64))


def test_several_gradients_are_projected_onto_the_original_gradients():
    torch.manual_seed(0)
    gradients = torch.randn(5, 3, dtype=torch.float64)
    assert ((gradients @ gradients.T) < 0).sum() >= 6
    order = torch.Generator().manual_seed(torch.initial_seed())
    expected = torch.zeros(3, dtype=torch.float64)
    for index, projected in enumerate(gradients):
        for conflicting in torch.randperm(5, generator=order).tolist():
            normal = gradients[conflicting]
            if conflicting != index and projected @ normal < 0:
                projected = projected - (projected @ normal) / normal.square().sum() * normal
        expected += projected
    torch.testing.assert_close(balanced(PCGrad(), gradients), expected)


def test_orders_are_the_same_after_resuming():
    parameter, gradients = numbers(0.0, 0.0), vectors([1.0, 0.2], [-1.0, 0.4], [-0.3, -1.0])
    terms = linear(parameter, gradients)
    first, second = (PCGrad().build(trained(terms, [parameter])) for _ in range(2))
    results = []
    for _ in range(6):
        second.load_state_dict(first.state_dict())
        for balancer in (first, second):
            parameter.grad = None
            balancer(linear(parameter, gradients), ones(terms), plain)
            results.append(parameter.grad)
    assert all(torch.equal(left, right) for left, right in zip(results[::2], results[1::2], strict=True))
    assert any(not torch.equal(result, results[0]) for result in results)


# CAGrad


def grid(count, steps=120):
    """Return a grid of points of the simplex in three dimensions."""
    return torch.tensor(
        [[i / steps, j / steps, 1 - (i + j) / steps] for i in range(steps + 1) for j in range(steps + 1 - i)],
        dtype=torch.float64,
    )[:, :count]


def random_gradients(seed, count=3):
    torch.manual_seed(seed)
    return torch.randn(count, 5, dtype=torch.float64) + 0.3 * torch.randn(5, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(6))
def test_the_dual_solution_is_no_worse_than_brute_force(seed):
    gradients, c = random_gradients(seed), 0.5
    total = gradients.sum(0)

    def dual(shares):
        mixed = shares @ gradients
        return mixed @ total + c * total.norm() * mixed.norm(dim=-1)

    solved = torch.from_numpy(solve_dual((gradients @ gradients.T).numpy(), c))
    assert solved.sum().item() == pytest.approx(1)
    assert (solved >= 0).all()
    best = dual(grid(3)).min().item()
    assert best - 0.02 <= dual(solved).item() <= best + 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_no_direction_within_the_radius_improves_the_worst_off_term_more(seed):
    gradients, c = random_gradients(seed), 0.5
    total = gradients.sum(0)
    gradient = balanced(CAGrad(c=c), gradients)
    assert (gradient - total).norm().item() == pytest.approx(c * total.norm().item())
    away = nn.functional.normalize(torch.randn(20_000, 5, dtype=torch.float64), dim=1) * c * total.norm()
    near = gradient - total + 0.05 * away
    near *= (c * total.norm() / near.norm(dim=1, keepdim=True)).clamp(max=1)
    for directions in (total + away, total + near):
        assert (directions @ gradients.T).amin(1).max() <= (gradients @ gradient).amin() + 1e-9


def test_two_orthogonal_gradients_match_a_fine_grid_search():
    # g = (1, 0), h = (0, 2); the shares sum to 1, so a grid has one dimension
    gradients = vectors([1.0, 0.0], [0.0, 2.0])
    share = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    mixed = torch.stack([share, 1 - share], 1) @ gradients
    total = gradients.sum(0)
    best = mixed[(mixed @ total + 0.5 * total.norm() * mixed.norm(dim=1)).argmin()]
    expected = total + 0.5 * total.norm() * best / best.norm()
    torch.testing.assert_close(balanced(CAGrad(), gradients), expected, rtol=1e-4, atol=1e-4)


def test_c_of_zero_is_the_weighted_sum():
    gradients = random_gradients(0)
    torch.testing.assert_close(balanced(CAGrad(c=0), gradients), gradients.sum(0))


@pytest.mark.parametrize("gradients", [[[1.0, 2.0], [-1.0, -2.0]], [[0.0, 0.0], [0.0, 0.0]]], ids=["opposite", "zero"])
def test_gradients_are_added_up_if_no_direction_improves_all_terms(gradients):
    gradient = balanced(CAGrad(), vectors(*gradients))
    torch.testing.assert_close(gradient, vectors(*gradients).sum(0))


def test_overflowed_gradients_raise_no_error():
    products = torch.tensor([[math.inf, 1.0], [1.0, 2.0]])
    assert torch.equal(CAGrad().build(TrainedParameters(labels=(), nets=())).coefficients(products), torch.ones(2))


@pytest.mark.parametrize("c", [-0.1, 1.0, 1.5, math.nan, True, "0.5", None])
def test_a_c_outside_its_range_is_refused(c):
    with pytest.raises(RecipeError, match="c of CAGrad must be a number in"):
        CAGrad(c=c)


# Both methods


@pytest.mark.parametrize("balancing", BOTH)
def test_weights_of_the_objective_multiply_the_terms_first(balancing):
    gradients = random_gradients(1)
    weights = {"term0": 0.5, "term1": 2.0, "term2": 3.0}
    factors = torch.tensor(list(weights.values()), dtype=torch.float64)
    torch.manual_seed(0)
    gradient = balanced(balancing, gradients, weights)
    torch.manual_seed(0)
    torch.testing.assert_close(gradient, balanced(balancing, gradients * factors[:, None]))
    assert not torch.allclose(gradient, factors @ gradients)


@pytest.mark.parametrize("balancing", BOTH)
def test_a_scale_only_scales_the_gradient(balancing):
    torch.manual_seed(0)
    gradient = balanced(balancing, random_gradients(1))
    torch.manual_seed(0)
    scaled = balanced(balancing, random_gradients(1), scale=lambda total: total * 1024 / 3)
    torch.testing.assert_close(scaled, gradient * 1024 / 3)


@pytest.mark.parametrize("balancing", BOTH)
def test_combined_gradients_of_micro_batches_add_up(balancing):
    parameter = numbers(0.0, 0.0)
    parts = [vectors([1.0, 0.0], [-1.0, 1.0]), vectors([1.0, 3.0], [0.5, -1.0])]
    terms = linear(parameter, parts[0])
    balancer = balancing.build(trained(terms, [parameter]))
    for part in parts:
        balancer(linear(parameter, part), ones(terms), lambda total: total / 2)
    torch.testing.assert_close(parameter.grad, sum(balanced(balancing, part) for part in parts) / 2)


@pytest.mark.parametrize("balancing", BOTH)
def test_parameters_of_one_term_or_of_a_loss_get_the_weighted_gradient(balancing):
    shared, head, unused, projector = numbers(1.0, 1.0), numbers(2.0), numbers(5.0), numbers(3.0)
    first = (shared * vectors([1.0, 0.0])).sum() + 7 * head.sum()
    second = (shared * vectors([-1.0, 1.0])).sum() * projector.sum()
    terms, weights = {"first": first, "second": second}, {"first": 0.5, "second": 2.0}
    balancing.build(trained(terms, [shared, head, unused], losses=[projector]))(terms, weights, plain)
    assert head.grad.item() == 0.5 * 7
    assert projector.grad.item() == 0.0  # the sum of (1, 1) * (-1, 1)
    assert unused.grad is None
    expected = balanced(balancing, vectors([0.5, 0.0], [-6.0, 6.0]))
    torch.testing.assert_close(shared.grad, expected)


@pytest.mark.parametrize("balancing", BOTH)
def test_each_net_of_a_stage_is_balanced_separately(balancing):
    first, second = numbers(0.0, 0.0), numbers(0.0, 0.0)
    gradients = vectors([1.0, 0.0], [-1.0, 1.0]), vectors([0.3, 2.0], [1.0, -3.0])
    terms = {f"first: {label}": term for label, term in linear(first, gradients[0]).items()}
    terms |= {f"second: {label}": term for label, term in linear(second, gradients[1]).items()}
    balancing.build(trained(terms, [first], [second]))(terms, ones(terms), plain)
    torch.testing.assert_close(first.grad, balanced(balancing, gradients[0]))
    torch.testing.assert_close(second.grad, balanced(balancing, gradients[1]))


@pytest.mark.parametrize("balancing", BOTH)
def test_terms_of_weight_zero_or_without_a_graph_are_left_out(balancing):
    parameter, gradients = numbers(0.0, 0.0), vectors([1.0, 0.0], [-1.0, 1.0], [5.0, 5.0])
    terms = linear(parameter, gradients)
    terms["constant"] = torch.tensor(3.0, dtype=torch.float64)
    balancing.build(trained(terms, [parameter]))(terms, {**ones(terms), "term2": 0.0}, plain)
    torch.testing.assert_close(parameter.grad, balanced(balancing, gradients[:2]))


@pytest.mark.parametrize("balancing", BOTH)
@pytest.mark.parametrize("weights", [{"term0": 0.7, "term1": 0.0}, {"term0": 0.0, "term1": 0.0}])
def test_fewer_than_two_terms_are_summed(balancing, weights):
    gradients = vectors([1.0, 2.0], [-1.0, 1.0])
    parameter = numbers(0.0, 0.0)
    WeightedSum()(linear(parameter, gradients), weights, plain)
    assert torch.equal(balanced(balancing, gradients, weights), parameter.grad)


@pytest.mark.parametrize("balancing", BOTH)
def test_gradients_have_the_dtype_of_their_parameters(balancing):
    half, full = nn.Parameter(torch.ones(2, dtype=torch.bfloat16)), nn.Parameter(torch.ones(2))
    terms = {"first": half.sum() + full.sum(), "second": half[0] - 2 * full[1]}
    balancing.build(trained(terms, [half, full]))(terms, ones(terms), plain)
    assert (half.grad.dtype, full.grad.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("balancing", BOTH)
def test_gradients_do_not_share_memory(balancing):
    parameters = [nn.Parameter(torch.zeros(3)) for _ in range(4)]
    total = (parameters[0] + parameters[1]).sum() + (parameters[2] + parameters[3]).sum()
    terms = {"first": total, "second": (parameters[0] * 2).sum()}
    balancing.build(trained(terms, parameters))(terms, ones(terms), plain)
    before = [parameter.grad.clone() for parameter in parameters]
    for index, parameter in enumerate(parameters):
        parameter.grad.add_(1)
        for later, expected in zip(parameters[index + 1 :], before[index + 1 :], strict=True):
            assert torch.equal(later.grad, expected)


# Complex parameters


@pytest.mark.parametrize("balancing", [PCGrad(), CAGrad(), GradNorm(), UncertaintyWeighting()])
def test_complex_parameters_are_balanced_as_their_real_and_imaginary_parts(balancing):
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(2, 8, 4, generator=generator, dtype=torch.complex64)
    start = torch.randn(4, 2, generator=generator)
    gradients = []
    for parameter in (nn.Parameter(start.clone()), nn.Parameter(torch.view_as_complex(start.clone()))):
        torch.manual_seed(0)
        scale = nn.Parameter(torch.ones(()))
        balancer = balancing.build(TrainedParameters(labels=("near", "far"), nets=((scale, parameter),)))
        weights = parameter if parameter.is_complex() else torch.view_as_complex(parameter)
        for _ in range(2):  # GradNorm changes its factors after the first step
            outputs = inputs * weights * scale
            terms = {"near": (outputs - targets).abs().square().mean(), "far": outputs.real.mean()}
            balancer(terms, {"near": 1.0, "far": 2.0}, plain)
        gradient = parameter.grad
        gradients.append(torch.view_as_real(gradient) if gradient.is_complex() else gradient)
    torch.testing.assert_close(*gradients)
