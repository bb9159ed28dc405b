"""QueueKL: its formula, the queue over several steps, its size, its state."""

import copy
from dataclasses import replace

import pytest
import torch

from kdkit import RecipeError
from kdkit.losses import QueueKL
from tests.helpers.loss_reference import assert_equals_reference
from tests.helpers.losses import CONTEXT, build_loss


def features(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def built(student, target, context=CONTEXT, **options):
    torch.manual_seed(0)
    return build_loss(QueueKL(**options), student, target, context=context)


def cosine(first, second):
    return (first @ second) / (first.norm() * second.norm())


def divergence(target, student, temperature):
    """Return KL between the softmax of two lists of cosines, term by term."""
    p, q = (torch.stack(side) / temperature for side in (target, student))
    p, q = (side.exp() / side.exp().sum() for side in (p, q))
    return sum(a * (a / b).log() for a, b in zip(p, q, strict=True))


def reference(loss, entries, local=1.0, temperature=0.07, local_temperature=0.07):
    """entries: a function of the target that returns the vectors in the queue."""

    def value(student, target):
        pooled = [side if side.ndim == 2 else side.flatten(2).mean(2) for side in (student, target)]
        pooled[0] = pooled[0] @ loss.pooled_map.weight.to(student.dtype).T + loss.pooled_map.bias.to(student.dtype)
        total = 0
        for ours, theirs in zip(*pooled, strict=True):
            queue = entries(pooled[1])
            similarities = [[cosine(side, entry) for entry in queue] for side in (theirs, ours)]
            total = total + divergence(*similarities, temperature) / len(student)
        if student.ndim > 2 and local:
            mapped = torch.einsum("ncp,dc->ndp", student.flatten(2), loss.local_map.weight.to(student.dtype))
            mapped = mapped + loss.local_map.bias.to(student.dtype)[:, None]
            for ours, theirs in zip(mapped, target.flatten(2), strict=True):
                for position in range(ours.shape[1]):
                    similarities = [
                        [cosine(side[:, position], side[:, other]) for other in range(ours.shape[1])]
                        for side in (theirs, ours)
                    ]
                    weight = local / (len(student) * ours.shape[1])
                    total = total + weight * divergence(*similarities, local_temperature)
        return total

    return value


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
@pytest.mark.parametrize("options", [{}, {"local": 0.0}, {"temperature": 0.5, "local": 2.0, "local_temperature": 0.2}])
def test_the_first_batch_is_compared_with_itself(shape, options):
    student, target = features(4, 3, *shape), features(4, 6, *shape, seed=1)
    # eval mode, so that the comparison in two precisions does not fill the queue
    loss = built(student, target, size=8, **options).double().eval()
    assert_equals_reference(loss, reference(loss, lambda pooled: pooled, **options), student, target)


def test_later_batches_are_compared_with_the_latest_samples():
    batches = [features(4, 6, seed=seed) for seed in range(4)]
    loss = built(features(4, 3), batches[0], size=10)
    for batch in batches[:3]:
        loss(features(4, 3), batch)
    assert loss.stored.item() == 10
    # 4 samples of the current batch, 4 of the one before it, and 2 of the one before that
    expected = torch.cat([batches[3], batches[2], batches[1][:2]]).double()
    loss = loss.double().eval()
    value = reference(loss, lambda pooled: expected)(features(4, 3).double(), batches[3].double())
    torch.testing.assert_close(loss(features(4, 3).double(), batches[3].double()), value, rtol=1e-6, atol=1e-6)


def test_a_batch_that_is_larger_than_the_queue_fills_it():
    student, target = features(6, 3), features(6, 4, seed=1)
    loss = built(student, target, size=4)
    loss(student, target)
    torch.testing.assert_close(loss.queue, target[:4] / target[:4].norm(dim=1, keepdim=True))


def test_eval_mode_leaves_the_queue_and_the_graph_keeps_its_entries():
    student, target = features(4, 3).requires_grad_(), features(4, 6, seed=1)
    loss = built(student, target, size=8)
    before = copy.deepcopy(loss.state_dict())
    loss.eval()(student, target)
    assert all(torch.equal(before[name], value) for name, value in loss.state_dict().items())
    values = [loss.train()(student, target), loss(student, features(4, 6, seed=2))]
    sum(values).backward()  # the second call has changed the queue that the first one used
    assert student.grad.isfinite().all()


def test_a_saved_queue_is_restored():
    student, target = features(4, 3, 5), features(4, 6, 5, seed=1)
    loss, restored = (built(student, target, size=8) for _ in range(2))
    loss(student, target)
    restored.load_state_dict(loss.state_dict())
    assert torch.equal(loss(student, target), restored(student, target))


@pytest.mark.parametrize(("samples", "size"), [(None, 8192), (100_000, 8192), (12, 6), (1, 1)])
def test_the_queue_has_half_of_the_training_samples(samples, size):
    loss = built(features(4, 3), features(4, 6), replace(CONTEXT, samples=samples))
    assert len(loss.queue) == size


def test_equal_similarities_have_a_divergence_of_zero():
    target = features(4, 3, 5)
    loss = built(target, target, size=8)
    with torch.no_grad():
        for layer in (loss.pooled_map, loss.local_map):
            layer.weight.copy_(torch.eye(3))
            layer.bias.zero_()
    assert loss(7 * target, target).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4])
@pytest.mark.parametrize("count", [1, 4])
def test_value_and_gradient_are_finite_for_any_scale(scale, count):
    student, target = (scale * features(count, 3, 5)).requires_grad_(), scale * features(count, 6, 5, seed=1)
    value = built(student, target, size=8)(student, target)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(
    "options", [{"size": 0}, {"temperature": 0.0}, {"local": -1.0}, {"local_temperature": -1.0}, {"size": 1.5}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(RecipeError):
        QueueKL(**options)
