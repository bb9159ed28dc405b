"""A loss of torch whose samples have weights."""

import pytest
import torch
from torch import nn

from kdkit import RecipeError
from kdkit.losses import IgnoreUnknown, SampleWeighted, accepts_unknown, requirements_of

STUDENT = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 2, 1, 2, -100, 0])
NUMBERS = torch.rand(6, 3, generator=torch.Generator().manual_seed(1))
WEIGHTS = torch.tensor([0.5, 0.0, 2.0, 1.0, 1.0, 3.0])
CLASS_WEIGHTS = torch.tensor([1.0, 4.0, 0.5])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("loss", "labels"),
    [
        (nn.CrossEntropyLoss, LABELS),
        (lambda **options: nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, label_smoothing=0.1, **options), LABELS),
        (lambda **options: nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, **options), NUMBERS.softmax(1)),
        (lambda **options: nn.BCEWithLogitsLoss(pos_weight=CLASS_WEIGHTS, **options), NUMBERS.round()),
        (nn.MSELoss, NUMBERS),
        (nn.L1Loss, NUMBERS),
    ],
)
def test_equal_weights_leave_the_loss_and_its_gradient_as_they_are(loss, labels, reduction):
    student, reference = STUDENT.clone().requires_grad_(), STUDENT.clone().requires_grad_()
    share = 0.25 if reduction == "mean" else 1.0  # a sum of equal weights is multiplied by them
    SampleWeighted(loss(reduction=reduction))(student, labels, sample_weights=torch.full((6,), share)).backward()
    loss(reduction=reduction)(reference, labels).backward()
    torch.testing.assert_close(student.grad, reference.grad)


def test_whole_weights_count_a_sample_as_often():
    times = torch.tensor([1, 0, 2, 1, 3, 1])
    rows = torch.arange(6).repeat_interleave(times)
    for loss, labels in ((nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), LABELS), (nn.MSELoss(), NUMBERS)):
        expected = loss(STUDENT[rows], labels[rows])
        torch.testing.assert_close(SampleWeighted(loss)(STUDENT, labels, sample_weights=times.float()), expected)


def test_labels_by_position_are_weighted_by_their_sample():
    outputs, labels = torch.randn(6, 3, 5), torch.randint(0, 3, (6, 5))
    labels[0] = -100  # positions that are ignored count for nothing
    expected = nn.CrossEntropyLoss()(outputs[[1, 2, 2]], labels[[1, 2, 2]])
    weights = torch.tensor([9.0, 1.0, 2.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(SampleWeighted()(outputs, labels, sample_weights=weights), expected)


def test_unknown_labels_are_left_out():
    unknown = NUMBERS.round().masked_fill(torch.tensor([0, 1, 0]).bool(), torch.nan)
    loss = SampleWeighted(IgnoreUnknown(nn.BCEWithLogitsLoss()))
    known = [0, 2]
    expected = SampleWeighted(nn.BCEWithLogitsLoss())(STUDENT[:, known], unknown[:, known], sample_weights=WEIGHTS)
    student = STUDENT.clone().requires_grad_()
    value = loss(student, unknown, sample_weights=WEIGHTS)
    value.backward()
    torch.testing.assert_close(value, expected)
    assert not student.grad[:, 1].any()
    assert accepts_unknown(loss)
    assert not accepts_unknown(SampleWeighted())


def test_a_batch_whose_weights_are_all_zero_has_no_loss():
    value = SampleWeighted()(STUDENT, LABELS, sample_weights=torch.zeros(6))
    assert value == 0


def test_an_ignored_label_may_be_beyond_the_classes_next_to_class_weights():
    labels = torch.where(LABELS == -100, 255, LABELS)
    loss = nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, ignore_index=255)
    value = SampleWeighted(loss)(STUDENT, labels, sample_weights=torch.ones(6))
    torch.testing.assert_close(value, loss(STUDENT, labels))


@pytest.mark.parametrize("weights", [torch.tensor([2, 0, 1]), torch.tensor([True, False, True])])
def test_weights_may_be_integers_or_booleans(weights):
    student, labels = torch.randn(3, 4), torch.tensor([0, 3, 1])
    value = SampleWeighted()(student, labels, sample_weights=weights)
    torch.testing.assert_close(value, SampleWeighted()(student, labels, sample_weights=weights.float()))


def test_it_requires_weights_and_copies_its_loss():
    plain = nn.CrossEntropyLoss()
    assert requirements_of(SampleWeighted(plain)) == {"sample_weights"}
    assert plain.reduction == "mean"


@pytest.mark.parametrize("loss", [nn.MSELoss(reduction="none"), lambda student, target: student.sum(), nn.MSELoss])
def test_a_loss_whose_samples_cannot_be_weighted_is_refused(loss):
    with pytest.raises(RecipeError, match="SampleWeighted takes a loss with reduction 'mean' or 'sum'"):
        SampleWeighted(loss)


def test_a_loss_without_a_value_for_each_sample_is_refused_when_it_is_called():
    class Total(nn.Module):
        reduction = "mean"

        def forward(self, student, target):
            return (student - target).square().mean()

    with pytest.raises(RecipeError, match=r"a value for each of 6 samples; Total gives \(\)"):
        SampleWeighted(Total())(STUDENT, NUMBERS, sample_weights=WEIGHTS)
