"""Unknown labels are left out of a loss on labels."""

import pytest
import torch
from torch import nn

from kdkit import RecipeError
from kdkit.losses import IgnoreUnknown, accepts_unknown

STUDENT = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
LABELS = (torch.randn(6, 3, generator=torch.Generator().manual_seed(1)) > 0).float()
UNKNOWN = LABELS.masked_fill(torch.tensor([0, 1, 1]).bool(), torch.nan)
LOSSES = [nn.BCEWithLogitsLoss, nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_and_its_gradient_are_those_of_the_known_labels(loss, reduction):
    student, reference = STUDENT.clone().requires_grad_(), STUDENT.clone().requires_grad_()
    value = IgnoreUnknown(loss(reduction=reduction))(student, UNKNOWN)
    expected = loss(reduction=reduction)(reference[:, 0], LABELS[:, 0])
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(student.grad, reference.grad)
    assert not student.grad[:, 1:].any()


def test_without_unknown_labels_it_is_the_loss_itself():
    weighted = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(IgnoreUnknown(weighted)(STUDENT, LABELS), weighted(STUDENT, LABELS))
    assert weighted.reduction == "mean"  # the loss is copied


def test_a_batch_without_known_labels_has_no_loss_and_no_gradient():
    student = STUDENT.clone().requires_grad_()
    value = IgnoreUnknown()(student, torch.full_like(LABELS, torch.nan))
    value.backward()
    assert value == 0
    assert not student.grad.any()


def test_it_is_finite_in_half_precision_and_declares_that_it_accepts_unknown_labels():
    value = IgnoreUnknown()(STUDENT.bfloat16(), UNKNOWN)
    assert value.isfinite()
    assert accepts_unknown(IgnoreUnknown())
    assert not accepts_unknown(nn.BCEWithLogitsLoss())


@pytest.mark.parametrize(
    "loss", [nn.BCEWithLogitsLoss(reduction="none"), lambda student, target: student.sum(), nn.MSELoss]
)
def test_a_loss_whose_entries_cannot_be_selected_is_refused(loss):
    with pytest.raises(RecipeError, match="IgnoreUnknown takes a loss with reduction 'mean' or 'sum'"):
        IgnoreUnknown(loss)


def test_a_loss_that_compares_rows_is_refused_when_it_is_called():
    with pytest.raises(RecipeError, match=r"a value for each label \(6, 3\); CrossEntropyLoss gives \(6,\)"):
        IgnoreUnknown(nn.CrossEntropyLoss())(STUDENT, LABELS)
