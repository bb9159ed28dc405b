"""An error of a loss, a network or a teacher keeps its class and traceback, and names its location in the run."""

import pytest
import torch

import kdkit
from kdkit import Match, Net, Recipe, Stage
from kdkit.losses import SoftTargets
from tests.helpers.stages import Small, data, epoch_terms, training, truth


class BrokenError(Exception):
    """An error of user code."""


class Fails(Small):
    """A network that fails in the given call in its mode; never if None."""

    def __init__(self, call=None, *, when_training=True):
        super().__init__()
        self.call, self.when_training, self.calls = call, when_training, 0

    def forward(self, inputs):
        if self.training == self.when_training and len(inputs) > 4:  # the dry run has four samples
            self.calls += 1
            if self.call is not None and self.calls == self.call:
                raise BrokenError("a tensor is missing")
        return super().forward(inputs)


def recipe(module, teacher=None):
    objective = truth() if teacher is None else truth() + Match(teacher, SoftTargets())
    return Recipe(data=data(), schedule=[Stage({Net("student", module): objective}, training(), name="second")])


def notes_of(make, tmp_path):
    with pytest.raises(BrokenError, match="a tensor is missing") as raised:
        kdkit.run(make, device="cpu", out=tmp_path / "run", teacher_cache="off")
    return raised.value.__notes__


def test_the_stage_the_epoch_and_the_batch_are_named(tmp_path):
    location, resume = notes_of(lambda: recipe(Fails(7)), tmp_path)
    assert location.endswith("in stage 'second', epoch 2, batch 3")
    assert "with --force or force=True if that changes the" in resume
    assert f"--out {tmp_path / 'run'} --resume" in resume


def test_a_teacher_is_code_of_the_user_too(tmp_path):
    teacher = Net("teacher", Fails(6, when_training=False), trained=True)
    location, _ = notes_of(lambda: recipe(Small(), teacher), tmp_path)
    assert "in stage 'second', epoch 2, batch 2" in location


def test_the_validation_is_named(tmp_path):
    location, _ = notes_of(lambda: recipe(Fails(2, when_training=False)), tmp_path)
    assert location.endswith("in stage 'second', epoch 1, the validation")


def test_the_evaluation_is_named(tmp_path):
    location, _ = notes_of(lambda: recipe(Fails(7, when_training=False)), tmp_path)
    assert location.endswith("in the evaluation of net 'student'")


def test_a_run_after_the_error_resumes_to_the_same_terms(tmp_path):
    torch.manual_seed(0)
    modules = [Fails(), Fails(7), Fails()]
    for module in modules:
        module.load_state_dict(modules[0].state_dict())
    notes_of(lambda: recipe(modules[1]), tmp_path)
    resumed = kdkit.run(lambda: recipe(modules[2]), device="cpu", out=tmp_path / "run", resume=True)
    whole = kdkit.run(lambda: recipe(modules[0]), device="cpu")
    assert epoch_terms(resumed.history) == epoch_terms(whole.history)


def test_a_state_that_is_not_detached_between_batches_has_the_advice_to_detach_it():
    class Recurrent(torch.nn.Linear):
        state = 0.0

        def forward(self, inputs):
            outputs = super().forward(inputs) + self.state
            self.state = outputs.mean()
            return outputs

    with pytest.raises(RuntimeError, match="backward through the graph a second time") as raised:
        kdkit.run(lambda: recipe(Recurrent(6, 3)), device="cpu")
    assert raised.value.__notes__[0].endswith(
        "what a network or a loss keeps from one batch to the next: tensor.detach()"
    )


def test_errors_of_kdkit_get_no_notes():
    class Refuses(Small):
        def forward(self, inputs):
            if len(inputs) > 4:
                raise kdkit.DataError("expected one; got two")
            return super().forward(inputs)

    with pytest.raises(kdkit.DataError) as raised:
        kdkit.run(lambda: recipe(Refuses()), device="cpu")
    assert not hasattr(raised.value, "__notes__")


RECIPE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

from kdkit import Net, Recipe, Stage, TorchData, Training, Truth


def loss(outputs, labels):
    if len(labels) > 4:
        raise ZeroDivisionError("mine")
    return nn.functional.cross_entropy(outputs, labels)


def recipe() -> Recipe:
    data = TensorDataset(torch.ones(16, 4), torch.arange(16) % 3)
    stage = Stage({Net("student", nn.Linear(4, 3)): Truth(loss)}, Training(epochs=1, batch_size=8))
    return Recipe(data=TorchData(data, data), schedule=[stage])
"""


def test_the_command_line_shows_the_traceback_the_place_and_how_to_resume(kdkit_process, tmp_path):
    (tmp_path / "mine.py").write_text(RECIPE)
    result = kdkit_process("run", "mine.py", "--device", "cpu", "--out", "run", "--quiet")
    assert result.code == 1
    assert "ZeroDivisionError: mine" in result.err
    assert 'mine.py", line ' in result.err
    assert "in stage 'student', epoch 1, batch 1" in result.err
    assert "--out run --resume" in result.err
