"""User-defined teachers, samples without a teacher output, and teachers with other classes than the data."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdkit import Batch, BuildContext, Match, Net, RecipeError, Tap, TeacherOutput, TeacherSession, run
from kdkit.losses import DIST, NKD, RKD, RLD, WTTM, HardTargets, SoftTargets
from kdkit.losses.base import loss_name
from kdkit.teachers import open_teacher
from tests.helpers.open_stages import (
    CONTEXT,
    batch_of,
    hidden_taps,
    only_term,
    open_objectives,
    problems_of,
    term_values,
)
from tests.helpers.tiny import one_stage, plain_goal, tiny_net


class LabelLoss:
    """A loss that takes labels and ids in addition to both sides, and records all four."""

    def __call__(self, student, target, *, labels, ids):
        self.arguments = (student, target, labels, ids)
        return F.cross_entropy(student, labels) + (student - target).square().mean()


def test_labels_are_reduced_to_the_classes_of_a_teacher_with_fewer():
    teacher = tiny_net("teacher", outputs=2, trained=True, classes=["c", "b"])
    student, batch, loss = tiny_net("student"), batch_of(), LabelLoss()  # the batch has classes a, b, c, a
    only_term({student: Match(teacher, loss)}, batch)
    student_side, target_side, labels, ids = loss.arguments
    teacher.module.eval()
    torch.testing.assert_close(student_side, student.module.eval()(batch.inputs)[[1, 2]][:, [1, 2]])
    torch.testing.assert_close(target_side, teacher(batch)[[1, 2]][:, [1, 0]])
    assert labels.tolist() == [0, 1]
    assert ids.tolist() == [1, 2]  # the samples of class a are dropped


def test_columns_of_multilabel_labels_are_reduced_to_the_classes_of_a_teacher():
    teacher = tiny_net("teacher", outputs=2, trained=True, classes=["c", "b"])
    context = BuildContext(classes=CONTEXT.classes, task="multilabel", samples=8, ids=True)
    batch = Batch(torch.randn(4, 4), torch.eye(4)[:, :3], torch.arange(4))

    def loss(student, target, *, labels):
        assert labels.tolist() == batch.labels[:, [1, 2]].tolist()
        return F.binary_cross_entropy_with_logits(student, labels)

    only_term({tiny_net("student"): Match(teacher, loss)}, batch, context)


def test_a_loss_on_features_gets_all_labels_whatever_the_classes_of_the_teacher():
    teacher = tiny_net("teacher", outputs=2, trained=True, classes=["x", "y"])
    student, batch = tiny_net("student"), batch_of()

    def loss(student, target, *, labels):
        assert labels is batch.labels
        return F.mse_loss(student, target)

    only_term({student: Match(teacher, loss, **hidden_taps(student, teacher))}, batch)


class RecordingSession(TeacherSession):
    """Returns ones for every sample, and records the calls of its other methods."""

    def __init__(self):
        self.calls = []

    def __call__(self, batch):
        return TeacherOutput(torch.ones(len(batch), 3))

    def observe(self, batch, outputs):
        self.calls.append(sorted(outputs))

    def on_step(self):
        self.calls.append("on_step")

    def on_epoch_end(self):
        self.calls.append("on_epoch_end")


class CustomTeacher:
    """A user-defined teacher, which keeps the sessions it opened."""

    name = "custom"

    def __init__(self):
        self.sessions = []

    def open(self, taps, context):
        assert context.batch_size == 4
        self.sessions.append(RecordingSession())
        return self.sessions[-1]


def test_a_user_defined_teacher_is_called_and_notified_in_the_documented_order():
    teacher, student = CustomTeacher(), tiny_net("student")
    result = run(one_stage(student, plain_goal() + Match(teacher, SoftTargets())), device="cpu")
    assert result.history["student"][0]["terms"]["custom/soft_targets"] > 0
    # Eight samples are two batches of four; the names of the students are passed to `observe`.
    step = [["student"], "on_step"]
    assert teacher.sessions[-1].calls == [*step, *step, "on_epoch_end"]


class FunctionSession(TeacherSession):
    """Returns the result of a function of the batch."""

    def __init__(self, function):
        self.function = function

    def __call__(self, batch):
        return self.function(batch)


def test_a_student_is_not_trained_through_the_outputs_of_a_user_defined_teacher():
    student, teacher, targets = tiny_net("student"), CustomTeacher(), []
    teacher.open = lambda taps, context: FunctionSession(lambda batch: TeacherOutput(student(batch)))

    def loss(outputs, target):
        targets.append(target)
        return F.mse_loss(outputs, target + 1)

    run(one_stage(student, plain_goal() + Match(teacher, loss)), device="cpu")
    assert targets
    assert not any(target.requires_grad for target in targets)


def problems_with_outputs(function, tap=None):
    """Return the problems of a stage with a user-defined teacher whose outputs are a function of the batch."""
    student, teacher = tiny_net("student"), CustomTeacher()
    teacher.open = lambda taps, context: FunctionSession(function)
    taps = {} if tap is None else {"student": Tap(student.module.hidden), "target": tap}
    return problems_of(student, plain_goal() + Match(teacher, nn.MSELoss(), **taps))


ZEROS = torch.zeros(4, 3)
NO_SAMPLE = torch.zeros(4, dtype=torch.bool)  # the mask of a teacher that has no output for any sample


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (ZEROS, "'custom' must return TeacherOutput(output, features, mask); got a Tensor"),
        (TeacherOutput(ZEROS.numpy()), "must be a tensor; got a ndarray; use torch.from_numpy(...).float()"),
        (
            TeacherOutput(ZEROS, mask=torch.zeros(4)),
            "True or False for each sample, (4,) of torch.bool; got (4,) of torch.float",
        ),
        (TeacherOutput(ZEROS, mask=torch.zeros(2, dtype=torch.bool)), "got (2,) of torch.bool"),
        (TeacherOutput(torch.zeros(4, 5), mask=NO_SAMPLE), "the shape (4, 3); got (4, 5)"),
    ],
)
def test_an_invalid_output_of_a_user_defined_teacher_is_a_problem(output, message):
    (problem,) = problems_with_outputs(lambda batch: output)
    assert message in problem


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_user_defined_teacher_has_a_name_for_each_of_its_outputs(outputs):
    teacher = CustomTeacher()
    teacher.classes = ("a", "b")
    session = FunctionSession(lambda batch: TeacherOutput(torch.randn(len(batch), outputs)))
    teacher.open = lambda taps, context: session
    (problem,) = problems_of(tiny_net("student"), plain_goal() + Match(teacher, SoftTargets()))
    assert f"'custom' has outputs of shape (batch, {outputs}) and 2 classes; its `classes`" in problem


def test_a_teacher_has_a_name_for_each_of_its_outputs_also_if_they_are_compared_with_features():
    def loss(features, outputs, *, labels):
        return (features.mean() - outputs.mean()).square()

    teacher, student = Net("teacher", nn.Linear(4, 1), classes=("a", "b"), trained=True), tiny_net("student")
    (problem,) = problems_of(student, plain_goal() + Match(teacher, loss, student=Tap(student.module.hidden)))
    assert "net 'teacher' has outputs of shape (batch, 1) and 2 classes; its `classes`" in problem


def test_a_user_defined_teacher_must_return_a_feature_for_every_tap():
    (problem,) = problems_with_outputs(lambda batch: TeacherOutput(ZEROS), Tap(nn.Linear(4, 5)))
    assert "'custom' must return a feature for each of the 1 taps of its terms; got 0" in problem
    with_mask = TeacherOutput(ZEROS, (ZEROS,), torch.ones(4) > 0)
    (problem,) = problems_with_outputs(lambda batch: with_mask, Tap(nn.Linear(4, 5)))
    assert "'custom' may mask outputs, but not features; return mask=None if it is tapped" in problem


def test_a_user_defined_teacher_that_fails_is_named():
    (problem,) = problems_with_outputs(lambda batch: 1 / 0)
    assert "'custom' fails for a batch: ZeroDivisionError" in problem


@pytest.mark.parametrize(
    ("open_method", "message"), [(lambda *_: None, "returned None"), (lambda *_: 1 / 0, "raises ZeroDivisionError")]
)
def test_a_user_defined_teacher_that_cannot_be_opened_is_a_problem(open_method, message):
    student, teacher = tiny_net("student"), CustomTeacher()
    teacher.open = open_method
    (problem,) = problems_of(student, plain_goal() + Match(teacher, SoftTargets()))
    assert "open(taps, context) of CustomTeacher" in problem
    assert message in problem


def test_a_teacher_that_is_not_hashable_is_refused():
    @dataclass
    class Unhashable:
        name: str = "custom"

    with pytest.raises(RecipeError, match=r"a teacher must be hashable.*'custom' is not .*frozen=True"):
        Match(Unhashable(), SoftTargets())


def test_masked_samples_have_no_effect_on_any_of_two_nets_that_match_one_teacher():
    first, second, teacher = tiny_net("one"), tiny_net("two", seed=1), CustomTeacher()
    teacher.open = lambda taps, context: FunctionSession(lambda batch: TeacherOutput(ZEROS, mask=NO_SAMPLE))
    objectives = {net: plain_goal() + Match(teacher, nn.MSELoss()) for net in (first, second)}
    with open_objectives(objectives) as open_stage:
        terms = term_values(open_stage, batch_of())
        assert terms["one: custom/mse_loss"].item() == terms["two: custom/mse_loss"].item() == 0


def weighted_by_inputs(student, target, *, labels, ids, inputs):
    """A user-defined loss that compares samples, with most arguments that a loss can have."""
    distances = torch.cdist(student, student) - torch.cdist(target, target)
    return (distances.square() * (labels + ids + inputs.sum(1))).mean()


@pytest.mark.parametrize(
    "loss",
    [HardTargets(), WTTM(), RLD(), NKD(), SoftTargets(), DIST(), RKD(), nn.MSELoss(), weighted_by_inputs],
    ids=loss_name,
)
def test_samples_without_a_teacher_output_are_left_out_of_every_loss(loss):
    student, teacher, targets = tiny_net("student"), CustomTeacher(), torch.randn(8, 3)
    masks = []
    teacher.open = lambda taps, context: FunctionSession(
        lambda batch: TeacherOutput(
            targets[batch.ids].masked_fill(~masks[-1][batch.ids, None], math.nan), mask=masks[-1][batch.ids]
        )
    )
    batch, rows = batch_of(*range(8)), [0, 2, 3, 6, 7]
    masks.append(torch.ones(8, dtype=torch.bool))
    with open_objectives({student: Match(teacher, loss, label="term")}, batch) as open_stage:
        open_stage.module.eval()
        masks.append(torch.isin(torch.arange(8), torch.tensor(rows)))
        (value,) = term_values(open_stage, batch).values()
        masks.append(torch.ones(8, dtype=torch.bool))
        (expected,) = term_values(open_stage, batch_of(*rows, inputs=batch.inputs[rows])).values()
        torch.testing.assert_close(value, expected * len(rows) / 8)
        gradients = [torch.autograd.grad(term, student.module.head.weight)[0] for term in (value, expected)]
        torch.testing.assert_close(gradients[0], gradients[1] * len(rows) / 8)
        masks.append(torch.zeros(8, dtype=torch.bool))
        (nothing,) = term_values(open_stage, batch).values()
        assert nothing == 0
        assert not torch.autograd.grad(nothing, student.module.head.weight)[0].any()


def test_a_feature_is_compared_for_the_samples_that_have_a_teacher_output():
    student, teacher = tiny_net("student"), CustomTeacher()
    mask = torch.tensor([True, False, True, False])
    teacher.open = lambda taps, context: FunctionSession(lambda batch: TeacherOutput(ZEROS, mask=mask))
    match = Match(
        teacher, lambda feature, target: feature[:, :3].sum() + len(target), student=Tap(student.module.hidden)
    )
    value = only_term({student: match}, batch := batch_of())
    feature = student.module.eval().hidden(batch.inputs[mask])
    torch.testing.assert_close(value, (feature[:, :3].sum() + 2) / 2)


def test_a_view_that_fails_is_named():
    class FailingView:
        key = "failing"

        def __call__(self, batch):
            raise KeyError("lead")

        def __repr__(self):
            return "FailingView()"

    teacher = tiny_net("teacher", trained=True, view=FailingView())
    (problem,) = problems_of(tiny_net("student"), plain_goal() + Match(teacher, SoftTargets()))
    assert "the view FailingView() of net 'teacher' fails for a batch: KeyError: 'lead' (test_base.py" in problem
    assert problem.endswith("a view gets a Batch, and the inputs of the data are batch.inputs")


def test_an_object_that_is_not_a_teacher_is_a_problem_with_its_name():
    class Nothing:
        name = "nothing"

    problems = problems_of(tiny_net("student"), plain_goal() + Match(Nothing(), SoftTargets()))
    assert any("'nothing' is a Nothing, which cannot be matched" in problem for problem in problems)


def test_a_teacher_that_cannot_be_put_into_eval_mode_is_left_as_it_was():
    class Broken(nn.Linear):
        def eval(self):
            raise ValueError("no eval mode")

    module = Broken(2, 2)
    with pytest.raises(ValueError, match="no eval mode"):
        open_teacher(Net("teacher", module, trained=True), [Tap(module)], CONTEXT)
    assert module.training
    assert not module._forward_hooks
