"""SSKD: its definition by loops, which copies are kept, and the scale of the authors' code."""

import pytest
import torch
from torch.nn import functional as F

from kdkit import RecipeError
from kdkit.losses import SSKD
from tests.helpers.loss_reference import assert_equals_reference


def features(seed, shape=(5, 6, 4)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(student, target, temperature=0.5, wrong=0.75):
    """Return the loss by loops: the ranks of the samples of all copies, and the divergence of those that are kept."""
    samples, _, copies = student.shape
    rows = []  # (rank of the own sample, divergence), with the copies of a sample one after the other
    for sample in range(samples):
        for copy in range(1, copies):
            logits = []
            for side in (student, target):
                cosines = [
                    F.cosine_similarity(side[sample, :, copy], side[other, :, 0], dim=0) for other in range(samples)
                ]
                logits.append(torch.stack(cosines))
            order = logits[1].argsort(descending=True).tolist()
            ours, theirs = ((side / temperature).log_softmax(0) for side in logits)
            rows.append((order.index(sample), (theirs.exp() * (theirs - ours)).sum()))
    right = [value for rank, value in rows if rank == 0]
    others = sorted((row for row in rows if row[0] > 0), key=lambda row: row[0])
    kept = right + [value for _, value in others[: int(wrong * len(others))]]
    return temperature**2 * sum(kept) / len(kept)


@pytest.mark.parametrize("wrong", [0.0, 0.5, 0.75, 1.0])
def test_sskd_is_the_divergence_of_the_similarities_that_are_kept(wrong):
    student, target = features(0), features(1, (5, 9, 4))
    target[:, :, 1:3] += 2 * target[:, :, :1]  # the teacher finds the sample of some copies
    loss = SSKD(wrong=wrong)
    kept = loss.kept(loss.cosines(target))
    if wrong == 0:
        assert 0 < kept.sum() < kept.numel()
    assert_equals_reference(loss, lambda ours, theirs: reference(ours, theirs, wrong=wrong), student, target)


def test_a_batch_without_a_kept_copy_gives_zero():
    target = features(1)
    target[:, :, 1:] = -target[:, :, :1]  # each copy is the least similar to its sample
    assert SSKD(wrong=0.0)(features(0), target) == 0


def test_the_square_of_the_temperature_can_be_left_out():
    student, target = features(0), features(1)
    torch.testing.assert_close(SSKD()(student, target), 0.25 * SSKD(t_squared=False)(student, target))


@pytest.mark.parametrize("shapes", [((4, 6), (4, 6)), ((4, 6, 3), (4, 6, 4)), ((4, 6, 1), (4, 6, 1))])
def test_features_without_the_same_copies_are_refused(shapes):
    with pytest.raises(RecipeError, match=r"SSKD compares features \(batch, channels, copies\) of two copies or more"):
        SSKD()(*(torch.zeros(shape) for shape in shapes))
