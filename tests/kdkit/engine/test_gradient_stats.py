"""Norms and cosines of gradients, as means over the updates that are looked at."""

import math

import pytest
import torch

from kdkit.engine.gradient_stats import GradientFigures, norms_and_cosines
from kdkit.recipe.balancing import inner_products, jacobian
from tests.helpers.balancing import linear, numbers, ones, plain, vectors


def test_norms_and_cosines_are_those_of_the_gradients():
    norms, cosines = norms_and_cosines(vectors([3.0, 4.0], [4.0, -3.0], [-3.0, -4.0]))
    assert norms.tolist() == [5.0, 5.0, 5.0]
    assert cosines.tolist() == pytest.approx([0.0, -1.0, 0.0])


def test_a_jacobian_has_a_row_for_each_term_and_zeros_where_it_does_not_reach():
    one, other = numbers(1.0, 2.0), numbers(3.0)
    terms = [(one**2).sum(), one.sum() * other.sum(), torch.tensor(1.0)]
    found = jacobian(terms, [one, other], retain_graph=True)
    torch.testing.assert_close(found, vectors([2.0, 4.0, 0.0], [3.0, 3.0, 3.0], [0.0, 0.0, 0.0]))
    torch.testing.assert_close(inner_products(found), found @ found.T)
    sum(terms).backward()  # the graph was kept
    assert one.grad is not None


def figures_of(parameter, parts, weights=None, every=1, scale=plain):
    """Return the figures of updates, each of several micro-batches of gradients."""
    figures = GradientFigures(every, ("term0", "term1"), [parameter])
    for update, micro_batches in enumerate(parts):
        count = len(micro_batches)
        for gradients in micro_batches:
            terms = linear(parameter, gradients)
            if figures.due(update):
                figures.add(terms, weights or ones(terms), lambda total, count=count: scale(total / count))
        figures.close()
    return figures.take()


A, B, C = vectors([3.0, 4.0], [0.0, 2.0]), vectors([1.0, 0.0], [-6.0, 0.0]), vectors([5.0, 0.0], [0.0, 2.0])


def test_figures_are_means_over_updates():
    found = figures_of(numbers(0.0, 0.0), [[A], [B]])
    assert found["norms"] == pytest.approx({"term0": 3.0, "term1": 4.0})
    assert found["cosines"] == pytest.approx({"term0 | term1": (0.8 - 1) / 2})


def test_only_every_so_many_updates_are_looked_at():
    assert figures_of(numbers(0.0, 0.0), [[A], [B], [C]], every=2)["norms"] == pytest.approx({"term0": 5, "term1": 2})


def test_the_gradient_of_an_update_is_the_mean_over_its_micro_batches():
    found = figures_of(numbers(0.0, 0.0), [[A, C]])
    assert found["norms"]["term0"] == pytest.approx(math.hypot(4.0, 2.0))
    assert found["cosines"]["term0 | term1"] == pytest.approx(2 / math.hypot(4.0, 2.0))


def test_weights_count_and_scales_do_not():
    found = figures_of(numbers(0.0, 0.0), [[A, A]], {"term0": 0.5, "term1": 3.0}, scale=lambda total: total * 1024)
    assert found["norms"] == pytest.approx({"term0": 2.5, "term1": 6.0})
    assert found["cosines"] == pytest.approx({"term0 | term1": 0.8})


def test_what_is_not_finite_is_left_out_of_the_mean():
    overflowed = vectors([math.inf, 0.0], [0.0, 0.0])
    found = figures_of(numbers(0.0, 0.0), [[A], [overflowed]])
    assert found["norms"] == pytest.approx({"term0": 5.0, "term1": 1.0})
    assert found["cosines"] == pytest.approx({"term0 | term1": 0.8})
    nothing = figures_of(numbers(0.0, 0.0), [[overflowed]])
    assert math.isnan(nothing["cosines"]["term0 | term1"])


def test_figures_are_taken_once():
    figures = GradientFigures(1, ("term0",), [])
    assert figures.take() is None
    figures.close()
    assert figures.take() is None
