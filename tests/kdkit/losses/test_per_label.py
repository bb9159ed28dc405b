"""The multi-label forms of losses on outputs, each against its formula written out in numpy."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit import RecipeError
from kdkit.losses import PerLabelDIST, PerLabelDKD, PerLabelHardTargets, PerLabelPSKD, PerLabelSoftTargets, needs_of

LABELS = torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 0, 1, 1]], dtype=torch.float64)


def logits():
    random = torch.Generator().manual_seed(5)
    return tuple(torch.randn(3, 5, generator=random, dtype=torch.float64) * 2 for _ in range(2))


def arrays():
    return tuple(each.numpy() for each in logits())


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def cross_entropy(probability, wanted):
    return -(wanted * np.log(probability) + (1 - wanted) * np.log(1 - probability))


def divergence(student, target, temperature):
    mine, theirs = sigmoid(student / temperature), sigmoid(target / temperature)
    return cross_entropy(mine, theirs) - cross_entropy(theirs, theirs)


@pytest.mark.parametrize("t_squared", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_labels_that_are_there_weigh_apart_from_those_that_are_not(temperature, t_squared):
    each, there = divergence(*arrays(), temperature), LABELS.numpy().astype(bool)
    expected = (2.0 * each[there].mean() + 0.5 * each[~there].mean()) * (temperature**2 if t_squared else 1)
    loss = PerLabelDKD(alpha=2.0, beta=0.5, temperature=temperature, t_squared=t_squared)
    assert loss(*logits(), labels=LABELS).item() == pytest.approx(expected, rel=1e-9)


def test_more_labels_that_are_absent_do_not_drown_those_that_are_there():
    student, target = logits()
    wider = [torch.cat([each, target], 1) for each in (student, target)]  # five labels more, absent and well learned
    labels = torch.cat([LABELS, torch.zeros_like(LABELS)], 1)
    loss = PerLabelDKD(beta=0.0)
    torch.testing.assert_close(loss(*wider, labels=labels), loss(student, target, labels=LABELS))


@pytest.mark.parametrize("labels", [torch.zeros(3, 5), torch.ones(3, 5)])
def test_a_batch_whose_labels_are_all_alike_has_one_term_and_it_is_the_plain_divergence(labels):
    torch.testing.assert_close(PerLabelDKD()(*logits(), labels=labels), PerLabelSoftTargets()(*logits()))


def test_labels_that_are_mixed_count_for_both_sides_by_their_share():
    shares = LABELS * 0.6 + 0.2
    each = divergence(*arrays(), 1.0)
    expected = np.average(each, weights=shares.numpy()) + np.average(each, weights=1 - shares.numpy())
    assert PerLabelDKD()(*logits(), labels=shares).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_per_label_dist_is_one_minus_the_correlations_of_sigmoids(temperature):
    mine, theirs = (sigmoid(each / temperature) for each in arrays())
    rows = np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(mine, theirs, strict=True)])
    columns = np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(mine.T, theirs.T, strict=True)])
    expected = temperature**2 * (0.7 * (1 - rows) + 1.3 * (1 - columns))
    loss = PerLabelDIST(inter=0.7, intra=1.3, temperature=temperature)
    assert loss(*logits()).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_per_label_hard_targets_ask_what_the_teacher_says_above_a_threshold(threshold):
    student, target = arrays()
    expected = cross_entropy(sigmoid(student), (sigmoid(target) > threshold).astype(float)).mean()
    assert PerLabelHardTargets(threshold=threshold)(*logits()).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_per_label_ps_kd_mixes_the_labels_with_the_past_s_sigmoids(progress):
    student, past = arrays()
    wanted = (1 - 0.5 * progress) * LABELS.numpy() + 0.5 * progress * sigmoid(past)
    expected = cross_entropy(sigmoid(student), wanted).mean()
    value = PerLabelPSKD(alpha=0.5)(*logits(), labels=LABELS, progress=torch.tensor(progress, dtype=torch.float64))
    assert value.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss", [PerLabelDKD(), PerLabelPSKD()], ids=repr)
def test_one_class_per_sample_is_refused_with_the_shape_that_was_expected(loss):
    asked = {"progress": torch.tensor(0.5)} if "progress" in needs_of(loss) else {}
    with pytest.raises(RecipeError, match=r"of the outputs' shape \(3, 5\); got \(3,\)"):
        loss(*logits(), labels=torch.tensor([0, 2, 1]), **asked)


@pytest.mark.parametrize("loss", [PerLabelDKD(), PerLabelPSKD(), PerLabelDIST(), PerLabelHardTargets()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("labels", [LABELS, torch.zeros(3, 5), torch.ones(3, 5), LABELS * 0.5 + 0.25])
def test_saturated_logits_give_finite_values_and_gradients_whatever_the_labels(loss, dtype, labels):
    student, target = (each.sign().to(dtype) * 1e4 for each in logits())
    known = {"labels": labels, "progress": torch.tensor(0.5)}
    asked = {name: value for name, value in known.items() if name in needs_of(loss)}
    for wanted in (target, -student, student):
        leaf = student.clone().requires_grad_()
        value = loss(leaf, wanted, **asked)
        value.backward()
        assert value.isfinite()
        assert leaf.grad.isfinite().all()


def test_losses_per_label_take_mixed_labels():
    for loss in (PerLabelDKD(), PerLabelPSKD()):
        assert "hard_labels" not in needs_of(loss)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_is_a_probability(threshold):
    with pytest.raises(RecipeError, match="threshold is a share"):
        PerLabelHardTargets(threshold=threshold)


def test_a_single_label_is_a_question_like_any_other():
    student, target = (each[:, :1] for each in logits())
    expected = F.binary_cross_entropy_with_logits(student, (target > 0).double())
    torch.testing.assert_close(PerLabelHardTargets()(student, target), expected)
    assert PerLabelDKD()(student, target, labels=LABELS[:, :1]).isfinite()
    assert PerLabelDIST()(student, target).isfinite()
