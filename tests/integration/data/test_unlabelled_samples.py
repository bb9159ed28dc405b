"""Samples without a label are compared to the teacher only, and left out of metrics."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from torch import nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Match, Net, Teachers, TorchData, Truth
from kdkit.errors import CheckError
from kdkit.losses import DKD, PerTeacher, SoftTargets
from tests.helpers.positions import CLASSES, recipe_of


def unlabelled(count=32):
    inputs = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    labels = inputs.argmax(1)
    labels[::2] = -1
    return TensorDataset(inputs, labels)


def test_a_sample_without_a_label_is_compared_to_the_teacher_only():
    inputs, labels = unlabelled().tensors
    student, teacher = Net("student", nn.Linear(3, 3)), Net("teacher", nn.Linear(3, 3), trained=True)
    terms = {
        "truth": Truth(nn.CrossEntropyLoss(ignore_index=-1)),
        "soft": Match(teacher, SoftTargets(), label="soft"),
        "dkd": Match(teacher, DKD(), label="dkd"),
    }
    objective = sum(terms.values())
    notice = "term 'dkd' leaves out samples without a label, because dkd takes labels; a loss without labels, such as"
    with pytest.warns(UserWarning, match=notice):
        distiller = kdkit.Distiller(student, objective, (inputs, labels), classes=CLASSES, ignore_index=-1)
    with distiller:
        values = distiller(inputs, labels).terms
    with torch.no_grad():
        outputs, targets = student.module(inputs), teacher.module(inputs)
        kept = labels >= 0
        torch.testing.assert_close(values["truth"], nn.functional.cross_entropy(outputs[kept], labels[kept]))
        torch.testing.assert_close(values["soft"], SoftTargets()(outputs, targets))
        torch.testing.assert_close(values["dkd"], DKD()(outputs[kept], targets[kept], labels=labels[kept]))


def test_samples_without_a_label_are_left_out_of_metrics_and_counts(tmp_path):
    student = Net("student", nn.Linear(3, 3))
    data = TorchData(unlabelled(), unlabelled(), classes=CLASSES, ignore_index=-1)
    objective = Truth(nn.CrossEntropyLoss(ignore_index=-1))
    result = kdkit.run(recipe_of(objective, student, data), out=tmp_path / "run")
    inputs, labels = unlabelled().tensors
    with torch.no_grad():
        predicted = student.module.cpu()(inputs).argmax(1)
    kept = labels >= 0
    assert result.metrics["student"]["accuracy"].value == pytest.approx(accuracy_score(labels[kept], predicted[kept]))
    positives = json.loads((tmp_path / "run" / "run.json").read_text())["positives"]
    assert positives == {name: int((labels == index).sum()) for index, name in enumerate(CLASSES)}


def test_distill_learns_from_samples_without_a_label():
    data = unlabelled()
    result = kdkit.distill(nn.Linear(3, 3), nn.Linear(3, 3), data, data, classes=CLASSES, ignore_index=-1, epochs=2)
    assert np.isfinite(result.history["student"][-1]["terms"]["truth"])


def test_a_batch_without_labelled_samples_has_a_loss_of_zero():
    inputs = torch.randn(8, 3)
    student, teacher = Net("student", nn.Linear(3, 3)), Net("teacher", nn.Linear(3, 3), trained=True)
    objective = Truth(nn.CrossEntropyLoss(ignore_index=-1)) + Match(teacher, SoftTargets(), label="soft")
    example = (inputs, torch.arange(8) % 3)
    with kdkit.Distiller(student, objective, example, classes=CLASSES, ignore_index=-1) as distiller:
        output = distiller(inputs, torch.full((8,), -1))
    assert output.terms["truth"] == 0
    assert output.terms["soft"] > 0


def test_a_loss_that_takes_labels_gets_samples_without_one_only_if_it_accepts_them():
    inputs, labels = unlabelled().tensors
    rows = []

    def consistency(student, target, *, labels):
        rows.append(int((labels == -1).sum()))
        return nn.functional.mse_loss(student, target)

    student, teacher = Net("student", nn.Linear(3, 3)), Net("teacher", nn.Linear(3, 3), trained=True)
    recipe = recipe_of(Match(teacher, consistency), student, TorchData(unlabelled(), unlabelled(), ignore_index=-1))
    assert (
        "term 'teacher/consistency' leaves out samples without a label, because consistency takes labels; to compare "
        "all samples, set its attribute accepts_unknown = True; it then gets the label -1"
    ) in kdkit.check(recipe).notices
    consistency.accepts_unknown = True
    assert not any("leaves out" in notice for notice in kdkit.check(recipe).notices)
    rows.clear()
    with kdkit.Distiller(student, Match(teacher, consistency), (inputs, labels), ignore_index=-1) as distiller:
        output = distiller(inputs, labels)
    assert rows[-1] == 16
    with torch.no_grad():
        expected = nn.functional.mse_loss(student.module(inputs), teacher.module(inputs))
    torch.testing.assert_close(output.loss.detach(), expected)


def test_weights_by_the_confidence_of_teachers_leave_out_samples_without_a_label_with_a_notice():
    student = Net("student", nn.Linear(3, 3))
    teachers = Teachers(*(Net(name, nn.Linear(3, 3), trained=True) for name in ("first", "second")))
    objective = Match(teachers, PerTeacher(SoftTargets(), weights="confidence"))
    recipe = recipe_of(objective, student, TorchData(unlabelled(), unlabelled(), ignore_index=-1))
    assert any("samples without a label, because per_teacher takes" in notice for notice in kdkit.check(recipe).notices)


def test_a_distiller_refuses_an_example_with_labels_that_mean_none_unless_they_are_declared():
    student, objective = Net("student", nn.Linear(3, 3)), Truth(nn.CrossEntropyLoss(ignore_index=-1))
    message = r"a label of the example is -1 \(index 0 of the batch\).*; if -1 means no label, pass ignore_index=-1"
    with pytest.raises(CheckError, match=message):
        kdkit.Distiller(student, objective, unlabelled().tensors)
