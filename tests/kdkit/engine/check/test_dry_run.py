"""A stage is opened and run once on a tiny batch: losses are built, and the networks do not change."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdkit import Batch, BuildContext, Match, Stage, Tap, Training
from kdkit.engine.check.dry_run import dry_run
from kdkit.engine.stage.open_stage import OpenStage
from kdkit.losses import Hint
from tests.helpers.open_stages import hidden_taps, open_and_build
from tests.helpers.tiny import hooks_of, plain_goal, state_of, tiny_net

CONTEXT = BuildContext(classes=("a", "b", "c"), task="multiclass", samples=8, ids=True)
BATCH = Batch(torch.randn(2, 4), torch.tensor([0, 1]), torch.arange(2))


def stage_of(objective, student):
    return Stage({student: objective}, Training(epochs=1))


def test_after_a_dry_run_the_losses_are_built_and_the_stage_is_open():
    teacher, student = tiny_net("teacher", trained=True, hidden=7), tiny_net("student")
    stage = stage_of(Match(teacher, Hint(), **hidden_taps(student, teacher)), student)
    with OpenStage(stage, CONTEXT, torch.device("cpu")) as open_stage:
        report = dry_run(open_stage, BATCH)
        assert report.problems == []
        assert report.terms[0].parameters == 5 * 7 + 7  # weight and bias of the projector
        terms = open_stage.module(BATCH, open_stage.teacher_outputs(BATCH))
        assert terms["teacher/hint"] > 0
        assert hooks_of(student.module) == hooks_of(teacher.module) == 1
    assert hooks_of(student.module) == hooks_of(teacher.module) == 0


def test_an_interrupted_dry_run_leaves_no_hook():
    def interrupt(student, target):
        raise KeyboardInterrupt

    teacher, student = tiny_net("teacher", trained=True), tiny_net("student")
    teacher.module.train()
    stage = stage_of(Match(teacher, interrupt, **hidden_taps(student, teacher)), student)
    with pytest.raises(KeyboardInterrupt), OpenStage(stage, CONTEXT, torch.device("cpu")) as open_stage:
        dry_run(open_stage, BATCH)
    assert hooks_of(student.module) == hooks_of(teacher.module) == 0
    assert teacher.module.training


class MemoryLoss(nn.Module):
    """A loss with a memory of the batches it was called with, whose buffers are created when it is built."""

    def build(self, student, target, context, teacher):
        self.register_buffer("mean", torch.zeros(student[0][1]))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, student, target):
        self.mean.lerp_(student.detach().mean(0), 0.1)
        self.calls = self.calls + 1
        return F.mse_loss(student - self.mean, target)


def test_the_memory_of_a_loss_is_empty_after_a_dry_run():
    teacher, student, loss = tiny_net("teacher", trained=True), tiny_net("student"), MemoryLoss()
    with open_and_build(stage_of(Match(teacher, loss), student), CONTEXT, BATCH):
        pass
    # The dry run called the loss, and restored its buffers.
    assert loss.calls.item() == 0
    assert not loss.mean.any()


def test_a_loss_is_built_with_the_shapes_the_context_and_the_teacher():
    arguments = {}

    class RecordingLoss(nn.Module):
        def build(self, student, target, context, teacher):
            arguments.update(student=student, target=target, context=context, teacher=teacher)

        def forward(self, student, target):
            return student[0].sum() + target[0].sum()

    teacher, student = tiny_net("teacher", trained=True, hidden=7), tiny_net("student")
    sides = {
        "student": (Tap(student.module.hidden), Tap(student.module.head)),
        "target": (Tap(teacher.module.hidden),),
    }
    with OpenStage(
        stage_of(Match(teacher, RecordingLoss(), **sides), student), CONTEXT, torch.device("cpu")
    ) as open_stage:
        dry_run(open_stage, BATCH)
    assert arguments == {
        "student": ((2, 5), (2, 3)),
        "target": ((2, 7),),
        "context": replace(CONTEXT, batch_size=64, tapped=(teacher.module.hidden,)),  # 64 is Training's default
        "teacher": teacher.module,
    }


class OfOneShape(Hint):
    """A build that takes the shape of one tap instead of a tuple of shapes."""

    def build(self, student, target, context, teacher):
        self.weight = nn.Parameter(torch.ones(target[1]))


class WithoutProjector(Hint):
    """A build that forgets that of its base class."""

    def build(self, student, target, context, teacher):
        self.weight = nn.Parameter(torch.ones(target[0][1]))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (OfOneShape(), "IndexError: tuple index out of range; build(student, target, context, teacher) gets a tuple"),
        (WithoutProjector(), "by loss.build((student.shape,), (target.shape,)), and in a build of your own by super()"),
    ],
)
def test_a_wrong_build_is_a_problem_with_its_arguments(loss, message):
    teacher, student = tiny_net("teacher", trained=True, hidden=7), tiny_net("student")
    stage = stage_of(Match(teacher, loss, **hidden_taps(student, teacher)), student)
    with OpenStage(stage, CONTEXT, torch.device("cpu")) as open_stage:
        (problem,) = dry_run(open_stage, BATCH).problems
    assert message in problem


def test_taps_on_tensors_that_are_modified_in_place_capture_copies():
    teacher, student = tiny_net("teacher", trained=True), tiny_net("student", seed=1)
    # The in-place ReLU overwrites both tensors after they are captured: its input is the output of the batch norm.
    sides = {"student": Tap(student.module.act, "input"), "target": Tap(teacher.module.norm)}
    with open_and_build(stage_of(Match(teacher, nn.MSELoss(), **sides), student), CONTEXT, BATCH) as open_stage:
        teacher_outputs = {"teacher": open_stage.sessions["teacher"](BATCH)}
        open_stage.module.eval()
        value = open_stage.module(BATCH, teacher_outputs)["teacher/mse_loss"]
    student.module.eval()
    teacher.module.eval()
    student_norm, teacher_norm = (net.module.norm(net.module.hidden(BATCH.inputs)) for net in (student, teacher))
    torch.testing.assert_close(value, F.mse_loss(student_norm, teacher_norm))


def test_a_dry_run_uses_training_mode_and_restores_mode_and_statistics():
    student = tiny_net("student")
    student.module.eval()
    modes = []
    student.module.norm.register_forward_pre_hook(lambda module, _args: modes.append(module.training))
    before = state_of(student.module)
    with open_and_build(stage_of(plain_goal(), student), CONTEXT, BATCH):
        pass
    assert True in modes
    assert torch.equal(student.module.norm.running_mean, before["tensors"]["norm.running_mean"])
    assert state_of(student.module)["modes"] == before["modes"]
