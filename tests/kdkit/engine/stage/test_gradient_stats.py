"""Norms and cosines of the terms' gradients, as means over the recorded updates."""

import math

import pytest
import torch

from kdkit.engine.stage.gradient_stats import GradientStats, norms_and_cosines
from kdkit.recipe.balancing import inner_products, jacobian
from tests.helpers.balancing import linear, numbers, ones, plain, vectors


def test_norms_and_cosines_are_those_of_the_gradients():
    norms, cosines = norms_and_cosines(vectors([3.0, 4.0], [4.0, -3.0], [-3.0, -4.0]))
    assert norms.tolist() == [5.0, 5.0, 5.0]
    assert cosines.tolist() == pytest.approx([0.0, -1.0, 0.0])


def test_a_jacobian_has_a_row_per_term_and_zeros_for_unused_parameters():
    first, second = numbers(1.0, 2.0), numbers(3.0)
    # The last term is a constant, without a graph.
    terms = [(first**2).sum(), first.sum() * second.sum(), torch.tensor(1.0)]
    gradients = jacobian(terms, [first, second], retain_graph=True)  # (terms, parameters)
    torch.testing.assert_close(gradients, vectors([2.0, 4.0, 0.0], [3.0, 3.0, 3.0], [0.0, 0.0, 0.0]))
    torch.testing.assert_close(inner_products(gradients), gradients @ gradients.T)
    sum(terms).backward()  # raises if retain_graph=True did not retain the graph
    assert first.grad is not None


def gradient_stats(parameter, updates, weights=None, every=1, scale=plain):
    """Return the statistics of updates. Each update is a list of micro-batches, each micro-batch a row per term."""
    stats = GradientStats(every, ("term0", "term1"), [parameter])
    for update, micro_batches in enumerate(updates):
        count = len(micro_batches)
        for gradients in micro_batches:
            terms = linear(parameter, gradients)
            if stats.due(update):
                stats.add(terms, weights or ones(terms), lambda total, count=count: scale(total / count))
        stats.close()
    return stats.take()


# Gradients of the two terms in a micro-batch. Their norms are 5 and 2, 1 and 6, 5 and 2.
A, B, C = vectors([3.0, 4.0], [0.0, 2.0]), vectors([1.0, 0.0], [-6.0, 0.0]), vectors([5.0, 0.0], [0.0, 2.0])


def test_statistics_are_means_over_updates():
    stats = gradient_stats(numbers(0.0, 0.0), [[A], [B]])
    assert stats["norms"] == pytest.approx({"term0": 3.0, "term1": 4.0})
    assert stats["cosines"] == pytest.approx({"term0 | term1": (0.8 - 1) / 2})


def test_only_every_nth_update_is_recorded():
    assert gradient_stats(numbers(0.0, 0.0), [[A], [B], [C]], every=2)["norms"] == pytest.approx(
        {"term0": 5, "term1": 2}
    )


def test_the_gradient_of_an_update_is_the_mean_over_its_micro_batches():
    stats = gradient_stats(numbers(0.0, 0.0), [[A, C]])
    assert stats["norms"]["term0"] == pytest.approx(math.hypot(4.0, 2.0))
    assert stats["cosines"]["term0 | term1"] == pytest.approx(2 / math.hypot(4.0, 2.0))


def test_norms_include_the_weights_but_not_the_scale():
    weights = {"term0": 0.5, "term1": 3.0}
    stats = gradient_stats(numbers(0.0, 0.0), [[A, A]], weights, scale=lambda total: total * 1024)
    assert stats["norms"] == pytest.approx({"term0": 2.5, "term1": 6.0})
    assert stats["cosines"] == pytest.approx({"term0 | term1": 0.8})


def test_values_that_are_not_finite_are_left_out_of_the_mean():
    overflow = vectors([math.inf, 0.0], [0.0, 0.0])
    stats = gradient_stats(numbers(0.0, 0.0), [[A], [overflow]])
    assert stats["norms"] == pytest.approx({"term0": 5.0, "term1": 1.0})
    assert stats["cosines"] == pytest.approx({"term0 | term1": 0.8})
    # Without any finite value, the mean is NaN.
    only_overflow = gradient_stats(numbers(0.0, 0.0), [[overflow]])
    assert math.isnan(only_overflow["cosines"]["term0 | term1"])


def test_statistics_can_be_taken_once():
    stats = GradientStats(1, ("term0",), [])
    assert stats.take() is None
    stats.close()
    assert stats.take() is None
