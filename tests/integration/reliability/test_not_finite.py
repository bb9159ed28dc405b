"""A number that is not finite ends the run with its cause: inputs, labels, a teacher, or the training itself."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kdkit
from kdkit import KdkitError, Match, Net, Optimizer, Recipe, Stage, TorchData, Training, Truth
from kdkit.losses import SoftTargets
from kdkit.metrics import R2
from tests.helpers.callbacks import Recorder

ROWS = 40


def inputs(wrong=None, row=17):
    values = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(0))
    if wrong is not None:
        values[row, 2] = wrong
    return values


def recipe(train, labels=None, teacher=None, loss=None, rate=0.01, loader=False, validation=None):
    labels = torch.arange(ROWS) % 3 if labels is None else labels
    split = TensorDataset(train, labels)
    split = DataLoader(split, 8) if loader else split
    data = TorchData(split, TensorDataset(inputs() if validation is None else validation, torch.arange(ROWS) % 3))
    student = Net("student", nn.Linear(4, 3))
    objective = Truth(nn.CrossEntropyLoss() if loss is None else loss)
    if teacher is not None:
        objective = objective + Match(teacher, SoftTargets())
    training = Training(epochs=2, batch_size=8, optimizer=Optimizer(torch.optim.SGD, lr=rate))
    return Recipe(data=data, schedule=[Stage({student: objective}, training)])


def error_of(recipe, **options):
    with pytest.raises(KdkitError) as raised:
        kdkit.run(recipe, device="cpu", **options)
    return str(raised.value)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_inputs_are_named_by_their_samples_and_the_batch_is_saved(wrong, tmp_path):
    message = error_of(recipe(inputs(wrong)), out=tmp_path / "run")
    assert "'truth' is not a finite number in epoch 1, batch " in message
    assert "the inputs of row 17 of the train data are not finite numbers" in message
    assert "learning rate" not in message
    (file,) = tmp_path.glob("run/*-student/not-finite-batch.pt")
    assert str(file) in message
    saved = torch.load(file, weights_only=True)
    assert not saved["inputs"][0][saved["ids"] == 17].isfinite().all()


def test_labels_are_named_by_their_samples():
    labels = torch.randn(ROWS, 3)
    data = TorchData(TensorDataset(inputs(), labels), TensorDataset(inputs(), torch.randn(ROWS, 3)), task="regression")
    labels[5] = torch.nan  # later than TorchData, which refuses labels that are NaN
    stage = Stage({Net("student", nn.Linear(4, 3)): Truth(nn.MSELoss())}, Training(epochs=1, batch_size=8))
    message = error_of(Recipe(data=data, schedule=[stage], metrics=(R2(),)))
    assert "the labels of row 5 of the train data are not finite numbers" in message


def test_unknown_labels_are_not_the_cause():
    def exploding(student, labels):
        return student.square().sum()

    exploding.accepts_unknown = True
    labels = (torch.randn(ROWS, 3) > 0).float()
    labels[5] = torch.nan
    split = TensorDataset(inputs(), labels)
    training = Training(epochs=1, batch_size=8, optimizer=Optimizer(torch.optim.SGD, lr=1e6))
    stage = Stage({Net("student", nn.Linear(4, 3)): Truth(exploding)}, training)
    data = TorchData(split, split, unknown=torch.nan)
    message = error_of(Recipe(data=data, schedule=[stage]))
    assert "is not a finite number in epoch 1" in message
    assert message.endswith("a lower learning rate, Training(max_grad_norm=...), or another precision may help")


def test_a_teacher_is_named_if_its_outputs_are_not_finite_for_finite_inputs():
    class Overflowing(nn.Module):
        def forward(self, inputs):
            return torch.where(inputs[:, 2:3] > 1.5, torch.inf, inputs[:, :3])

    message = error_of(recipe(inputs(), teacher=Net("teacher", Overflowing(), trained=True)), teacher_cache="off")
    assert "the outputs of 'teacher' for samples " in message
    assert "are not finite numbers, but the inputs are" in message


def test_training_that_diverges_is_told_from_wrong_data():
    def exploding(student, labels):
        return student.square().sum()

    message = error_of(recipe(inputs(), loss=exploding, rate=1e6))
    assert "'truth' is not a finite number in epoch 1, batch " in message
    assert "a lower learning rate" in message


def test_rows_of_a_data_loader_have_no_ids_and_its_batches_cannot_be_read_again():
    message = error_of(recipe(inputs(torch.nan), loader=True))
    assert "'truth' is not a finite number in epoch 1; a lower learning rate" in message


def test_inputs_of_the_validation_split_are_named():
    message = error_of(recipe(inputs(), validation=inputs(torch.nan, row=3)))
    assert "has outputs that are not finite numbers, for 1 of 40 samples; the inputs of row 3 of the" in message
    assert "row 3 of the validation data (ids 43) are not finite numbers; leave out or correct" in message


def test_a_run_of_many_steps_stops_before_the_end_of_its_epoch(tmp_path):
    recorder = Recorder()
    values = torch.randn(2000, 4)
    values[:] = torch.where(torch.arange(2000)[:, None] == 1999, torch.nan, values)
    data = TorchData(TensorDataset(values, torch.arange(2000) % 3), TensorDataset(inputs(), torch.arange(ROWS) % 3))
    training = Training(epochs=1, batch_size=2)
    stage = Stage({Net("student", nn.Linear(4, 3)): Truth(nn.CrossEntropyLoss())}, training)
    message = error_of(Recipe(data=data, schedule=[stage]), callbacks=[recorder])
    assert "the inputs of row 1999 of the train data" in message
    last = recorder.steps[-1].batch
    assert last % 256 == 254 or last == 999
