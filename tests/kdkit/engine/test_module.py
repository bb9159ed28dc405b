"""A stage made runnable: what meets what, and what gradients reach."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit import Batch, BuildContext, LinearRamp, Match, Net, RecipeError, Stage, Tap, Training, Truth
from kdkit.engine.module import DistillationModule
from kdkit.losses import Hint, SoftTargets
from kdkit.recipe.objective import as_objective
from kdkit.teachers import Frozen, run_teachers
from tests.helpers.tiny import Mlp, hooks_of, plain_goal, state_of, tiny_net

NAMES = ("a", "b", "c")
FACTS = BuildContext(classes=NAMES, task="multiclass", samples=8, ids=True)
MULTILABEL = BuildContext(classes=NAMES, task="multilabel", samples=8, ids=True)
TRAINING = Training(epochs=1)


def batch(labels=(0, 1, 2, 0)):
    labels = torch.tensor(labels)
    return Batch(torch.randn(len(labels), 4), labels, torch.arange(len(labels)))


def lesson_of(objectives, facts=FACTS):
    return DistillationModule(Stage(objectives, TRAINING), facts)


def answers_of(lesson_stage, given):
    sessions = {source.name: Frozen(source, taps) for source, taps in lesson_stage.teachers.items()}
    answers = run_teachers(sessions, given)
    for each in sessions.values():
        each.close()
    return answers


def test_terms_are_unweighted_and_stand_under_their_labels():
    teacher, student, given = tiny_net("teacher", trained=True), tiny_net("student", seed=1), batch()
    stage = Stage({student: 0.3 * plain_goal() + LinearRamp(end=2) * Match(teacher, SoftTargets())}, TRAINING)
    lesson, answers = DistillationModule(stage, FACTS).eval(), answers_of(stage, given)
    terms = lesson(given, answers)
    assert list(terms) == ["truth", "teacher/soft_targets"]
    torch.testing.assert_close(terms["truth"], F.cross_entropy(student(given), given.labels))
    teacher.module.eval()
    torch.testing.assert_close(terms["teacher/soft_targets"], SoftTargets()(student(given), teacher(given)))
    assert lesson.weights(0.5) == {"truth": 0.3, "teacher/soft_targets": 1.0}


def test_terms_of_several_nets_are_told_apart_by_the_net():
    one, two = tiny_net("one"), tiny_net("two", seed=1)
    terms = lesson_of({one: plain_goal(), two: plain_goal()})(batch(), {})
    assert list(terms) == ["one: truth", "two: truth"]
    assert terms["one: truth"] != terms["two: truth"]


def test_teacher_gets_no_gradient_and_no_other_statistics():
    teacher, student, given = tiny_net("teacher"), tiny_net("student", seed=1), batch()
    teacher.module.train()
    before = state_of(teacher.module)["tensors"]
    hint = Match(teacher, nn.MSELoss(), student=Tap(student.module.hidden), target=Tap(teacher.module.hidden))
    stage = Stage({student: Match(teacher, SoftTargets()) + hint}, TRAINING)
    terms = DistillationModule(stage, FACTS)(given, answers_of(stage, given))
    sum(terms.values()).backward()
    assert all(parameter.grad is None for parameter in teacher.module.parameters())
    assert all(parameter.grad is not None for parameter in student.module.parameters())
    assert all(torch.equal(teacher.module.state_dict()[key], value) for key, value in before.items())
    assert teacher.module.training


def test_a_teacher_gets_the_mode_back_that_each_of_its_parts_had():
    teacher = tiny_net("teacher")
    teacher.module.train()
    teacher.module.norm.eval()
    before = state_of(teacher.module)
    frozen = Frozen(teacher, [Tap(teacher.module.head)])
    assert not any(module.training for module in teacher.module.modules())
    frozen(batch())
    frozen.close()
    assert state_of(teacher.module)["modes"] == before["modes"]
    assert hooks_of(teacher.module) == 0


def test_a_side_of_several_taps_is_a_tuple():
    seen = []

    def several(student, target):
        seen.extend([student, target])
        return student[0].mean()

    teacher, student, given = tiny_net("teacher", trained=True), tiny_net("student"), batch()
    ours, theirs = student.module, teacher.module
    match = Match(teacher, several, student=(Tap(ours.hidden), Tap(ours.head)), target=(Tap(theirs.head),))
    stage = Stage({student: match}, TRAINING)
    DistillationModule(stage, FACTS)(given, answers_of(stage, given))
    assert [tuple(each.shape) for each in seen[0]] == [(4, 5), (4, 3)]
    assert [tuple(each.shape) for each in seen[1]] == [(4, 3)]


def test_a_feature_may_be_matched_to_outputs():
    teacher, student, given = tiny_net("teacher", trained=True), tiny_net("student"), batch()
    stage = Stage({student: Match(teacher, nn.MSELoss(), student=Tap(student.module.head))}, TRAINING)
    lesson = DistillationModule(stage, FACTS).eval()
    teacher.module.eval()
    value = lesson(given, answers_of(stage, given))["teacher/mse_loss"]
    torch.testing.assert_close(value, F.mse_loss(student(given), teacher(given)))


def test_a_loss_is_given_what_it_asks_for():
    seen = {}

    def asking(student, target, *, labels, ids, progress):
        seen.update(labels=labels, ids=ids, progress=progress.item())
        return student.sum()

    given = batch()
    lesson = lesson_of({tiny_net("student"): Truth(asking)})
    lesson.progress.fill_(0.25)
    lesson(given, {})
    assert seen == {"labels": given.labels, "ids": given.ids, "progress": 0.25}


def test_weights_of_losses_are_trained_but_are_no_part_of_the_net():
    teacher, student = tiny_net("teacher", trained=True, hidden=7), tiny_net("student")
    hint = Hint(projector="always")
    hint.build((torch.Size((2, 5)),), (torch.Size((2, 7)),), FACTS, None)
    match = Match(teacher, hint, student=Tap(student.module.hidden), target=Tap(teacher.module.hidden))
    lesson = lesson_of({student: match})
    trained = {id(parameter) for parameter in lesson.parameters()}
    assert {id(parameter) for parameter in hint.parameters()} <= trained
    assert trained.isdisjoint(id(parameter) for parameter in teacher.module.parameters())
    assert len(trained) == len(list(student.module.parameters())) + 2


def test_multilabel_columns_that_a_net_does_not_know_are_left_out():
    student = Net("student", nn.Linear(4, 2), classes=["c", "a"])
    given = Batch(torch.randn(3, 4), torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 0]]))
    value = lesson_of({student: Truth(nn.BCEWithLogitsLoss())}, MULTILABEL)(given, {})["truth"]
    expected = F.binary_cross_entropy_with_logits(student(given), given.labels[:, [2, 0]])
    torch.testing.assert_close(value, expected)


def test_multiclass_rows_that_a_net_does_not_know_are_left_out():
    student = Net("student", nn.Linear(4, 2), classes=["c", "a"])
    given = batch((0, 1, 2, 1))
    value = lesson_of({student: plain_goal()})(given, {})["truth"]
    torch.testing.assert_close(value, F.cross_entropy(student(given)[[0, 2]], torch.tensor([1, 0])))


def test_a_batch_of_unknown_classes_only_teaches_nothing_and_is_finite():
    student = Net("student", nn.Linear(4, 2), classes=["c", "a"])
    value = lesson_of({student: plain_goal()})(batch((1, 1)), {})["truth"]
    value.backward()
    assert value.item() == 0
    assert not student.module.weight.grad.any()


def test_a_teacher_of_other_classes_is_compared_on_the_shared_ones():
    teacher = Net("teacher", nn.Linear(4, 4), classes=["x", "c", "b", "y"], trained=True)
    student, given = Net("student", nn.Linear(4, 3)), batch()
    stage = Stage({student: Match(teacher, SoftTargets())}, TRAINING)
    value = DistillationModule(stage, FACTS)(given, answers_of(stage, given))["teacher/soft_targets"]
    expected = SoftTargets()(student(given)[:, [1, 2]], teacher(given)[:, [2, 1]])
    torch.testing.assert_close(value, expected)


def test_classes_are_of_no_matter_for_features():
    teacher = Net("teacher", Mlp(outputs=2), classes=["x", "y"], trained=True)
    student = tiny_net("student")
    taps = {"student": Tap(student.module.hidden), "target": Tap(teacher.module.hidden)}
    stage = Stage({student: Match(teacher, nn.MSELoss(), **taps)}, TRAINING)
    given = batch()
    assert DistillationModule(stage, FACTS)(given, answers_of(stage, given))["teacher/mse_loss"] > 0


def test_a_lesson_that_cannot_be_made_leaves_no_hook():
    teacher = tiny_net("teacher", trained=True)
    student = tiny_net("student", classes=["x", "y", "z"])
    taps = {"student": Tap(student.module.hidden), "target": Tap(teacher.module.hidden)}
    with pytest.raises(RecipeError, match="share no class"):
        lesson_of({student: Match(teacher, nn.MSELoss(), **taps) + plain_goal()})
    assert hooks_of(student.module) == 0


def test_what_was_heard_of_one_batch_is_not_taken_for_the_next():
    teacher, student = tiny_net("teacher", trained=True), tiny_net("student", seed=1)
    taps = {"student": Tap(student.module.hidden), "target": Tap(teacher.module.hidden)}
    stage = Stage({student: Match(teacher, nn.MSELoss(), **taps)}, TRAINING)
    lesson = DistillationModule(stage, FACTS).eval()
    first, second = batch(), batch()
    lesson(first, answers_of(stage, first))
    value = lesson(second, answers_of(stage, second))["teacher/mse_loss"]
    expected = F.mse_loss(student.module.hidden(second.inputs), teacher.module.hidden(second.inputs))
    torch.testing.assert_close(value, expected)
    lesson.close()
    assert hooks_of(student.module) == 0


def test_a_goal_of_a_single_term_is_a_lesson_too():
    assert list(lesson_of({tiny_net("student"): as_objective(plain_goal())})(batch(), {})) == ["truth"]
