"""The multi-label losses on outputs, compared to their formulas in numpy."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdkit import RecipeError
from kdkit.losses import (
    PerLabelDIST,
    PerLabelDKD,
    PerLabelHardTargets,
    PerLabelPSKD,
    PerLabelSoftTargets,
    requirements_of,
)

LABELS = torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 0, 1, 1]], dtype=torch.float64)


def logits():
    random = torch.Generator().manual_seed(5)
    return tuple(torch.randn(3, 5, generator=random, dtype=torch.float64) * 2 for _ in range(2))


def arrays():
    return tuple(side.numpy() for side in logits())


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def cross_entropy(probability, target):
    return -(target * np.log(probability) + (1 - target) * np.log(1 - probability))


def divergence(student, target, temperature):
    mine, theirs = sigmoid(student / temperature), sigmoid(target / temperature)
    return cross_entropy(mine, theirs) - cross_entropy(theirs, theirs)


@pytest.mark.parametrize("t_squared", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_present_and_absent_labels_are_averaged_separately(temperature, t_squared):
    divergences, present = divergence(*arrays(), temperature), LABELS.numpy().astype(bool)
    expected = (2.0 * divergences[present].mean() + 0.5 * divergences[~present].mean()) * (
        temperature**2 if t_squared else 1
    )
    loss = PerLabelDKD(alpha=2.0, beta=0.5, temperature=temperature, t_squared=t_squared)
    assert loss(*logits(), labels=LABELS).item() == pytest.approx(expected, rel=1e-9)


def test_more_absent_labels_do_not_change_the_term_of_the_present_ones():
    student, target = logits()
    wider = [
        torch.cat([side, target], 1) for side in (student, target)
    ]  # five more labels, absent and without an error
    labels = torch.cat([LABELS, torch.zeros_like(LABELS)], 1)
    loss = PerLabelDKD(beta=0.0)
    torch.testing.assert_close(loss(*wider, labels=labels), loss(student, target, labels=LABELS))


@pytest.mark.parametrize("labels", [torch.zeros(3, 5), torch.ones(3, 5)])
def test_a_batch_of_equal_labels_has_one_term_the_plain_divergence(labels):
    torch.testing.assert_close(PerLabelDKD()(*logits(), labels=labels), PerLabelSoftTargets()(*logits()))


def test_mixed_labels_count_as_present_and_as_absent_by_their_share():
    shares = LABELS * 0.6 + 0.2
    divergences = divergence(*arrays(), 1.0)
    present, absent = shares.numpy(), 1 - shares.numpy()
    expected = np.average(divergences, weights=present) + np.average(divergences, weights=absent)
    assert PerLabelDKD()(*logits(), labels=shares).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_per_label_dist_is_one_minus_the_correlations_of_sigmoids(temperature):
    mine, theirs = (sigmoid(side / temperature) for side in arrays())
    rows = np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(mine, theirs, strict=True)])
    columns = np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(mine.T, theirs.T, strict=True)])
    expected = temperature**2 * (0.7 * (1 - rows) + 1.3 * (1 - columns))
    loss = PerLabelDIST(inter=0.7, intra=1.3, temperature=temperature)
    assert loss(*logits()).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_per_label_hard_targets_are_the_teachers_probabilities_above_a_threshold(threshold):
    student, target = arrays()
    expected = cross_entropy(sigmoid(student), (sigmoid(target) > threshold).astype(float)).mean()
    assert PerLabelHardTargets(threshold=threshold)(*logits()).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_per_label_ps_kd_mixes_the_labels_with_past_probabilities(progress):
    student, past = arrays()
    mixed = (1 - 0.5 * progress) * LABELS.numpy() + 0.5 * progress * sigmoid(past)
    expected = cross_entropy(sigmoid(student), mixed).mean()
    value = PerLabelPSKD(alpha=0.5)(*logits(), labels=LABELS, progress=torch.tensor(progress, dtype=torch.float64))
    assert value.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss", [PerLabelDKD(), PerLabelPSKD()], ids=repr)
def test_class_indices_are_refused_with_the_expected_shape(loss):
    kwargs = {"progress": torch.tensor(0.5)} if "progress" in requirements_of(loss) else {}
    with pytest.raises(RecipeError, match=r"of the outputs' shape \(3, 5\); got \(3,\)"):
        loss(*logits(), labels=torch.tensor([0, 2, 1]), **kwargs)


@pytest.mark.parametrize("loss", [PerLabelDKD(), PerLabelPSKD(), PerLabelDIST(), PerLabelHardTargets()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("labels", [LABELS, torch.zeros(3, 5), torch.ones(3, 5), LABELS * 0.5 + 0.25])
def test_saturated_logits_give_finite_values_and_gradients_for_any_labels(loss, dtype, labels):
    student, target = (side.sign().to(dtype) * 1e4 for side in logits())
    all_kwargs = {"labels": labels, "progress": torch.tensor(0.5)}
    kwargs = {name: value for name, value in all_kwargs.items() if name in requirements_of(loss)}
    for teacher in (target, -student, student):
        leaf = student.clone().requires_grad_()
        value = loss(leaf, teacher, **kwargs)
        value.backward()
        assert value.isfinite()
        assert leaf.grad.isfinite().all()


def test_multi_label_losses_do_not_require_hard_labels():
    for loss in (PerLabelDKD(), PerLabelPSKD()):
        assert "hard_labels" not in requirements_of(loss)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_is_a_probability(threshold):
    with pytest.raises(RecipeError, match="threshold must be a number in"):
        PerLabelHardTargets(threshold=threshold)


def test_a_single_label_works_like_several():
    student, target = (side[:, :1] for side in logits())
    expected = F.binary_cross_entropy_with_logits(student, (target > 0).double())
    torch.testing.assert_close(PerLabelHardTargets()(student, target), expected)
    assert PerLabelDKD()(student, target, labels=LABELS[:, :1]).isfinite()
    assert PerLabelDIST()(student, target).isfinite()


@pytest.mark.parametrize("constant", ["student", "target"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_label_without_a_spread_counts_as_uncorrelated_in_any_precision(constant, dtype):
    generator = torch.Generator().manual_seed(0)
    student, target = 3 * torch.randn(2, 33, 5, generator=generator, dtype=torch.float64)
    # probabilities of 0.67, whose mean in float32 is not exactly 0.67
    (student if constant == "student" else target)[:, :2] = 0.7
    mine, theirs = (sigmoid(side.numpy()) for side in (student, target))
    columns = [np.corrcoef(mine[:, label], theirs[:, label])[0, 1] for label in (2, 3, 4)]
    value = PerLabelDIST(inter=0.0)(student.to(dtype), target.to(dtype)).item()
    assert value == pytest.approx(1 - sum(columns) / 5, abs=2e-6)
