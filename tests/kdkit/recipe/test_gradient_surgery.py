"""Gradients combined anew, against cases by hand and brute force."""

import math

import pytest
import torch
from torch import nn

from kdkit import RecipeError
from kdkit.recipe.balancing import CAGrad, PCGrad, WeightedSum
from kdkit.recipe.balancing.surgery import ConflictAverse, solve_dual
from tests.helpers.balancing import linear, numbers, ones, plain, trained, vectors

BOTH = [PCGrad(), CAGrad()]


def balanced(balance, gradients, weights=None, scale=plain):
    """Return what a balance makes of terms with these gradients on one parameter."""
    parameter = numbers(*[0.0] * gradients.shape[1])
    terms = linear(parameter, gradients)
    balance.build(trained(terms, [parameter]))(terms, weights or ones(terms), scale)
    return parameter.grad


# PCGrad


def test_two_conflicting_gradients_are_projected_onto_each_others_normal_planes():
    # <g, h> = -1: g - (-1 / 2) h = (0.5, 0.5), h - (-1 / 1) g = (0, 1)
    found = balanced(PCGrad(), vectors([1.0, 0.0], [-1.0, 1.0]))
    torch.testing.assert_close(found, torch.tensor([0.5, 1.5], dtype=torch.float64))


def test_gradients_that_agree_are_added_up():
    found = balanced(PCGrad(), vectors([1.0, 0.0], [2.0, 1.0]))
    torch.testing.assert_close(found, torch.tensor([3.0, 1.0], dtype=torch.float64))


def test_opposite_gradients_leave_nothing():
    found = balanced(PCGrad(), vectors([1.0, 2.0], [-3.0, -6.0]))
    torch.testing.assert_close(found, torch.zeros(2, dtype=torch.float64))


def test_a_gradient_of_zero_is_no_conflict():
    found = balanced(PCGrad(), vectors([1.0, 2.0], [0.0, 0.0]))
    torch.testing.assert_close(found, torch.tensor([1.0, 2.0], dtype=torch.float64))


def test_several_gradients_are_projected_one_after_the_other_as_they_came():
    torch.manual_seed(0)
    gradients = torch.randn(5, 3, dtype=torch.float64)
    assert ((gradients @ gradients.T) < 0).sum() >= 6
    order = torch.Generator().manual_seed(torch.initial_seed())
    expected = torch.zeros(3, dtype=torch.float64)
    for index, mine in enumerate(gradients):
        for other in torch.randperm(5, generator=order).tolist():
            if other != index and mine @ gradients[other] < 0:
                mine = mine - (mine @ gradients[other]) / gradients[other].square().sum() * gradients[other]
        expected += mine
    torch.testing.assert_close(balanced(PCGrad(), gradients), expected)


def test_orders_go_on_where_they_were_left():
    parameter, gradients = numbers(0.0, 0.0), vectors([1.0, 0.2], [-1.0, 0.4], [-0.3, -1.0])
    terms = linear(parameter, gradients)
    first, second = (PCGrad().build(trained(terms, [parameter])) for _ in range(2))
    drawn = []
    for _ in range(6):
        second.load_state_dict(first.state_dict())
        for balancer in (first, second):
            parameter.grad = None
            balancer(linear(parameter, gradients), ones(terms), plain)
            drawn.append(parameter.grad)
    assert all(torch.equal(one, other) for one, other in zip(drawn[::2], drawn[1::2], strict=True))
    assert any(not torch.equal(one, drawn[0]) for one in drawn)


# CAGrad


def grid(count, steps=120):
    """Every share of a simplex of three at this resolution."""
    return torch.tensor(
        [[i / steps, j / steps, 1 - (i + j) / steps] for i in range(steps + 1) for j in range(steps + 1 - i)],
        dtype=torch.float64,
    )[:, :count]


def random_gradients(seed, count=3):
    torch.manual_seed(seed)
    return torch.randn(count, 5, dtype=torch.float64) + 0.3 * torch.randn(5, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(6))
def test_the_dual_is_solved_no_worse_than_by_brute_force(seed):
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
def test_no_direction_as_near_to_the_sum_helps_the_worst_off_term_more(seed):
    gradients, c = random_gradients(seed), 0.5
    total = gradients.sum(0)
    found = balanced(CAGrad(c=c), gradients)
    assert (found - total).norm().item() == pytest.approx(c * total.norm().item())
    away = nn.functional.normalize(torch.randn(20_000, 5, dtype=torch.float64), dim=1) * c * total.norm()
    near = found - total + 0.05 * away
    near *= (c * total.norm() / near.norm(dim=1, keepdim=True)).clamp(max=1)
    for others in (total + away, total + near):
        assert (others @ gradients.T).amin(1).max() <= (gradients @ found).amin() + 1e-9


def test_two_gradients_at_right_angles_are_solved_in_closed_form():
    # g = (1, 0), h = (0, 2): by a fine grid over the one share that is free
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


@pytest.mark.parametrize(
    "gradients", [[[1.0, 2.0], [-1.0, -2.0]], [[0.0, 0.0], [0.0, 0.0]]], ids=["opposite", "nothing"]
)
def test_terms_that_no_direction_helps_are_added_up(gradients):
    found = balanced(CAGrad(), vectors(*gradients))
    torch.testing.assert_close(found, vectors(*gradients).sum(0))


def test_gradients_that_overflowed_stay_so_and_stop_nothing():
    products = torch.tensor([[math.inf, 1.0], [1.0, 2.0]])
    assert torch.equal(ConflictAverse(0.5).coefficients(products), torch.ones(2))


@pytest.mark.parametrize("c", [-0.1, 1.0, 1.5, math.nan, True, "0.5", None])
def test_a_c_outside_its_range_is_refused(c):
    with pytest.raises(RecipeError, match="c of CAGrad is a number from 0, the weighted sum, to below 1; got"):
        CAGrad(c=c)


