"""Past: the outputs of a net in the epoch before."""

import dataclasses
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from kdkit import Batch, Match, Net, Past, RecipeError, TorchData, Truth, run
from kdkit.errors import CheckError
from kdkit.losses import PSKD, TAID, SoftTargets
from kdkit.teachers import open_teacher
from kdkit.teachers.base import TeacherOutput, TeacherSession
from tests.helpers.open_stages import (
    CONTEXT,
    batch_of,
    hidden_taps,
    only_term,
    open_objectives,
    problems_of,
    term_values,
)
from tests.helpers.tiny import one_stage, plain_goal, samples, tiny_data, tiny_net


def test_a_past_is_the_output_of_the_previous_epoch():
    student = tiny_net("student")
    session = open_teacher(Past(student), (), CONTEXT)
    session.dry_run(batch_of())
    first, second = torch.randn(4, 3), torch.randn(4, 3)
    session.observe(batch_of(3, 2, 1, 0), {"student": first})
    assert not session(batch_of()).mask.any()  # the first epoch has no past
    session.on_epoch_end()
    session.observe(batch_of(), {"student": second})
    past = session(batch_of(0, 5, 3))
    assert past.mask.tolist() == [True, False, True]  # sample 5 was in no batch
    torch.testing.assert_close(past.output[[0, 2]], first[[3, 0]])
    session.on_epoch_end()
    torch.testing.assert_close(session(batch_of()).output, second)


def test_a_sample_that_is_missing_in_an_epoch_keeps_its_older_past():
    session = open_teacher(Past(tiny_net("student")), (), CONTEXT)
    session.dry_run(batch_of())
    outputs = torch.randn(4, 3)
    session.observe(batch_of(), {"student": outputs})
    session.on_epoch_end()
    session.observe(batch_of(0), {"student": torch.zeros(1, 3)})
    session.on_epoch_end()
    past = session(batch_of())
    assert past.mask.all()
    torch.testing.assert_close(past.output, torch.cat([torch.zeros(1, 3), outputs[1:]]))


def test_a_sample_without_a_past_learns_from_its_label_only():
    student, batch = tiny_net("student"), batch_of()
    with open_objectives({student: Match(Past(student), PSKD(alpha=0.6))}) as open_stage:
        open_stage.module.eval().progress.fill_(0.5)
        (value,) = term_values(open_stage, batch).values()
        gradient = torch.autograd.grad(value, student.module.head.weight)[0]
        plain = F.cross_entropy(student(batch), batch.labels)
        # The weight of the past grows to alpha linearly, 0.3 at half the stage, and the label has the rest.
        expected = 0.7 * torch.autograd.grad(plain, student.module.head.weight)[0]
        torch.testing.assert_close(gradient, expected)


def test_a_loss_on_a_missing_past_has_no_gradient():
    student = tiny_net("student")
    objective = plain_goal() + Match(Past(student), SoftTargets())
    with open_objectives({student: objective}) as open_stage:
        value = term_values(open_stage, batch_of())["past of student/soft_targets"]
        assert value.item() == pytest.approx(0, abs=1e-6)
        value.backward()
        gradients = [parameter.grad for parameter in student.module.parameters()]
        assert all(gradient is None or gradient.abs().max() < 1e-6 for gradient in gradients)


class HalfPast(NamedTuple):
    """A teacher whose outputs are 1/3, for samples 0 and 1 of a batch only."""

    name: str = "half"

    def open(self, taps, context):
        return HalfPastSession()


class HalfPastSession(TeacherSession):
    def __call__(self, batch):
        return TeacherOutput(torch.full((len(batch), 3), 1 / 3), mask=torch.arange(len(batch)) < 2)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_samples_without_an_output_of_the_teacher_add_nothing(reduction):
    student, batch = tiny_net("student"), batch_of()
    value = only_term({student: Match(HalfPast(), nn.MSELoss(reduction=reduction))}, batch)
    errors = (student(batch)[:2] - 1 / 3).square().sum()
    torch.testing.assert_close(value, errors if reduction == "sum" else errors / (4 * 3))


def test_past_probabilities_leave_out_samples_without_a_past():
    student, batch = tiny_net("student"), batch_of()
    with open_objectives({student: Match(HalfPast(), PSKD(alpha=0.6, past="probabilities"))}, batch) as open_stage:
        open_stage.module.eval().progress.fill_(0.5)
        (value,) = term_values(open_stage, batch).values()
        labels = 0.7 * F.one_hot(batch.labels[:2], 3) + 0.1
        torch.testing.assert_close(value, F.cross_entropy(student(batch)[:2], labels) / 2)


@pytest.mark.parametrize("weights", [None, torch.ones(4)], ids=["no weights", "weights"])
@pytest.mark.parametrize("loss", [TAID(), SoftTargets()], ids=["with a state", "without"])
def test_a_first_epoch_of_positions_has_no_loss(loss, weights):
    student, context = Net("student", nn.Conv1d(4, 3, 1)), dataclasses.replace(CONTEXT, position_dims=1)
    batch = Batch(torch.randn(4, 4, 5), torch.zeros(4, 5, dtype=torch.int64), torch.arange(4), weights=weights)
    with open_objectives({student: Match(Past(student), loss)}, batch, context) as open_stage:
        assert [value.item() for value in term_values(open_stage, batch).values()] == [0]


def test_a_run_with_a_past_learns_from_the_epoch_before():
    outputs, targets = [], []

    def record_outputs(student, labels):
        outputs.append(student.detach().clone())
        return F.cross_entropy(student, labels)

    def record_target(student, target):
        targets.append(target.clone())
        return (student - target).square().mean()

    student = tiny_net("student")
    objective = Truth(record_outputs) + Match(Past(student), record_target)
    data = tiny_data()
    result = run(one_stage(student, objective, data, epochs=2, batch_size=8), device="cpu")
    values = [epoch["terms"]["past of student/record_target"] for epoch in result.history["student"]]
    assert values[0] == 0 < values[1]
    # The check and the dry run of the stage come first, then there is one batch per epoch.
    first, second = outputs[-2:]
    assert not torch.equal(targets[-1], second)
    # Epochs have different orders, so the rows are compared without order.
    assert sorted(map(tuple, targets[-1].tolist())) == sorted(map(tuple, first.tolist()))


def test_a_past_needs_sample_ids():
    student = tiny_net("student")
    loader = DataLoader(samples(), batch_size=4)
    data = TorchData(loader, samples(rows=6), classes=["a", "b", "c"])
    problems = problems_of(student, plain_goal() + Match(Past(student), SoftTargets()), data)
    assert any("'past of student' needs sample ids" in problem for problem in problems)


def test_a_past_that_does_not_fit_into_memory_is_refused_before_the_first_step():
    student = tiny_net("student")
    # The limit is in MB, and the two tables take 2 * 8 * 3 * 4 bytes.
    objective = plain_goal() + Match(Past(student, memory_limit=1e-5), SoftTargets())
    with pytest.raises(CheckError, match="'past of student' for 8 samples of 3 outputs would take"):
        run(one_stage(student, objective), device="cpu")


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), "8", True])
def test_the_memory_limit_of_a_past_must_be_above_zero(limit):
    with pytest.raises(RecipeError, match=r"memory_limit (is|must be) a finite number above 0"):
        Past(tiny_net("student"), memory_limit=limit)


def test_a_past_has_no_features():
    student = tiny_net("student")
    objective = plain_goal() + Match(Past(student), nn.MSELoss(), **hidden_taps(student, student))
    assert any(
        "'past of student' has no features, only outputs" in problem for problem in problems_of(student, objective)
    )
