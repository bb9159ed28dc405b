"""docs/coming-from.md is right about the losses of the other libraries."""

import pytest
import torch
from torch import nn

from kdkit.losses import Hint, SoftTargets

STUDENT, TEACHER = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)), torch.linspace(-3, 3, 60).view(6, 10)
LABELS = torch.arange(6)


class Fixed(nn.Module):
    """A model of timm with outputs that are given."""

    num_classes, in_chans, num_features = 10, 3, 10
    pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}  # noqa: RUF012

    def __init__(self, outputs):
        super().__init__()
        self.outputs = nn.Parameter(outputs)

    def forward(self, inputs):
        return self.outputs

    forward_features = forward

    def forward_head(self, features, pre_logits=False):
        return features


def test_the_tasks_of_timm_have_the_losses_of_the_page():
    task = pytest.importorskip("timm.task", reason="a timm with tasks")
    images, options = torch.zeros(6, 3, 2, 2), {"criterion": nn.CrossEntropyLoss(), "verbose": False}
    student, teacher = Fixed(STUDENT), Fixed(TEACHER)
    logits = task.LogitDistillationTask(student, teacher, task_loss_weight=0.3, temperature=4.0, **options)
    expected = 0.3 * nn.functional.cross_entropy(STUDENT, LABELS) + 0.7 * SoftTargets(temperature=4.0)(STUDENT, TEACHER)
    torch.testing.assert_close(logits(images, LABELS)["loss"], expected)
    features = task.FeatureDistillationTask(student, teacher, task_loss_weight=0.3, **options)
    torch.testing.assert_close(features(images, LABELS)["kd_loss"], Hint(projector="never")(STUDENT, TEACHER))


def test_the_loss_of_torchdistill_is_the_sum_of_the_page():
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    loss = losses.KDLoss(".", "output", ".", "output", temperature=4.0, alpha=0.3)
    value = loss({".": {"output": STUDENT}}, {".": {"output": TEACHER}}, LABELS)
    expected = 0.3 * nn.functional.cross_entropy(STUDENT, LABELS) + 0.7 * SoftTargets(temperature=4.0)(STUDENT, TEACHER)
    torch.testing.assert_close(value, expected)