# What both hold


@pytest.mark.parametrize("balance", BOTH)
def test_goal_weights_multiply_the_terms_before(balance):
    gradients = random_gradients(1)
    weights = {"term0": 0.5, "term1": 2.0, "term2": 3.0}
    factors = torch.tensor(list(weights.values()), dtype=torch.float64)
    torch.manual_seed(0)
    found = balanced(balance, gradients, weights)
    torch.manual_seed(0)
    torch.testing.assert_close(found, balanced(balance, gradients * factors[:, None]))
    assert not torch.allclose(found, factors @ gradients)


@pytest.mark.parametrize("balance", BOTH)
def test_a_scale_only_scales(balance):
    torch.manual_seed(0)
    found = balanced(balance, random_gradients(1))
    torch.manual_seed(0)
    scaled = balanced(balance, random_gradients(1), scale=lambda total: total * 1024 / 3)
    torch.testing.assert_close(scaled, found * 1024 / 3)


@pytest.mark.parametrize("balance", BOTH)
def test_combined_gradients_of_micro_batches_add_up(balance):
    parameter = numbers(0.0, 0.0)
    parts = [vectors([1.0, 0.0], [-1.0, 1.0]), vectors([1.0, 3.0], [0.5, -1.0])]
    terms = linear(parameter, parts[0])
    balancer = balance.build(trained(terms, [parameter]))
    for part in parts:
        balancer(linear(parameter, part), ones(terms), lambda total: total / 2)
    torch.testing.assert_close(parameter.grad, sum(balanced(balance, part) for part in parts) / 2)


@pytest.mark.parametrize("balance", BOTH)
def test_what_one_term_or_a_loss_has_alone_gets_the_weighted_gradient(balance):
    shared, head, unused, projector = numbers(1.0, 1.0), numbers(2.0), numbers(5.0), numbers(3.0)
    one = (shared * vectors([1.0, 0.0])).sum() + 7 * head.sum()
    other = (shared * vectors([-1.0, 1.0])).sum() * projector.sum()
    terms, weights = {"one": one, "other": other}, {"one": 0.5, "other": 2.0}
    balance.build(trained(terms, [shared, head, unused], losses=[projector]))(terms, weights, plain)
    assert head.grad.item() == 0.5 * 7
    assert projector.grad.item() == 0.0  # the sum of (1, 1) * (-1, 1)
    assert unused.grad is None
    expected = balanced(balance, vectors([0.5, 0.0], [-6.0, 6.0]))
    torch.testing.assert_close(shared.grad, expected)


@pytest.mark.parametrize("balance", BOTH)
def test_each_net_of_a_stage_is_balanced_on_its_own(balance):
    one, other = numbers(0.0, 0.0), numbers(0.0, 0.0)
    gradients = vectors([1.0, 0.0], [-1.0, 1.0]), vectors([0.3, 2.0], [1.0, -3.0])
    terms = {f"one: {label}": term for label, term in linear(one, gradients[0]).items()}
    terms |= {f"other: {label}": term for label, term in linear(other, gradients[1]).items()}
    balance.build(trained(terms, [one], [other]))(terms, ones(terms), plain)
    torch.testing.assert_close(one.grad, balanced(balance, gradients[0]))
    torch.testing.assert_close(other.grad, balanced(balance, gradients[1]))


@pytest.mark.parametrize("balance", BOTH)
def test_terms_of_weight_zero_or_without_a_graph_are_left_out(balance):
    parameter, gradients = numbers(0.0, 0.0), vectors([1.0, 0.0], [-1.0, 1.0], [5.0, 5.0])
    terms = linear(parameter, gradients)
    terms["constant"] = torch.tensor(3.0, dtype=torch.float64)
    balance.build(trained(terms, [parameter]))(terms, {**ones(terms), "term2": 0.0}, plain)
    torch.testing.assert_close(parameter.grad, balanced(balance, gradients[:2]))


@pytest.mark.parametrize("balance", BOTH)
@pytest.mark.parametrize("weights", [{"term0": 0.7, "term1": 0.0}, {"term0": 0.0, "term1": 0.0}])
def test_fewer_than_two_terms_are_summed_as_ever(balance, weights):
    gradients = vectors([1.0, 2.0], [-1.0, 1.0])
    plainly = numbers(0.0, 0.0)
    WeightedSum()(linear(plainly, gradients), weights, plain)
    assert torch.equal(balanced(balance, gradients, weights), plainly.grad)


@pytest.mark.parametrize("balance", BOTH)
def test_weights_in_half_precision_get_gradients_of_their_own_kind(balance):
    half, full = nn.Parameter(torch.ones(2, dtype=torch.bfloat16)), nn.Parameter(torch.ones(2))
    terms = {"one": half.sum() + full.sum(), "other": half[0] - 2 * full[1]}
    balance.build(trained(terms, [half, full]))(terms, ones(terms), plain)
    assert (half.grad.dtype, full.grad.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("balance", BOTH)
def test_gradients_do_not_share_their_memory(balance):
    parameters = [nn.Parameter(torch.zeros(3)) for _ in range(4)]
    one = (parameters[0] + parameters[1]).sum() + (parameters[2] + parameters[3]).sum()
    terms = {"one": one, "other": (parameters[0] * 2).sum()}
    balance.build(trained(terms, parameters))(terms, ones(terms), plain)
    kept = [each.grad.clone() for each in parameters]
    for index, each in enumerate(parameters):
        each.grad.add_(1)
        assert all(
            torch.equal(one.grad, two) for one, two in zip(parameters[index + 1 :], kept[index + 1 :], strict=True)
        )
