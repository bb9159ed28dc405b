"""Losses per label accept mixed labels, and the check refuses losses for one class per sample."""

import math

import pytest
from torch.nn import BCEWithLogitsLoss

from kdkit import Match, Net, Recipe, Stage, Training, Truth, check, run
from kdkit.losses import DKD, NKD, PerLabelDKD, PerLabelSoftTargets
from kdkit_ecg import GaussianNoise, Leads, LRHNet, Mixup, Synthetic


def recipe(loss):
    data = Synthetic(train=8, validation=8, test=8, length=128, draws=4, augment=(GaussianNoise(), Mixup(1.0)))
    teacher = Net("teacher", LRHNet(leads=12, width=8), view=Leads(12), trained=True)
    student = Net("student", LRHNet(leads=2, width=8), view=Leads(2))
    objective = 0.5 * Truth(BCEWithLogitsLoss()) + 0.5 * Match(teacher, loss)
    return Recipe(data=data, schedule=[Stage({student: objective}, Training(epochs=1, batch_size=4))])


@pytest.mark.parametrize("loss", [DKD(), NKD()])
def test_losses_for_one_class_per_sample_are_refused(loss):
    assert any("it needs one class per sample" in problem for problem in check(recipe(loss)).problems)


@pytest.mark.parametrize("loss", [PerLabelDKD(), PerLabelSoftTargets()])
def test_losses_per_label_train_on_mixed_labels(loss):
    (epochs,) = run(recipe(loss)).history.values()
    assert all(math.isfinite(value) for value in epochs[0]["terms"].values())
