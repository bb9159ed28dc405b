"""A stage opened and run once on a tiny batch."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit import Batch, BuildContext, Match, Stage, Tap, Training
from kdkit.engine.check.dry_run import Rehearsal
from kdkit.losses import Hint, SoftTargets
from tests.helpers.tiny import hooks_of, plain_goal, state_of, tiny_net

FACTS = BuildContext(classes=("a", "b", "c"), task="multiclass", samples=8, ids=True)
BATCH = Batch(torch.randn(2, 4), torch.tensor([0, 1]), torch.arange(2))


def open_teacher(objective, student, facts=FACTS):
    return Rehearsal(Stage({student: objective}, Training(epochs=1)), facts, BATCH)


def taps(student, teacher):
    return {"student": Tap(student.module.hidden), "target": Tap(teacher.module.hidden)}


def test_a_rehearsal_leaves_an_open_lesson_whose_losses_are_built():
    teacher, student = tiny_net("teacher", trained=True, hidden=7), tiny_net("student")
    rehearsal = open_teacher(Match(teacher, Hint(), **taps(student, teacher)), student)
    assert rehearsal.problems == []
    assert rehearsal.comparisons[0].parameters == 5 * 7 + 7
    answers = {name: each(BATCH) for name, each in rehearsal.sessions.items()}
    assert rehearsal.lesson(BATCH, answers)["teacher/hint"] > 0
    assert hooks_of(student.module) == hooks_of(teacher.module) == 1
    rehearsal.close()
    assert hooks_of(student.module) == hooks_of(teacher.module) == 0


def test_a_teacher_is_frozen_while_the_stage_is_open():
    teacher, student = tiny_net("teacher", trained=True), tiny_net("student")
    teacher.module.train()
    rehearsal = open_teacher(Match(teacher, SoftTargets()), student)
    assert not any(module.training for module in teacher.module.modules())
    rehearsal.close()
    assert all(module.training for module in teacher.module.modules())


def test_an_interruption_leaves_no_hook():
    def interrupted(student, target):
        raise KeyboardInterrupt

    teacher, student = tiny_net("teacher", trained=True), tiny_net("student")
    teacher.module.train()
    with pytest.raises(KeyboardInterrupt):
        open_teacher(Match(teacher, interrupted, **taps(student, teacher)), student)
    assert hooks_of(student.module) == hooks_of(teacher.module) == 0
    assert teacher.module.training


class Remembering(nn.Module):
    """A loss with a memory of what it saw, made when it is built."""

    def build(self, student, target, facts, teacher):
        self.register_buffer("mean", torch.zeros(student[0][1]))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, student, target):
        self.mean.lerp_(student.detach().mean(0), 0.1)
        self.seen = self.seen + 1
        return F.mse_loss(student - self.mean, target)


def test_the_memory_of_a_loss_is_empty_when_the_stage_begins():
    teacher, student, loss = tiny_net("teacher", trained=True), tiny_net("student"), Remembering()
    rehearsal = open_teacher(Match(teacher, loss), student)
    rehearsal.close()
    assert rehearsal.problems == []
    assert loss.seen.item() == 0
    assert not loss.mean.any()


def test_a_loss_is_built_with_shapes_facts_and_the_teacher():
    seen = {}

    class Building(nn.Module):
        def build(self, student, target, facts, teacher):
            seen.update(student=student, target=target, facts=facts, teacher=teacher)

        def forward(self, student, target):
            return student[0].sum() + target[0].sum()

    teacher, student = tiny_net("teacher", trained=True, hidden=7), tiny_net("student")
    sides = {
        "student": (Tap(student.module.hidden), Tap(student.module.head)),
        "target": (Tap(teacher.module.hidden),),
    }
    open_teacher(Match(teacher, Building(), **sides), student).close()
    assert seen == {
        "student": ((2, 5), (2, 3)),
        "target": ((2, 7),),
        "facts": replace(FACTS, batch_size=64, tapped=(teacher.module.hidden,)),
        "teacher": teacher.module,
    }


def test_taps_on_changed_tensors_hand_out_copies_after_a_rehearsal():
    teacher, student = tiny_net("teacher", trained=True), tiny_net("student", seed=1)
    sides = {"student": Tap(student.module.act, "input"), "target": Tap(teacher.module.norm)}
    rehearsal = open_teacher(Match(teacher, nn.MSELoss(), **sides), student)
    answers = {"teacher": rehearsal.sessions["teacher"](BATCH)}
    rehearsal.lesson.eval()
    value = rehearsal.lesson(BATCH, answers)["teacher/mse_loss"]
    rehearsal.close()
    student.module.eval()
    teacher.module.eval()
    ours, theirs = (net.module.norm(net.module.hidden(BATCH.inputs)) for net in (student, teacher))
    torch.testing.assert_close(value, F.mse_loss(ours, theirs))


def test_a_rehearsal_sees_the_student_as_it_is_trained_and_leaves_its_statistics():
    student = tiny_net("student")
    student.module.eval()
    modes = []
    student.module.norm.register_forward_pre_hook(lambda module, _args: modes.append(module.training))
    before = state_of(student.module)
    open_teacher(plain_goal(), student).close()
    assert True in modes
    assert torch.equal(student.module.norm.running_mean, before["tensors"]["norm.running_mean"])
    assert state_of(student.module)["modes"] == before["modes"]
