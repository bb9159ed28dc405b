"""Teachers: several frozen networks together, each with a weight."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdkit import Batch, BuildContext, Match, Net, Recipe, RecipeError, Stage, Tap, Teachers, check
from kdkit.engine.check.dry_run import dry_run
from kdkit.engine.stage.open_stage import OpenStage
from kdkit.losses import (
    CC,
    CKA,
    CRD,
    DKD,
    NKD,
    OFD,
    RKD,
    SRRL,
    GeneralisedJSD,
    HardTargets,
    Hint,
    LogitStandardisation,
    PerLabelSoftTargets,
    PerPosition,
    PerTeacher,
    SoftTargets,
)
from kdkit.losses.multi_teacher import teacher_confidence
from tests.helpers.losses import build_loss
from tests.helpers.open_stages import CONTEXT, TRAINING, batch_of, only_term, open_objectives, problems_of, term_values
from tests.helpers.tiny import plain_goal, tiny_data, tiny_net


def two_teachers(**options):
    """Return two trained teachers in eval mode, with hidden layers of 5 and 7 features."""
    first = tiny_net("first", seed=1, trained=True, **options)
    second = tiny_net("second", seed=2, hidden=7, trained=True, **options)
    for net in (first, second):
        net.module.eval()
    return first, second


def test_several_teachers_are_matched_with_constant_weights():
    (first, second), student, batch = two_teachers(), tiny_net("student"), batch_of()
    match = Match(Teachers(first, second), PerTeacher(SoftTargets(), weights=(0.6, 0.4)))
    value = only_term({student: match}, batch)
    student.module.eval()
    soft, output = SoftTargets(), student(batch)
    torch.testing.assert_close(value, 0.6 * soft(output, first(batch)) + 0.4 * soft(output, second(batch)))


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_confidence_weights_teachers_by_their_cross_entropy_per_sample(task):
    (first, second), student, batch = two_teachers(), tiny_net("student"), batch_of()
    loss = SoftTargets() if task == "multiclass" else PerLabelSoftTargets()
    context = BuildContext(classes=CONTEXT.classes, task=task, samples=8, ids=True)
    if task == "multilabel":
        batch = Batch(batch.inputs, F.one_hot(batch.labels, 3).float(), batch.ids)
    match = Match(Teachers(first, second), PerTeacher(loss, weights="confidence"))
    value = only_term({student: match}, batch, context)
    student.module.eval()
    expected = 0.0
    cross_entropy = F.cross_entropy if task == "multiclass" else F.binary_cross_entropy_with_logits
    for row in range(4):
        sample = Batch(batch.inputs[row : row + 1], batch.labels[row : row + 1])
        errors = torch.stack([cross_entropy(net(sample), sample.labels) for net in (first, second)])
        # 1 - softmax, divided by the number of teachers less one, which is 1 here.
        weights = 1 - errors.exp() / errors.exp().sum()
        expected += sum(
            weight * loss(student(sample), net(sample)) for weight, net in zip(weights, (first, second), strict=True)
        )
    torch.testing.assert_close(value, expected / 4)


def test_confidence_weights_sum_to_one_and_are_larger_for_a_better_teacher():
    labels = torch.tensor([0, 1])
    right = F.one_hot(labels, 3) * 10.0
    weights = teacher_confidence((right, -right, torch.zeros(2, 3)), labels)  # right, wrong, undecided
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert (weights[:, 0] > weights[:, 2]).all()
    assert (weights[:, 2] > weights[:, 1]).all()


def test_teachers_that_mask_the_label_have_the_least_confidence():
    masks = torch.tensor([[-torch.inf, 0.0, 0.0]])
    weights = teacher_confidence((masks, torch.zeros(1, 3), masks), torch.tensor([0]))
    torch.testing.assert_close(weights, torch.tensor([[0.25, 0.5, 0.25]]))  # two teachers have the largest error
    weights = teacher_confidence((masks, torch.zeros(1, 3)), torch.tensor([0]))
    torch.testing.assert_close(weights, torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("weights", ["equal", "confidence", "learned"])
def test_features_of_several_teachers_have_a_projector_for_each(weights):
    first, second = two_teachers()
    student = tiny_net("student")
    taps = {"student": Tap(student.module.hidden), "target": (Tap(first.module.hidden), Tap(second.module.hidden))}
    loss = PerTeacher(Hint(projector="always"), weights=weights)
    stage = Stage({student: Match(Teachers(first, second), loss, **taps)}, TRAINING)
    with OpenStage(stage, CONTEXT, torch.device("cpu")) as open_stage:
        report = dry_run(open_stage, batch_of())
        assert report.problems == []
        (summary,) = report.terms
        log_variances = 2 if weights == "learned" else 0
        assert summary.parameters == 5 * 5 + 5 + 5 * 7 + 7 + log_variances
        (value,) = term_values(open_stage, batch_of()).values()
        value.backward()
        assert student.module.hidden.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("make", [RKD, CKA, CC, SRRL, lambda: OFD(margin=-1.0), lambda: CRD(negatives=4)])
def test_confidence_is_refused_for_a_loss_that_relates_samples(make):
    (first, second), student = two_teachers(), tiny_net("student")
    taps = {
        "student": Tap(student.module.hidden),
        "target": tuple(Tap(net.module.hidden) for net in (first, second)),
    }
    objective = plain_goal() + Match(Teachers(first, second), PerTeacher(make(), weights="confidence"), **taps)
    (problem,) = problems_of(student, objective)
    assert f"in {type(make()).__name__} the samples of a batch depend on each other" in problem


@pytest.mark.parametrize("make", [DKD, NKD, LogitStandardisation, HardTargets, lambda: nn.MSELoss(), GeneralisedJSD])
def test_confidence_is_allowed_for_a_loss_that_is_a_mean_over_samples(make):
    (first, second), student = two_teachers(), tiny_net("student")
    objective = plain_goal() + Match(Teachers(first, second), PerTeacher(make(), weights="confidence"))
    assert not problems_of(student, objective)


def test_confidence_is_refused_for_several_layers_of_one_teacher():
    teacher, student = tiny_net("teacher", trained=True), tiny_net("student")
    taps = {
        side: (Tap(net.module.hidden), Tap(net.module.head))
        for side, net in (("student", student), ("target", teacher))
    }
    objective = plain_goal() + Match(teacher, PerTeacher(Hint(), weights="confidence"), **taps)
    (problem,) = problems_of(student, objective)
    assert "weights='confidence' weighs several Teachers; got one teacher" in problem


def test_confidence_is_refused_for_regression():
    (first, second), student = two_teachers(), tiny_net("student")
    objective = Match(Teachers(first, second), PerTeacher(nn.MSELoss(), weights="confidence"))
    (problem,) = problems_of(student, objective, tiny_data("regression"))
    assert "the task of this data is regression; use weights='equal', 'learned' or a number per teacher" in problem


def test_learned_weights_converge_to_the_size_of_each_loss():
    (first, second), student, batch = two_teachers(), tiny_net("student"), batch_of()
    loss = PerTeacher(SoftTargets(), weights="learned")
    with open_objectives({student: Match(Teachers(first, second), loss)}) as open_stage:
        open_stage.module.eval()
        optimizer = torch.optim.SGD([loss.log_variances], lr=0.5)
        for _ in range(300):
            optimizer.zero_grad()
            next(iter(term_values(open_stage, batch).values())).backward()
            optimizer.step()
    student.module.eval()
    losses = torch.stack([SoftTargets()(student(batch), net(batch)) for net in (first, second)])
    # exp(-v) * loss + v / 2 is smallest at v = log(2 * loss).
    torch.testing.assert_close(loss.log_variances.detach(), (2 * losses).log().detach(), rtol=1e-3, atol=1e-3)


def test_labels_that_a_loss_does_not_need_may_be_left_out():
    student, *targets = torch.randn(3, 4, 3, 5).unbind()
    loss = PerPosition(SoftTargets())
    several = build_loss(PerTeacher(loss), student, tuple(targets))
    expected = (loss(student, targets[0]) + loss(student, targets[1])) / 2
    torch.testing.assert_close(several(student, tuple(targets)), expected)


def test_every_teacher_gets_the_inputs_of_its_view():
    class FirstTwoFeatures:
        key = "the first two features"

        def __call__(self, batch):
            return (batch.inputs[:, :2],), {}

    torch.manual_seed(0)
    narrow = Net("narrow", nn.Linear(2, 3), view=FirstTwoFeatures(), trained=True)
    wide, student, batch = Net("wide", nn.Linear(4, 3), trained=True), tiny_net("student"), batch_of()
    match = Match(Teachers(narrow, wide), PerTeacher(SoftTargets(), weights=(0.5, 0.5)))
    value = only_term({student: match}, batch)
    student.module.eval()
    output = student(batch)
    expected = (
        SoftTargets()(output, narrow.module(batch.inputs[:, :2])) + SoftTargets()(output, wide.module(batch.inputs))
    ) / 2
    torch.testing.assert_close(value, expected)


def test_several_teachers_are_compared_on_the_classes_that_all_share():
    first = Net("first", nn.Linear(4, 3), classes=["c", "b", "x"], trained=True)
    second, student, batch = Net("second", nn.Linear(4, 3), trained=True), tiny_net("student"), batch_of()
    value = only_term({student: Match(Teachers(first, second), PerTeacher(SoftTargets()))}, batch)
    student.module.eval()
    output = student(batch)[:, [1, 2]]  # b, c
    expected = SoftTargets()(output, first(batch)[:, [1, 0]]) + SoftTargets()(output, second(batch)[:, [1, 2]])
    torch.testing.assert_close(value, expected / 2)


def test_an_unknown_weighting_of_teachers_is_refused():
    with pytest.raises(
        RecipeError, match="weights are a number per teacher, or one of equal, confidence, learned; got"
    ):
        PerTeacher(SoftTargets(), weights="best")


@pytest.mark.parametrize("weights", [(0.5, 0.6), (1.5, -0.5), (), 0.5, (float("nan"), 1.0)])
def test_invalid_weights_of_teachers_are_refused(weights):
    with pytest.raises(RecipeError, match="the weights of teachers are at least 0 and sum to 1; got"):
        PerTeacher(SoftTargets(), weights=weights)


def test_teachers_needs_at_least_two_different_nets():
    first, second = two_teachers()
    for members, names in (((), "none"), ((first,), "first"), ((first, first), "first, first")):
        with pytest.raises(RecipeError, match=rf"Teachers\(\.\.\.\) takes at least two different nets; got {names}"):
            Teachers(*members)
    assert Teachers(first, second) == Teachers(first, second)
    assert Teachers(first, second).name == "first and second"


def test_a_net_that_is_trained_in_the_stage_cannot_be_one_of_the_teachers():
    student, peer, teacher = tiny_net("student"), tiny_net("peer"), tiny_net("teacher", trained=True)
    objectives = {student: plain_goal() + Match(Teachers(teacher, peer), PerTeacher(SoftTargets())), peer: plain_goal()}
    (problem,) = check(Recipe(data=tiny_data(), schedule=[Stage(objectives, TRAINING)])).problems
    assert "net 'peer' is trained in this stage, so it cannot be one of the frozen Teachers(...)" in problem


def test_the_target_of_several_teachers_is_a_tap_on_each():
    (first, second), student = two_teachers(), tiny_net("student")
    taps = {"student": Tap(student.module.hidden), "target": (Tap(second.module.hidden), Tap(first.module.hidden))}
    problems = problems_of(student, Match(Teachers(first, second), PerTeacher(Hint()), **taps))
    assert sum("is not a part of net" in problem for problem in problems) == 2  # the taps are in the wrong order
    taps["target"] = (Tap(first.module.hidden),)
    problems = problems_of(student, Match(Teachers(first, second), PerTeacher(Hint()), **taps))
    message = "Teachers(...) of 2 nets takes a tuple of 2 taps as target, one on each net; got 1"
    assert any(message in problem for problem in problems)


def test_a_loss_for_one_teacher_and_a_loss_for_several_are_not_confused():
    (first, second), student = two_teachers(), tiny_net("student")
    (problem,) = problems_of(student, Match(Teachers(first, second), SoftTargets()))
    assert "Teachers(...) returns a tuple, and PerTeacher(loss) applies a loss to each element" in problem
    problems = problems_of(student, Match(first, PerTeacher(SoftTargets())))
    assert any("Match(Teachers(first, second), PerTeacher(...))" in problem for problem in problems)


def test_an_untrained_member_of_several_teachers_is_a_problem():
    first, second = tiny_net("first", trained=True), tiny_net("second")
    problems = problems_of(tiny_net("student"), Match(Teachers(first, second), PerTeacher(SoftTargets())))
    message = "net 'second' teaches, but it is not trained in an earlier stage"
    assert any(message in problem for problem in problems)
